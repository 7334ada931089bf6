//! `cargo bench -p gateway-sdk --bench spool`: what recording costs with a spool, beside the bare alternatives in the same
//! run, and what the spool takes of disk and memory. Everything is in one folder: `-- --folder DIR`, by default a
//! temporary one.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a benchmark: a panic is its failure")]
#![allow(unsafe_code, reason = "an allocator that counts")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fs::File;
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use futures::{Stream, StreamExt};
use gateway_sdk::proto::usage::v1 as proto;
use gateway_sdk::proto::usage::v1::usage_ingest_service_server::{UsageIngestService, UsageIngestServiceServer};
use gateway_sdk::{Actor, AuditEvent, GatewaySdk, Resource, Tokens, UsageEvent};
use opentelemetry::logs::{AnyValue, LogRecord as _, Logger as _, LoggerProvider as _};
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::logs::{BatchConfigBuilder, BatchLogProcessor, LogBatch, LogExporter, SdkLoggerProvider};
use prost::Message;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, Streaming, async_trait};

const THREADS: u64 = 4;
const PER_SECOND: u64 = 100_000;
const SECONDS: u64 = 10;
const BACKLOG: u64 = 1_000_000;
const PATIENCE: Duration = Duration::from_secs(300);

/// Counts this thread's allocations.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: everything is the system allocator's; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
        // SAFETY: as the caller has promised.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as the caller has promised.
        unsafe { System.dealloc(pointer, layout) }
    }
    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, len: usize) -> *mut u8 {
        let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
        // SAFETY: as the caller has promised.
        unsafe { System.realloc(pointer, layout, len) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// A request as a gateway records it: some 220 bytes encoded.
fn event(n: u64) -> UsageEvent {
    UsageEvent::builder("anthropic", "claude-sonnet-4-5-20250929")
        .user(format!("user-{:08}@example.com", n % 5_000))
        .team(format!("team-{:03}", n % 40))
        .api_key(format!("key-{:012}", n % 9_000))
        .operation("chat")
        .tokens(Tokens { input_uncached: 1_200 + n % 800, input_cache_read: 4_096, output: 350, ..Tokens::default() })
        .latency(Duration::from_micros(840_000 + n % 100_000))
        .time_to_first_token(Duration::from_micros(210_000))
        .request_id(format!("req_{n:020}"))
        .build()
}

fn percentile(times: &[u64], per_mille: usize) -> u64 {
    times[(times.len() - 1) * per_mille / 1000]
}

fn show(name: &str, mut times: Vec<u64>) {
    times.sort_unstable();
    let at = |per_mille| percentile(&times, per_mille);
    println!(
        "  {name}: median {} ns, p99 {} ns, p99.9 {} ns, at most {} us",
        at(500),
        at(990),
        at(999),
        times[times.len() - 1] / 1000
    );
}

/// Four threads that call together so and so often a second; what each call took.
fn paced<E: Send>(make: impl Fn(u64) -> E + Sync, call: impl Fn(E) + Sync) -> Vec<u64> {
    let step = Duration::from_nanos(1_000_000_000 * THREADS / PER_SECOND);
    let each = PER_SECOND * SECONDS / THREADS;
    let run = |thread: u64| {
        let mut times = Vec::with_capacity(each as usize);
        let start = Instant::now();
        for n in 0..each {
            let event = make(thread * each + n);
            let due = start + step * n as u32;
            // A core is shared by two of them, so a pause is a sleep, and lateness is made up for.
            if let Some(early) = due.checked_duration_since(Instant::now())
                && early > Duration::from_micros(200)
            {
                std::thread::sleep(early);
            }
            let begun = Instant::now();
            call(event);
            times.push(begun.elapsed().as_nanos() as u64);
        }
        times
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|thread| scope.spawn(move || run(thread))).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    })
}

fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

fn on_disk(folder: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    entries
        .map(
            |entry| {
                if entry.path().is_dir() { on_disk(&entry.path()) } else { entry.metadata().unwrap().blocks() * 512 }
            },
        )
        .sum()
}

/// An exporter that counts and keeps nothing.
#[derive(Debug)]
struct Discard(Arc<AtomicU64>);

impl LogExporter for Discard {
    async fn export(&self, batch: LogBatch<'_>) -> OTelSdkResult {
        self.0.fetch_add(batch.iter().count() as u64, Relaxed);
        Ok(())
    }
}

