//! A service behind TLS and authentication, and clients with tokens or certificates.

use std::net::SocketAddr;

use activity_proto::usage::v1::pricing_service_client::PricingServiceClient;
use activity_proto::usage::v1::usage_ingest_service_client::UsageIngestServiceClient;
use activity_proto::usage::v1::usage_query_service_client::UsageQueryServiceClient;
use service_core::config;
use tempfile::TempDir;
use testkit::Realm;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Request, Status};
use usage_service::{Config, ENV_PREFIX};

/// A running service.
pub(crate) struct Secured {
    pub(crate) realm: Realm,
    pub(crate) address: SocketAddr,
    shutdown: CancellationToken,
    serving: JoinHandle<anyhow::Result<()>>,
    _folder: TempDir,
}

pub(crate) type Bearer = Box<dyn FnMut(Request<()>) -> Result<Request<()>, Status> + Send + Sync>;
pub(crate) type Authorized = InterceptedService<Channel, Bearer>;

/// A client of all its services.
pub(crate) struct Client {
    pub(crate) ingest: UsageIngestServiceClient<Authorized>,
    pub(crate) query: UsageQueryServiceClient<Authorized>,
    pub(crate) prices: PricingServiceClient<Authorized>,
}

impl Secured {
    pub(crate) async fn start(change: impl FnOnce(&mut Config)) -> Self {
        let (realm, folder) = (Realm::new(), tempfile::tempdir().unwrap());
        let env = realm.settings().into_iter().map(|(key, value)| (format!("{ENV_PREFIX}_{key}"), value));
        let loaded: Config = config::load(ENV_PREFIX, None, env).unwrap();
        let mut config = Config { tls: loaded.tls, auth: loaded.auth, ..crate::harness::config(&folder) };
        change(&mut config);
        let server = usage_service::bind(config).await.unwrap();
        let address = server.local_addr();
        let shutdown = CancellationToken::new();
        let serving = tokio::spawn(server.serve(shutdown.clone()));
        Self { realm, address, shutdown, serving, _folder: folder }
    }

    /// A client with a token; without, if that is empty.
    pub(crate) async fn client(&self, token: &str) -> Client {
        self.client_with(None, token).await
    }

    pub(crate) async fn client_with(&self, identity: Option<(String, String)>, token: &str) -> Client {
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
            ingest: UsageIngestServiceClient::with_interceptor(channel.clone(), bearer()),
            query: UsageQueryServiceClient::with_interceptor(channel.clone(), bearer())
                .max_decoding_message_size(8 << 20),
            prices: PricingServiceClient::with_interceptor(channel, bearer()),
        }
    }

    pub(crate) async fn stop(self) {
        self.shutdown.cancel();
        self.serving.await.unwrap().unwrap();
    }
}
