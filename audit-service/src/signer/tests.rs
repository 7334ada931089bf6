//! What is signed is compared with what was, wherever that is kept.

use std::sync::atomic::{AtomicU64, Ordering};

use service_core::config::DatabaseConfig;
use uuid::Uuid;

use super::*;
use crate::checkpoint::{KeyKind, Note, SigningKey};
use crate::event::Event;
use crate::ingest::Batch;

const A: &str = "a";

/// A database, and folders of replicas with the same keys.
struct Home {
    folder: tempfile::TempDir,
    url: DatabaseUrl,
    store: Store,
}

impl Home {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let url = DatabaseUrl::sqlite(folder.path().join("audit.db"));
        Self::at(folder, url).await
    }

    async fn at(folder: tempfile::TempDir, url: DatabaseUrl) -> Self {
        let store = Store::open(&url, &DatabaseConfig::default()).await.unwrap();
        Self { folder, url, store }
    }

    fn state_file(&self, replica: &str) -> PathBuf {
        self.folder.path().join(replica).join("checkpoints")
    }

    async fn replica(&self, name: &str) -> Signer {
        let keys = self.folder.path().join("keys");
        let named = |file: &str| Some(keys.join(file)).filter(|path| path.exists());
        if !keys.exists() {
            Keys::load(&LogConfig::default(), &keys, &[], true).unwrap();
        }
        let config = LogConfig {
            folder: Some(self.folder.path().join(name)),
            key_file: named("log.key"),
            witness_key_file: named("witness.key"),
            ..LogConfig::default()
        };
        Signer::open(&config, &self.url, self.store.as_replica()).await.unwrap().unwrap()
    }
}

static NEXT: AtomicU64 = AtomicU64::new(1);

/// Adds entries to a log, and signs them if told so.
async fn write(signer: &Signer, instance: &str, count: u64) -> Result<()> {
    let event = || {
        let id = Uuid::from_u128(u128::from(NEXT.fetch_add(1, Ordering::Relaxed)));
        let event = crate::canonical::fixtures::full().event;
        Event { id, instance_id: instance.into(), producer: None, ..event }.into()
    };
    let batch = Batch { events: (0..count).map(|_| event()).collect(), ..Batch::default() };
    let written = signer.0.store.write(&[batch]).await?;
    signer.grown(&written.heads);
    Ok(())
}

async fn shown(signer: &Signer, instance: &str) -> Option<u64> {
    let note = signer.checkpoint(&Access::unrestricted(), instance, None).await.unwrap()?;
    Some(signer.ours(instance, &note).unwrap().size)
}

fn fork(signer: &Signer) -> String {
    format!("{:?}", signer.check().unwrap_err())
}

/// The database of after ten entries: as a backup has it, but for what was signed, which stays.
async fn put_back(store: &Store) {
    for statement in [
        "DROP TRIGGER audit_entries_no_delete",
        "DELETE FROM audit_entries WHERE sequence >= 10",
        "UPDATE audit_log_heads SET next_sequence = 10, tree_size = 10, frontier = (SELECT frontier FROM before)",
    ] {
        store.tamper(statement).await;
    }
}

#[tokio::test]
async fn without_the_state_file_the_databases_own_checkpoint_tells() {
    let home = Home::new().await;
    let signer = home.replica("one").await;
    write(&signer, A, 10).await.unwrap();
    home.store.tamper("CREATE TABLE before AS SELECT * FROM audit_log_heads").await;
    write(&signer, A, 10).await.unwrap();
    signer.sign_all().await;
    assert_eq!(shown(&signer, A).await, Some(20));
    // One that serves, and has signed nothing itself.
    let other = home.replica("other").await;
    assert!(std::fs::read_to_string(home.state_file("other")).unwrap().contains("\\n20\\n"), "what fits is kept");
    put_back(&home.store).await;
    drop(signer);
    std::fs::remove_file(home.state_file("one")).unwrap();

    let signer = home.replica("one").await;
    assert!(fork(&signer).contains("was signed with 20 entries, and the database has 10 entries"), "{}", fork(&signer));
    assert_eq!(std::fs::read_to_string(home.state_file("one")).unwrap(), "");
    other.check().unwrap();
    other.0.grown.lock().unwrap().insert(A.into());
    other.sign_all().await;
    assert!(fork(&other).contains("was signed with 20 entries"), "{}", fork(&other));
}

