//! What the service has refused for good is written down, or met again.

use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

use super::super::state::MAX_LETTER_BYTES;
use super::disk::{Fault, Harness, body};
use crate::error::Rejection;

#[tokio::test]
async fn rejected_events_are_kept_with_their_reasons() {
    let harness = Harness::new();
    let spool = harness.open();
    let rejection = Rejection::too_large(&crate::Error::TooLarge { bytes: 3, limit: 2 });
    spool.keep_rejected(1, b"an event", &rejection);
    spool.shutdown().await;
    let text = std::fs::read_to_string(harness.path().join("rejected.jsonl")).unwrap();
    let line: serde_json::Value = serde_json::from_str(text.trim_end()).unwrap();
    assert_eq!(line["reason"], "TOO_LARGE");
    assert_eq!(BASE64_STANDARD.decode(line["event"].as_str().unwrap()).unwrap(), b"an event");
    // Nobody else may read what is in there.
    use std::os::unix::fs::PermissionsExt;
    for name in ["rejected.jsonl", "ledger"] {
        let mode = std::fs::metadata(harness.path().join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{name}");
    }
    assert_eq!(std::fs::metadata(harness.path()).unwrap().permissions().mode() & 0o077, 0);
}

#[tokio::test]
async fn rejected_events_that_wait_for_the_disk_are_bounded_in_bytes() {
    let harness = Harness::new();
    let spool = harness.open();
    let rejection = Rejection { reason: crate::ErrorReason::InvalidId, message: "bad".into(), field: "id".into() };
    // Whether the keeper is at it or not: what waits at a moment is never more.
    for _ in 0..200 {
        spool.keep_rejected(1, &[0; 64 * 1024], &rejection);
        let waiting: usize = spool.lock().letters.iter().map(|letter| letter.line.len()).sum();
        assert!(waiting <= MAX_LETTER_BYTES, "{waiting}");
    }
}

#[tokio::test]
async fn what_was_refused_and_could_not_be_written_down_is_met_again() {
    let harness = Harness::new();
    let spool = harness.open();
    let mut batches = Vec::new();
    for segment in 0..2 {
        for n in segment * 50..segment * 50 + 50 {
            spool.push_dropping(&body(n)).unwrap();
        }
        batches.push(spool.next().await.unwrap());
        spool.leave().await;
    }
    harness.fail(Fault::Reject, u32::MAX);
    spool.refuse(&batches[0], 7);
    spool.settle_batch(&batches[1]);
    // Room is made as ever, but for where the refused event is.
    spool.until_files(|files| !files.segments.contains(&2)).await;
    while harness.count(Fault::Reject) < 2 {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert!(spool.files().segments.contains(&1));
    let again = harness.crash();
    assert_eq!(again.open().take_all().await.bodies(), (0..50).collect::<Vec<_>>());
    harness.fail(Fault::Reject, 0);
    spool.until_files(|files| !files.segments.contains(&1)).await;
    assert_eq!(harness.rejected(), [7], "behind what short writes had left");
    spool.shutdown().await;
    assert_eq!(harness.open().stats().recovered, 0);
}

#[tokio::test]
async fn the_ledger_is_never_ahead_of_what_was_refused() {
    let harness = Harness::new();
    let spool = harness.open();
    let mut batches = Vec::new();
    for n in 0..4 {
        spool.push_dropping(&body(n)).unwrap();
        batches.push(spool.next().await.unwrap());
    }
    let pass = harness.hold_rejects();
    let until_asked = async |count| {
        while harness.count(Fault::Reject) < count {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    spool.refuse(&batches[0], 0);
    until_asked(1).await;
    // Meanwhile the ledger becomes due, so that it is written with the next one.
    spool.settle_batch(&batches[1]);
    tokio::time::sleep(Duration::from_millis(150)).await;
    spool.refuse(&batches[2], 0);
    pass.send(()).unwrap();
    until_asked(2).await;
    // And while that is written down, another one is refused and settled.
    spool.refuse(&batches[3], 0);
    pass.send(()).unwrap();
    until_asked(3).await;
    let crashed = harness.crash();
    assert_eq!(crashed.rejected(), [0, 2]);
    assert_eq!(crashed.open().take_all().await.bodies(), [3]);
    drop(pass);
    spool.shutdown().await;
    assert_eq!(harness.rejected(), [0, 2, 3]);
}
