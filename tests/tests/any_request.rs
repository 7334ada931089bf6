//! Whatever anybody sends, in any field of any RPC: the answer is one of the contract's, and the services live.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

use std::time::{SystemTime, UNIX_EPOCH};

use e2e::requests::Requests;
use e2e::{Engine, Sandbox, Service};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use testkit::rss_bytes;

const MIB: u64 = 1 << 20;

fn every_answer_is_one_of_the_contract(service: &Service, package: &str, runtime: &tokio::runtime::Runtime) {
    let cases = if std::env::var_os("FULL").is_some() { 60_000 } else { 2_000 };
    let now_s = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs().cast_signed();
    let requests = std::cell::RefCell::new(Requests::new(service.channel(), package, now_s));
    let config = ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
    let bytes = proptest::collection::vec(any::<u8>(), 2..700);
    let ran = TestRunner::new(config).run(&bytes, |bytes| {
        runtime.block_on(requests.borrow_mut().ask(&bytes));
        Ok(())
    });
    ran.unwrap_or_else(|why| panic!("{why}"));
    // Not only the first check of each was met; which of them chance makes fit is not the same every time.
    let answers = requests.borrow().answers().clone();
    let answered: u64 = answers.values().map(|(answered, _)| u64::from(*answered)).sum();
    assert!(answered >= 50, "{answers:?}");
    assert!(answers.values().all(|(_, refused)| *refused >= 5), "{answers:?}");
    runtime.block_on(async {
        assert_eq!(service.metric("activity_rpc_in_progress").await, 0.0);
    });
    let log = service.process().log();
    assert!(!log.contains("panic") && !log.contains("internal error"), "{log}");
    let memory = rss_bytes(service.process().pid());
    assert!(memory < 400 * MIB, "{} MiB", memory / MIB);
}

fn both_services(engine: Engine) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    // Channels spawn their connections.
    let _entered = runtime.enter();
    let sandbox = runtime.block_on(Sandbox::start(engine));
    every_answer_is_one_of_the_contract(&sandbox.audit, "activity.audit.v1", &runtime);
    every_answer_is_one_of_the_contract(&sandbox.usage, "activity.usage.v1", &runtime);
}

#[test]
fn every_answer_is_one_of_the_contract_on_sqlite() {
    both_services(Engine::Sqlite);
}

#[test]
fn every_answer_is_one_of_the_contract_on_postgres() {
    both_services(Engine::Postgres);
}