/// What an event says, as OpenTelemetry would carry it; its texts are moved, as they are into our own encoding.
fn attributes(event: UsageEvent) -> Vec<(&'static str, AnyValue)> {
    let event = event.into_proto();
    let tokens = event.tokens.unwrap_or_default();
    let micros = |duration: Option<prost_types::Duration>| {
        AnyValue::Int(duration.map_or(0, |d| d.seconds * 1_000_000 + i64::from(d.nanos) / 1_000))
    };
    let count = |tokens: Option<i64>| AnyValue::Int(tokens.unwrap_or_default());
    vec![
        ("id", event.id.into()),
        ("instance", "prod".into()),
        ("provider", event.provider.into()),
        ("model", event.requested_model.into()),
        ("user", event.user_id.into()),
        ("team", event.team_id.into()),
        ("api_key", event.api_key_id.into()),
        ("operation", event.operation.into()),
        ("request", event.request_id.into()),
        ("input", count(tokens.input_uncached)),
        ("cached", count(tokens.input_cache_read)),
        ("output", count(tokens.output)),
        ("latency", micros(event.latency)),
        ("first", micros(event.time_to_first_token)),
    ]
}

/// A service that acknowledges and keeps nothing.
struct Sink;

#[async_trait]
impl UsageIngestService for Sink {
    async fn record_usage(
        &self,
        _: Request<proto::RecordUsageRequest>,
    ) -> Result<Response<proto::RecordUsageResponse>, Status> {
        Err(Status::unimplemented("the SDK streams"))
    }

    type StreamUsageStream = Pin<Box<dyn Stream<Item = Result<proto::StreamUsageResponse, Status>> + Send>>;

    async fn stream_usage(
        &self,
        request: Request<Streaming<proto::StreamUsageRequest>>,
    ) -> Result<Response<Self::StreamUsageStream>, Status> {
        let answers = request.into_inner().map(|request| {
            let request = request?;
            Ok(proto::StreamUsageResponse {
                batch_id: request.batch_id,
                accepted: Some(request.events.len() as u32),
                ..Default::default()
            })
        });
        Ok(Response::new(Box::pin(answers)))
    }
}

async fn sink() -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tonic::transport::Server::builder()
        .add_service(UsageIngestServiceServer::new(Sink).max_decoding_message_size(8 << 20));
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    address
}

fn sdk(folder: &Path, name: &str, usage: SocketAddr) -> GatewaySdk {
    GatewaySdk::builder().usage_endpoint(usage.to_string()).instance("prod").spool(folder.join(name)).build().unwrap()
}

/// Nobody listens there.
fn nowhere() -> SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

async fn record(folder: &Path) {
    println!("\nusage().record, encoding included, {THREADS} threads, together {PER_SECOND} a second for {SECONDS} s");
    show("nothing but the clock", paced(event, drop));
    {
        let (send, mut receive) = tokio::sync::mpsc::channel(65_536);
        let reader = tokio::spawn(async move { while receive.recv().await.is_some() {} });
        show("tokio::sync::mpsc::try_send of the same event", paced(event, |event| drop(send.try_send(event))));
        drop(send);
        reader.await.unwrap();
    }
    {
        let (send, mut receive) = tokio::sync::mpsc::channel(65_536);
        let reader = tokio::spawn(async move { while receive.recv().await.is_some() {} });
        let call = |event: UsageEvent| drop(send.try_send(event.as_proto().encode_to_vec()));
        show("the same, encoded as by prost", paced(event, call));
        drop(send);
        reader.await.unwrap();
    }
    {
        let arrived = Arc::new(AtomicU64::new(0));
        let queue = BatchConfigBuilder::default().with_max_queue_size(65_536).with_max_export_batch_size(1_000).build();
        let batches = BatchLogProcessor::builder(Discard(Arc::clone(&arrived))).with_batch_config(queue).build();
        let provider = SdkLoggerProvider::builder().with_log_processor(batches).build();
        let logger = provider.logger("gateway");
        let call = |event: UsageEvent| {
            let mut record = logger.create_log_record();
            record.add_attributes(attributes(event));
            logger.emit(record);
        };
        show("opentelemetry_sdk's batch processor, the same as attributes of a log record", paced(event, call));
        provider.shutdown().unwrap();
        let arrived = arrived.load(Relaxed);
        println!("    it dropped {} of {}, its queue being full", PER_SECOND * SECONDS - arrived, PER_SECOND * SECONDS);
    }
    {
        let address = sink().await;
        let sdk = GatewaySdk::builder().usage_endpoint(address.to_string()).instance("prod").build().unwrap();
        show("in memory, without a spool", paced(event, |event| sdk.usage().record(event)));
        assert!(sdk.shutdown(PATIENCE).await.is_complete());
    }
    for (name, address) in
        [("with a spool, the service up", sink().await), ("with a spool, the service away", nowhere())]
    {
        let sdk = sdk(folder, "record", address);
        show(name, paced(event, |event| sdk.usage().record(event)));
        let stats = sdk.stats().usage;
        assert_eq!((stats.recorded, stats.dropped), (PER_SECOND * SECONDS, 0));
        let _ = sdk.shutdown(Duration::from_millis(1)).await;
        std::fs::remove_dir_all(folder.join("record")).unwrap();
    }
    let sdk = sdk(folder, "record", nowhere());
    let events: Vec<_> = (0..50_000).map(event).collect();
    let before = ALLOCATIONS.get();
    for event in events {
        sdk.usage().record(event);
    }
    println!("  allocations a call: {:.4}", (ALLOCATIONS.get() - before) as f64 / 50_000.0);
    let _ = sdk.shutdown(Duration::from_millis(1)).await;
    std::fs::remove_dir_all(folder.join("record")).unwrap();
}

