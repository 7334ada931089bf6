//! A gateway for crash drills: `recorder FOLDER AUDIT USAGE [MODE]`. Records events from four threads and prints each one's id
//! when `record` has returned, until it is killed. By mode:
//!
//! | | |
//! | --- | --- |
//! | none | as fast as it may |
//! | `paced` | some thousand a second, and gives a connection up after a second or two |
//! | `waits` | large events, each of which waits for room; says `untaken` of those that found none |
//! | `drain` | records nothing, delivers what its spool holds, and says so |
//! | `begin` | begins an action, says so, and never ends it |
//!
//! One usage event in 500 is one that the service refuses, printed as `refused`; but none that waits.
#![expect(clippy::expect_used, reason = "a program of the tests: a panic is its failure")]

use std::io::Write;
use std::time::Duration;

use gateway_sdk::{Actor, AuditEvent, Error, GatewaySdk, Resource, Tokens, UsageEvent};
use tokio::runtime::Runtime;

const THREADS: u64 = 4;
/// One event in so many is an action; of large ones one in two, for both spools are to be full.
const ACTIONS: u64 = 40;
/// Of so many requests one is refused.
const REFUSED: u64 = 500;
const PATIENCE: Duration = Duration::from_secs(120);
/// How long a large event waits for room.
const ROOM: Duration = Duration::from_millis(20);
const PACE: Duration = Duration::from_millis(1);
/// What makes an event large: bytes of an action's details, and labels of a request.
const DETAILS: usize = 8_000;
const LABELS: u64 = 16;

struct Recorder {
    sdk: GatewaySdk,
    runtime: Runtime,
    waits: bool,
    paced: bool,
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [folder, audit, usage, ..] = &arguments[..] else {
        panic!("recorder FOLDER AUDIT USAGE [MODE]");
    };
    let mode = arguments.get(3).map_or("", String::as_str);
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    // A network that is cut is noticed while the drill lasts; otherwise a machine may be as slow as it likes.
    let (answer, ping) = if mode == "paced" { (2, 1) } else { (60, 10) };
    let built = runtime.block_on(async {
        GatewaySdk::builder()
            .audit_endpoint(audit)
            .usage_endpoint(usage)
            .instance("eu-1")
            .spool(folder)
            .backoff(Duration::from_millis(10), Duration::from_millis(200))
            .ack_timeout(Duration::from_secs(answer))
            .keep_alive(Duration::from_secs(ping) / 2, Duration::from_secs(ping))
            .build()
    });
    let sdk = match built {
        Ok(sdk) => sdk,
        Err(error @ Error::Spool { .. }) => {
            say(&format!("no SDK: {error}"));
            return;
        }
        Err(error) => panic!("{error}"),
    };
    match mode {
        "drain" => drain(&sdk, &runtime),
        "begin" => begin(&sdk, &runtime),
        _ => Recorder { sdk, runtime, waits: mode == "waits", paced: mode == "paced" }.record(),
    }
}

/// One write a line, so that lines of threads don't mix.
fn say(what: &str) {
    std::io::stdout().lock().write_all(format!("{what}\n").as_bytes()).expect("standard output");
}

fn drain(sdk: &GatewaySdk, runtime: &Runtime) {
    let left = runtime.block_on(sdk.shutdown(PATIENCE));
    assert!(left.is_complete(), "{left:?}, {:?}", sdk.stats());
    say(&format!("drained {} {}", sdk.stats().usage.damaged, sdk.stats().audit.damaged));
}

fn begin(sdk: &GatewaySdk, runtime: &Runtime) {
    let begin = sdk.audit().begin(Actor::user("admin"), "model.disabled", Resource::new("model", "model-1"));
    let operation = runtime.block_on(async { begin.await }).expect("an intent");
    say(&format!("begun {}", operation.id()));
    loop {
        std::thread::park();
    }
}

impl Recorder {
    fn record(&self) {
        say("begins");
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                scope.spawn(move || {
                    for n in 0.. {
                        let every = if self.waits { 2 } else { ACTIONS };
                        if n % every == every - 1 {
                            self.action(thread, n)
                        } else {
                            self.request(thread, n)
                        }
                        if self.paced {
                            std::thread::sleep(PACE);
                        }
                    }
                });
            }
        });
    }

    fn action(&self, thread: u64, n: u64) {
        let (actor, model) = (format!("admin-{thread}"), format!("model-{}", n % 40));
        let mut event = AuditEvent::builder(Actor::user(actor), "model.enabled", Resource::new("model", model));
        if self.waits {
            event = event.details_json(format!("\"{}\"", "x".repeat(DETAILS)));
        }
        let event = event.build();
        let id = event.id();
        // Not recorded is not printed.
        match self.runtime.block_on(self.sdk.audit().record(event)) {
            Ok(_) => say(&format!("audit {id}")),
            Err(Error::Spool { .. } | Error::QueueFull { .. }) => say("untaken audit"),
            Err(error) => say(&format!("failed: {error}")),
        }
    }

    fn request(&self, thread: u64, n: u64) {
        let refused = !self.waits && n % REFUSED == REFUSED - 2;
        let user = if refused { "x".repeat(300) } else { format!("user-{}", n % 17) };
        let tokens = Tokens { input_uncached: n, output: thread, ..Tokens::default() };
        let mut event = UsageEvent::builder("openai", "gpt-4o").user(user).tokens(tokens);
        if self.waits {
            for label in 0..LABELS {
                event = event.label(format!("label-{label}"), "x".repeat(250));
            }
        }
        let event = event.build();
        let said = format!("{} {}", if refused { "refused" } else { "usage" }, event.id());
        if !self.waits {
            self.sdk.usage().record(event);
            return say(&said);
        }
        match self.runtime.block_on(self.sdk.usage().record_wait(event, ROOM)) {
            Ok(()) => say(&said),
            Err(Error::Spool { .. } | Error::QueueFull { .. }) => say("untaken usage"),
            Err(error) => say(&format!("failed: {error}")),
        }
    }
}
