//! Retention and the archive over the store, stamped on both engines: what leaves the database has gone to the archive,
//! everything that was known of it is still known, and the database itself refuses anything else.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

#[macro_use]
mod support;

use std::num::NonZeroU32;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use audit_service::RetentionConfig;
use audit_service::archive::{Archive, Manifest};
use audit_service::checker::{Checked, Trusted, check_all};
use audit_service::event::{Event, Stage};
use audit_service::export::{End, Export, Format, Scope};
use audit_service::filter::{Filter, OneOf};
use audit_service::merkle::{Frontier, Plan, TileId, verify_inclusion};
use audit_service::retention::{ARCHIVED, Retention, Step, Surroundings};
use audit_service::store::{EventResult, NewHold, Order, Release, Sought, Store, Told};
use futures::FutureExt as _;
use sea_orm::{ConnectionTrait as _, Database};
use service_core::error::{Error, Reason};
use support::{ALL, Engine, Home, T0, batch, event, event_with, full, ids, staged, write};

const ORIGIN: &str = "localhost/audit";
const DAY_US: i64 = 86_400_000_000;

on_both_engines! {
    what_is_due_is_archived_and_all_that_was_known_is_still_known,
    nothing_is_removed_without_a_period_or_before_it_is_over,
    killed_at_any_step_it_goes_on,
    the_database_removes_nothing_but_what_is_archived,
    what_the_archive_has_of_something_else_removes_nothing,
    each_segment_that_is_damaged_is_named,
    an_outcome_in_the_archive_settles_its_intent,
    what_is_held_stays_until_it_is_released,
    entries_that_were_changed_are_neither_archived_nor_removed,
}

/// A clock that is ahead, and who dies at a step, if anybody does.
#[derive(Debug, Default)]
struct World {
    ahead_us: i64,
    dies_at: Option<(Step, u32)>,
    reached: AtomicU32,
}

impl World {
    fn days_later(days: i64) -> Self {
        Self { ahead_us: days * DAY_US, ..Self::default() }
    }
}

impl Surroundings for World {
    fn now_us(&self) -> i64 {
        service_core::clock::now_us() + self.ahead_us
    }

    fn reached(&self, step: Step) {
        if let Some((at, times)) = self.dies_at
            && at == step
            && self.reached.fetch_add(1, Ordering::Relaxed) + 1 == times
        {
            panic!("killed");
        }
    }
}

fn config(days: u32) -> RetentionConfig {
    RetentionConfig { days: NonZeroU32::new(days), ..RetentionConfig::default() }
}

async fn store_with(home: &Home, folder: &Path) -> Store {
    home.open().await.with_archive(Some(Archive::folder(folder).unwrap()))
}

fn retention(store: &Store, days: u32, world: World) -> Retention {
    Retention::alone(&config(days), ORIGIN, store.clone(), Arc::new(world))
}

/// All of a log as an export has it.
async fn export(store: &Store, from: u64, to: u64) -> (Vec<u8>, End) {
    let scope = Scope::Log { instance_id: "prod".into(), from, to };
    let mut export = Export::open(store.clone(), &full(), Filter::everything(), Format::Jsonl, scope).await.unwrap();
    let mut bytes = Vec::new();
    while let Some(chunk) = export.chunk().await.unwrap() {
        bytes.extend(chunk);
        // Wherever it is left off, the rest is the same.
        let saved = export.save().unwrap();
        export = Export::resume(store.clone(), &full(), Filter::everything(), Format::Jsonl, &saved).await.unwrap();
    }
    (bytes, export.end())
}

/// Every entry of a log is proven under the root of its tree.
async fn assert_proven(store: &Store, lines: &[u8]) {
    let head = store.tree_head(&full(), "prod").await.unwrap().unwrap();
    let lines: Vec<&[u8]> = lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).collect();
    assert_eq!(lines.len() as u64, head.size);
    let whole: Frontier = lines.iter().map(|line| audit_service::merkle::leaf_hash(line)).collect();
    assert_eq!(whole.root(), head.root);
    // The root is over all of them; that each can be proven, some show.
    for (sequence, line) in (0..).zip(lines).step_by(17) {
        let plan = Plan::inclusion(sequence, head.size).unwrap();
        let proof = plan.prove(&store.tiles(&full(), "prod", &plan).await.unwrap()).unwrap();
        let leaf = audit_service::merkle::leaf_hash(line);
        verify_inclusion(sequence, head.size, &leaf, &proof, &head.root).unwrap();
    }
    // A tile of leaves that is not full is made of entries wherever they are.
    let last = TileId { level: 0, index: (head.size - 1) / 256 };
    assert!(store.tile(&full(), "prod", last, last.width(head.size)).await.unwrap().is_some());
}

