//! A program without an async runtime: `cargo run -p gateway-sdk --example thread`, with both services on their default
//! addresses.

use std::time::Duration;

use gateway_sdk::{Actor, AuditEvent, Error, GatewaySdk, Resource, Tokens, UsageEvent};

fn main() -> Result<(), Error> {
    // Outside of tokio it runs on a thread of its own.
    let sdk = GatewaySdk::builder()
        .usage_endpoint("http://127.0.0.1:50052")
        .audit_endpoint("http://127.0.0.1:50051")
        .instance("example")
        .build()?;

    for _ in 0..1_000 {
        let tokens = Tokens { input_uncached: 1_200, output: 85, ..Tokens::default() };
        sdk.usage().record(UsageEvent::builder("openai", "gpt-4o").user("alice").tokens(tokens));
    }
    let event = AuditEvent::builder(Actor::system("nightly"), "model.enabled", Resource::new("model", "gpt-4o"));
    let recorded = sdk.block_on(sdk.audit().record(event))??;
    println!("stored as number {}", sdk.block_on(recorded.receipt())??.sequence);

    let left = sdk.block_on(sdk.shutdown(Duration::from_secs(10)))?;
    println!("delivered: {}", left.is_complete());
    Ok(())
}
