//! The administration of a platform over gRPC, in which nothing changes without a record:
//! `cargo run -p gateway-sdk --example tonic --features layer`, with the audit-service on its
//! default address. What is administered here are legal holds, by a service of the contract.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use gateway_sdk::layer::{AuditHandle, AuditLayer};
use gateway_sdk::proto::audit::v1::audit_governance_service_server::{
    AuditGovernanceService, AuditGovernanceServiceServer,
};
use gateway_sdk::proto::audit::v1::{
    GetCoverageRequest, GetCoverageResponse, GetRetentionRequest, GetRetentionResponse, LegalHold, ListArchivesRequest,
    ListArchivesResponse, ListLegalHoldsRequest, ListLegalHoldsResponse, PlaceLegalHoldRequest, PlaceLegalHoldResponse,
    ReleaseLegalHoldRequest, ReleaseLegalHoldResponse,
};
use gateway_sdk::{Actor, Audit, Diff, GatewaySdk, Resource};
use serde_json::json;
use tokio::net::TcpListener;
use tonic::service::InterceptorLayer;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, async_trait};

/// What is recorded, and of what kind of resource; the rest only reads.
pub(crate) const ACTIONS: [(&str, &str, &str); 2] = [
    ("/activity.audit.v1.AuditGovernanceService/PlaceLegalHold", "legal_hold.placed", "legal_hold"),
    ("/activity.audit.v1.AuditGovernanceService/ReleaseLegalHold", "legal_hold.released", "legal_hold"),
];
pub(crate) const READ_ONLY: [&str; 4] = [
    "/activity.audit.v1.AuditGovernanceService/GetCoverage",
    "/activity.audit.v1.AuditGovernanceService/GetRetention",
    "/activity.audit.v1.AuditGovernanceService/ListArchives",
    "/activity.audit.v1.AuditGovernanceService/ListLegalHolds",
];

/// The holds, by their reasons.
#[derive(Default)]
pub(crate) struct Holds {
    placed: Mutex<Vec<LegalHold>>,
    /// Runs after each change and before its answer.
    pub(crate) after_change: Option<fn()>,
}

impl Holds {
    pub(crate) fn placed(&self) -> MutexGuard<'_, Vec<LegalHold>> {
        self.placed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Who was authenticated.
#[derive(Clone)]
struct Admin(String);

/// Stands for what authenticates: whoever has a token is who it names.
fn authenticate(mut request: Request<()>) -> Result<Request<()>, Status> {
    let token = request.metadata().get("authorization").and_then(|header| header.to_str().ok());
    if let Some(name) = token.and_then(|token| token.strip_prefix("Bearer ")).map(str::to_owned) {
        request.extensions_mut().insert(Admin(name));
    }
    Ok(request)
}

struct Administration(Arc<Holds>);

#[async_trait]
impl AuditGovernanceService for Administration {
    async fn place_legal_hold(
        &self,
        request: Request<PlaceLegalHoldRequest>,
    ) -> Result<Response<PlaceLegalHoldResponse>, Status> {
        if request.extensions().get().is_none_or(|Admin(name)| name == "viewer") {
            return Err(Status::permission_denied("viewers place no holds"));
        }
        let handle = request.extensions().get::<AuditHandle>().cloned();
        let asked = request.into_inner();
        if asked.reason.is_empty() {
            return Err(Status::invalid_argument("reason is required"));
        }
        let hold = LegalHold { hold_id: asked.hold_id, reason: asked.reason, ..LegalHold::default() };
        self.0.placed().push(hold.clone());
        if let Some(after_change) = self.0.after_change {
            after_change();
        }
        if let Some(handle) = handle {
            handle.acted_on(Resource::new("legal_hold", &hold.hold_id));
            handle.diff(Diff::created(&json!({"reason": hold.reason})));
        }
        Ok(Response::new(PlaceLegalHoldResponse { hold: Some(hold), archived_through: None }))
    }

    async fn release_legal_hold(
        &self,
        request: Request<ReleaseLegalHoldRequest>,
    ) -> Result<Response<ReleaseLegalHoldResponse>, Status> {
        let handle = request.extensions().get::<AuditHandle>().cloned();
        let asked = request.into_inner();
        let hold = {
            let mut placed = self.0.placed();
            let at = placed.iter().position(|hold| hold.hold_id == asked.hold_id);
            placed.remove(at.ok_or_else(|| Status::not_found("no such hold"))?)
        };
        if let Some(after_change) = self.0.after_change {
            after_change();
        }
        if let Some(handle) = handle {
            handle.acted_on(Resource::new("legal_hold", &hold.hold_id));
            handle.diff(Diff::deleted(&json!({"reason": hold.reason})));
        }
        Ok(Response::new(ReleaseLegalHoldResponse { hold: Some(hold) }))
    }

    async fn list_legal_holds(
        &self,
        _: Request<ListLegalHoldsRequest>,
    ) -> Result<Response<ListLegalHoldsResponse>, Status> {
        Ok(Response::new(ListLegalHoldsResponse {
            holds: self.0.placed().clone(),
            ..ListLegalHoldsResponse::default()
        }))
    }

    async fn get_retention(&self, _: Request<GetRetentionRequest>) -> Result<Response<GetRetentionResponse>, Status> {
        Err(Status::unimplemented("nothing is removed here"))
    }

    async fn list_archives(&self, _: Request<ListArchivesRequest>) -> Result<Response<ListArchivesResponse>, Status> {
        Err(Status::unimplemented("nothing is archived here"))
    }

    async fn get_coverage(&self, _: Request<GetCoverageRequest>) -> Result<Response<GetCoverageResponse>, Status> {
        Err(Status::unimplemented("nobody numbers anything here"))
    }
}

/// What is recorded, by the lists above.
fn layer(audit: &Audit) -> AuditLayer {
    let who = |request: &http::request::Parts| {
        let Admin(name) = request.extensions.get()?;
        Some(Actor::user(name))
    };
    let layer = ACTIONS
        .iter()
        .fold(AuditLayer::grpc(audit, who), |layer, (path, action, kind)| layer.action(*path, *action, *kind));
    READ_ONLY.iter().fold(layer, |layer, path| layer.read_only(*path))
}

/// Serves until it is dropped.
pub(crate) async fn serve(
    listener: TcpListener,
    holds: Arc<Holds>,
    audit: &Audit,
) -> Result<(), tonic::transport::Error> {
    let incoming = TcpIncoming::from(listener);
    Server::builder()
        .layer(InterceptorLayer::new(authenticate))
        .layer(layer(audit))
        .add_service(AuditGovernanceServiceServer::new(Administration(holds)))
        .serve_with_incoming(incoming)
        .await
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let sdk = GatewaySdk::builder()
        .audit_endpoint("http://127.0.0.1:50051")
        .instance("example")
        .spool(std::env::temp_dir().join("activity-example-tonic"))
        .build()?;
    let listener = TcpListener::bind("127.0.0.1:8081").await?;
    serve(listener, Arc::default(), sdk.audit()).await?;
    Ok(())
}
