//! A service built from the generated traits, on a runtime of its own so that it can be
//! killed like a process, with a memory that outlives it like a disk.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::pin::Pin;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use gateway_sdk::proto::audit::v1 as audit;
use gateway_sdk::proto::audit::v1::audit_ingest_service_server::{AuditIngestService, AuditIngestServiceServer};
use gateway_sdk::proto::audit::v1::audit_query_service_server::AuditQueryServiceServer;
use gateway_sdk::proto::common::v1::{DroppedRange, ErrorReason, Producer};
use gateway_sdk::proto::usage::v1 as usage;
use gateway_sdk::proto::usage::v1::usage_ingest_service_server::{UsageIngestService, UsageIngestServiceServer};
use gateway_sdk::proto::usage::v1::usage_query_service_server::UsageQueryServiceServer;
use gateway_sdk::{Builder, GatewaySdk};
use http::{HeaderValue, StatusCode};
use http_body_util::Full;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::body::Body;
use tonic::service::InterceptorLayer;
use tonic::transport::ServerTlsConfig;
use tonic::{Request, Response, Status, Streaming, async_trait};
use tower::util::MapResponseLayer;

use crate::queries::{Answers, AuditQueries, UsageQueries};

/// Longer than anything here takes; only a failure waits for it.
pub(crate) const LONG: Duration = Duration::from_secs(30);

/// A batch as it arrives.
pub(crate) struct Arrived {
    /// How many streams came before, over all of the service's lives.
    pub(crate) stream: usize,
    /// How many batches came before, over all streams.
    pub(crate) batch: usize,
    /// The tags of the events: user or actor ids.
    pub(crate) tags: Vec<String>,
}

impl Arrived {
    pub(crate) fn has(&self, tag: &str) -> bool {
        self.tags.iter().any(|t| t == tag)
    }
}

/// What is done with a batch.
pub(crate) enum Action {
    /// Stored and acknowledged.
    Ack,
    /// Stored and acknowledged once the gate is open.
    Hold,
    /// Stored; the stream ends before the acknowledgement.
    StoreAndEnd(Status),
    /// Not stored; the stream ends.
    End(Status),
    /// Nothing, for ever.
    Stall,
    /// Stored, and acknowledged under a wrong number.
    Misnumber,
}

/// Who is let in, by the header `authorization`.
type Guard = Box<dyn Fn(Option<&str>) -> Result<(), Status> + Send + Sync>;
type Script = Box<dyn Fn(&Arrived) -> Action + Send + Sync>;

/// What the service remembers.
pub(crate) struct Memory {
    script: Mutex<Script>,
    guard: Mutex<Guard>,
    page: AtomicU16,
    inner: Mutex<Inner>,
    changed: watch::Sender<u64>,
    gate: watch::Sender<bool>,
    pub(crate) answers: Answers,
}

#[derive(Default)]
pub(crate) struct Inner {
    pub(crate) streams: usize,
    pub(crate) batches: usize,
    pub(crate) largest_batch: usize,
    pub(crate) largest_bytes: usize,
    /// Events by id: tag, producer, and the order of storing.
    pub(crate) stored: BTreeMap<String, (String, Producer, u64)>,
    pub(crate) duplicates: u64,
    /// Audit events as they were stored, in order.
    pub(crate) audited: Vec<audit::AuditEvent>,
    /// Ranges in the order reported.
    pub(crate) dropped: Vec<(u64, u64)>,
}

impl Inner {
    /// The producer's numbers, ascending.
    pub(crate) fn sequences(&self) -> Vec<u64> {
        let stored = self.stored.values();
        let mut all: Vec<u64> = stored.map(|(_, p, _)| p.sequence.unwrap()).collect();
        all.sort_unstable();
        all
    }

    /// The producer's numbers in the order of storing.
    pub(crate) fn sequences_as_stored(&self) -> Vec<u64> {
        let mut all: Vec<_> = self.stored.values().collect();
        all.sort_unstable_by_key(|(_, _, order)| *order);
        all.iter().map(|(_, p, _)| p.sequence.unwrap()).collect()
    }

    pub(crate) fn tags(&self) -> Vec<&str> {
        let mut tags: Vec<&str> = self.stored.values().map(|(t, _, _)| t.as_str()).collect();
        tags.sort_unstable();
        tags
    }
}

