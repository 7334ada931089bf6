//! Hostile HTTP/2: each attack is cut off or bounded, others are served meanwhile, and nothing of it stays.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use activity_proto::audit::v1::RecordEventsRequest;
use activity_proto::audit::v1::audit_ingest_service_client::AuditIngestServiceClient;
use activity_proto::usage::v1::RecordUsageRequest;
use activity_proto::usage::v1::usage_ingest_service_client::UsageIngestServiceClient;
use e2e::wire::{
    ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, FrameReader, HEADERS, INITIAL_WINDOW_SIZE, PING, PRIORITY,
    PUSH_PROMISE, RST_STREAM, SETTINGS, WINDOW_UPDATE, Wire, call, connect, frame, header, message, remembered_header,
    setting,
};
use e2e::{Engine, Sandbox, Service, events};
use testkit::{eventually, rss_bytes};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinHandle;
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(20);
/// For an attacker that reads nothing: how long its writes may be held up before it gives up.
const HELD: Duration = Duration::from_secs(1);
const MIB: u64 = 1 << 20;
const ATTACKER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

/// Error codes of HTTP/2 (RFC 9113, 7).
const PROTOCOL_ERROR: u32 = 1;
const FLOW_CONTROL_ERROR: u32 = 3;
const FRAME_SIZE_ERROR: u32 = 6;
const ENHANCE_YOUR_CALM: u32 = 11;

/// What becomes of the attacker's connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// GOAWAY with this code, and closed. A reset may overtake the GOAWAY; then it is only closed.
    CutOff(u32),
    /// The attack costs the server nothing that counts; the connection goes on and is answered.
    Lives,
    /// Either, as the server is quick or slow to read: what waits unread is bounded.
    CutOffOrLives,
    /// The server reads no further while the attacker takes no answers.
    Held,
}

/// Bytes to send, made of the number of the round and a path that is served.
type Bytes = fn(u32, &str) -> Vec<u8>;

struct Attack {
    name: &'static str,
    begins: Bytes,
    round: Bytes,
    rounds: u32,
    fate: Fate,
}

/// Opens the `n`th stream; its request goes on.
fn open(n: u32, path: &str) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, 2 * n + 1, &call(path))
}

fn nothing(_: u32, _: &str) -> Vec<u8> {
    Vec::new()
}

