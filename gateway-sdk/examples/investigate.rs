//! Why did the cost rise? `cargo run --example investigate MODEL`, with both services on their default addresses: the
//! traffic of a model in the last day beside that of the day before, what was done to it meanwhile, and what became of
//! everything that the latest of these actions touched.

use gateway_sdk::{GatewaySdk, Resource, TimeRange, Traffic, Unanswered};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let model = std::env::args().nth(1).unwrap_or_else(|| "openai/gpt-4o".to_owned());
    let sdk = GatewaySdk::builder().usage_endpoint("127.0.0.1:50052").audit_endpoint("127.0.0.1:50051").build()?;

    let found = sdk.investigate(TimeRange::last_24_hours(), Resource::new("model", &model)).await?;
    print(&model, &found.traffic);
    let entries = match found.entries {
        Ok(entries) => entries.items,
        Err(why) => {
            println!("no entries: {why}");
            return Ok(());
        }
    };
    for entry in &entries {
        let actor = entry.actor.as_ref().map_or("", |actor| &actor.id);
        println!("  {} by {actor}: {}", entry.action, entry.reason);
    }

    let Some(latest) = entries.first() else { return Ok(()) };
    println!("before and after {}:", latest.action);
    for touched in sdk.impact(latest).await?.touched {
        print(&touched.resource.id, &touched.traffic);
    }
    Ok(())
}

fn print(name: &str, traffic: &Result<Traffic, Unanswered>) {
    let traffic = match traffic {
        Ok(traffic) => traffic,
        Err(why) => return println!("{name}: {why}"),
    };
    let after = &traffic.after.totals;
    print!("{name}: {} requests, {} {}", after.requests(), after.cost(), traffic.currency_code);
    match (&traffic.before, traffic.change.and_then(|change| change.cost_nanos.per_mille())) {
        (Err(why), _) => println!("; before: {why}"),
        (Ok(before), None) => println!("; before: {} requests", before.totals.requests()),
        (Ok(_), Some(per_mille)) => println!("; cost {:+}.{} %", per_mille / 10, (per_mille % 10).abs()),
    }
}