impl Memory {
    pub(crate) fn look<R>(&self, look: impl FnOnce(&Inner) -> R) -> R {
        look(&self.inner.lock().unwrap())
    }

    pub(crate) fn script(&self, script: impl Fn(&Arrived) -> Action + Send + Sync + 'static) {
        *self.script.lock().unwrap() = Box::new(script);
    }

    pub(crate) fn guard(&self, guard: impl Fn(Option<&str>) -> Result<(), Status> + Send + Sync + 'static) {
        *self.guard.lock().unwrap() = Box::new(guard);
    }

    fn admit(&self, request: Request<()>) -> Result<Request<()>, Status> {
        let header = request.metadata().get("authorization").map(|value| value.to_str().unwrap());
        (self.guard.lock().unwrap())(header)?;
        Ok(request)
    }

    /// Answers every call as a proxy does that has no service: an HTTP status and a page. None with 0.
    pub(crate) fn page(&self, status: u16) {
        self.page.store(status, Ordering::SeqCst);
    }

    fn answered(&self, response: http::Response<Body>) -> http::Response<Body> {
        let Ok(status) = StatusCode::from_u16(self.page.load(Ordering::SeqCst)) else { return response };
        // The stream that it covers up has told nobody of itself.
        self.touch();
        let page = Body::new(Full::new(Bytes::from_static(b"<html><body><h1>Sorry</h1></body></html>")));
        let mut response = http::Response::new(page);
        response.headers_mut().insert("content-type", HeaderValue::from_static("text/html"));
        *response.status_mut() = status;
        response
    }

    pub(crate) fn open_gate(&self) {
        self.gate.send_replace(true);
    }

    pub(crate) async fn until(&self, what: &str, mut condition: impl FnMut(&Inner) -> bool) {
        let mut changed = self.changed.subscribe();
        let wait = changed.wait_for(|_| self.look(&mut condition));
        assert!(tokio::time::timeout(LONG, wait).await.is_ok(), "never: {what}");
    }
}

pub(crate) struct Fake {
    pub(crate) address: SocketAddr,
    pub(crate) memory: Arc<Memory>,
    runtime: Option<Runtime>,
    /// From the next start on.
    pub(crate) tls: Option<ServerTlsConfig>,
}

impl Fake {
    pub(crate) fn start() -> Self {
        let mut fake = Self::down();
        fake.restart();
        fake
    }

    /// Not running yet; its port is free.
    pub(crate) fn down() -> Self {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        Self {
            address,
            memory: Arc::new(Memory {
                script: Mutex::new(Box::new(|_| Action::Ack)),
                guard: Mutex::new(Box::new(|_| Ok(()))),
                page: AtomicU16::new(0),
                inner: Mutex::default(),
                changed: watch::Sender::new(0),
                gate: watch::Sender::new(false),
                answers: Answers::default(),
            }),
            runtime: None,
            tls: None,
        }
    }

    /// Kills it if it runs, and starts it on the same port with the same memory.
    pub(crate) fn restart(&mut self) {
        self.kill();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let serve = |memory: &Arc<Memory>| Serve(Arc::clone(memory));
        let _guard = runtime.enter();
        let listener = bind(self.address);
        let mut server = tonic::transport::Server::builder();
        if let Some(tls) = &self.tls {
            server = server.tls_config(tls.clone()).unwrap();
        }
        let (admits, answers) = (Arc::clone(&self.memory), Arc::clone(&self.memory));
        runtime.spawn(
            server
                .layer(InterceptorLayer::new(move |request| admits.admit(request)))
                .layer(MapResponseLayer::new(move |response| answers.answered(response)))
                .add_service(UsageIngestServiceServer::new(serve(&self.memory)))
                .add_service(AuditIngestServiceServer::new(serve(&self.memory)))
                .add_service(UsageQueryServiceServer::new(UsageQueries(Arc::clone(&self.memory))))
                .add_service(AuditQueryServiceServer::new(AuditQueries(Arc::clone(&self.memory))))
                .serve_with_incoming(TcpListenerStream::new(listener)),
        );
        self.runtime = Some(runtime);
    }

    /// Everything it was doing stops, its connections are reset.
    pub(crate) fn kill(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }

