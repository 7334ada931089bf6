//! The soak: both services behind TLS, for ten minutes with `FULL=1`: writers and readers whose connections are cut at
//! random, exports that are resumed, readers that stop and vanish, hand-shakes that are never finished. At the end
//! everything that was acknowledged is there once, and nothing has grown.
//!
//! Flat is judged in two ways. Of memory: the median of the last quarter is at most that of the second by a tenth and
//! 16 MiB (the first quarter fills caches and pools). Of files and sockets: once everybody has left, the process holds
//! what it held when everybody had left for the first time, after a short run of the same, to within two.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use e2e::{Engine, Service, sandbox};
use futures::{StreamExt as _, TryStreamExt as _};
use gateway_sdk::{
    Actor, AuditEvent, AuditExport, AuditQuery, Builder, Credentials, Dimension, Error, ExportFormat, GatewaySdk,
    Grouping, Resource, TailQuery, TimeRange, Tls, Token, Tokens, UsageEvent, UsageFilter, UsageQuery, UsageShape,
};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde_json::json;
use tempfile::TempDir;
use testkit::{Realm, eventually, open_files, rss_bytes};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(60);
const MIB: u64 = 1 << 20;
/// Whom a writer's connection is cut after, and a reader's.
const CUT_AFTER_MS: std::ops::Range<u64> = 300..4_000;

struct Soaked {
    realm: Realm,
    audit: Service,
    usage: Service,
    /// What cuts connections stands before each.
    audit_port: u16,
    usage_port: u16,
    cuts: Arc<AtomicU64>,
    _proxies: JoinSet<()>,
    _folder: TempDir,
}

impl Soaked {
    async fn start(engine: Engine) -> Self {
        let (realm, folder) = (Realm::new(), tempfile::tempdir().unwrap());
        let settings: Vec<(String, String)> = realm
            .settings()
            .into_iter()
            // Sums are kept in memory up to a bound that a soak is not about.
            .chain([("ROLLUP__CACHE_MIB".to_owned(), "4".to_owned())])
            .collect();
        let start = async |name: &'static str| {
            let of_it = settings.iter().filter(|(key, _)| name == "usage" || !key.starts_with("ROLLUP"));
            let settings: Vec<(&str, &str)> = of_it.map(|(key, value)| (key.as_str(), value.as_str())).collect();
            Service::start(name, &sandbox::database_url(engine, &folder, name).await, &settings).await
        };
        let (audit, usage) = (start("audit").await, start("usage").await);
        let (mut proxies, cuts) = (JoinSet::new(), Arc::new(AtomicU64::new(0)));
        let mut ports = Vec::new();
        for service in [&audit, &usage] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            ports.push(listener.local_addr().unwrap().port());
            proxies.spawn(cut_at_random(listener, service.address().to_owned(), cuts.clone()));
        }
        Self {
            realm,
            audit,
            usage,
            audit_port: ports[0],
            usage_port: ports[1],
            cuts,
            _proxies: proxies,
            _folder: folder,
        }
    }

    fn sdk(&self, subject: &'static str, roles: &'static [&'static str]) -> Builder {
        // Tokens live so short that many are renewed.
        let mint = {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
            let tokens: Vec<String> = (1..200)
                .map(|n| self.realm.token_with(subject, roles, &["prod"], &json!({ "exp": now + 10 * n })))
                .collect();
            let begun = Instant::now();
            move || {
                let at = usize::try_from(begun.elapsed().as_secs() / 10 + 1).unwrap();
                let token = tokens[at.min(tokens.len() - 1)].clone();
                async move { Ok::<_, std::io::Error>(Token::new(token)) }
            }
        };
        GatewaySdk::builder()
            .audit_endpoint(format!("https://localhost:{}", self.audit_port))
            .usage_endpoint(format!("https://localhost:{}", self.usage_port))
            .credentials(Credentials::callback(mint))
            .tls(Tls::new().roots_file(self.realm.path("clients.pem")))
            .instance("prod")
            .backoff(Duration::from_millis(5), Duration::from_millis(200))
            .audit_timeout(PATIENCE)
    }

    /// Everything at once for a while, sampled; the writers' counts of what was acknowledged.
    async fn soak(&self, span: Duration, recorded: &Recorded, seed: u64) -> [Vec<u64>; 2] {
        let stop = CancellationToken::new();
        let mut clients = JoinSet::new();
        for _ in 0..2 {
            clients.spawn(usage_writer(
                self.sdk("gateway", &["writer"]).build().unwrap(),
                stop.clone(),
                recorded.clone(),
            ));
            clients.spawn(audit_writer(
                self.sdk("admin", &["writer"]).build().unwrap(),
                stop.clone(),
                recorded.clone(),
            ));
        }
        for number in 0..3 {
            let sdk = self.sdk("root", &["super_admin"]).build().unwrap();
            clients.spawn(reader(sdk, stop.clone(), StdRng::seed_from_u64(seed + number)));
        }
        clients.spawn(exporter(self.sdk("root", &["super_admin"]).build().unwrap(), stop.clone()));
        for number in 0..3 {
            let sdk = self.sdk("root", &["super_admin"]).build().unwrap();
            clients.spawn(slow_reader(sdk, stop.clone(), StdRng::seed_from_u64(seed + 10 + number)));
        }
        for service in [&self.audit, &self.usage] {
            clients.spawn(half_shaken(service.address().to_owned(), stop.clone()));
        }

        let (end, mut tick) = (Instant::now() + span, interval(Duration::from_millis(500)));
        let mut memory = [Vec::new(), Vec::new()];
        while Instant::now() < end {
            tick.tick().await;
            for (samples, service) in memory.iter_mut().zip([&self.audit, &self.usage]) {
                samples.push(rss_bytes(service.process().pid()));
            }
            if let Some(ended) = clients.try_join_next() {
                ended.expect("no client fails");
                panic!("a client ended before it was told to");
            }
        }
        stop.cancel();
        while let Some(ended) = timeout(PATIENCE, clients.join_next()).await.expect("clients end in time") {
            ended.expect("no client fails");
        }
        memory
    }

    /// Files and sockets of both, once everybody has left.
    async fn at_rest(&self) -> [usize; 2] {
        for service in [&self.audit, &self.usage] {
            eventually(PATIENCE, async || {
                let open = service.metric("activity_connections").await;
                if open == 0.0 { Ok(()) } else { Err(open) }
            })
            .await;
        }
        [open_files(self.audit.process().pid()), open_files(self.usage.process().pid())]
    }
}

