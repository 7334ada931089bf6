//! Traces as a collector gets them. By itself in its process, because telemetry
//! is set up once.

#![allow(clippy::expect_used, reason = "a test")]

use std::time::Duration;

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use service_core::config::{ServerConfig, TelemetryConfig};
use service_core::server::{Security, bind, serve};
use service_core::telemetry::{self, Metrics};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::transport::Endpoint;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

const PATIENCE: Duration = Duration::from_secs(20);
const METHOD: &str = "/grpc.health.v1.Health/Check";

/// A collector that hands on what it gets.
struct Collector(mpsc::UnboundedSender<ExportTraceServiceRequest>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.0.send(request.into_inner()).expect("awaited");
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

async fn collector() -> (String, mpsc::UnboundedReceiver<ExportTraceServiceRequest>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let uri = format!("http://{}", listener.local_addr().expect("address"));
    let (sender, receiver) = mpsc::unbounded_channel();
    let router = tonic::transport::Server::builder().add_service(TraceServiceServer::new(Collector(sender)));
    tokio::spawn(router.serve_with_incoming(TcpIncoming::from(listener)));
    (uri, receiver)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_callers_trace_goes_on_to_the_collector() {
    let (otlp_endpoint, mut exported) = collector().await;
    let config = TelemetryConfig { log: "off".into(), otlp_endpoint, ..TelemetryConfig::default() };
    let telemetry = telemetry::init(&config, "sample-service").expect("set up");
    telemetry::init(&TelemetryConfig::default(), "again").expect_err("once a process");

    let listener =
        bind("TEST", "listen", "127.0.0.1:0".parse().expect("address"), &Security::none()).await.expect("bound");
    let uri = format!("http://{}", listener.local_addr().expect("address"));
    let shutdown = CancellationToken::new();
    let (config, metrics) = (ServerConfig::default(), Metrics::new("test"));
    let serving = serve(listener, Routes::builder(), vec![], &config, Security::none(), &metrics, shutdown.clone());
    let calling = async {
        let mut request = Request::new(HealthCheckRequest::default());
        let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        request.metadata_mut().insert("traceparent", parent.parse().expect("header"));
        let channel = Endpoint::from_shared(uri).expect("URI").connect_lazy();
        HealthClient::new(channel).check(request).await.expect("answered");
        shutdown.cancel();
    };
    let (served, ()) = tokio::join!(serving, calling);
    served.expect("served");
    // The end of the process: what is left goes out.
    tokio::task::spawn_blocking(|| drop(telemetry)).await.expect("no panic");

    let request = tokio::time::timeout(PATIENCE, exported.recv()).await.expect("in time").expect("exported");
    let of_service = request.resource_spans.first().expect("a resource");
    let resource = format!("{:?}", of_service.resource);
    assert!(resource.contains("sample-service"), "{resource}");
    let mut spans = of_service.scope_spans.iter().flat_map(|scope| &scope.spans);
    let span = spans.find(|span| span.name == METHOD).expect("the call");
    assert_eq!(hex(&span.trace_id), "4bf92f3577b34da6a3ce929d0e0e4736");
    assert_eq!(hex(&span.parent_span_id), "00f067aa0ba902b7");
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