#[tokio::test]
async fn before_each_signature_the_databases_own_checkpoint_is_compared() {
    let home = Home::new().await;
    // It has seen nothing signed.
    let behind = home.replica("behind").await;
    let signer = home.replica("one").await;
    write(&signer, A, 10).await.unwrap();
    home.store.tamper("CREATE TABLE before AS SELECT * FROM audit_log_heads").await;
    write(&signer, A, 10).await.unwrap();
    signer.sign_all().await;
    put_back(&home.store).await;
    write(&behind, A, 1).await.unwrap();
    behind.sign_all().await;
    assert!(fork(&behind).contains("was signed with 20 entries, and the database has 11"), "{}", fork(&behind));
    // Grown again to that size and more, it does not begin as it did.
    let later = Home::new().await;
    let (behind, signer) = (later.replica("behind").await, later.replica("one").await);
    write(&signer, A, 10).await.unwrap();
    later.store.tamper("CREATE TABLE before AS SELECT * FROM audit_log_heads").await;
    write(&signer, A, 10).await.unwrap();
    signer.sign_all().await;
    put_back(&later.store).await;
    write(&behind, A, 15).await.unwrap();
    behind.sign_all().await;
    assert!(fork(&behind).contains("25 entries that do not begin with those"), "{}", fork(&behind));
}

#[tokio::test]
async fn what_another_replica_signed_is_missed_by_one_that_never_signed() {
    let home = Home::new().await;
    let (signer, other) = (home.replica("one").await, home.replica("other").await);
    write(&signer, A, 10).await.unwrap();
    signer.sign_all().await;
    home.store.tamper("CREATE TABLE before AS SELECT * FROM audit_log_heads").await;
    home.store.tamper("CREATE TABLE signed_before AS SELECT * FROM audit_newest_checkpoints").await;
    write(&signer, A, 10).await.unwrap();
    signer.sign_all().await;
    other.follow(&home.store.log_ends("").await.unwrap()).await.unwrap();
    assert!(std::fs::read_to_string(home.state_file("other")).unwrap().contains("\\n20\\n"));
    // As a standby has it that was behind: what was signed is lost with the entries.
    put_back(&home.store).await;
    home.store.tamper("DELETE FROM audit_newest_checkpoints").await;
    home.store.tamper("INSERT INTO audit_newest_checkpoints SELECT * FROM signed_before").await;
    write(&other, A, 1).await.unwrap_err();
    other.0.grown.lock().unwrap().insert(A.into());
    other.sign_all().await;
    assert!(fork(&other).contains("was signed with 20 entries, and the database has 10"), "{}", fork(&other));
}

/// While it has the heads of logs, writers wait for it.
#[tokio::test]
async fn signing_waits_for_no_reader() {
    let home = Home::new().await;
    let signer = home.replica("one").await;
    for _ in 0..2 {
        write(&signer, A, 300).await.unwrap();
        let readers = home.store.take_readers().await;
        let signed = tokio::time::timeout(Duration::from_secs(3), signer.sign_all()).await;
        assert_eq!(signed, Ok(true));
        drop(readers);
    }
    assert_eq!(shown(&signer, A).await, Some(600));
}

#[tokio::test]
async fn a_note_that_is_not_ours_is_neither_shown_nor_kept_nor_believed() {
    let home = Home::new().await;
    let signer = home.replica("one").await;
    write(&signer, A, 10).await.unwrap();
    write(&signer, "b", 30).await.unwrap();
    signer.sign_all().await;
    let text = Checkpoint { origin: "localhost/audit/a".into(), size: 99, root: [7; 32] }.text();
    let stranger = SigningKey::generate("localhost/audit", KeyKind::Log).unwrap().0;
    let foreign = Note::new(text.clone(), vec![stranger.sign(&text, 0)]).unwrap().to_string();
    let of_b = signer.checkpoint(&Access::unrestricted(), "b", None).await.unwrap().unwrap();
    for wrong in [foreign, of_b.clone(), of_b.replacen("audit/b", "audit/a", 1), "no note".to_owned()] {
        let put = format!("UPDATE audit_newest_checkpoints SET size = 99, note = '{wrong}' WHERE instance_id = 'a'");
        home.store.tamper(&put).await;
        assert_eq!(shown(&signer, A).await, None, "{wrong}");
        signer.check().unwrap();
        let file = std::fs::read_to_string(home.state_file("one")).unwrap();
        assert!(!file.contains("\\n99\\n"), "{file}");
        // A start does not stumble over it, and signs anew.
        let second = home.replica("other").await;
        second.check().unwrap();
        second.sign_all().await;
        assert_eq!((shown(&second, A).await, shown(&second, "b").await), (Some(10), Some(30)));
        assert_eq!(shown(&signer, A).await, Some(10));
    }
}

