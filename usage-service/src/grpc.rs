//! The gRPC services: from a message to a checked question, from an answer to a
//! message. What is asked is answered by `store`, in one hop.

mod export;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzz;
mod ingest;
mod pricing;
mod query;

use std::sync::Arc;

use activity_proto::usage::v1 as proto;
use service_core::config::IngestConfig;
use service_core::ingest_stream::StreamOptions;
use service_core::page::Sealer;
use service_core::server::{HealthCheck, MAX_INGEST_MESSAGE_BYTES, MAX_QUERY_MESSAGE_BYTES, MAX_RESPONSE_BYTES};
use service_core::telemetry::Metrics;
use tokio_util::sync::CancellationToken;
use tonic::codec::CompressionEncoding;
use tonic::service::RoutesBuilder;

use crate::ingest::Writer;
use crate::pricing::PriceBook;
use crate::store::Store;

/// What every service needs. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Shared {
    pub(crate) store: Store,
    pub(crate) book: Arc<PriceBook>,
    pub(crate) sealer: Sealer,
    pub(crate) writer: Writer,
    pub(crate) stream: StreamOptions,
    pub(crate) metrics: Metrics,
    pub(crate) shutdown: CancellationToken,
}

impl Shared {
    pub(crate) fn new(
        store: Store,
        book: Arc<PriceBook>,
        sealer: Sealer,
        writer: Writer,
        config: &IngestConfig,
        metrics: Metrics,
        shutdown: CancellationToken,
    ) -> Self {
        Self { store, book, sealer, writer, stream: StreamOptions::from(config), metrics, shutdown }
    }

    /// The services with their limits, and how each is probed.
    pub(crate) fn routes(&self) -> (RoutesBuilder, Vec<HealthCheck>) {
        use proto::pricing_service_server::{PricingServiceServer, SERVICE_NAME as PRICING};
        use proto::usage_ingest_service_server::{SERVICE_NAME as INGEST, UsageIngestServiceServer};
        use proto::usage_query_service_server::{SERVICE_NAME as QUERY, UsageQueryServiceServer};

        let mut routes = RoutesBuilder::default();
        macro_rules! add {
            ($server:ident, $service:expr, $max_message_bytes:expr) => {
                routes.add_service(
                    $server::new($service)
                        .max_decoding_message_size($max_message_bytes)
                        .max_encoding_message_size(MAX_RESPONSE_BYTES)
                        .accept_compressed(CompressionEncoding::Gzip)
                        .accept_compressed(CompressionEncoding::Zstd)
                        .send_compressed(CompressionEncoding::Gzip)
                        .send_compressed(CompressionEncoding::Zstd),
                )
            };
        }
        add!(UsageIngestServiceServer, ingest::Ingest(self.clone()), MAX_INGEST_MESSAGE_BYTES);
        add!(UsageQueryServiceServer, query::Query(self.clone()), MAX_QUERY_MESSAGE_BYTES);
        add!(PricingServiceServer, pricing::Pricing(self.clone()), MAX_QUERY_MESSAGE_BYTES);

        let reads = self.store.clone();
        let health = vec![
            HealthCheck::writer(INGEST, &self.writer, self.store.database().clone()),
            HealthCheck::new(QUERY, move || {
                let store = reads.clone();
                async move { store.probe_reader().await }
            }),
            // The book is in memory.
            HealthCheck::new(PRICING, || async { Ok(()) }),
        ];
        (routes, health)
    }
}