fn attacks() -> Vec<Attack> {
    use Fate::{CutOff, CutOffOrLives, Held, Lives};
    let attack = |name, begins, round, rounds, fate| Attack { name, begins, round, rounds, fate };
    vec![
        attack(
            "rapid reset: streams reset before they are accepted",
            nothing,
            |n, path| {
                let pairs = (100 * n..100 * n + 100)
                    .map(|n| [open(n, path), frame(RST_STREAM, 0, 2 * n + 1, &8_u32.to_be_bytes())].concat());
                pairs.collect::<Vec<_>>().concat()
            },
            200,
            CutOff(ENHANCE_YOUR_CALM),
        ),
        attack(
            "stream flood: streams beyond the number that was agreed",
            nothing,
            |n, path| (100 * n..100 * n + 100).map(|n| open(n, path)).collect::<Vec<_>>().concat(),
            200,
            CutOff(ENHANCE_YOUR_CALM),
        ),
        attack(
            "made you reset: requests longer than they said, so that the server must reset them",
            nothing,
            |n, path| {
                let mut headers = call(path);
                header(&mut headers, "content-length", "1");
                let stream = 2 * n + 1;
                [frame(HEADERS, END_HEADERS, stream, &headers), frame(DATA, 0, stream, b"more than one")].concat()
            },
            5_000,
            CutOff(ENHANCE_YOUR_CALM),
        ),
        attack(
            "made you reset: windows that overflow",
            nothing,
            |n, path| {
                let grow = frame(WINDOW_UPDATE, 0, 2 * n + 1, &0x7fff_ffff_u32.to_be_bytes());
                [open(n, path), grow].concat()
            },
            5_000,
            CutOff(ENHANCE_YOUR_CALM),
        ),
        attack(
            "CONTINUATION flood: headers that never end",
            |_, path| frame(HEADERS, 0, 1, &call(path)),
            |n, _| {
                let mut more = Vec::new();
                header(&mut more, &format!("x-{n}"), &"y".repeat(8_000));
                frame(CONTINUATION, 0, 1, &more)
            },
            1_000,
            CutOff(ENHANCE_YOUR_CALM),
        ),
        attack(
            "CONTINUATION flood: frames with nothing in them",
            |_, path| frame(HEADERS, 0, 1, &call(path)),
            |_, _| frame(CONTINUATION, 0, 1, &[]).repeat(100),
            1_000,
            CutOff(ENHANCE_YOUR_CALM),
        ),
        attack(
            "HPACK bomb: a byte that stands for four thousand",
            nothing,
            |n, path| {
                let mut headers = call(path);
                remembered_header(&mut headers, "x-bomb", &"y".repeat(4_000));
                headers.extend([0x80 | 62].repeat(10_000));
                frame(HEADERS, END_HEADERS | END_STREAM, 2 * n + 1, &headers)
            },
            100,
            CutOff(ENHANCE_YOUR_CALM),
        ),
        attack(
            "header bomb: lists far beyond what is taken",
            nothing,
            |n, path| {
                let mut headers = call(path);
                (0..15).for_each(|n| header(&mut headers, &format!("x-{n}"), &"y".repeat(1_000)));
                let mut more = Vec::new();
                (0..15).for_each(|n| header(&mut more, &format!("x-{n}"), &"y".repeat(1_000)));
                let last = frame(CONTINUATION, END_HEADERS, 2 * n + 1, &more);
                let between = frame(CONTINUATION, 0, 2 * n + 1, &more);
                [frame(HEADERS, END_STREAM, 2 * n + 1, &headers), between.repeat(4), last].concat()
            },
            100,
            // Each is told that its header fields are too large; none of them is kept.
            Lives,
        ),
        attack(
            "header bomb: lists somewhat beyond what is taken",
            nothing,
            |n, path| {
                let mut headers = call(path);
                (0..16).for_each(|n| header(&mut headers, &format!("x-{n}"), &"y".repeat(990)));
                let mut more = Vec::new();
                (0..4).for_each(|n| header(&mut more, &format!("x-{n}"), &"y".repeat(990)));
                let last = frame(CONTINUATION, END_HEADERS, 2 * n + 1, &more);
                [frame(HEADERS, END_STREAM, 2 * n + 1, &headers), last].concat()
            },
            500,
            Lives,
        ),
        attack(
            "headers that are no HPACK",
            nothing,
            |n, _| frame(HEADERS, END_HEADERS, 2 * n + 1, &[0xff; 64]),
            1,
            CutOff(PROTOCOL_ERROR),
        ),
        attack("empty DATA frames", open, |_, _| frame(DATA, 0, 1, &[]).repeat(100), 1_000, CutOff(ENHANCE_YOUR_CALM)),
        attack(
            "a message sent byte by byte",
            |n, path| [open(n, path), frame(DATA, 0, 1, &message(&[0; 4_000_000])[..5])].concat(),
            |_, _| frame(DATA, 0, 1, &[0]).repeat(10),
            1_000,
            CutOffOrLives,
        ),
        attack("PING flood", nothing, |_, _| frame(PING, 0, 0, &[7; 8]).repeat(100), 1_000, Lives),
        attack("SETTINGS flood", nothing, |_, _| frame(SETTINGS, 0, 0, &[]).repeat(100), 1_000, Lives),
        attack(
            "PRIORITY flood",
            nothing,
            |n, _| frame(PRIORITY, 0, 2 * n + 1, &[0, 0, 0, 0, 9]).repeat(50),
            1_000,
            Lives,
        ),
        attack("frames of no known kind", nothing, |_, _| frame(0xfe, 0xff, 0, &[9; 1_000]).repeat(10), 1_000, Lives),
        attack(
            "acknowledgements of nothing",
            nothing,
            |_, _| [frame(PING, ACK, 0, &[9; 8]), frame(RST_STREAM, 0, 1, &[0, 0, 0, 8])].concat(),
            1,
            CutOff(PROTOCOL_ERROR),
        ),
        attack(
            "windows that grow and grow",
            nothing,
            |_, _| frame(WINDOW_UPDATE, 0, 0, &0x7fff_ffff_u32.to_be_bytes()),
            2,
            CutOff(FLOW_CONTROL_ERROR),
        ),
        attack(
            "a frame of 16 MiB",
            nothing,
            |_, _| [&[0xff, 0xff, 0xff, DATA, 0, 0, 0, 0, 1][..], &[0; 100_000]].concat(),
            10,
            CutOff(FRAME_SIZE_ERROR),
        ),
        attack(
            "a promise of a client",
            open,
            |_, _| frame(PUSH_PROMISE, END_HEADERS, 1, &[0, 0, 0, 2]),
            1,
            CutOff(PROTOCOL_ERROR),
        ),
        attack(
            "a stream with a server's number",
            nothing,
            |_, path| frame(HEADERS, END_HEADERS, 2, &call(path)),
            1,
            CutOff(PROTOCOL_ERROR),
        ),
        attack(
            "PING flood whose answers are not read",
            nothing,
            |_, _| frame(PING, 0, 0, &[7; 8]).repeat(1_000),
            5_000,
            Held,
        ),
        attack(
            "SETTINGS flood whose answers are not read",
            nothing,
            |_, _| frame(SETTINGS, 0, 0, &[]).repeat(1_000),
            5_000,
            Held,
        ),
    ]
}