/// What was acknowledged.
#[derive(Clone, Default)]
struct Recorded {
    usage: Arc<AtomicU64>,
    audit: Arc<AtomicU64>,
}

/// Passes connections on, and cuts each after a time of its own.
async fn cut_at_random(listener: TcpListener, to: String, cuts: Arc<AtomicU64>) {
    let mut random = StdRng::seed_from_u64(7);
    let mut open = JoinSet::new();
    loop {
        let Ok((mut client, _)) = listener.accept().await else { continue };
        let (to, cuts) = (to.clone(), cuts.clone());
        let after = Duration::from_millis(random.random_range(CUT_AFTER_MS));
        open.spawn(async move {
            let Ok(mut server) = TcpStream::connect(&to).await else { return };
            if timeout(after, tokio::io::copy_bidirectional(&mut client, &mut server)).await.is_err() {
                cuts.fetch_add(1, Ordering::Relaxed);
            }
        });
        while open.try_join_next().is_some() {}
    }
}

fn request(number: u64) -> UsageEvent {
    let tokens = Tokens { input_uncached: 100 + number % 900, output: 10, ..Tokens::default() };
    let user = format!("user-{}", number % 101);
    UsageEvent::builder("openai", "gpt-4o").user(user).api_key(format!("key-{}", number % 211)).tokens(tokens).build()
}

async fn usage_writer(sdk: GatewaySdk, stop: CancellationToken, recorded: Recorded) {
    let mut tick = interval(Duration::from_millis(100));
    let mut count = 0;
    while stop.run_until_cancelled(tick.tick()).await.is_some() {
        for _ in 0..50 {
            sdk.usage().record_wait(request(count), PATIENCE).await.unwrap();
            count += 1;
        }
    }
    assert!(sdk.shutdown(PATIENCE).await.is_complete(), "{:?}", sdk.stats());
    let stats = sdk.stats().usage;
    assert_eq!((stats.acknowledged, stats.rejected, stats.dropped), (count, 0, 0));
    recorded.usage.fetch_add(count, Ordering::Relaxed);
}

async fn audit_writer(sdk: GatewaySdk, stop: CancellationToken, recorded: Recorded) {
    let mut count = 0;
    while !stop.is_cancelled() {
        let actions = (0..20).map(|n| {
            let resource = Resource::new("model", format!("model-{}", (count + n) % 40));
            sdk.audit().record(AuditEvent::builder(Actor::user("adm-1"), "model.enabled", resource))
        });
        count += futures::future::try_join_all(actions).await.unwrap().len() as u64;
        stop.run_until_cancelled(sleep(Duration::from_millis(100))).await;
    }
    assert!(sdk.shutdown(PATIENCE).await.is_complete());
    recorded.audit.fetch_add(count, Ordering::Relaxed);
}

