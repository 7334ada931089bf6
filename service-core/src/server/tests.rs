//! A real server with a real client over a real socket.

mod client;
mod drain;
mod limits;
mod secured;

use hyper_util::client::legacy::{self, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use activity_proto::usage::v1::usage_ingest_service_client::UsageIngestServiceClient;
use activity_proto::usage::v1::usage_ingest_service_server::{UsageIngestService, UsageIngestServiceServer};
use activity_proto::usage::v1::{
    RecordUsageRequest, RecordUsageResponse, RejectedEvent, StreamUsageRequest, StreamUsageResponse,
};
use futures::StreamExt as _;
use futures::stream::BoxStream;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus};
use tonic_types::StatusExt as _;

use super::*;
use crate::error::Error;
use crate::ingest_stream::{self, StreamOptions};

const SERVICE: &str = "activity.usage.v1.UsageIngestService";
const PATIENCE: Duration = Duration::from_secs(20);

/// A service that does what the header `do` says.
#[derive(Clone)]
struct Obedient {
    shutdown: CancellationToken,
    /// Lets held calls and batches go on.
    gate: Arc<Semaphore>,
    /// Calls and batches that have arrived.
    arrived: Arc<AtomicUsize>,
    /// Streams that are open.
    streams: Arc<()>,
}

fn order<T>(request: &Request<T>) -> String {
    let order = request.metadata().get("do").and_then(|order| order.to_str().ok());
    order.unwrap_or("answer").to_owned()
}

#[tonic::async_trait]
impl UsageIngestService for Obedient {
    async fn record_usage(
        &self,
        request: Request<RecordUsageRequest>,
    ) -> Result<Response<RecordUsageResponse>, Status> {
        self.arrived.fetch_add(1, Ordering::SeqCst);
        match order(&request).as_str() {
            "panic" => panic!("as ordered"),
            "fail" => Err(Error::internal(anyhow::anyhow!("secret detail")).into()),
            "hold" => {
                self.gate.acquire().await.expect("open").forget();
                Ok(Response::new(RecordUsageResponse::default()))
            }
            _ => Ok(Response::new(RecordUsageResponse::default())),
        }
    }

    type StreamUsageStream = BoxStream<'static, Result<StreamUsageResponse, Status>>;

    async fn stream_usage(
        &self,
        request: Request<Streaming<StreamUsageRequest>>,
    ) -> Result<Response<Self::StreamUsageStream>, Status> {
        let open = self.streams.clone();
        let order = order(&request);
        let (metadata, extensions, requests) = request.into_parts();
        let body: Self::StreamUsageStream = match order.as_str() {
            "panic" => futures::stream::once(async { panic!("as ordered") }).boxed(),
            // Keeps its request, so that nothing but the server can end it.
            "ignore shutdown" => futures::stream::pending()
                .inspect(move |_: &Result<_, Status>| {
                    let _ = (&requests, &open);
                })
                .boxed(),
            "flood" => futures::stream::repeat_with(move || {
                let _ = (&requests, &open);
                let message = "x".repeat(100_000);
                let rejected = vec![RejectedEvent { message, ..Default::default() }];
                Ok(StreamUsageResponse { rejected, ..Default::default() })
            })
            .boxed(),
            order => {
                let held = (order == "hold").then(|| self.gate.clone());
                let arrived = self.arrived.clone();
                let options = StreamOptions { max_batches: 4, per_second: 5_000, idle: PATIENCE, lifetime: PATIENCE };
                let body = ingest_stream::run(
                    Request::from_parts(metadata, extensions, requests),
                    options,
                    self.shutdown.clone(),
                    |batch: &StreamUsageRequest| batch.batch_id,
                    move |batch| {
                        let held = held.clone();
                        arrived.fetch_add(1, Ordering::SeqCst);
                        async move {
                            Ok(async move {
                                if let Some(gate) = held {
                                    gate.acquire().await.expect("open").forget();
                                }
                                Ok(StreamUsageResponse { batch_id: batch.batch_id, ..Default::default() })
                            })
                        }
                    },
                );
                body.inspect(move |_| {
                    let _ = &open;
                })
                .boxed()
            }
        };
        Ok(Response::new(body))
    }
}

type PlainClient = legacy::Client<HttpConnector, tonic::body::Body>;

/// A server of [`Obedient`] on a free port.
struct Running {
    service: Obedient,
    address: SocketAddr,
    healthy: Arc<AtomicBool>,
    metrics: Metrics,
    shutdown: CancellationToken,
    serving: JoinHandle<anyhow::Result<()>>,
}

async fn start(change: impl FnOnce(&mut ServerConfig)) -> Running {
    start_secured(change, Security::none()).await
}