/// Every segment that a log has, verified without the database, in order and without a gap.
async fn assert_segments(store: &Store, folder: &Path) -> u64 {
    let mut next = 0;
    for segment in store.segments(&full(), "prod", 0, 1_000).await.unwrap() {
        let manifest = std::fs::read(folder.join(format!("{}.json", segment.place))).unwrap();
        let manifest = Manifest::parse(&manifest).unwrap();
        let data = std::fs::read(folder.join(&manifest.data.name)).unwrap();
        manifest.verify(data, |_, _| ()).unwrap();
        assert_eq!(segment.sequences, next..manifest.end_sequence);
        next = manifest.end_sequence;
    }
    next
}

fn many(entries: i64) -> Vec<Event> {
    (0..entries).map(|n| event(T0 + n)).collect()
}

async fn what_is_due_is_archived_and_all_that_was_known_is_still_known(home: &Home) {
    let folder = tempfile::tempdir().unwrap();
    let store = store_with(home, folder.path()).await;
    let events = many(700);
    for events in events.chunks(64) {
        write(&store, events.to_vec()).await;
    }
    let elsewhere = event_with(T0, |event| event.instance_id = "other".into());
    write(&store, [elsewhere]).await;
    let (before, _) = export(&store, 0, u64::MAX).await;
    let head = store.tree_head(&full(), "prod").await.unwrap().unwrap();
    store.index_all().await.unwrap();

    retention(&store, 365, World::days_later(366)).once().await.unwrap();

    let kept = store.kept(&full(), "prod").await.unwrap().unwrap();
    assert_eq!(kept.archived_through, 700);
    assert_eq!(kept.kept_from_us, T0 + 700);
    assert_eq!(assert_segments(&store, folder.path()).await, 700);
    let connection = Database::connect(home.url.expose()).await.unwrap();
    let count = async |sql: &str| {
        let statement = sea_orm::Statement::from_string(connection.get_database_backend(), sql);
        connection.query_one_raw(statement).await.unwrap().unwrap().try_get_by_index::<i64>(0).unwrap()
    };
    assert_eq!(count("SELECT COUNT(*) FROM audit_entries WHERE instance_id = 'prod'").await, 1);
    assert_eq!(count("SELECT COUNT(*) FROM audit_archived WHERE instance_id = 'prod'").await, 700);
    assert_eq!(count("SELECT COUNT(*) FROM audit_entries WHERE instance_id = 'other'").await, 1);

    // The removal is an entry: range, count, hashes, place.
    let told = store.by_place(&full(), "prod", 700).await.unwrap().unwrap().entry().unwrap();
    assert_eq!((told.event.action.as_str(), told.recorded_by.as_str()), (ARCHIVED, "audit-service"));
    let details: serde_json::Value = serde_json::from_str(&told.event.details_json).unwrap();
    assert_eq!((&details["first_sequence"], &details["end_sequence"]), (&"0".into(), &"700".into()));
    let segment = store.segments(&full(), "prod", 0, 10).await.unwrap().remove(0);
    assert_eq!(segment.recorded_sequence, 700);
    assert_eq!(details["lines"], format!("{}.jsonl.zst", segment.place));
    let peaks: Vec<[u8; 32]> = details["frontier"].as_array().unwrap().iter().map(unhex).collect();
    assert_eq!(Frontier::new(700, peaks).unwrap().root(), head.root);

    // Ids and contents are still known; what comes late for what is gone is refused.
    let again = write(&store, events[..3].to_vec()).await;
    for (sequence, result) in again.iter().enumerate() {
        let EventResult::Stored { sequence: known, duplicate: true, .. } = result else { panic!("{result:?}") };
        assert_eq!(*known, sequence as u64);
    }
    let other = Event { reason: "other".into(), ..events[0].clone() };
    let late = event(T0 + 699);
    let on_time = event(T0 + 700);
    let results = write(&store, [other, late, on_time]).await;
    let reason = |result: &EventResult| match result {
        EventResult::Rejected(violation) => Some(violation.reason),
        EventResult::Stored { .. } => None,
    };
    assert_eq!(
        results.iter().map(reason).collect::<Vec<_>>(),
        [Some(Reason::IdConflict), Some(Reason::BeforeRetention), None]
    );

    // Reads say where it is, or read it back: the same bytes, and every proof.
    let (after, end) = export(&store, 0, u64::MAX).await;
    assert!(after.starts_with(&before));
    assert_eq!((end.entries, end.heads["prod"]), (702, 702));
    assert_eq!(export(&store, 100, 300).await.0, export_part(&before, 100, 300));
    assert_proven(&store, &after).await;
    assert_eq!(store.by_place(&full(), "prod", 5).await.unwrap(), None);
    let sought = store.by_id(&full(), events[5].id).await.unwrap();
    assert_eq!(sought, Sought::Archived { instance_id: "prod".into(), sequence: 5 });
    let listed = ids(&store, &Filter::default(), ALL, Order::OldestFirst, 100).await;
    assert_eq!(listed.len(), 1, "what is left of that time in both logs");
    let scope = Scope::Time { start_us: T0, end_us: T0 + DAY_US };
    let mut export = Export::open(store.clone(), &full(), Filter::everything(), Format::Jsonl, scope).await.unwrap();
    let Err(Error::OutOfRange(why)) = export.chunk().await else { panic!("not refused") };
    assert!(why.contains("\"prod\" are there from 2026-01-01T00:00:00.000700Z") && why.contains("0 to 699"), "{why}");

    // Who may not see the log is not told that something of it was archived.
    let access = full().to_instances(["theirs"]);
    let sought = store.by_id(&access, events[5].id).await.unwrap();
    assert_eq!(sought, Sought::Hidden { instance_id: "prod".into() });
    assert_eq!(store.kept(&access, "prod").await.unwrap(), None);
    assert_eq!(store.segments(&access, "prod", 0, 10).await.unwrap(), []);
    let scope = Scope::Time { start_us: T0, end_us: T0 + DAY_US };
    let mut theirs = Export::open(store.clone(), &access, Filter::everything(), Format::Jsonl, scope).await.unwrap();
    assert_eq!(theirs.chunk().await.unwrap(), None);

    // Once more, and nothing happens: the entry that tells of it is not worth one.
    retention(&store, 365, World::days_later(366)).once().await.unwrap();
    let kept = store.kept(&full(), "prod").await.unwrap().unwrap();
    assert_eq!(kept.archived_through, 702, "the entry on time is as old as the others, and takes ours with it");
    assert_eq!(store.all_heads(&full()).await.unwrap()["prod"], 703);
    retention(&store, 365, World::days_later(366)).once().await.unwrap();
    assert_eq!(store.all_heads(&full()).await.unwrap()["prod"], 703);
    assert_eq!(assert_segments(&store, folder.path()).await, 702);
    store.index_all().await.unwrap();
    let (after, _) = self::export(&store, 0, u64::MAX).await;
    assert_proven(&store, &after).await;
}

