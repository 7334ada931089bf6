//! With a spool nothing is lost between processes, and audit returns once it is on disk.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use futures::StreamExt;
use gateway_sdk::{Builder, Error, ErrorReason, GatewaySdk, UsageEvent};
use tempfile::TempDir;
use tonic::{Code, Status};

use crate::delivery::{audit, refused, usage};
use crate::fake::{Action, Fake, LONG};

const SHORT: Duration = Duration::from_millis(100);

fn spooled(fake: &Fake, folder: &TempDir) -> Builder {
    fake.sdk().spool(folder.path())
}

fn record(sdk: &GatewaySdk, from: u64, to: u64) {
    for n in from..to {
        sdk.usage().record(usage(format!("u{n:06}")));
    }
}

fn segments(folder: &Path) -> usize {
    let names = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.ends_with(".segment")).count()
}

/// The numbers stored of each epoch, in the order of the epochs.
fn epochs(fake: &Fake) -> Vec<Vec<u64>> {
    let mut epochs: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
    fake.memory.look(|memory| {
        for (_, producer, _) in memory.stored.values() {
            epochs.entry(producer.epoch).or_default().push(producer.sequence.unwrap());
        }
    });
    let sorted = |mut numbers: Vec<u64>| {
        numbers.sort_unstable();
        numbers
    };
    epochs.into_values().map(sorted).collect()
}

fn assert_balanced(sdk: &GatewaySdk) {
    let stats = sdk.stats().usage;
    let settled = stats.acknowledged + stats.rejected + stats.dropped + stats.damaged;
    assert_eq!(stats.recorded + stats.recovered, stats.queued + stats.in_flight + settled, "{stats:?}");
}

#[tokio::test]
async fn what_one_process_could_not_deliver_the_next_one_does() {
    let (mut fake, folder) = (Fake::down(), tempfile::tempdir().unwrap());
    let sdk = spooled(&fake, &folder).build().unwrap();
    // More than is in memory at once: most of it is read back.
    record(&sdk, 0, 40_000);
    let left = sdk.shutdown(SHORT).await;
    assert_eq!(left.usage.queued + left.usage.in_flight, 40_000);
    drop(sdk);

    let sdk = spooled(&fake, &folder).build().unwrap();
    assert_eq!(sdk.stats().usage.recovered, 40_000);
    record(&sdk, 40_000, 41_000);
    fake.restart();
    assert!(sdk.flush(LONG).await.is_complete());
    assert_balanced(&sdk);
    fake.memory.look(|memory| {
        assert_eq!((memory.stored.len(), memory.duplicates, memory.dropped.len()), (41_000, 0, 0));
        // What the last process had recorded, in its order: what this one does goes by turns with it.
        let mut in_order: Vec<_> = memory.stored.values().filter(|(tag, ..)| **tag < *"u040000").collect();
        in_order.sort_unstable_by_key(|(_, _, order)| *order);
        assert!(in_order.is_sorted_by_key(|(tag, _, _)| tag), "in the order recorded");
    });
    assert_eq!(epochs(&fake), [(0..40_000).collect::<Vec<_>>(), (0..1_000).collect()]);
    assert!(sdk.shutdown(LONG).await.is_complete());
    assert_eq!(segments(&folder.path().join("usage")), 0, "nothing is left");
}

#[tokio::test]
async fn what_is_recorded_behind_a_backlog_does_not_wait_for_it() {
    let (mut fake, folder) = (Fake::down(), tempfile::tempdir().unwrap());
    let sdk = spooled(&fake, &folder).build().unwrap();
    record(&sdk, 0, 100_000);
    let _ = sdk.shutdown(SHORT).await;
    let sdk = spooled(&fake, &folder).build().unwrap();
    record(&sdk, 100_000, 100_010);
    fake.restart();
    assert!(sdk.flush(LONG).await.is_complete());
    fake.memory.look(|memory| {
        assert_eq!((memory.stored.len(), memory.duplicates, memory.dropped.len()), (100_010, 0, 0));
        let fresh = memory.stored.values().filter(|(tag, ..)| **tag >= *"u100000").map(|(.., order)| *order);
        // The first batch may be of the backlog, and while a stream opened the window was filled.
        assert!(fresh.max() < Some(10_000), "behind a window of eight batches at most");
    });
    assert!(sdk.shutdown(LONG).await.is_complete());
}