async fn start_secured(change: impl FnOnce(&mut ServerConfig), security: Security) -> Running {
    let mut config = ServerConfig { health_interval_ms: 10.try_into().expect("not zero"), ..ServerConfig::default() };
    change(&mut config);
    let listener =
        bind("TEST", "listen", "127.0.0.1:0".parse().expect("address"), &Security::none()).await.expect("bound");
    let address = listener.local_addr().expect("address");
    let shutdown = CancellationToken::new();
    let service = Obedient {
        shutdown: shutdown.clone(),
        gate: Arc::new(Semaphore::new(0)),
        arrived: Arc::default(),
        streams: Arc::default(),
    };
    let healthy = Arc::new(AtomicBool::new(true));
    let probed = healthy.clone();
    let health = HealthCheck::new(SERVICE, move || {
        let healthy = probed.load(Ordering::SeqCst);
        async move { healthy.then_some(()).ok_or_else(|| Error::storage_unavailable(anyhow::anyhow!("gone"))) }
    });
    let mut routes = Routes::builder();
    routes.add_service(
        UsageIngestServiceServer::new(service.clone()).max_decoding_message_size(MAX_INGEST_MESSAGE_BYTES),
    );
    let metrics = Metrics::new("test");
    let serving = tokio::spawn({
        let (metrics, shutdown) = (metrics.clone(), shutdown.clone());
        async move { serve(listener, routes, vec![health], &config, security, &metrics, shutdown).await }
    });
    Running { service, address, healthy, metrics, shutdown, serving }
}

impl Running {
    fn channel(&self) -> Channel {
        Endpoint::from_shared(format!("http://{}", self.address)).expect("URI").connect_lazy()
    }

    fn client(&self) -> UsageIngestServiceClient<Channel> {
        UsageIngestServiceClient::new(self.channel())
    }

    /// Sends `grpc-timeout` as it is told to; tonic's channel would also end the call by itself, at the same time.
    fn client_without_timers(&self) -> UsageIngestServiceClient<PlainClient> {
        let client = legacy::Client::builder(TokioExecutor::new()).http2_only(true).build_http();
        UsageIngestServiceClient::with_origin(client, format!("http://{}", self.address).parse().expect("URI"))
    }

    fn open_gate(&self) {
        self.service.gate.add_permits(1_000);
    }

    fn open_streams(&self) -> usize {
        // One is the service's own, one that of the copy in the router.
        Arc::strong_count(&self.service.streams).saturating_sub(2)
    }

    async fn arrived(&self, count: usize) {
        testkit::eventually(PATIENCE, async || self.service.arrived.load(Ordering::SeqCst) == count).await;
    }

    async fn stop(self) {
        self.shutdown.cancel();
        self.serving.await.expect("no panic").expect("served");
    }
}

fn told<T>(message: T, order: &'static str) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("do", tonic::metadata::MetadataValue::from_static(order));
    request
}

fn batch(batch_id: u64) -> StreamUsageRequest {
    StreamUsageRequest { batch_id, ..Default::default() }
}

#[track_caller]
fn assert_reason(status: &Status, code: Code, reason: &str) {
    assert_eq!(status.code(), code, "{status:?}");
    let info = status.get_details_error_info().expect("ErrorInfo");
    assert_eq!((info.domain.as_str(), info.reason.as_str()), ("activity", reason));
}

async fn health(channel: Channel, service: &str) -> Result<ServingStatus, Code> {
    let request = HealthCheckRequest { service: service.to_owned() };
    match HealthClient::new(channel).check(request).await {
        Ok(answer) => Ok(answer.into_inner().status()),
        Err(status) => Err(status.code()),
    }
}

#[tokio::test]
async fn health_follows_the_probe_for_each_name() {
    let server = start(|_| {}).await;
    for name in [SERVICE, ""] {
        assert_eq!(health(server.channel(), name).await, Ok(ServingStatus::Serving));
        server.healthy.store(false, Ordering::SeqCst);
        testkit::eventually(PATIENCE, async || health(server.channel(), name).await == Ok(ServingStatus::NotServing))
            .await;
        server.healthy.store(true, Ordering::SeqCst);
        testkit::eventually(PATIENCE, async || health(server.channel(), name).await == Ok(ServingStatus::Serving))
            .await;
    }
    assert_eq!(health(server.channel(), "no.such.Service").await, Err(Code::NotFound));
    server.stop().await;
}

#[tokio::test]
async fn reflection_lists_what_is_served_in_both_versions() {
    let server = start(|_| {}).await;
    let expected = [
        SERVICE,
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
    ];
    macro_rules! listed {
        ($version:ident) => {{
            use tonic_reflection::pb::$version::{
                ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
                server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
            };
            let request = ServerReflectionRequest {
                message_request: Some(MessageRequest::ListServices(String::new())),
                ..Default::default()
            };
            let mut answers = ServerReflectionClient::new(server.channel())
                .server_reflection_info(futures::stream::iter([request]))
                .await
                .expect("answered")
                .into_inner();
            let answer = answers.message().await.expect("no error").expect("an answer");
            let Some(MessageResponse::ListServicesResponse(list)) = answer.message_response else {
                panic!("{answer:?}")
            };
            let mut names: Vec<String> = list.service.into_iter().map(|service| service.name).collect();
            names.sort();
            names
        }};
    }
    assert_eq!(listed!(v1), expected);
    assert_eq!(listed!(v1alpha), expected);
    server.stop().await;
}