/// A call whose connection was cut more often than the SDK tries again is no failure; any other is.
fn cut_or_ok<T>(result: Result<T, Error>) {
    if let Err(error) = result {
        assert!(error.is_retryable(), "{error:?}");
    }
}

async fn reader(sdk: GatewaySdk, stop: CancellationToken, mut random: StdRng) {
    let hour = || UsageQuery::new().range(TimeRange::last_hour());
    while !stop.is_cancelled() {
        match random.random_range(0..7) {
            0 => cut_or_ok(sdk.usage().summary(&hour()).await),
            1 => cut_or_ok(sdk.usage().breakdown(&hour(), &Grouping::by([Dimension::User, Dimension::Model])).await),
            2 => {
                let filter = UsageFilter::new().user(format!("user-{}", random.random_range(0..101)));
                cut_or_ok(sdk.usage().requests(hour().filter(filter)).take(200).try_collect::<Vec<_>>().await);
            }
            3 => cut_or_ok(sdk.usage().facets(&hour(), 20).await),
            4 => {
                let query = AuditQuery::new().range(TimeRange::last_hour());
                cut_or_ok(sdk.audit().entries(query).take(200).try_collect::<Vec<_>>().await);
            }
            5 => cut_or_ok(sdk.audit().facets(&AuditQuery::new().range(TimeRange::last_hour()), 20).await),
            _ => {
                let tail = sdk.audit().tail(TailQuery::new("prod").from_sequence(0));
                let some = tail.take(300).try_collect::<Vec<_>>();
                if let Ok(read) = timeout(Duration::from_secs(1), some).await {
                    cut_or_ok(read);
                }
            }
        }
        stop.run_until_cancelled(sleep(Duration::from_millis(random.random_range(0..50)))).await;
    }
}

/// Whole exports, whatever is cut meanwhile: each is verified by the SDK.
async fn exporter(sdk: GatewaySdk, stop: CancellationToken) {
    while !stop.is_cancelled() {
        let (hour, mut sink) = (UsageQuery::new().range(TimeRange::last_hour()), tokio::io::sink());
        cut_or_ok(sdk.usage().export(&hour, UsageShape::Requests, ExportFormat::Csv, &mut sink, |_| {}).await);
        let audit = AuditExport::range(TimeRange::last_hour(), ExportFormat::Jsonl);
        cut_or_ok(sdk.audit().export(audit, &mut sink, |_| {}).await);
        stop.run_until_cancelled(sleep(Duration::from_millis(200))).await;
    }
}

/// A sink that takes some bytes and then none.
struct Stops(usize);

impl tokio::io::AsyncWrite for Stops {
    fn poll_write(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
        bytes: &[u8],
    ) -> std::task::Poll<std::io::Result<usize>> {
        let taken = bytes.len().min(self.0);
        self.0 -= taken;
        if taken == 0 { std::task::Poll::Pending } else { std::task::Poll::Ready(Ok(taken)) }
    }

    fn poll_flush(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn poll_shutdown(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::task::Poll::Ready(Ok(()))
    }
}

/// Exports that are read a little, then not, then left.
async fn slow_reader(sdk: GatewaySdk, stop: CancellationToken, mut random: StdRng) {
    while !stop.is_cancelled() {
        let for_a_while = Duration::from_millis(random.random_range(100..2_000));
        let mut sink = Stops(random.random_range(0..100_000));
        // It ends by being dropped, or was over before.
        if random.random() {
            let audit = AuditExport::range(TimeRange::last_hour(), ExportFormat::Csv);
            let _ = timeout(for_a_while, sdk.audit().export(audit, &mut sink, |_| {})).await;
        } else {
            let (hour, shape) = (UsageQuery::new().range(TimeRange::last_hour()), UsageShape::Requests);
            let read = sdk.usage().export(&hour, shape, ExportFormat::Jsonl, &mut sink, |_| {});
            let _ = timeout(for_a_while, read).await;
        }
        tokio::task::yield_now().await;
    }
}

/// Connections that say half a hello and leave.
async fn half_shaken(address: String, stop: CancellationToken) {
    let mut open = Vec::new();
    while !stop.is_cancelled() {
        if let Ok(mut socket) = TcpStream::connect(&address).await {
            // A TLS record of a client's hello that is longer than what comes.
            let _ = socket.write_all(&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc]).await;
            open.push(socket);
        }
        if open.len() > 20 {
            open.clear();
        }
        stop.run_until_cancelled(sleep(Duration::from_millis(50))).await;
    }
}

