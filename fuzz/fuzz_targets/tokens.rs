//! Page tokens and resume tokens: as texts, and their payloads.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let (text, payload) = data.split_at(data.len() / 2);
    service_core::fuzz::tokens(&String::from_utf8_lossy(text), payload);
    audit_service::fuzz::tokens(data);
    usage_service::fuzz::tokens(data);
});