    /// Settings under which a test is fast.
    pub(crate) fn sdk(&self) -> Builder {
        let address = self.address.to_string();
        GatewaySdk::builder()
            .usage_endpoint(&address)
            .audit_endpoint(&address)
            .instance("test")
            .producer_id("p")
            .backoff(Duration::from_millis(2), Duration::from_millis(20))
            .usage_linger(Duration::from_millis(1))
            .audit_timeout(LONG)
            .query_timeout(LONG)
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The connections of a killed life may hold the port for a moment.
fn bind(address: SocketAddr) -> tokio::net::TcpListener {
    let since = std::time::Instant::now();
    loop {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        match socket.bind(address).and_then(|()| socket.listen(1024)) {
            Ok(listener) => return listener,
            Err(error) => assert!(since.elapsed() < LONG, "{address}: {error}"),
        }
        std::thread::yield_now();
    }
}

struct Serve(Arc<Memory>);

/// An event, whatever its kind.
struct Event {
    id: String,
    tag: String,
    instance: String,
    producer: Option<Producer>,
    audited: Option<audit::AuditEvent>,
}

/// What became of a batch.
#[derive(Default)]
struct Outcome {
    accepted: u32,
    duplicate: u32,
    rejected: Vec<u32>,
    /// Index, id, place, duplicate.
    receipts: Vec<(u32, String, u64, bool)>,
}

impl Memory {
    fn store(&self, events: &[Event], dropped: &[DroppedRange]) -> Outcome {
        let mut inner = self.inner.lock().unwrap();
        let mut outcome = Outcome::default();
        for (index, event) in (0..).zip(events) {
            assert_eq!(event.instance, "test");
            let producer = event.producer.clone().unwrap();
            assert_eq!(producer.id, "p");
            if event.tag == "bad" {
                outcome.rejected.push(index);
                continue;
            }
            let known = inner.stored.get(&event.id).map(|known| known.2);
            let place = known.unwrap_or(inner.stored.len() as u64);
            if known.is_some() {
                outcome.duplicate += 1;
                inner.duplicates += 1;
            } else {
                outcome.accepted += 1;
                let kept = (event.tag.clone(), producer, place);
                inner.stored.insert(event.id.clone(), kept);
                inner.audited.extend(event.audited.clone());
            }
            let receipt = (index, event.id.clone(), place, known.is_some());
            outcome.receipts.push(receipt);
        }
        for range in dropped {
            assert_eq!(range.producer.as_ref().unwrap().id, "p");
            let range = (range.first_sequence.unwrap(), range.last_sequence.unwrap());
            inner.dropped.push(range);
        }
        outcome
    }

    fn arrived(&self, stream: usize, events: &[Event], bytes: usize) -> Action {
        let mut inner = self.inner.lock().unwrap();
        let arrived =
            Arrived { stream, batch: inner.batches, tags: events.iter().map(|event| event.tag.clone()).collect() };
        inner.batches += 1;
        inner.largest_batch = inner.largest_batch.max(events.len());
        inner.largest_bytes = inner.largest_bytes.max(bytes);
        drop(inner);
        (self.script.lock().unwrap())(&arrived)
    }

    fn touch(&self) {
        self.changed.send_modify(|n| *n += 1);
    }
}

/// One stream, of either kind.
fn serve<Q, A>(
    memory: Arc<Memory>,
    mut requests: Streaming<Q>,
    read: impl Fn(Q) -> (u64, Vec<Event>, Vec<DroppedRange>) + Send + 'static,
    answer: impl Fn(u64, Outcome) -> A + Send + Sync + 'static,
) -> Pin<Box<dyn Stream<Item = Result<A, Status>> + Send>>
where
    Q: prost::Message + Send + 'static,
    A: Send + 'static,
{
    let stream = {
        let mut inner = memory.inner.lock().unwrap();
        inner.streams += 1;
        inner.streams - 1
    };
    let answers = async_stream_of(move |answers| async move {
        let mut expected = 1;
        while let Some(request) = requests.next().await {
            let Ok(request) = request else { return };
            let bytes = request.encoded_len();
            let (batch_id, events, dropped) = read(request);
            assert_eq!(batch_id, expected, "batches are numbered from 1");
            expected += 1;
            let action = memory.arrived(stream, &events, bytes);
            let store = || answer(batch_id, memory.store(&events, &dropped));
            let result = match action {
                Action::Ack => Ok(store()),
                Action::Hold => {
                    let mut gate = memory.gate.subscribe();
                    memory.touch();
                    let _ = gate.wait_for(|open| *open).await;
                    Ok(store())
                }
                Action::StoreAndEnd(status) => {
                    drop(store());
                    Err(status)
                }
                Action::End(status) => Err(status),
                Action::Stall => {
                    memory.touch();
                    std::future::pending().await
                }
                Action::Misnumber => Ok(answer(batch_id + 1, memory.store(&events, &dropped))),
            };
            memory.touch();
            let end = result.is_err();
            if answers.send(result).await.is_err() || end {
                return;
            }
        }
    });
    Box::pin(answers)
}

/// A stream of what a future sends; dropped with it, as a handler is.
pub(crate) fn async_stream_of<T: Send + 'static, F>(
    run: impl FnOnce(tokio::sync::mpsc::Sender<T>) -> F,
) -> impl Stream<Item = T> + Send
where
    F: Future<Output = ()> + Send + 'static,
{
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    let run = futures::stream::once(run(sender)).filter_map(|()| async { None });
    let received = tokio_stream::wrappers::ReceiverStream::new(receiver);
    futures::stream::select(received, run)
}

#[async_trait]
impl UsageIngestService for Serve {
    async fn record_usage(
        &self,
        _: Request<usage::RecordUsageRequest>,
    ) -> Result<Response<usage::RecordUsageResponse>, Status> {
        Err(Status::unimplemented("the SDK streams"))
    }

