//! Every request of audit-service, decoded and checked; accepted events in every form that they take. The first byte
//! says which, and whether what follows is the message or what one is made of.
#![no_main]

use std::sync::LazyLock;

use audit_service::fuzz;
use libfuzzer_sys::fuzz_target;
use testkit::Messages;

static MESSAGES: LazyLock<Messages> =
    LazyLock::new(|| Messages::new(activity_proto::FILE_DESCRIPTOR_SET, fuzz::NOW_US / 1_000_000));

const QUERIES: [&str; 4] = ["ListEntriesRequest", "ListFacetsRequest", "TailEntriesRequest", "ExportEntriesRequest"];

fuzz_target!(|data: &[u8]| {
    let Some((which, rest)) = data.split_first() else { return };
    let message = |name: &str| match which & 0x80 {
        0 => MESSAGES.message(name, rest),
        _ => rest.to_vec(),
    };
    match which & 7 {
        0..4 => {
            let name = QUERIES[usize::from(which & 3)];
            fuzz::query(name, &message(&format!(".activity.audit.v1.{name}")));
        }
        4 => {
            fuzz::dropped(&message(".activity.common.v1.DroppedRange"));
        }
        _ => {
            fuzz::event(&message(".activity.audit.v1.AuditEvent"));
        }
    }
});
