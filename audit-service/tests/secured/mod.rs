//! A service behind TLS and authentication, and clients with tokens or certificates.
#![allow(clippy::unwrap_used, clippy::expect_used, dead_code, unreachable_pub, reason = "a test")]

use activity_proto::audit::v1 as proto;
use activity_proto::audit::v1::audit_governance_service_client::AuditGovernanceServiceClient;
use activity_proto::audit::v1::audit_ingest_service_client::AuditIngestServiceClient;
use activity_proto::audit::v1::audit_query_service_client::AuditQueryServiceClient;
use activity_proto::audit::v1::audit_trust_service_client::AuditTrustServiceClient;
use activity_proto::common::v1 as common;
use audit_service::store::Store;
use audit_service::{Config, ENV_PREFIX, Server};
use service_core::clock::to_timestamp;
use service_core::config::{self, DatabaseConfig, DatabaseUrl};
use std::net::SocketAddr;
use testkit::Realm;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Request, Status};

use crate::support::id_at;

/// A running service.
pub struct Service {
    pub realm: Realm,
    pub address: SocketAddr,
    url: DatabaseUrl,
    shutdown: CancellationToken,
    serving: JoinHandle<anyhow::Result<()>>,
    folder: tempfile::TempDir,
}

type Bearer = Box<dyn FnMut(Request<()>) -> Result<Request<()>, Status> + Send + Sync>;
type Authorized = InterceptedService<Channel, Bearer>;

/// A client of all services.
pub struct Client {
    pub ingest: AuditIngestServiceClient<Authorized>,
    pub query: AuditQueryServiceClient<Authorized>,
    pub trust: AuditTrustServiceClient<Authorized>,
    pub governance: AuditGovernanceServiceClient<Authorized>,
}

impl Service {
    pub async fn start(change: impl FnOnce(&mut Config)) -> Self {
        Self::start_as(change, |server| server).await
    }

    pub async fn start_as(change: impl FnOnce(&mut Config), own: impl FnOnce(Server) -> Server) -> Self {
        let (realm, folder) = (Realm::new(), tempfile::tempdir().unwrap());
        let url = DatabaseUrl::sqlite(folder.path().join("audit.db"));
        let env = realm.settings().into_iter().map(|(key, value)| (format!("{ENV_PREFIX}_{key}"), value));
        let mut config: Config = config::load(ENV_PREFIX, None, env).unwrap();
        config.activity.instance = String::new();
        config.listen = "127.0.0.1:0".parse().unwrap();
        config.metrics_listen = None;
        config.database_url = url.clone();
        config.tail.heartbeat_ms = 50.try_into().unwrap();
        change(&mut config);
        let server = own(audit_service::bind(config).await.unwrap());
        let address = server.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let serving = tokio::spawn(server.serve(shutdown.clone()));
        Self { realm, address, url, shutdown, serving, folder }
    }

    /// A client with a token; without, if that is empty.
    pub async fn client(&self, token: &str) -> Client {
        self.client_with(None, token).await
    }

    pub async fn client_with(&self, identity: Option<(String, String)>, token: &str) -> Client {
        let root = Certificate::from_pem(self.realm.authority.pem());
        let mut tls = ClientTlsConfig::new().ca_certificate(root).domain_name("localhost");
        if let Some((certificate, key)) = identity {
            tls = tls.identity(Identity::from_pem(certificate, key));
        }
        let endpoint = Endpoint::from_shared(format!("https://{}", self.address)).unwrap();
        let channel = endpoint.tls_config(tls).unwrap().connect().await.unwrap();
        let bearer = || -> Bearer {
            let header = (!token.is_empty()).then(|| format!("Bearer {token}"));
            Box::new(move |mut request| {
                if let Some(header) = &header {
                    request.metadata_mut().insert("authorization", header.parse().unwrap());
                }
                Ok(request)
            })
        };
        Client {
            ingest: AuditIngestServiceClient::with_interceptor(channel.clone(), bearer()),
            query: AuditQueryServiceClient::with_interceptor(channel.clone(), bearer())
                .max_decoding_message_size(8 << 20),
            trust: AuditTrustServiceClient::with_interceptor(channel.clone(), bearer()),
            governance: AuditGovernanceServiceClient::with_interceptor(channel, bearer()),
        }
    }

    /// Stops it; what it has stored can still be read.
    pub async fn stop(self) -> (Store, tempfile::TempDir) {
        self.shutdown.cancel();
        self.serving.await.unwrap().unwrap();
        (Store::open(&self.url, &DatabaseConfig::default()).await.unwrap(), self.folder)
    }
}

impl Client {
    /// The entries of the last hour, newest first.
    pub async fn list(&mut self, filter: proto::AuditFilter) -> Vec<proto::AuditEntry> {
        let request = proto::ListEntriesRequest {
            time_range: Some(last_hour()),
            filter: Some(filter),
            page_size: 1_000,
            ..Default::default()
        };
        self.query.list_entries(request).await.unwrap().into_inner().entries
    }
}

pub fn event(us: i64, instance: &str) -> proto::AuditEvent {
    proto::AuditEvent {
        id: id_at(us).to_string(),
        occurred_at: Some(to_timestamp(us)),
        instance_id: instance.into(),
        actor: Some(proto::Actor { id: "u-1".into(), ..Default::default() }),
        action: "model.enabled".into(),
        resources: vec![proto::Resource { r#type: "model".into(), id: "m-1".into(), name: "GPT-4o".into() }],
        outcome: proto::Outcome::Success.into(),
        ..Default::default()
    }
}

pub fn last_hour() -> common::TimeRange {
    let preset = common::time_range::Range::Preset(common::TimeRangePreset::LastHour.into());
    common::TimeRange { range: Some(preset), time_zone: String::new() }
}

/// The bare reason of an error, which every error has.
pub fn reason(status: &Status) -> String {
    use tonic_types::StatusExt as _;
    let details = status.get_error_details();
    let info = details.error_info().expect("ErrorInfo");
    assert_eq!(info.domain, "activity");
    info.reason.clone()
}
