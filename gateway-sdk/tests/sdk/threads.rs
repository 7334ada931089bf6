//! The SDK without a tokio runtime, and beside one that does not get to it.

use std::sync::atomic::Ordering;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use gateway_sdk::{Actor, AuditExport, Error, ExportFormat, Resource};

use crate::delivery::{audit, usage};
use crate::fake::{Action, Fake, LONG};
use crate::queries::ROWS;

/// One test of this file at a time: they count the SDK's threads, of which no other test has one.
fn alone() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    until("the last one's thread has ended", || own_threads() == 0);
    turn
}

fn own_threads() -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let names = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
    names.filter(|name| name.trim_end() == "gateway-sdk").count()
}

fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let since = Instant::now();
    while !condition() {
        assert!(since.elapsed() < LONG, "never: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn current_thread() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

#[test]
fn program_without_a_runtime_records_asks_and_ends() {
    let _alone = alone();
    let (mut fake, folder) = (Fake::start(), tempfile::tempdir().unwrap());
    let sdk = fake.sdk().spool(folder.path()).build().unwrap();
    assert_eq!(own_threads(), 1);
    sdk.usage().record(usage("u"));
    let recorded = sdk.block_on(sdk.audit().record(audit("a"))).unwrap().unwrap();
    let receipt = sdk.block_on(recorded.receipt()).unwrap().unwrap();
    assert!(!receipt.duplicate);
    assert!(sdk.block_on(sdk.flush(LONG)).unwrap().is_complete());
    // It breaks off once, and is resumed after a pause.
    fake.memory.answers.break_after.store(4, Ordering::SeqCst);
    let export = AuditExport::sequences("test", 0, None, ExportFormat::Jsonl);
    let mut lines = Vec::new();
    let exported = sdk.block_on(sdk.audit().export(export, &mut lines, |_| {})).unwrap().unwrap();
    assert_eq!(exported.rows, ROWS);
    // To another address: connections are made by plain calls too.
    let elsewhere = Fake::start();
    sdk.usage().set_endpoint(&elsewhere.address.to_string()).unwrap();
    sdk.usage().record(usage("moved"));
    assert!(sdk.block_on(sdk.shutdown(LONG)).unwrap().is_complete());
    assert_eq!((fake.memory.look(|m| m.stored.len()), elsewhere.memory.look(|m| m.stored.len())), (2, 1));
    fake.kill();
    let gone = sdk.block_on(sdk.audit().record(audit("late"))).unwrap();
    assert!(matches!(gone, Err(Error::ShutDown)), "{gone:?}");
}

#[test]
fn own_thread_delivers_while_the_callers_runtime_is_held_up() {
    let _alone = alone();
    let fake = Fake::start();
    current_thread().block_on(async {
        let sdk = fake.sdk().own_thread().build().unwrap();
        for n in 0..100 {
            sdk.usage().record(usage(format!("{n}")));
        }
        // No await: this runtime's only thread is here.
        until("all are stored", || fake.memory.look(|m| m.stored.len()) == 100);
        sdk.audit().record(audit("a")).await.unwrap();
        assert!(sdk.shutdown(LONG).await.is_complete());
    });
}

#[test]
fn own_thread_goes_on_for_what_was_left_and_ends_with_it() {
    let _alone = alone();
    let fake = Fake::start();
    fake.memory.script(|_| Action::Hold);
    let sdk = fake.sdk().drop_grace(LONG).build().unwrap();
    sdk.usage().record(usage("u"));
    until("it is held", || fake.memory.look(|m| m.batches) == 1);
    drop(sdk);
    assert_eq!(own_threads(), 1);
    fake.memory.open_gate();
    until("it is stored", || fake.memory.look(|m| m.stored.len()) == 1);
    until("the thread has ended", || own_threads() == 0);
}

#[test]
fn waiting_in_a_runtime_is_an_error_and_outside_of_it_is_none() {
    let _alone = alone();
    let fake = Fake::start();
    let runtime = current_thread();
    let sdk = runtime.block_on(async {
        let sdk = fake.sdk().build().unwrap();
        let waited = sdk.block_on(sdk.flush(LONG));
        assert!(matches!(waited, Err(Error::InRuntime)), "{waited:?}");
        sdk
    });
    // Nobody drives that runtime now: the wait has its end all the same.
    sdk.usage().record(usage("u"));
    let short = Duration::from_millis(50);
    assert!(!sdk.block_on(sdk.flush(short)).unwrap().is_complete());
    drop(runtime);
    let gone = sdk.block_on(sdk.audit().record(audit("late"))).unwrap();
    assert!(matches!(gone, Err(Error::ShutDown)), "{gone:?}");
}

#[test]
fn operation_that_is_given_up_outside_a_runtime_is_recorded_as_such() {
    let _alone = alone();
    let fake = Fake::start();
    fake.memory.script(|arrived| if arrived.batch == 0 { Action::Hold } else { Action::Ack });
    let sdk = fake.sdk().build().unwrap();
    let begun = sdk.audit().begin(Actor::user("u"), "model.enabled", Resource::new("model", "m"));
    // Given up before its intent is known to be durable.
    let within = async { tokio::time::timeout(Duration::from_millis(200), begun.into_future()).await.is_err() };
    let mut begun = Box::pin(within);
    assert!(sdk.block_on(begun.as_mut()).unwrap());
    drop(begun);
    fake.memory.open_gate();
    assert!(sdk.block_on(sdk.flush(LONG)).unwrap().is_complete());
    assert_eq!(fake.memory.look(|m| m.stored.len()), 2, "the intent, and that it did not begin");
}
