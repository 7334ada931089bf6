//! An exporting job for crash drills: `exporter audit|usage URL TARGET`. Exports the last day's entries with their proofs, or
//! its requests, and prints with how many bytes it went on.
#![expect(clippy::expect_used, reason = "a program of the tests: a panic is its failure")]

use gateway_sdk::{AuditExport, ExportFormat, GatewaySdk, TimeRange, UsageQuery, UsageShape};

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [service, url, target] = &arguments[..] else { panic!("exporter audit|usage URL TARGET") };
    let sdk = GatewaySdk::builder().audit_endpoint(url).usage_endpoint(url).build().expect("the SDK");
    let day = TimeRange::last_24_hours();
    let continued = match service.as_str() {
        "audit" => {
            let export = AuditExport::range(day, ExportFormat::Jsonl).with_proofs();
            sdk.audit().export_file(export, target, |_| ()).await.expect("an export").continued
        }
        _ => {
            let query = UsageQuery::new().range(day);
            let export = sdk.usage().export_file(&query, UsageShape::Requests, ExportFormat::Jsonl, target, |_| ());
            export.await.expect("an export").continued
        }
    };
    println!("continued {continued}");
}