#[test]
fn an_sdk_that_ends_with_its_runtime_leaves_everything_to_the_next() {
    let (mut fake, folder) = (Fake::down(), tempfile::tempdir().unwrap());
    let runtime = || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let first = runtime();
    let sdk = first.block_on(async { spooled(&fake, &folder).build().unwrap() });
    record(&sdk, 0, 100);
    first.shutdown_background();
    // Its threads let go of the folder by themselves.
    let second = runtime();
    let since = std::time::Instant::now();
    let next = loop {
        match second.block_on(async { spooled(&fake, &folder).build() }) {
            Ok(next) => break next,
            Err(Error::SpoolInUse { .. }) => assert!(since.elapsed() < LONG),
            Err(error) => panic!("{error}"),
        }
        std::thread::yield_now();
    };
    // Counted, and not silently lost.
    record(&sdk, 100, 101);
    assert_eq!(sdk.stats().usage.dropped, 1);
    fake.restart();
    assert!(second.block_on(next.flush(LONG)).is_complete());
    assert_eq!(epochs(&fake), [(0..100).collect::<Vec<_>>()]);
}

#[tokio::test]
async fn streams_that_break_deliver_spooled_events_once_and_in_order() {
    let (fake, folder) = (Fake::start(), tempfile::tempdir().unwrap());
    let sdk = spooled(&fake, &folder).batch(10, 1 << 20).build().unwrap();
    fake.memory.script(|arrived| match arrived.batch % 7 {
        2 => Action::StoreAndEnd(Status::unavailable("the answer is lost")),
        4 => Action::End(Status::unknown("nothing was stored")),
        6 => Action::Misnumber,
        _ => Action::Ack,
    });
    record(&sdk, 0, 1_000);
    assert!(sdk.flush(LONG).await.is_complete());
    fake.memory.look(|memory| {
        assert_eq!(memory.sequences_as_stored(), (0..1_000).collect::<Vec<_>>());
        assert!(memory.duplicates > 0 && memory.streams > 1);
    });
    assert_balanced(&sdk);
}

#[tokio::test]
async fn a_poisoned_event_is_kept_aside_and_holds_up_no_other() {
    let (fake, folder) = (Fake::start(), tempfile::tempdir().unwrap());
    let sdk = spooled(&fake, &folder).batch(64, 1 << 20).build().unwrap();
    fake.memory.script(|arrived| match arrived.has("poison") {
        true => Action::End(refused(Code::InvalidArgument)),
        false => Action::Ack,
    });
    record(&sdk, 0, 150);
    sdk.usage().record(usage("poison"));
    sdk.usage().record(usage("bad"));
    record(&sdk, 152, 300);
    assert!(sdk.flush(LONG).await.is_complete());
    fake.memory.look(|memory| {
        let all: Vec<u64> = (0..300).filter(|n| *n != 150 && *n != 151).collect();
        assert_eq!(memory.sequences_as_stored(), all);
        // Nobody misses them.
        let mut told = memory.dropped.clone();
        told.sort_unstable();
        assert!(told == [(150, 150), (151, 151)] || told == [(150, 151)], "{told:?}");
    });
    let stats = sdk.stats().usage;
    assert_eq!((stats.acknowledged, stats.rejected, stats.dropped), (298, 2, 0));
    assert!(sdk.shutdown(LONG).await.is_complete());
    let kept = std::fs::read_to_string(folder.path().join("usage/rejected.jsonl")).unwrap();
    let kept: Vec<serde_json::Value> = kept.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(kept.len(), 2, "{kept:?}");
    let reasons: Vec<_> = kept.iter().map(|line| (&line["reason"], &line["field"])).collect();
    assert_eq!(reasons, [(&"MALFORMED_MESSAGE".into(), &"".into()), (&"INVALID_ARGUMENT".into(), &"user_id".into())]);
}

#[tokio::test]
async fn audit_is_recorded_on_local_disk_and_its_receipt_is_the_services() {
    let (mut fake, folder) = (Fake::down(), tempfile::tempdir().unwrap());
    let sdk = spooled(&fake, &folder).audit_timeout(SHORT * 10).build().unwrap();
    let recorded = sdk.audit().record(audit("a")).await.unwrap();
    let error = recorded.receipt().await.unwrap_err();
    assert!(matches!(error, Error::NotAcknowledged { .. }), "{error}");
    fake.restart();
    assert!(sdk.flush(LONG).await.is_complete());
    let receipt = recorded.receipt().await.unwrap();
    assert_eq!((receipt.sequence, receipt.duplicate), (0, false));
    // As often as it is asked for.
    assert_eq!(recorded.clone().receipt().await.unwrap(), receipt);

    let refused = sdk.audit().record(audit("bad")).await.unwrap();
    let error = refused.receipt().await.unwrap_err();
    assert_eq!(error.reason(), Some(ErrorReason::InvalidAction));

    let late = sdk.audit().record(audit("late")).await.unwrap();
    assert!(sdk.shutdown(LONG).await.is_complete());
    late.receipt().await.unwrap();
    let kept = std::fs::read_to_string(folder.path().join("audit/rejected.jsonl")).unwrap();
    assert!(kept.contains("INVALID_ACTION") && kept.lines().count() == 1, "{kept}");
}

