//! The caller's trace goes on in the server. By itself in its process, because
//! what is traced is decided once for all threads.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use opentelemetry::trace::TracerProvider as _;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{SdkTracerProvider, SpanData, SpanExporter};
use service_core::config::ServerConfig;
use service_core::server::{bind, serve};
use service_core::telemetry::Metrics;
use tokio_util::sync::CancellationToken;
use tonic::Request;
use tonic::service::Routes;
use tonic::transport::Endpoint;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tracing_subscriber::layer::SubscriberExt as _;

#[derive(Debug, Clone, Default)]
struct Collected(Arc<Mutex<Vec<SpanData>>>);

impl SpanExporter for Collected {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        self.0.lock().expect("lock").extend(batch);
        Ok(())
    }
}

#[tokio::test]
async fn the_callers_trace_is_continued() {
    let collected = Collected::default();
    let provider = SdkTracerProvider::builder().with_simple_exporter(collected.clone()).build();
    let subscriber =
        tracing_subscriber::registry().with(tracing_opentelemetry::layer().with_tracer(provider.tracer("test")));
    tracing::subscriber::set_global_default(subscriber).expect("the only one");

    let listener = bind("listen", "127.0.0.1:0".parse().expect("address")).await.expect("bound");
    let uri = format!("http://{}", listener.local_addr().expect("address"));
    let shutdown = CancellationToken::new();
    let (config, metrics) = (ServerConfig::default(), Metrics::new("test"));
    let serving = serve(listener, Routes::builder(), vec![], &config, &metrics, shutdown.clone());
    let calling = async {
        let mut request = Request::new(HealthCheckRequest::default());
        let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        request.metadata_mut().insert("traceparent", parent.parse().expect("header"));
        let channel = Endpoint::from_shared(uri).expect("URI").connect_lazy();
        HealthClient::new(channel).check(request).await.expect("answered");
        let span = testkit::eventually(Duration::from_secs(20), async || {
            let spans = collected.0.lock().expect("lock");
            spans.iter().find(|span| span.name == "/grpc.health.v1.Health/Check").cloned()
        })
        .await;
        shutdown.cancel();
        span
    };
    let (served, span) = tokio::join!(serving, calling);
    served.expect("served");
    assert_eq!(span.span_context.trace_id().to_string(), "4bf92f3577b34da6a3ce929d0e0e4736");
    assert_eq!(span.parent_span_id.to_string(), "00f067aa0ba902b7");
}
