//! Configurations of both services: a file, and a variable.
#![no_main]

use libfuzzer_sys::fuzz_target;
use service_core::fuzz::configuration;

fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    let mut parts = text.splitn(3, '\u{1f}');
    let [name, value, file] = [(); 3].map(|()| parts.next().unwrap_or_default());
    configuration::<audit_service::Config>(audit_service::ENV_PREFIX, file, (name, value));
    configuration::<usage_service::Config>(usage_service::ENV_PREFIX, file, (name, value));
});