fn median(samples: &[u64]) -> u64 {
    let mut samples = samples.to_vec();
    samples.sort_unstable();
    samples[samples.len() / 2]
}

/// Whether memory has stayed what it was once it was warm.
fn flat(samples: &[u64]) -> Result<(u64, u64), String> {
    let quarter = samples.len() / 4;
    let (second, last) = (median(&samples[quarter..2 * quarter]), median(&samples[3 * quarter..]));
    let allowed = second + second / 10 + 16 * MIB;
    if last <= allowed {
        return Ok((second, last));
    }
    Err(format!(
        "{} MiB in the second quarter, {} in the last, allowed are {}",
        second / MIB,
        last / MIB,
        allowed / MIB
    ))
}

#[test]
fn what_grows_is_not_flat() {
    // As many samples as ten minutes have.
    let grows = |bytes_a_sample: u64| (0..1_200).map(|n| 60 * MIB + n * bytes_a_sample).collect::<Vec<u64>>();
    assert!(flat(&grows(0)).is_ok());
    // 100 KiB a second, and a little less.
    assert!(flat(&grows(51_200)).is_err());
    assert!(flat(&grows(45_056)).is_err());
    let mut noisy = grows(0);
    noisy.iter_mut().step_by(7).for_each(|sample| *sample += 40 * MIB);
    assert!(flat(&noisy).is_ok());
}

async fn nothing_is_lost_doubled_or_left_over(engine: Engine) {
    let full = std::env::var_os("FULL").is_some();
    let (warm, span) = if full { (20, 600) } else { (3, 9) };
    let soaked = Soaked::start(engine).await;
    let recorded = Recorded::default();
    soaked.soak(Duration::from_secs(warm), &recorded, 100).await;
    let before = soaked.at_rest().await;
    let memory = soaked.soak(Duration::from_secs(span), &recorded, 200).await;
    let after = soaked.at_rest().await;

    let at = |service: &Service| format!("https://localhost:{}", service.address().rsplit(':').next().unwrap());
    let root = soaked.sdk("root", &["super_admin"]);
    let root = root.audit_endpoint(at(&soaked.audit)).usage_endpoint(at(&soaked.usage)).build().unwrap();
    let range = || TimeRange::last_24_hours();
    let expected = (recorded.usage.load(Ordering::Relaxed), recorded.audit.load(Ordering::Relaxed));
    let stored = {
        let query = UsageQuery::new().range(range());
        let summary = root.usage().summary(&query).await.unwrap().summary.unwrap().requests();
        let mut file = Vec::new();
        let audit = AuditExport::range(range(), ExportFormat::Jsonl);
        let exported = root.audit().export(audit, &mut file, |_| {}).await.unwrap();
        let mut ids: Vec<String> = file
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty())
            .map(|line| serde_json::from_slice::<serde_json::Value>(line).unwrap()["id"].as_str().unwrap().to_owned())
            .collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len() as u64, exported.rows, "each entry once");
        (summary, exported.rows)
    };
    let cuts = soaked.cuts.load(Ordering::Relaxed);
    eprintln!("{engine:?}: {expected:?} recorded, {cuts} connections cut; files {before:?}, then {after:?}");
    assert_eq!(stored, expected, "everything that was acknowledged is there once");
    assert!(cuts > span, "connections were cut: {cuts}");
    for (name, samples) in ["audit", "usage"].iter().zip(&memory) {
        let (second, last) = flat(samples).unwrap_or_else(|why| panic!("memory of {name}: {why}"));
        eprintln!("  memory of {name}: {} MiB in the second quarter, {} in the last", second / MIB, last / MIB);
    }
    for (before, after) in before.iter().zip(after) {
        // A pool's connection to SQLite holds three files, and two of them may be opened late.
        assert!(after <= before + 6, "files and sockets at rest: {before}, then {after}");
    }
    for service in [&soaked.audit, &soaked.usage] {
        let log = service.process().log();
        assert!(!log.contains("panic"), "{log}");
        assert_eq!(service.metric("activity_rpc_in_progress").await, 0.0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_soak_loses_and_doubles_nothing_and_leaves_nothing_behind_on_sqlite() {
    nothing_is_lost_doubled_or_left_over(Engine::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_soak_loses_and_doubles_nothing_and_leaves_nothing_behind_on_postgres() {
    nothing_is_lost_doubled_or_left_over(Engine::Postgres).await;
}
