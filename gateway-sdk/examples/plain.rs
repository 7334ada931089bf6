//! A job of the platform that changes things in a plain loop, and leaves a trace of each:
//! `cargo run -p gateway-sdk --example plain`, with the audit-service on its default address
//! (or on the one that is its argument).

use std::time::Duration;

use gateway_sdk::{Actor, Audit, Error, GatewaySdk, Resource, Secrets};
use serde::Serialize;

#[derive(Clone, Serialize)]
pub(crate) struct ApiKey {
    id: String,
    token: String,
    active: bool,
}

/// Revokes what has expired. A key whose intent can't be recorded stays as it is until the next
/// round; one whose outcome can't has changed, and stands open in the log.
pub(crate) async fn revoke(audit: &Audit, keys: &mut [ApiKey]) -> Result<usize, Error> {
    let mut revoked = 0;
    for key in keys.iter_mut().filter(|key| key.active) {
        let operation = audit
            .begin(Actor::system("key-janitor"), "api_key.revoked", Resource::new("api_key", &key.id))
            .reason("expired")
            .await?;
        let old = key.clone();
        if key.token.is_empty() {
            operation.failed("it has no token").await.map_err(|unrecorded| *unrecorded.error)?;
            continue;
        }
        (key.active, key.token) = (false, String::new());
        revoked += 1;
        operation.succeeded(audit.diff(&old, &*key)).await.map_err(|unrecorded| *unrecorded.error)?;
    }
    Ok(revoked)
}

pub(crate) fn keys() -> Vec<ApiKey> {
    let key = |id: &str, token: &str| ApiKey { id: id.to_owned(), token: token.to_owned(), active: true };
    vec![key("k-1", "sk-very-secret-1"), key("k-2", ""), key("k-3", "sk-very-secret-3")]
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let endpoint = std::env::args().nth(1).unwrap_or_else(|| "http://127.0.0.1:50051".to_owned());
    let sdk = GatewaySdk::builder()
        .audit_endpoint(endpoint)
        .instance("example")
        .spool(std::env::temp_dir().join("activity-example-plain"))
        // In earnest: 32 random bytes that are kept with the other secrets of the platform.
        .secrets(Secrets::with_key("example", [7; 32])?)
        .build()?;
    println!("revoked {}", revoke(sdk.audit(), &mut keys()).await?);
    let left = sdk.shutdown(Duration::from_secs(10)).await;
    println!("delivered: {}", left.is_complete());
    Ok(())
}