async fn backlog(folder: &Path) {
    println!("\na backlog of {BACKLOG} events, the service away");
    let before = resident();
    let spooled = sdk(folder, "backlog", nowhere());
    let mut encoded = 0;
    for n in 0..BACKLOG {
        let event = event(n);
        encoded += event.as_proto().encoded_len() as u64;
        // Without loss, as fast as the disk takes them.
        spooled.usage().record_wait(event, PATIENCE).await.unwrap();
    }
    let disk = on_disk(&folder.join("backlog"));
    println!("  {} bytes an event encoded, {:.3} of that on disk", encoded / BACKLOG, disk as f64 / encoded as f64);
    println!("  memory: {:.1} MiB above before", (resident().saturating_sub(before)) as f64 / (1 << 20) as f64);
    let _ = spooled.shutdown(Duration::from_millis(1)).await;

    let begun = Instant::now();
    let spooled = sdk(folder, "backlog", sink().await);
    println!("  opened again in {:?}, {} events found", begun.elapsed(), spooled.stats().usage.recovered);
    let begun = Instant::now();
    let mut peak = 0;
    while !spooled.flush(Duration::from_millis(100)).await.is_complete() {
        peak = peak.max(resident());
    }
    let rate = BACKLOG as f64 / begun.elapsed().as_secs_f64();
    println!("  drained at {rate:.0} events/s into a service that only decodes and acknowledges, in this process");
    println!(
        "  memory meanwhile, that service's included: {:.1} MiB above before",
        peak.saturating_sub(before) as f64 / (1 << 20) as f64
    );
    let _ = spooled.shutdown(PATIENCE).await;
}

async fn audit(folder: &Path) {
    println!("\naudit().record with local durability, one caller after the other");
    let path = folder.join("alone");
    let mut file = File::create(&path).unwrap();
    file.write_all(&vec![0; 1 << 20]).unwrap();
    file.sync_all().unwrap();
    let mut alone = Vec::new();
    for n in 0..500 {
        let begun = Instant::now();
        file.write_all_at(&[1; 600], n * 600).unwrap();
        file.sync_data().unwrap();
        alone.push(begun.elapsed().as_nanos() as u64);
    }
    let sdk = GatewaySdk::builder()
        .audit_endpoint(nowhere().to_string())
        .instance("prod")
        .spool(folder.join("audit"))
        .build()
        .unwrap();
    let action = |n: u64| {
        AuditEvent::builder(
            Actor::user(format!("u-{n}")).display_name("alice@example.com"),
            "model.enabled",
            Resource::new("model", "gpt-4o"),
        )
        .reason("OPS-1234")
        .build()
    };
    let mut single = Vec::new();
    for n in 0..500 {
        let event = action(n);
        let begun = Instant::now();
        sdk.audit().record(event).await.unwrap();
        single.push(begun.elapsed().as_nanos() as u64);
    }
    let begun = Instant::now();
    let many: Vec<u64> = futures::stream::iter(0..20_000)
        .map(|n| {
            let sdk = sdk.clone();
            async move {
                let begun = Instant::now();
                sdk.audit().record(action(n)).await.unwrap();
                begun.elapsed().as_nanos() as u64
            }
        })
        .buffer_unordered(64)
        .collect()
        .await;
    let rate = many.len() as f64 / begun.elapsed().as_secs_f64();
    for times in [&mut alone, &mut single] {
        times.sort_unstable();
    }
    let ratio = percentile(&single, 500) as f64 / percentile(&alone, 500) as f64;
    show("write and fdatasync of 600 bytes alone", alone);
    show("record", single);
    println!("  {ratio:.2} of the bare sync at the median");
    show("record, 64 callers at once", many);
    println!("  {rate:.0} actions/s then");
    let _ = sdk.shutdown(Duration::from_millis(1)).await;
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let place =
        arguments.iter().position(|argument| argument == "--folder").map(|at| PathBuf::from(&arguments[at + 1]));
    let folder = place.map_or_else(|| tempfile::tempdir().unwrap(), |place| tempfile::tempdir_in(place).unwrap());
    let wanted = |name: &str| {
        let named = ["record", "backlog", "audit"].iter().any(|part| arguments.iter().any(|argument| argument == part));
        !named || arguments.iter().any(|argument| argument == name)
    };
    let runtime = || tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    // The backlog first: memory is measured from an empty process.
    if wanted("backlog") {
        runtime().block_on(backlog(folder.path()));
    }
    if wanted("record") {
        runtime().block_on(record(folder.path()));
    }
    if wanted("audit") {
        runtime().block_on(audit(folder.path()));
    }
}
