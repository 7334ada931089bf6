//! The SDK's counters as a page for Prometheus, without any other crate: `cargo run --example metrics`.

use std::fmt::Write as _;

use gateway_sdk::{GatewaySdk, SampleKind, Stats, UsageEvent};

/// In Prometheus' text format, version 0.0.4.
pub fn page(stats: &Stats) -> String {
    let (mut page, mut last) = (String::new(), "");
    for sample in stats.samples() {
        let (kind, suffix) = match sample.kind {
            SampleKind::Counter => ("counter", "_total"),
            SampleKind::Gauge => ("gauge", ""),
        };
        let name = sample.name.replace('.', "_") + suffix;
        // What is one metric of both services comes in a row.
        if sample.name != last {
            last = sample.name;
            let _ = writeln!(page, "# HELP {name} {}\n# TYPE {name} {kind}", sample.description);
        }
        let _ = writeln!(page, "{name}{{service=\"{}\"}} {}", sample.service, sample.value);
    }
    page
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), gateway_sdk::Error> {
    let sdk = GatewaySdk::builder().usage_endpoint("http://127.0.0.1:50052").instance("prod").build()?;
    sdk.usage().record(UsageEvent::builder("openai", "gpt-4o").user("alice"));
    // On your metrics page, beside your own.
    print!("{}", page(&sdk.stats()));
    Ok(())
}