fn export_part(lines: &[u8], from: usize, to: usize) -> Vec<u8> {
    lines.split_inclusive(|byte| *byte == b'\n').skip(from).take(to - from).collect::<Vec<_>>().concat()
}

fn unhex(text: &serde_json::Value) -> [u8; 32] {
    let text = text.as_str().unwrap();
    let bytes: Vec<u8> = (0..32).map(|at| u8::from_str_radix(&text[at * 2..at * 2 + 2], 16).unwrap()).collect();
    bytes.try_into().unwrap()
}

async fn nothing_is_removed_without_a_period_or_before_it_is_over(home: &Home) {
    let folder = tempfile::tempdir().unwrap();
    let store = store_with(home, folder.path()).await;
    write(&store, many(10)).await;
    for (days, world) in [(0, World::days_later(100_000)), (365, World::days_later(364)), (1, World::default())] {
        retention(&store, days, world).once().await.unwrap();
        assert_eq!(store.kept(&full(), "prod").await.unwrap().unwrap().archived_through, 0);
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    assert_eq!(store.all_heads(&full()).await.unwrap()["prod"], 10);
}

async fn killed_at_any_step_it_goes_on(home: &Home) {
    let folder = tempfile::tempdir().unwrap();
    let store = store_with(home, folder.path()).await;
    // Our own entries are of now, and get due like others.
    let now = service_core::clock::now_us() + 200_000_000;
    let mut next = 0;
    let mut before = Vec::new();
    for (step, times) in [
        (Step::Planned, 1),
        (Step::LinesWritten, 1),
        (Step::ManifestWritten, 1),
        (Step::Recorded, 1),
        (Step::Swept, 1),
        (Step::Swept, 2),
    ] {
        for events in (0..1_100).map(|n| event(now + next + n)).collect::<Vec<_>>().chunks(550) {
            write(&store, events.to_vec()).await;
        }
        next += 1_100;
        let (lines, _) = export(&store, 0, u64::MAX).await;
        assert!(lines.starts_with(&before));
        let world = World { dies_at: Some((step, times)), ..World::days_later(2) };
        let killed = retention(&store, 1, world);
        let outcome = AssertUnwindSafe(killed.once()).catch_unwind().await;
        assert!(outcome.is_err(), "killed at {step:?}: {outcome:?}");
        // Whoever writes meanwhile is not kept from it.
        write(&store, [event(now + next)]).await;
        next += 1;
        let (lines, _) = export(&store, 0, u64::MAX).await;
        retention(&store, 1, World::days_later(2)).once().await.unwrap();
        let (after, end) = export(&store, 0, u64::MAX).await;
        assert!(after.starts_with(&lines));
        assert_eq!(end.entries, store.all_heads(&full()).await.unwrap()["prod"]);
        before = after;
    }
    let kept = store.kept(&full(), "prod").await.unwrap().unwrap();
    assert_eq!(assert_segments(&store, folder.path()).await, kept.archived_through);
    assert_proven(&store, &before).await;
}

async fn the_database_removes_nothing_but_what_is_archived(home: &Home) {
    let folder = tempfile::tempdir().unwrap();
    let store = store_with(home, folder.path()).await;
    write(&store, many(300)).await;
    let world = World { dies_at: Some((Step::Recorded, 1)), ..World::days_later(2) };
    let retention = retention(&store, 1, world);
    assert!(AssertUnwindSafe(retention.once()).catch_unwind().await.is_err());
    write(&store, [event(T0 + 300)]).await;
    let connection = Database::connect(home.url.expose()).await.unwrap();
    let refused = async |sql: &str| connection.execute_unprepared(sql).await.expect_err(sql).to_string();
    for (sql, word) in [
        // Below the horizon, but nothing of it would stay.
        ("DELETE FROM audit_entries WHERE sequence = 5", "immutable"),
        ("DELETE FROM audit_entries WHERE sequence = 301", "immutable"),
        ("UPDATE audit_entries SET canonical = '' WHERE sequence = 5", "immutable"),
        ("UPDATE audit_log_heads SET archived_through = 301", "moves only with the entry"),
        ("UPDATE audit_log_heads SET archived_through = 0", "moves only with the entry"),
        ("UPDATE audit_segments SET end_sequence = 301", "immutable"),
        ("DELETE FROM audit_segments", "immutable"),
        (
            "INSERT INTO audit_archived SELECT instance_id, 7, id, stage, operation_id, content_hash, leaf_hash \
             FROM audit_entries WHERE sequence = 8",
            "of its entries",
        ),
    ] {
        let error = refused(sql).await;
        assert!(error.contains(word), "{sql}: {error}");
    }
    assert_eq!(export(&store, 0, u64::MAX).await.1.entries, 302);
    // What stays was told: now it goes, and neither comes back nor changes.
    let stays = "INSERT INTO audit_archived SELECT instance_id, sequence, id, stage, operation_id, content_hash, \
                 leaf_hash FROM audit_entries WHERE sequence = 5";
    connection.execute_unprepared(stays).await.unwrap();
    assert!(refused("UPDATE audit_archived SET sequence = 6").await.contains("immutable"));
    assert!(refused("DELETE FROM audit_archived").await.contains("immutable"));
    connection.execute_unprepared("DELETE FROM audit_entries WHERE sequence = 5").await.unwrap();
    let (lines, end) = export(&store, 0, u64::MAX).await;
    assert_eq!(end.entries, 302);
    assert_proven(&store, &lines).await;
}

async fn what_the_archive_has_of_something_else_removes_nothing(home: &Home) {
    let folder = tempfile::tempdir().unwrap();
    let store = store_with(home, folder.path()).await;
    write(&store, many(40)).await;
    let place = "localhost_2faudit/prod/00000000000000000000-00000000000000000040";
    let object = folder.path().join(format!("{place}.jsonl.zst"));
    std::fs::create_dir_all(object.parent().unwrap()).unwrap();
    std::fs::write(&object, b"of somebody else").unwrap();
    retention(&store, 1, World::days_later(2)).once().await.unwrap_err();
    assert_eq!(store.kept(&full(), "prod").await.unwrap().unwrap().archived_through, 0);
    assert_eq!(std::fs::read(&object).unwrap(), b"of somebody else");
    assert_eq!(export(&store, 0, u64::MAX).await.1.entries, 40);
    // What is planned stays so, also when more is due: the object that is made again is the same.
    write(&store, [event(T0 + 41)]).await;
    std::fs::remove_file(&object).unwrap();
    std::fs::remove_file(folder.path().join(format!("{place}.json"))).unwrap();
    retention(&store, 1, World::days_later(2)).once().await.unwrap();
    assert!(object.exists());
    assert_eq!(assert_segments(&store, folder.path()).await, 42, "the second segment has our own entry too");
    // An object that is changed later is not taken for the log.
    std::fs::write(&object, b"of somebody else").unwrap();
    let scope = Scope::Log { instance_id: "prod".into(), from: 0, to: 10 };
    let mut export = Export::open(store.clone(), &full(), Filter::everything(), Format::Jsonl, scope).await.unwrap();
    let Err(Error::DataLoss(why)) = export.chunk().await else { panic!("not refused") };
    assert!(why.contains("another SHA-256"), "{why}");
}

async fn each_segment_that_is_damaged_is_named(home: &Home) {
    let folder = tempfile::tempdir().unwrap();
    let store = store_with(home, folder.path()).await;
    // As a log has them in which a few things happen between two looks: several begin in one tile.
    for round in 0..4 {
        // Behind the entry that tells of the segment before.
        let from = service_core::clock::now_us() + round * 10 * DAY_US;
        write(&store, (0..5).map(|n| event(from + n)).collect::<Vec<_>>()).await;
        retention(&store, 1, World::days_later(2)).once().await.unwrap();
    }
    let segments = store.segments(&full(), "prod", 0, 10).await.unwrap();
    assert_eq!(segments.len(), 4);
    let found = async || {
        let mut all = Vec::new();
        let report = |_: &str, checked: Result<&Checked, &Error>| {
            all.extend(checked.unwrap().found.iter().map(|found| found.what.clone()));
        };
        let well = check_all(&store, &Trusted::default(), report).await.unwrap();
        assert_eq!(well, all.is_empty());
        all
    };
    assert_eq!(found().await, [""; 0]);
    let object = |at: usize, kind: &str| folder.path().join(format!("{}.{kind}", segments[at].place));
    std::fs::remove_file(object(2, "jsonl.zst")).unwrap();
    std::fs::write(object(3, "json"), b"{}").unwrap();
    let named = |at: usize, how: &str| {
        let sequences = &segments[at].sequences;
        let (first, last) = (sequences.start, sequences.end - 1);
        format!("the archive's segment of entries {first} to {last}, {}, {how}", segments[at].place)
    };
    assert_eq!(found().await, [named(2, "is missing"), named(3, "has another manifest")]);
    // What cannot be read now keeps nothing else from being found.
    std::fs::remove_file(object(0, "json")).unwrap();
    std::os::unix::fs::symlink(object(0, "json"), object(0, "json")).unwrap();
    let told = found().await;
    assert!(told.len() == 3 && told[0].contains("cannot be read"), "{told:?}");
    let scope = Scope::Log { instance_id: "prod".into(), from: segments[2].sequences.start, to: u64::MAX };
    let mut export = Export::open(store.clone(), &full(), Filter::everything(), Format::Jsonl, scope).await.unwrap();
    let Err(Error::DataLoss(why)) = export.chunk().await else { panic!("not refused") };
    assert!(why.contains("is missing"), "{why}");
}

async fn an_outcome_in_the_archive_settles_its_intent(home: &Home) {
    let folder = tempfile::tempdir().unwrap();
    let store = store_with(home, folder.path()).await;
    // The outcome came first, and its intent late.
    write(&store, [staged(T0, "op", Stage::Outcome)]).await;
    retention(&store, 1, World::days_later(2)).once().await.unwrap();
    let late = staged(T0 + 10, "op", Stage::Intent);
    let open = staged(T0 + 11, "other", Stage::Intent);
    write(&store, [late.clone(), open.clone()]).await;
    let listed = async || {
        let filter = Filter { actors: OneOf::from_iter(["u-1".to_owned()]), ..Filter::default() };
        let mut listed = ids(&store, &filter, ALL, Order::OldestFirst, 10).await;
        let all = ids(&store, &Filter::default(), ALL, Order::OldestFirst, 10).await;
        listed.retain(|id| all.contains(id));
        listed
    };
    assert_eq!(listed().await, [open.id]);
    store.index_all().await.unwrap();
    assert_eq!(listed().await, [open.id]);
}

fn hold_of(actor: &str, sequences: std::ops::Range<u64>) -> NewHold {
    NewHold {
        hold_id: support::id_at(T0),
        instance_id: "prod".into(),
        sequences,
        occurred_us: ALL,
        filter: Filter { actors: OneOf::from_iter([actor.to_owned()]), ..Filter::everything() },
        reason: "case 17".into(),
        placed_by: "auditor-1".into(),
    }
}

async fn place(store: &Store, hold: &NewHold) -> u64 {
    let told = event_with(service_core::clock::now_us(), |event| event.action = "audit_log.legal_hold_placed".into());
    store.write_told(told, "audit-service", &Told::Hold(hold)).await.unwrap().0
}

async fn release(store: &Store, hold: &NewHold) -> Result<u64, Error> {
    let release = Release {
        hold_id: hold.hold_id,
        instance_id: "prod".into(),
        reason: "closed".into(),
        released_by: "admin-1".into(),
    };
    let told = event_with(service_core::clock::now_us(), |event| event.action = "audit_log.legal_hold_released".into());
    store.write_told(told, "audit-service", &Told::Release(&release)).await.map(|(sequence, _)| sequence)
}

async fn what_is_held_stays_until_it_is_released(home: &Home) {
    let folder = tempfile::tempdir().unwrap();
    let store = store_with(home, folder.path()).await;
    let by = |actor: &str, us: i64| event_with(us, |event| event.actor.id = actor.into());
    // Every tenth is Eve's.
    let events: Vec<Event> = (0..1_200).map(|n| by(if n % 10 == 3 { "eve" } else { "ada" }, T0 + n)).collect();
    for events in events.chunks(300) {
        write(&store, events.to_vec()).await;
    }
    let (before, _) = export(&store, 0, u64::MAX).await;
    let (eve, few) = (hold_of("eve", 0..i64::MAX.cast_unsigned()), hold_of("ada", 100..103));
    assert_eq!(place(&store, &eve).await, 1_200);
    assert_eq!(place(&store, &few).await, 1_201);
    let later = || World::days_later(2);
    retention(&store, 1, later()).once().await.unwrap();
    retention(&store, 1, later()).once().await.unwrap();

    let here = async |sequence: u64| store.by_place(&full(), "prod", sequence).await.unwrap().is_some();
    for sequence in 0..1_200 {
        let held = sequence % 10 == 3 || (100..103).contains(&sequence);
        assert_eq!(here(sequence).await, held, "{sequence}");
    }
    assert_eq!(assert_segments(&store, folder.path()).await, 1_202, "held entries are in the archive as well");
    let (after, _) = export(&store, 0, u64::MAX).await;
    assert!(after.starts_with(&before));
    assert_proven(&store, &after).await;
    // Who asks for that time hears what is held.
    let scope = Scope::Time { start_us: T0, end_us: T0 + DAY_US };
    let mut time = Export::open(store.clone(), &full(), Filter::everything(), Format::Jsonl, scope).await.unwrap();
    let why = time.chunk().await.unwrap_err().to_string();
    assert!(why.contains("123 of them are held here too") && why.contains(&eve.hold_id.to_string()), "{why}");
    // An event of held entries' time comes again: known; a conflict stays one.
    assert!(matches!(write(&store, [events[3].clone()]).await[0], EventResult::Stored { duplicate: true, .. }));

    release(&store, &eve).await.unwrap();
    assert!(matches!(release(&store, &eve).await, Err(Error::Contention(_))), "released once");
    retention(&store, 0, later()).once().await.unwrap();
    for sequence in [3, 13, 1_193] {
        assert!(!here(sequence).await, "{sequence}");
    }
    assert!(here(100).await && here(102).await);
    let holds = store.holds(&full(), "prod", true, None, 10).await.unwrap();
    assert_eq!(holds.len(), 2);
    let (released, standing) = (&holds[0], &holds[1]);
    assert_eq!((&released.placed, &standing.placed), (&eve, &few));
    assert_eq!(released.released.as_ref().unwrap().2.released_by, "admin-1");
    assert_eq!(store.holds(&full(), "prod", false, None, 10).await.unwrap(), std::slice::from_ref(standing));
    // Nobody changes a hold, or takes it away.
    let connection = Database::connect(home.url.expose()).await.unwrap();
    for sql in [
        "DELETE FROM audit_legal_holds",
        "UPDATE audit_legal_holds SET filter = '{}'",
        "UPDATE audit_legal_holds SET released_at = NULL",
        "REPLACE INTO audit_legal_holds SELECT * FROM audit_legal_holds",
    ] {
        connection.execute_unprepared(sql).await.expect_err(sql);
    }
    // Nor places or releases one, but with the entry that tells of it.
    for sql in [
        "UPDATE audit_legal_holds SET released_at = 1, released_sequence = 0 WHERE released_at IS NULL",
        "INSERT INTO audit_legal_holds (hold_id, instance_id, first_sequence, end_sequence, start_us, end_us, filter, \
         reason, placed_at, placed_by, placed_sequence) \
         SELECT '00000000000000000000000000000001', instance_id, 0, 0, 0, 0, filter, reason, 0, '', 0 \
         FROM audit_legal_holds WHERE released_at IS NULL",
    ] {
        let refused = connection.execute_unprepared(sql).await.expect_err(sql).to_string();
        assert!(refused.contains("only with the entry that tells of it"), "{refused}");
    }
}

async fn entries_that_were_changed_are_neither_archived_nor_removed(home: &Home) {
    let folder = tempfile::tempdir().unwrap();
    let store = store_with(home, folder.path()).await;
    store.write(&[batch(many(20))]).await.unwrap();
    let connection = Database::connect(home.url.expose()).await.unwrap();
    let (off, on) = match home.engine {
        Engine::Sqlite => ("DROP TRIGGER audit_entries_no_update", ""),
        Engine::Postgres => (
            "ALTER TABLE audit_entries DISABLE TRIGGER audit_entries_immutable",
            "ALTER TABLE audit_entries ENABLE ALWAYS TRIGGER audit_entries_immutable",
        ),
    };
    connection.execute_unprepared(off).await.unwrap();
    let change = "UPDATE audit_entries SET canonical = REPLACE(canonical, 'Ada', 'Eve') WHERE sequence = 7";
    connection.execute_unprepared(change).await.unwrap();
    if !on.is_empty() {
        connection.execute_unprepared(on).await.unwrap();
    }
    retention(&store, 1, World::days_later(2)).once().await.unwrap_err();
    assert_eq!(store.kept(&full(), "prod").await.unwrap().unwrap().archived_through, 0);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}
