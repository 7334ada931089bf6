//! The services of the contract: a request in, checked; a call of the store or the writer; the answer out.

#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzz;
mod governance;
mod ingest;
mod query;
mod trust;

use activity_proto::audit::v1::audit_governance_service_server::{
    self as governance_server, AuditGovernanceServiceServer,
};
use activity_proto::audit::v1::audit_ingest_service_server::{self as ingest_server, AuditIngestServiceServer};
use activity_proto::audit::v1::audit_query_service_server::{self as query_server, AuditQueryServiceServer};
use activity_proto::audit::v1::audit_trust_service_server::{self as trust_server, AuditTrustServiceServer};
use service_core::server::{MAX_INGEST_MESSAGE_BYTES, MAX_QUERY_MESSAGE_BYTES, MAX_RESPONSE_BYTES};
use tonic::codec::CompressionEncoding;
use tonic::service::RoutesBuilder;

pub(crate) use governance::GovernanceService;
pub(crate) use ingest::IngestService;
pub(crate) use query::QueryService;
pub(crate) use trust::TrustService;

/// Full name of the service that takes events in.
pub(crate) const INGEST_SERVICE: &str = ingest_server::SERVICE_NAME;
/// Full name of the service that answers.
pub(crate) const QUERY_SERVICE: &str = query_server::SERVICE_NAME;

/// Full name of the service that proves.
pub(crate) const TRUST_SERVICE: &str = trust_server::SERVICE_NAME;
/// Full name of the service that says what is kept.
pub(crate) const GOVERNANCE_SERVICE: &str = governance_server::SERVICE_NAME;

/// The services with their limits. Answers are compressed where the client asks for it; receipts are mostly hashes,
/// which do not compress.
pub(crate) fn routes(
    ingest: IngestService,
    query: QueryService,
    trust: TrustService,
    governance: GovernanceService,
) -> RoutesBuilder {
    let mut routes = RoutesBuilder::default();
    routes.add_service(
        AuditIngestServiceServer::new(ingest)
            .accept_compressed(CompressionEncoding::Gzip)
            .accept_compressed(CompressionEncoding::Zstd)
            .max_decoding_message_size(MAX_INGEST_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_RESPONSE_BYTES),
    );
    routes.add_service(
        AuditQueryServiceServer::new(query)
            .accept_compressed(CompressionEncoding::Gzip)
            .accept_compressed(CompressionEncoding::Zstd)
            .send_compressed(CompressionEncoding::Gzip)
            .send_compressed(CompressionEncoding::Zstd)
            .max_decoding_message_size(MAX_QUERY_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_RESPONSE_BYTES),
    );
    // Hashes do not compress.
    routes.add_service(
        AuditTrustServiceServer::new(trust)
            .accept_compressed(CompressionEncoding::Gzip)
            .accept_compressed(CompressionEncoding::Zstd)
            .max_decoding_message_size(MAX_QUERY_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_RESPONSE_BYTES),
    );
    routes.add_service(
        AuditGovernanceServiceServer::new(governance)
            .accept_compressed(CompressionEncoding::Gzip)
            .accept_compressed(CompressionEncoding::Zstd)
            .send_compressed(CompressionEncoding::Gzip)
            .send_compressed(CompressionEncoding::Zstd)
            .max_decoding_message_size(MAX_QUERY_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_RESPONSE_BYTES),
    );
    routes
}
