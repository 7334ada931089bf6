//! An admin backend's questions: `cargo run --example query`, with both services on their
//! default addresses.

use futures::TryStreamExt;
use gateway_sdk::{
    AuditExport, AuditFilter, AuditQuery, Bucket, Dimension, ExportFormat, GatewaySdk, Grouping, TimeRange, UsageQuery,
};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let sdk = GatewaySdk::builder().usage_endpoint("127.0.0.1:50052").audit_endpoint("127.0.0.1:50051").build()?;
    let week = TimeRange::last_7_days().in_zone("Europe/Berlin");

    let query = UsageQuery::new().range(week.clone());
    let totals = sdk.usage().summary_compared(&query).await?;
    let summary = totals.summary.unwrap_or_default();
    println!(
        "{} requests, {} tokens, {} {}",
        summary.requests(),
        summary.total_tokens(),
        summary.cost(),
        totals.currency_code
    );

    let by_user = Grouping::by([Dimension::User]).limit(10);
    let breakdown = sdk.usage().breakdown(&query, &by_user).await?;
    for row in breakdown.rows {
        println!("{:?} {}", row.keys, row.metrics.unwrap_or_default().cost());
    }

    let by_provider = Grouping::by([Dimension::Provider]);
    let days = sdk.usage().series(&query, Bucket::Day, &by_provider).await?;
    for series in days.series {
        println!("{:?}: {} days", series.keys, series.points.len());
    }

    let changes = AuditQuery::new().range(week.clone()).filter(AuditFilter::new().action("provider.*"));
    let mut entries = sdk.audit().entries(changes);
    while let Some(entry) = entries.try_next().await? {
        let actor = entry.actor.unwrap_or_default();
        println!("{} {} {}", entry.sequence.unwrap_or(0), actor.id, entry.action);
    }

    // Run it again after a break, and it goes on; there is no audit.jsonl before all of it is there and verified.
    let export = AuditExport::range(week, ExportFormat::Jsonl).with_proofs();
    let done = sdk.audit().export_file(export, "audit.jsonl", |at| eprint!("\r{} entries", at.rows)).await?;
    println!("\nexported {} entries, verified", done.rows);
    Ok(())
}