#[tokio::test]
async fn audit_that_was_recorded_is_delivered_after_any_stop() {
    let (mut fake, folder) = (Fake::down(), tempfile::tempdir().unwrap());
    let sdk = spooled(&fake, &folder).build().unwrap();
    let events: Vec<_> = (0..500).map(|n| audit(format!("a{n}"))).collect();
    let records = futures::stream::iter(events.clone()).map(|event| sdk.audit().record(event)).buffer_unordered(100);
    let recorded: Vec<_> = records.collect().await;
    let last = recorded.into_iter().map(Result::unwrap).next_back().unwrap();
    let left = sdk.shutdown(SHORT).await;
    assert_eq!(left.audit.queued + left.audit.in_flight, 500);
    assert!(matches!(last.receipt().await, Err(Error::ShutDown)));

    let sdk = spooled(&fake, &folder).build().unwrap();
    fake.restart();
    assert!(sdk.flush(LONG).await.is_complete());
    // Recorded again, it is the same.
    let again = sdk.audit().record(events[7].clone()).await.unwrap();
    assert!(again.receipt().await.unwrap().duplicate);
    assert_eq!(fake.memory.look(|memory| memory.stored.len()), 500);
}

#[tokio::test]
async fn a_full_spool_drops_the_oldest_usage_and_refuses_audit() {
    let (mut fake, folder) = (Fake::down(), tempfile::tempdir().unwrap());
    let (usage_limit, audit_limit) = (16 << 20, 8 << 20);
    let sdk = spooled(&fake, &folder).usage_spool(usage_limit).audit_spool(audit_limit).build().unwrap();
    let large = "x".repeat(60_000);
    let (mut told, mut count) = (0, 0_u64);
    let error = loop {
        match sdk.audit().record(audit(large.clone())).await {
            Ok(_) => told += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, Error::QueueFull { service: "audit", .. }) && error.is_retryable(), "{error}");
    while sdk.stats().usage.dropped == 0 {
        sdk.usage().record(UsageEvent::builder("p", "m").user(format!("u{count:06}")).label("l", large.clone()));
        count += 1;
    }
    let error = loop {
        let event = UsageEvent::builder("p", "m").user(format!("u{count:06}")).label("l", large.clone());
        match sdk.usage().record_wait(event, SHORT * 3).await {
            Ok(()) => count += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, Error::QueueFull { service: "usage", .. }), "{error}");
    let stats = sdk.stats();
    assert!(stats.usage.spool_bytes <= usage_limit && stats.audit.spool_bytes <= audit_limit, "{stats:?}");
    let dropped = stats.usage.dropped;
    fake.restart();
    assert!(sdk.flush(LONG).await.is_complete());
    fake.memory.look(|memory| {
        let ranges: u64 = memory.dropped.iter().map(|(first, last)| last - first + 1).sum();
        assert_eq!(ranges, dropped);
        assert_eq!(memory.stored.len() as u64, told + count - dropped);
    });
    // There is room again.
    sdk.audit().record(audit("later")).await.unwrap();
}

#[tokio::test]
async fn one_folder_serves_one_sdk_and_what_can_not_be_written_is_said() {
    let (fake, folder) = (Fake::down(), tempfile::tempdir().unwrap());
    let sdk = spooled(&fake, &folder).build().unwrap();
    let error = spooled(&fake, &folder).build().unwrap_err();
    assert!(matches!(error, Error::SpoolInUse { process: Some(id), .. } if id == std::process::id()), "{error}");
    assert!(error.to_string().contains("each process needs a folder of its own"));
    let _ = sdk.shutdown(SHORT).await;
    let again = spooled(&fake, &folder).build().unwrap();
    let _ = again.shutdown(SHORT).await;

    let file = folder.path().join("a-file");
    std::fs::write(&file, "").unwrap();
    let error = fake.sdk().spool(file.join("below")).build().unwrap_err();
    assert!(matches!(error, Error::Spool { .. }) && error.to_string().contains("a-file/below"), "{error}");
    let error = spooled(&fake, &folder).usage_spool(1 << 20).build().unwrap_err();
    assert!(error.to_string().starts_with("usage_spool: 1048576 bytes; from 16777216"), "{error}");
}

#[tokio::test]
async fn names_and_epochs_go_on_over_restarts() {
    let (fake, folder) = (Fake::down(), tempfile::tempdir().unwrap());
    let address = fake.address.to_string();
    let build = || GatewaySdk::builder().usage_endpoint(&address).spool(folder.path()).build().unwrap();
    let first = build();
    let id = first.producer_id().to_owned();
    let _ = first.shutdown(SHORT).await;
    assert_eq!(build().producer_id(), id);
}