/// Attacks, and tells what became of the connection.
async fn fate_of(attack: &Attack, server: &str, path: &str) -> Result<Fate, String> {
    let mut wire = Wire::open(server, ATTACKER).await.map_err(|why| why.to_string())?;
    if attack.fate == Fate::Held {
        for n in 0..attack.rounds {
            match timeout(HELD, wire.send(&(attack.round)(n, path))).await {
                Ok(Ok(())) => {}
                Ok(Err(why)) => return Err(why.to_string()),
                Err(_held_up) => return Ok(Fate::Held),
            }
        }
        return Err("all of it was read".to_owned());
    }
    let Wire { mut reader, mut writer } = wire;
    let writing = async {
        writer.write_all(&(attack.begins)(0, path)).await?;
        for n in 0..attack.rounds {
            writer.write_all(&(attack.round)(n, path)).await?;
        }
        writer.write_all(&frame(PING, 0, 0, b"alive???")).await
    };
    let (fate, _) = tokio::join!(timeout(PATIENCE, ending(&mut reader)), async {
        // What is written behind a GOAWAY is lost, and may be refused.
        timeout(PATIENCE, writing).await
    });
    fate.map_err(|_| "neither cut off nor answered".to_owned())
}

/// Reads until GOAWAY, the end, or the answer to the last ping.
async fn ending(reader: &mut FrameReader) -> Fate {
    loop {
        match reader.next().await {
            Ok(frame) if frame.go_away().is_some() => return Fate::CutOff(frame.go_away().unwrap()),
            Ok(frame) if frame.kind == PING && frame.payload == b"alive???" => return Fate::Lives,
            Ok(_) => {}
            Err(_closed) => return Fate::CutOff(0),
        }
    }
}

