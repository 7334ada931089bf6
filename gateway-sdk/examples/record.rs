//! A gateway's loop and an administrator's action: `cargo run --example record`, with
//! both services on their default addresses.

use std::time::Duration;

use gateway_sdk::{Actor, AuditEvent, GatewaySdk, Resource, Tokens, UsageEvent};
use serde_json::json;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let sdk = GatewaySdk::builder()
        .usage_endpoint("http://127.0.0.1:50052")
        .audit_endpoint("http://127.0.0.1:50051")
        .instance("example")
        .spool(std::env::temp_dir().join("activity-example"))
        .on_rejected(|refused| eprintln!("refused: {}", refused.rejection))
        .build()?;

    // Every request, on its hot path: no waiting, no error to handle.
    for n in 0..1_000_u64 {
        sdk.usage().record(
            UsageEvent::builder("openai", "gpt-4o")
                .user(format!("user-{}", n % 7))
                .api_key("key-1")
                .operation("chat")
                .tokens(Tokens { input_uncached: 800 + n, output: 120, ..Tokens::default() })
                .latency(Duration::from_millis(300 + n % 200)),
        );
    }

    // An action counts as recorded when this is Ok; else it may still be queued.
    let recorded = sdk
        .audit()
        .record(
            AuditEvent::builder(
                Actor::user("u-1").display_name("alice@example.com"),
                "model.enabled",
                Resource::new("model", "gpt-4o").name("GPT-4o"),
            )
            .reason("OPS-42")
            .change("/enabled", Some(json!(false)), Some(json!(true))),
        )
        .await;
    match &recorded {
        Ok(recorded) => println!("entry {} has number {}", recorded.id(), recorded.receipt().await?.sequence),
        Err(error) => eprintln!("not known to be recorded: {error}"),
    }

    let left = sdk.shutdown(Duration::from_secs(10)).await;
    println!("{:#?}", sdk.stats());
    if !left.is_complete() {
        return Err(format!("not delivered: {left:?}").into());
    }
    Ok(())
}
