//! Refused calls as entries `access.denied` of the audit log: recorded as any service of
//! the platform records, through the SDK. Without an address of the audit-service they are
//! lines of the log. Either way they are limited in rate, counted, and nobody waits for
//! them.

use std::time::Duration;

use gateway_sdk::{
    Actor, ActorKind, AuditEvent, AuditEventBuilder, Credentials, Error, GatewaySdk, Outcome, Resource, Tls,
};
use service_core::auth::{CredentialKind, Denial, DenialQueue, Record};
use service_core::config::{ConfigError, DenialsConfig};
use service_core::telemetry::Metrics;
use tokio_util::sync::CancellationToken;

use crate::config::AuditConfig;

const ACTION: &str = "access.denied";
/// Who records them, and who was refused when nobody has said its name.
const RECORDED_BY: &str = "usage-service";
const NOBODY: &str = "anonymous";
/// How long one is waited for before the next is sent; it stays queued.
const PATIENCE: Duration = Duration::from_secs(5);
/// What waits for an audit-service that is away; beyond it they are counted and logged.
const QUEUE_EVENTS: usize = 4_096;
const QUEUE_BYTES: usize = 4 * 1024 * 1024;

/// Where refusals go.
#[derive(Debug)]
pub(crate) struct Auditor(Option<GatewaySdk>);

impl Auditor {
    /// Refuses an address, or files, that can't be used. Connects when there is something to say.
    pub(crate) fn new(config: &AuditConfig, denials: &DenialsConfig) -> Result<Self, ConfigError> {
        let refused = |why: String| ConfigError::Refused(why);
        let file = |path: &std::path::Path| (!path.as_os_str().is_empty()).then(|| path.to_owned());
        let (roots, token) = (file(&config.ca_file), file(&config.token_file));
        let identity = match (file(&config.certificate_file), file(&config.key_file)) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            _ => {
                return Err(refused(
                    "audit.certificate_file and audit.key_file are configured together or not at all".into(),
                ));
            }
        };
        if config.endpoint.is_empty() {
            if roots.is_some() || token.is_some() || identity.is_some() {
                return Err(refused("audit.endpoint is empty, required beside audit's files".into()));
            }
            return Ok(Self(None));
        }
        if denials.instance.is_empty() {
            return Err(refused(
                "denials.instance is empty, required beside audit.endpoint is the id of an instance".into(),
            ));
        }
        let mut builder = GatewaySdk::builder()
            .audit_endpoint(&config.endpoint)
            .instance(&denials.instance)
            .audit_queue(QUEUE_EVENTS, QUEUE_BYTES)
            .audit_timeout(PATIENCE);
        if roots.is_some() || identity.is_some() {
            let tls = roots.into_iter().fold(Tls::new(), Tls::roots_file);
            builder = builder
                .tls(identity.into_iter().fold(tls, |tls, (certificate, key)| tls.identity_files(certificate, key)));
        }
        if let Some(path) = token {
            builder = builder.credentials(Credentials::file(path));
        }
        builder.build().map(|sdk| Self(Some(sdk))).map_err(|error| match error {
            Error::Config { setting: "audit_endpoint", message } => refused(format!("audit.endpoint: {message}")),
            Error::Config { setting: "tls", message } => {
                refused(format!("audit.ca_file, audit.certificate_file, audit.key_file: {message}"))
            }
            Error::Config { setting: "instance", message } => refused(format!("denials.instance: {message}")),
            other => refused(format!("audit: {other}")),
        })
    }

    /// Whether they become entries.
    pub(crate) fn has_audit_log(&self) -> bool {
        self.0.is_some()
    }

    /// Records what is refused, until `stop` and then what is left.
    pub(crate) async fn record(self, mut refused: DenialQueue, metrics: Metrics, stop: CancellationToken) {
        let mut stopped = false;
        loop {
            let record = tokio::select! {
                () = stop.cancelled(), if !stopped => {
                    stopped = true;
                    refused.close();
                    continue;
                }
                record = refused.next() => record,
            };
            let Some(record) = record else { break };
            let Some(sdk) = &self.0 else {
                log(&record);
                continue;
            };
            let sent = sdk.audit().record(event(&record));
            let recorded = tokio::select! {
                recorded = sent => recorded,
                // What is left of the time belongs to all of them.
                () = stop.cancelled(), if !stopped => continue,
            };
            match recorded {
                Ok(_) => {}
                // Still queued in the SDK, and sent when the audit-service is back.
                Err(error @ Error::NotAcknowledged { .. }) => {
                    tracing::warn!(%error, "a refused call is not recorded yet")
                }
                Err(error) => {
                    metrics.denial_left_out();
                    tracing::error!(%error, "a refused call is not recorded");
                    log(&record);
                }
            }
        }
        if let Some(sdk) = self.0 {
            let left = sdk.shutdown(PATIENCE).await;
            if !left.is_complete() {
                tracing::error!(left = ?left.audit, "refused calls were not recorded to the end");
            }
        }
    }
}

/// For an operator without an audit-service.
fn log(record: &Record) {
    match record {
        Record::LeftOut(count) => tracing::warn!(count, "more calls were refused"),
        Record::Denial(denial) => {
            let Denial { subject, method, why, message, peer, .. } = &**denial;
            tracing::warn!(
                subject = subject.as_deref().unwrap_or(NOBODY),
                method,
                why = why.name(),
                message,
                ?peer,
                "call refused"
            );
        }
    }
}

fn event(record: &Record) -> AuditEventBuilder {
    match record {
        Record::LeftOut(count) => {
            AuditEvent::builder(Actor::system(RECORDED_BY), ACTION, Resource::new("service", RECORDED_BY))
                .outcome(Outcome::Denied)
                .reason(format!("{count} more calls were refused and not recorded one by one"))
                .details(&serde_json::json!({ "left_out": count }))
        }
        Record::Denial(denial) => {
            let Denial { at_us, subject, kind, method, why, message, instance, user, peer, user_agent } = &**denial;
            let id = subject.as_deref().unwrap_or(NOBODY);
            // A token does not say whether a person or a program has it.
            let mut actor = match kind {
                Some(CredentialKind::Certificate) => Actor::service_account(id),
                _ => Actor::of_kind(ActorKind::Unspecified, id),
            };
            if let Some(peer) = peer {
                actor = actor.ip_address(*peer);
            }
            let at = std::time::UNIX_EPOCH + Duration::from_micros(at_us.unsigned_abs());
            let mut event = AuditEvent::builder(actor.user_agent(user_agent), ACTION, Resource::new("rpc", *method))
                .occurred_at(at)
                .outcome(Outcome::Denied)
                .reason(message)
                .details(&serde_json::json!({ "why": why.name() }));
            for (kind, id) in [("instance", instance), ("user", user)] {
                if let Some(id) = id.as_ref().filter(|id| !id.is_empty()) {
                    event = event.resource(Resource::new(kind, id));
                }
            }
            event
        }
    }
}