    type StreamUsageStream = Pin<Box<dyn Stream<Item = Result<usage::StreamUsageResponse, Status>> + Send>>;

    async fn stream_usage(
        &self,
        request: Request<Streaming<usage::StreamUsageRequest>>,
    ) -> Result<Response<Self::StreamUsageStream>, Status> {
        let read = |request: usage::StreamUsageRequest| {
            let events = request.events.into_iter().map(|event| Event {
                id: event.id,
                tag: event.user_id,
                instance: event.instance_id,
                producer: event.producer,
                audited: None,
            });
            (request.batch_id, events.collect(), request.dropped)
        };
        let answer = |batch_id, outcome: Outcome| usage::StreamUsageResponse {
            batch_id,
            accepted: Some(outcome.accepted),
            duplicate: Some(outcome.duplicate),
            rejected: outcome
                .rejected
                .into_iter()
                .map(|index| usage::RejectedEvent {
                    index: Some(index),
                    reason: ErrorReason::InvalidArgument.into(),
                    message: "bad user".into(),
                    field: "user_id".into(),
                })
                .collect(),
        };
        let memory = Arc::clone(&self.0);
        Ok(Response::new(serve(memory, request.into_inner(), read, answer)))
    }
}

#[async_trait]
impl AuditIngestService for Serve {
    async fn record_events(
        &self,
        _: Request<audit::RecordEventsRequest>,
    ) -> Result<Response<audit::RecordEventsResponse>, Status> {
        Err(Status::unimplemented("the SDK streams"))
    }

    type StreamEventsStream = Pin<Box<dyn Stream<Item = Result<audit::StreamEventsResponse, Status>> + Send>>;

    async fn stream_events(
        &self,
        request: Request<Streaming<audit::StreamEventsRequest>>,
    ) -> Result<Response<Self::StreamEventsStream>, Status> {
        let read = |request: audit::StreamEventsRequest| {
            let events = request.events.into_iter().map(|event| Event {
                id: event.id.clone(),
                tag: event.actor.clone().unwrap().id,
                instance: event.instance_id.clone(),
                producer: event.producer.clone(),
                audited: Some(event),
            });
            (request.batch_id, events.collect(), request.dropped)
        };
        let answer = |batch_id, outcome: Outcome| audit::StreamEventsResponse {
            batch_id,
            accepted: Some(outcome.accepted),
            duplicate: Some(outcome.duplicate),
            rejected: outcome
                .rejected
                .into_iter()
                .map(|index| audit::RejectedEvent {
                    index: Some(index),
                    reason: ErrorReason::InvalidAction.into(),
                    message: "bad actor".into(),
                    field: "actor.id".into(),
                })
                .collect(),
            receipts: outcome
                .receipts
                .into_iter()
                .map(|(index, id, sequence, duplicate)| audit::Receipt {
                    index: Some(index),
                    id,
                    sequence: Some(sequence),
                    duplicate,
                    leaf_hash: vec![7; 32],
                    ..Default::default()
                })
                .collect(),
        };
        let memory = Arc::clone(&self.0);
        Ok(Response::new(serve(memory, request.into_inner(), read, answer)))
    }
}
