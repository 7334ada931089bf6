//! Every request of usage-service, decoded and checked; accepted events priced and in every form that they take. The
//! first byte says which, and whether what follows is the message or what one is made of.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use testkit::Messages;
use usage_service::fuzz;

static MESSAGES: LazyLock<Messages> =
    LazyLock::new(|| Messages::new(activity_proto::FILE_DESCRIPTOR_SET, fuzz::NOW_US / 1_000_000));

const QUERIES: [&str; 6] = [
    "GetSummaryRequest",
    "ListBreakdownRequest",
    "GetTimeSeriesRequest",
    "ListRequestsRequest",
    "ExportUsageRequest",
    "EstimateCostRequest",
];

fuzz_target!(|data: &[u8]| {
    let Some((which, rest)) = data.split_first() else { return };
    let message = |name: &str| match which & 0x80 {
        0 => MESSAGES.message(name, rest),
        _ => rest.to_vec(),
    };
    match usize::from(which & 15) {
        query @ 0..6 => {
            let name = QUERIES[query];
            fuzz::query(name, &message(&format!(".activity.usage.v1.{name}")));
        }
        6 => {
            fuzz::dropped(&message(".activity.common.v1.DroppedRange"));
        }
        _ => {
            fuzz::event(&message(".activity.usage.v1.UsageEvent"));
        }
    }
});