#[tokio::test]
async fn a_panic_fails_its_call_and_nothing_else() {
    let server = start(|_| {}).await;
    let mut client = server.client();
    let status = client.record_usage(told(RecordUsageRequest::default(), "panic")).await.expect_err("fails");
    assert_reason(&status, Code::Internal, "INTERNAL");
    let mut stream = client.stream_usage(told(futures::stream::pending(), "panic")).await.expect("begun").into_inner();
    let status = stream.message().await.expect_err("fails");
    assert_reason(&status, Code::Internal, "INTERNAL");
    client.record_usage(RecordUsageRequest::default()).await.expect("the connection lives");
    server.stop().await;
}

#[tokio::test]
async fn a_defect_is_internal_without_its_cause() {
    let server = start(|_| {}).await;
    let request = told(RecordUsageRequest::default(), "fail");
    let status = server.client().record_usage(request).await.expect_err("fails");
    assert_reason(&status, Code::Internal, "INTERNAL");
    assert!(!status.message().contains("secret"));
    server.stop().await;
}

#[tokio::test]
async fn calls_are_counted_by_method_and_code() {
    let server = start(|_| {}).await;
    let mut client = server.client();
    client.record_usage(RecordUsageRequest::default()).await.expect("answered");
    client.record_usage(told(RecordUsageRequest::default(), "fail")).await.expect_err("fails");
    let line =
        |code| format!("activity_rpc_total{{code=\"{code}\",method=\"/{SERVICE}/RecordUsage\",service=\"test\"}} 1");
    testkit::eventually(PATIENCE, async || {
        let text = server.metrics.encode();
        text.contains(&line("OK")) && text.contains(&line("INTERNAL"))
    })
    .await;
    server.stop().await;
}

#[tokio::test]
async fn an_address_beyond_this_machine_is_refused_with_the_reason() {
    for address in ["0.0.0.0:0", "[::]:0", "192.0.2.1:50051", "[::ffff:192.0.2.1]:1"] {
        let error =
            bind("TEST", "listen", address.parse().expect("address"), &Security::none()).await.expect_err("refused");
        assert_eq!(exit_code(&error), 64);
        let text = error.to_string();
        assert!(text.contains("authentication") && text.contains("loopback"), "{text}");
        assert!(text.starts_with("listen (TEST_LISTEN) is "), "{text}");
    }
    for address in ["127.0.0.1:0", "127.1.2.3:0"] {
        bind("TEST", "listen", address.parse().expect("address"), &Security::none()).await.expect("bound");
    }
    let taken =
        bind("TEST", "listen", "127.0.0.1:0".parse().expect("address"), &Security::none()).await.expect("bound");
    let again =
        bind("TEST", "listen", taken.local_addr().expect("address"), &Security::none()).await.expect_err("taken");
    assert_eq!(exit_code(&again), 1);
    let text = explain(&again);
    let address = taken.local_addr().expect("address");
    assert!(text.starts_with(&format!("cannot listen on {address}, which listen (TEST_LISTEN) says: ")), "{text}");
}

#[test]
fn a_cause_is_told_once() {
    let error = anyhow::anyhow!("(code: 26) no database").context("error of the driver: (code: 26) no database");
    assert_eq!(
        explain(&error.context("cannot open x.db")),
        "cannot open x.db: error of the driver: (code: 26) no database"
    );
}

#[tokio::test]
async fn a_call_to_the_wrong_server_is_told_what_is_served() {
    use activity_proto::audit::v1::{ListEntriesRequest, audit_query_service_client::AuditQueryServiceClient};

    let server = start(|_| {}).await;
    let mut client = AuditQueryServiceClient::new(server.channel());
    let status = client.list_entries(ListEntriesRequest::default()).await.expect_err("of the other server");
    assert_eq!(status.code(), Code::Unimplemented);
    assert_eq!(status.message(), format!("no such method on this server; its services are {SERVICE}"));
    server.stop().await;
}

#[test]
fn every_file_that_reflection_gives_comes_with_those_it_imports() {
    use prost::Message as _;

    let sets = methods::DESCRIPTORS.map(|set| prost_types::FileDescriptorSet::decode(set).expect("valid"));
    let files: Vec<_> = sets.iter().flat_map(|set| &set.file).collect();
    for import in files.iter().flat_map(|file| &file.dependency) {
        assert!(files.iter().any(|file| file.name() == import), "{import}");
    }
    for detail in ["ErrorInfo", "BadRequest", "RetryInfo"] {
        let known = |file: &&prost_types::FileDescriptorProto| {
            file.package() == "google.rpc" && file.message_type.iter().any(|message| message.name() == detail)
        };
        assert!(files.iter().copied().any(|file| known(&file)), "{detail}");
    }
}
