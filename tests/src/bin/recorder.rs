//! A gateway for crash drills: `recorder FOLDER AUDIT USAGE [drain|begin]`. Records events from four threads as fast as it may
//! and prints each one's id when `record` has returned, until it is killed; or only delivers what its spool holds. With
//! `begin` it begins an action, says so, and never ends it.
#![expect(clippy::expect_used, reason = "a program of the tests: a panic is its failure")]

use std::io::Write;
use std::time::Duration;

use gateway_sdk::{Actor, AuditEvent, GatewaySdk, Resource, Tokens, UsageEvent};

const THREADS: u64 = 4;
/// After so many requests comes an action.
const REQUESTS: u64 = 40;
const PATIENCE: Duration = Duration::from_secs(120);

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [folder, audit, usage, ..] = &arguments[..] else {
        panic!("recorder FOLDER AUDIT USAGE [drain|begin]");
    };
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    let sdk = runtime.block_on(async {
        GatewaySdk::builder()
            .audit_endpoint(audit)
            .usage_endpoint(usage)
            .instance("eu-1")
            .spool(folder)
            .backoff(Duration::from_millis(10), Duration::from_millis(200))
            .build()
            .expect("the SDK")
    });
    if arguments.get(3).is_some_and(|mode| mode == "drain") {
        let left = runtime.block_on(sdk.shutdown(PATIENCE));
        assert!(left.is_complete(), "{left:?}, {:?}", sdk.stats());
        println!("drained {} {}", sdk.stats().usage.damaged, sdk.stats().audit.damaged);
        return;
    }
    if arguments.get(3).is_some_and(|mode| mode == "begin") {
        let begin = sdk.audit().begin(Actor::user("admin"), "model.disabled", Resource::new("model", "model-1"));
        let operation = runtime.block_on(async { begin.await }).expect("an intent");
        println!("begun {}", operation.id());
        loop {
            std::thread::park();
        }
    }
    println!("begins");
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (sdk, handle) = (&sdk, runtime.handle());
            scope.spawn(move || {
                for n in 0.. {
                    let said = if n % REQUESTS == REQUESTS - 1 {
                        let event = AuditEvent::builder(
                            Actor::user(format!("admin-{thread}")),
                            "model.enabled",
                            Resource::new("model", format!("model-{}", n % 40)),
                        )
                        .build();
                        let id = event.id();
                        // Not recorded is not printed.
                        handle.block_on(sdk.audit().record(event)).is_ok().then(|| format!("audit {id}\n"))
                    } else {
                        let event = UsageEvent::builder("openai", "gpt-4o")
                            .user(format!("user-{}", n % 17))
                            .tokens(Tokens { input_uncached: n, output: 10, ..Tokens::default() })
                            .build();
                        let id = event.id();
                        sdk.usage().record(event);
                        Some(format!("usage {id}\n"))
                    };
                    if let Some(said) = said {
                        // One write a line, so that lines of threads don't mix.
                        std::io::stdout().lock().write_all(said.as_bytes()).expect("standard output");
                    }
                }
            });
        }
    });
}