#[tokio::test]
async fn what_an_earlier_key_signed_gives_way_to_the_newest() {
    let home = Home::new().await;
    let signer = home.replica("one").await;
    write(&signer, A, 10).await.unwrap();
    signer.sign_all().await;
    drop(signer);
    std::fs::remove_dir_all(home.folder.path().join("keys")).unwrap();
    let renewed = home.replica("one").await;
    assert_eq!(shown(&renewed, A).await, None);
    renewed.sign_all().await;
    assert_eq!(shown(&renewed, A).await, Some(10));
    write(&renewed, A, 5).await.unwrap();
    renewed.sign_all().await;
    for (least, size) in [(1, Some(15)), (11, Some(15)), (16, None)] {
        let note = renewed.checkpoint(&Access::unrestricted(), A, Some(least)).await.unwrap();
        assert_eq!(note.map(|note| renewed.ours(A, &note).unwrap().size), size, "{least}");
    }
}

#[tokio::test]
async fn a_damaged_log_keeps_no_other_from_being_signed() {
    let home = Home::new().await;
    let signer = home.replica("one").await;
    home.store.tamper("DROP TRIGGER audit_tiles_no_update").await;
    for instance in [A, "b", "c"] {
        write(&signer, instance, 300).await.unwrap();
    }
    signer.sign_all().await;
    for instance in [A, "b", "c"] {
        write(&signer, instance, 1).await.unwrap();
    }
    home.store.tamper("UPDATE audit_log_heads SET frontier = x'00' WHERE instance_id = 'a'").await;
    home.store.tamper("UPDATE audit_tiles SET root = x'00' WHERE instance_id = 'b'").await;
    signer.sign_all().await;
    signer.check().unwrap();
    let note = |signer: &Signer, instance: &'static str| {
        let signer = signer.clone();
        async move { signer.checkpoint(&Access::unrestricted(), instance, Some(301)).await.unwrap() }
    };
    assert!(note(&signer, A).await.is_none() && note(&signer, "b").await.is_none());
    assert!(note(&signer, "c").await.is_some());
    // Nor from being served after the next start.
    drop(signer);
    let signer = home.replica("one").await;
    signer.check().unwrap();
    write(&signer, "c", 1).await.unwrap();
    signer.sign_all().await;
    assert_eq!(shown(&signer, "c").await, Some(302));
}

/// Replicas that write, sign and show one log at once: what one signs while the other looks is no fork.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn signing_and_showing_at_once_is_no_fork() {
    if testkit::Postgres::skipped() {
        return;
    }
    let url = DatabaseUrl::new(testkit::Postgres::shared().await.create_database().await).unwrap();
    let home = Home::at(tempfile::tempdir().unwrap(), url).await;
    let replicas = [home.replica("one").await, home.replica("other").await];
    write(&replicas[0], A, 1).await.unwrap();
    let done = CancellationToken::new();
    let mut watching = tokio::task::JoinSet::new();
    let mut writing = tokio::task::JoinSet::new();
    for signer in &replicas {
        for _ in 0..3 {
            let signer = signer.clone();
            writing.spawn(async move {
                for _ in 0..25 {
                    while let Err(error) = write(&signer, A, 1).await {
                        assert!(matches!(error, Error::Contention(_)), "{error:?}");
                    }
                }
            });
        }
        let (signing, over) = (signer.clone(), done.clone());
        watching.spawn(async move {
            while !over.is_cancelled() {
                signing.sign_all().await;
                tokio::task::yield_now().await;
            }
        });
        for _ in 0..4 {
            let (signer, over) = (signer.clone(), done.clone());
            watching.spawn(async move {
                while !over.is_cancelled() {
                    signer.checkpoint(&Access::unrestricted(), A, None).await.unwrap();
                }
            });
        }
    }
    while let Some(written) = writing.join_next().await {
        written.unwrap();
    }
    done.cancel();
    while let Some(watched) = watching.join_next().await {
        watched.unwrap();
    }
    for signer in &replicas {
        signer.sign_all().await;
        signer.check().unwrap();
        assert_eq!(shown(signer, A).await, Some(151));
    }
}
