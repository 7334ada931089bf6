//! Canonical JSON as it is read, and lines of CSV as they are written.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    audit_service::fuzz::line(&text);
    service_core::fuzz::cells(&text.split('\u{1f}').collect::<Vec<_>>());
});