/// One that behaves: records an event after the other until it is stopped, each acknowledged in time.
struct Writer {
    acknowledged: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Writer {
    fn start(sandbox: &Sandbox) -> Self {
        let acknowledged = Arc::<AtomicU64>::default();
        let count = acknowledged.clone();
        let mut audit = AuditIngestServiceClient::new(sandbox.audit.channel());
        let mut usage = UsageIngestServiceClient::new(sandbox.usage.channel());
        let now = SystemTime::now();
        let task = tokio::spawn(async move {
            for n in 0.. {
                let entry = audit
                    .record_events(RecordEventsRequest { events: vec![events::audit(now, n)], ..Default::default() });
                let answer = timeout(PATIENCE, entry).await.expect("audit in time").unwrap().into_inner();
                assert_eq!(answer.accepted, Some(1));
                let request = usage.record_usage(RecordUsageRequest { events: vec![events::usage(now, n)] });
                let answer = timeout(PATIENCE, request).await.expect("usage in time").unwrap().into_inner();
                assert_eq!(answer.accepted, Some(1));
                count.fetch_add(1, Ordering::SeqCst);
            }
        });
        Self { acknowledged, task }
    }

    fn so_far(&self) -> u64 {
        self.acknowledged.load(Ordering::SeqCst)
    }

    /// Waits for one write that began after now.
    async fn is_served(&self) {
        let now = self.so_far();
        eventually(PATIENCE, async || {
            assert!(!self.task.is_finished(), "the writer was refused");
            self.so_far() >= now + 2
        })
        .await;
    }
}

/// Nothing is open on a server but this many connections.
async fn left_open(service: &Service, connections: f64) {
    eventually(PATIENCE, async || {
        let open = service.metric("activity_connections").await;
        let calls = service.metric("activity_rpc_in_progress").await;
        if open <= connections && calls <= 1.0 { Ok(()) } else { Err(format!("{open} connections, {calls} calls")) }
    })
    .await;
}

#[tokio::test]
async fn floods_are_cut_off_or_bounded_and_others_are_served_meanwhile() {
    let sandbox = Sandbox::start(Engine::Sqlite).await;
    let writer = Writer::start(&sandbox);
    writer.is_served().await;
    let services = [
        (&sandbox.audit, "/activity.audit.v1.AuditIngestService/StreamEvents"),
        (&sandbox.usage, "/activity.usage.v1.UsageIngestService/RecordUsage"),
    ];
    let mut failures = Vec::new();
    for (service, path) in services {
        let before = rss_bytes(service.process().pid());
        let mut highest = before;
        for attack in attacks() {
            let was = writer.so_far();
            let fate = fate_of(&attack, service.address(), path).await;
            highest = highest.max(rss_bytes(service.process().pid()));
            let as_expected = match (attack.fate, &fate) {
                (Fate::CutOff(code), Ok(Fate::CutOff(told))) => *told == code || *told == 0,
                (Fate::CutOffOrLives, Ok(fate)) => *fate != Fate::Held,
                (expected, Ok(fate)) => expected == *fate,
                (_, Err(_)) => false,
            };
            if !as_expected {
                failures.push(format!("{path}: {}: {fate:?}, not {:?}", attack.name, attack.fate));
            }
            writer.is_served().await;
            eprintln!("{}: {fate:?}, {} writes acknowledged", attack.name, writer.so_far() - was);
        }
        left_open(service, 1.0).await;
        eprintln!("{path}: {} MiB before, {} MiB at most", before / MIB, highest / MIB);
        assert!(highest < before + 64 * MIB, "{} MiB, then {} MiB", before / MIB, highest / MIB);
    }
    assert!(failures.is_empty(), "{failures:#?}");
    writer.task.abort();
}

/// Not HTTP/2 at all: closed at once or at the end of the hand-shake's time.
#[tokio::test]
async fn what_is_not_http_2_is_closed() {
    let sandbox = Sandbox::start_with(Engine::Sqlite, &[("SERVER__HANDSHAKE_TIMEOUT_MS", "1000")]).await;
    let writer = Writer::start(&sandbox);
    let beginnings: [&[u8]; 5] = [
        b"",
        b"PRI * HTTP/2.0\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        // A TLS ClientHello begins so.
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        &[0; 100_000],
    ];
    for beginning in beginnings {
        let mut socket = connect(sandbox.audit.address(), ATTACKER).await.unwrap();
        // It may be closed before all is written.
        let _ = socket.write_all(beginning).await;
        let closed = timeout(PATIENCE, socket.read_to_end(&mut Vec::new())).await;
        assert!(closed.is_ok(), "{beginning:?} is still open");
        writer.is_served().await;
    }
    writer.task.abort();
}

/// A client that opens calls and takes no byte of any answer: without a time-out it would hold every place for ever.
#[tokio::test]
async fn answers_that_nobody_takes_give_their_places_back() {
    let settings = [
        ("SERVER__CALL_TIMEOUT_MS", "1000"),
        ("SERVER__STALLED_STREAM_MS", "1000"),
        ("SERVER__MAX_CALLS", "40"),
        ("SERVER__MAX_STREAMS", "40"),
    ];
    let sandbox = Sandbox::start_with(Engine::Sqlite, &settings).await;
    let now = SystemTime::now();
    let mut client = AuditIngestServiceClient::new(sandbox.audit.channel());
    let events = (0..50).map(|n| events::audit(now, n)).collect();
    client.record_events(RecordEventsRequest { events, ..Default::default() }).await.unwrap();

    for path in [
        "/activity.audit.v1.AuditQueryService/ListEntries",
        "/activity.audit.v1.AuditQueryService/TailEntries",
        "/activity.audit.v1.AuditIngestService/RecordEvents",
    ] {
        // TailEntriesRequest.instance_id; the others take it for a message with a field they don't know, or an empty one.
        let request = if path.ends_with("TailEntries") { b"\x0a\x04eu-1".to_vec() } else { Vec::new() };
        let mut wire =
            Wire::open_with(sandbox.audit.address(), ATTACKER, &setting(INITIAL_WINDOW_SIZE, 0)).await.unwrap();
        for n in 0..40 {
            let bytes = [open(n, path), frame(DATA, END_STREAM, 2 * n + 1, &message(&request))].concat();
            wire.send(&bytes).await.unwrap();
        }
        // All have been answered, as far as they can be.
        let mut begun = 0;
        while begun < 40 {
            let next = timeout(PATIENCE, wire.reader.next()).await.expect("answered").unwrap();
            assert_ne!(next.kind, DATA, "there is no window for it");
            begun += usize::from(next.kind == HEADERS);
        }
        eventually(PATIENCE, async || {
            let open = sandbox.audit.metric("activity_rpc_in_progress").await;
            if open == 0.0 { Ok(()) } else { Err(open) }
        })
        .await;
    }
    client
        .record_events(RecordEventsRequest { events: vec![events::audit(now, 99)], ..Default::default() })
        .await
        .unwrap();
}
