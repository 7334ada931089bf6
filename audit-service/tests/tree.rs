//! The tree over a log in the database, on both engines: it is RFC 6962's over the entries, whatever happened.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

#[macro_use]
mod support;

use audit_service::canonical;
use audit_service::event::Event;
use audit_service::merkle::{
    Hash, Plan, Tile, TileId, WIDTH, empty_root, node_hash, verify_consistency, verify_inclusion,
};
use audit_service::store::{EventResult, LogWalk, Store, TreeHead};
use sea_orm::{ConnectionTrait as _, Database, DatabaseConnection};
use service_core::error::Error;
use support::{Engine, Home, T0, accepted, batch, event, event_with, full, write};

on_both_engines! {
    the_root_is_over_all_entries_whatever_the_groups,
    a_log_without_entries_has_no_tree,
    proofs_hold_for_every_size_there_was,
    replicas_grow_one_tree,
    a_log_from_before_there_were_trees_gets_one,
    a_tree_that_was_half_built_is_built_to_its_end,
    an_entry_that_was_changed_stops_the_building_with_its_place,
    what_a_program_without_trees_wrote_is_in_the_tree,
    nothing_is_written_on_top_of_what_does_not_fit,
    a_log_that_lost_what_was_signed_takes_no_more,
    a_damaged_log_keeps_no_other_from_being_stored,
    the_database_refuses_to_change_tiles,
    the_database_refuses_to_change_checkpoints,
}

/// `MTH` of RFC 6962.
fn mth(leaves: &[Hash]) -> Hash {
    match leaves {
        [] => empty_root(),
        [leaf] => *leaf,
        _ => {
            let (left, right) = leaves.split_at(1 << (leaves.len() - 1).ilog2());
            node_hash(&mth(left), &mth(right))
        }
    }
}

/// Leaf hashes of a log, from what is stored of each entry.
async fn leaves(store: &Store, instance: &str) -> Vec<Hash> {
    let mut walk = LogWalk::new(&full(), instance, 0, u64::MAX);
    let mut leaves = Vec::new();
    loop {
        let rows = walk.next(store).await.unwrap();
        if rows.is_empty() {
            return leaves;
        }
        for row in rows {
            assert_eq!(row.sequence, leaves.len() as u64);
            leaves.push(canonical::leaf_hash(&row.canonical));
        }
    }
}

/// Compares the head and every tile with their definitions.
async fn assert_whole(store: &Store, instance: &str) {
    let leaves = leaves(store, instance).await;
    let size = leaves.len() as u64;
    let head = store.tree_head(&full(), instance).await.unwrap().unwrap();
    assert_eq!(head, TreeHead { size, root: mth(&leaves) });
    for level in 0..4_u8 {
        let step = 256_usize.pow(u32::from(level));
        let hashes: Vec<Hash> = leaves.chunks_exact(step).map(mth).collect();
        let tiles = (0..).zip(hashes.chunks(256));
        let mut count = 0;
        for (index, hashes) in tiles {
            let id = TileId { level, index };
            let width = hashes.len() as u64;
            let everything = full();
            let tile = |width| store.tile(&everything, instance, id, width);
            assert_eq!(tile(width).await.unwrap(), Some(Tile::new(hashes.to_vec()).unwrap()), "{id:?}");
            assert_eq!(tile(1).await.unwrap(), Some(Tile::new(hashes[..1].to_vec()).unwrap()));
            if width < WIDTH {
                assert_eq!(tile(width + 1).await.unwrap(), None);
            }
            count += 1;
        }
        let beyond = store.tile(&full(), instance, TileId { level, index: count }, 1).await.unwrap();
        assert_eq!(beyond, None);
    }
}

fn of(instance: &str, count: i64) -> Vec<Event> {
    (0..count).map(|at| event_with(T0 + at, |event| event.instance_id = instance.into())).collect()
}

/// Groups of all sizes around those of tiles, with duplicates, conflicts and several logs in them.
async fn the_root_is_over_all_entries_whatever_the_groups(home: &Home) {
    let store = home.open().await;
    let mut known: Vec<Event> = Vec::new();
    let mut chance = 7_u64;
    let mut below = |bound: u64| {
        chance = chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (chance >> 33) % bound
    };
    for size in [1, 2, 250, 3, 255, 1, 256, 0, 257, 300, 513, 40, 900, 31] {
        let mut group = vec![batch([]), batch([])];
        for at in 0..size {
            let instance = if below(5) == 0 { "b" } else { "a" };
            let event = match below(10) {
                0 if !known.is_empty() => known[below(known.len() as u64) as usize].clone(),
                1 if !known.is_empty() => {
                    let other = known[below(known.len() as u64) as usize].clone();
                    Event { reason: "other".into(), ..other }
                }
                _ => event_with(T0 + at, |event| event.instance_id = instance.into()),
            };
            known.push(event.clone());
            group[below(2) as usize].events.push(event.into());
        }
        store.write(&group).await.unwrap();
        for instance in ["a", "b"] {
            if let Some(head) = store.tree_head(&full(), instance).await.unwrap() {
                let leaves = leaves(&store, instance).await;
                assert_eq!(head, TreeHead { size: leaves.len() as u64, root: mth(&leaves) }, "{instance} after {size}");
            }
        }
    }
    assert!(store.tree_head(&full(), "a").await.unwrap().unwrap().size > 1_500);
    assert_whole(&store, "a").await;
    assert_whole(&store, "b").await;
    // Nothing but duplicates: nothing grows.
    let before = store.tree_head(&full(), "a").await.unwrap();
    let again = write(&store, known[..1].to_vec()).await;
    assert!(matches!(again[0], EventResult::Stored { duplicate: true, .. }));
    assert_eq!(store.tree_head(&full(), "a").await.unwrap(), before);
}

async fn a_log_without_entries_has_no_tree(home: &Home) {
    let store = home.open().await;
    write(&store, of("a", 3)).await;
    assert_eq!(store.tree_head(&full(), "nowhere").await.unwrap(), None);
    // Nor has one that may not be seen.
    let other = full().to_instances(["b"]);
    assert_eq!(store.tree_head(&other, "a").await.unwrap(), None);
    assert_eq!(store.tile(&other, "a", TileId { level: 0, index: 0 }, 1).await.unwrap(), None);
    for width in [0, 257, u64::MAX] {
        assert_eq!(store.tile(&full(), "a", TileId { level: 0, index: 0 }, width).await.unwrap(), None);
    }
    let far = TileId { level: u8::MAX, index: u64::MAX };
    assert_eq!(store.tile(&full(), "a", far, 1).await.unwrap(), None);
}

async fn proofs_hold_for_every_size_there_was(home: &Home) {
    let store = home.open().await;
    write(&store, of("a", 700)).await;
    let leaves = leaves(&store, "a").await;
    for size in [1_u64, 2, 255, 256, 257, 511, 512, 600, 700] {
        let root = mth(&leaves[..size as usize]);
        for index in [0, 1, 254, 255, 256, 511, 599, 699].into_iter().filter(|index| *index < size) {
            let plan = Plan::inclusion(index, size).unwrap();
            let tiles = store.tiles(&full(), "a", &plan).await.unwrap();
            let proof = plan.prove(&tiles).unwrap();
            verify_inclusion(index, size, &leaves[index as usize], &proof, &root).unwrap();

            let plan = Plan::consistency(index + 1, size).unwrap();
            let tiles = store.tiles(&full(), "a", &plan).await.unwrap();
            let proof = plan.prove(&tiles).unwrap();
            verify_consistency(index + 1, size, &mth(&leaves[..=index as usize]), &root, &proof).unwrap();
        }
    }
    let beyond = Plan::inclusion(0, 701).unwrap();
    let tiles = store.tiles(&full(), "a", &beyond).await.unwrap();
    assert!(beyond.prove(&tiles).is_err());
}

/// Two stores over one database are two replicas; SQLite has one.
async fn replicas_grow_one_tree(home: &Home) {
    let first = home.open().await;
    let second = if home.engine == Engine::Postgres { home.open().await } else { first.clone() };
    let events: Vec<Event> = (0..600)
        .map(|at| event_with(T0 + at, |event| event.instance_id = ["a", "b"][at as usize % 2].into()))
        .collect();
    let mut backwards = events.clone();
    backwards.reverse();
    // Half of what each writes is the other's: whoever is first stores it.
    let write_all = async |store: &Store, events: &[Event]| {
        for events in events.chunks(37) {
            while let Err(error) = store.write(&[batch(events.to_vec())]).await {
                assert!(matches!(error, Error::Contention(_)), "{error:?}");
            }
        }
    };
    tokio::join!(write_all(&first, &events[..450]), write_all(&second, &backwards[..450]));
    for instance in ["a", "b"] {
        assert_eq!(first.tree_head(&full(), instance).await.unwrap().unwrap().size, 300);
        assert_whole(&second, instance).await;
    }
}

async fn sql(home: &Home, statements: &[&str]) -> DatabaseConnection {
    let db = Database::connect(home.url.expose()).await.unwrap();
    for statement in statements {
        db.execute_unprepared(statement).await.expect(statement);
    }
    db
}

/// Takes away what the migration made.
async fn without_trees(home: &Home) {
    let mut statements = vec![
        "DROP TABLE audit_tiles",
        "ALTER TABLE audit_log_heads DROP COLUMN tree_size",
        "ALTER TABLE audit_log_heads DROP COLUMN frontier",
        "DELETE FROM seaql_migrations WHERE version = 'audit_0003_tree'",
    ];
    if home.engine == Engine::Postgres {
        statements.push("DROP FUNCTION audit_tiles_refuse");
    }
    sql(home, &statements).await.close().await.unwrap();
}

async fn a_log_from_before_there_were_trees_gets_one(home: &Home) {
    let store = home.open().await;
    let group: Vec<_> = (0..5).map(|part| batch(of("a", 1_000 + part))).chain([batch(of("b", 3))]).collect();
    store.write(&group).await.unwrap();
    store.close().await;
    without_trees(home).await;

    let store = home.open().await;
    assert_whole(&store, "a").await;
    assert_whole(&store, "b").await;
    assert_eq!(accepted(&write(&store, of("a", 300)).await[0]), 5_010);
    assert_whole(&store, "a").await;
}

/// As a process leaves it that was killed between two steps.
async fn a_tree_that_was_half_built_is_built_to_its_end(home: &Home) {
    let store = home.open().await;
    write(&store, of("a", 200)).await;
    let db = sql(home, &["CREATE TABLE before AS SELECT * FROM audit_log_heads"]).await;
    write(&store, of("a", 55)).await;
    store.close().await;
    let half = "UPDATE audit_log_heads SET tree_size = 200, frontier = (SELECT frontier FROM before)";
    db.execute_unprepared(half).await.unwrap();
    db.close().await.unwrap();

    let store = home.open().await;
    assert_whole(&store, "a").await;
    write(&store, of("a", 1)).await;
    assert_whole(&store, "a").await;
}

async fn without_guards(home: &Home, statement: &str) {
    let off: &[&str] = match home.engine {
        Engine::Sqlite => &["DROP TRIGGER audit_entries_no_update", "DROP TRIGGER audit_tiles_no_update"],
        Engine::Postgres => {
            &["ALTER TABLE audit_entries DISABLE TRIGGER ALL", "ALTER TABLE audit_tiles DISABLE TRIGGER ALL"]
        }
    };
    sql(home, off).await.execute_unprepared(statement).await.expect(statement);
}

async fn an_entry_that_was_changed_stops_the_building_with_its_place(home: &Home) {
    let store = home.open().await;
    write(&store, of("a", 400)).await;
    store.close().await;
    without_guards(home, "UPDATE audit_entries SET canonical = replace(canonical, 'Ada', 'Eve') WHERE sequence = 321")
        .await;
    without_trees(home).await;
    let refused = Store::open(&home.url, &Default::default()).await.unwrap_err();
    let why = format!("{refused:?}");
    assert!(why.contains("instance \"a\" is damaged: entry 321 is missing or was changed"), "{why}");
}

async fn what_a_program_without_trees_wrote_is_in_the_tree(home: &Home) {
    let store = home.open().await;
    write(&store, of("a", 10)).await;
    let db = sql(home, &["CREATE TABLE before AS SELECT * FROM audit_log_heads"]).await;
    write(&store, of("a", 20)).await;
    let behind = "UPDATE audit_log_heads SET tree_size = 10, frontier = (SELECT frontier FROM before)";
    db.execute_unprepared(behind).await.unwrap();
    // Without a new start: the next who writes sees to it.
    assert_eq!(accepted(&write(&store, of("a", 1)).await[0]), 30);
    assert_whole(&store, "a").await;
}

async fn nothing_is_written_on_top_of_what_does_not_fit(home: &Home) {
    let store = home.open().await;
    write(&store, of("a", 100)).await;
    let damage = "UPDATE audit_entries SET leaf_hash = content_hash WHERE instance_id = 'a' AND sequence = 7";
    without_guards(home, damage).await;
    // It is noticed when the tile gets full.
    let refused = store.write(&[batch(of("a", 200))]).await.unwrap_err();
    assert!(matches!(refused, Error::StorageUnavailable(_)), "{refused:?}");
    let why = format!("{refused:?}");
    assert!(why.contains("instance \"a\" is damaged") && why.contains("last 100 entries"), "{why}");
    // Another log is not.
    assert_eq!(accepted(&write(&store, of("b", 1)).await[0]), 0);

    without_head(home, "frontier = (SELECT frontier FROM audit_log_heads WHERE instance_id = 'b')").await;
    let refused = store.write(&[batch([event_with(T0, |event| event.instance_id = "a".into())])]).await.unwrap_err();
    assert!(format!("{refused:?}").contains("peaks of its tree"), "{refused:?}");
    without_head(home, "next_sequence = 99").await;
    let refused = store.write(&[batch([event_with(T0, |event| event.instance_id = "a".into())])]).await.unwrap_err();
    assert!(format!("{refused:?}").contains("over 100 entries, and it has 99"), "{refused:?}");
}

async fn a_log_that_lost_what_was_signed_takes_no_more(home: &Home) {
    let store = home.open().await;
    write(&store, of("a", 10)).await;
    store.was_signed("a", 10);
    store.was_signed("a", 4);
    assert_eq!(accepted(&write(&store, of("a", 1)).await[0]), 10);
    store.was_signed("a", 12);
    let refused = store.write(&[batch(of("a", 1))]).await.unwrap_err();
    assert!(format!("{refused:?}").contains("it has 11 entries, and more than that were signed"), "{refused:?}");
    assert_eq!(accepted(&write(&store, of("b", 1)).await[0]), 0);
    assert_eq!(store.tree_head(&full(), "a").await.unwrap().unwrap().size, 11);
}

async fn a_damaged_log_keeps_no_other_from_being_stored(home: &Home) {
    let store = home.open().await;
    for instance in ["a", "b", "c", "d"] {
        write(&store, of(instance, 100)).await;
    }
    // One of each kind: below what was signed, peaks that do not fit, and leaves that are noticed when the tile is full.
    store.was_signed("a", 200);
    without_guards(home, "UPDATE audit_entries SET leaf_hash = content_hash WHERE instance_id = 'c' AND sequence = 7")
        .await;
    sql(home, &["UPDATE audit_log_heads SET frontier = substr(frontier, 1, 32) WHERE instance_id = 'b'"]).await;
    let mixed = [of("d", 1), of("a", 1)].concat();
    let group = [of("a", 1), of("d", 2), of("b", 1), of("c", 200), mixed, of("e", 3)].map(batch);
    for round in 0..2 {
        let (results, heads) = store.write_sound(&group).await.unwrap();
        for (at, why) in [
            (0, "more than that were signed"),
            (2, "peaks of its tree"),
            (3, "last 100 entries"),
            (4, "more than that were signed"),
        ] {
            let refused = results[at].as_ref().unwrap_err();
            assert!(matches!(refused, Error::StorageUnavailable(_)), "{refused:?}");
            assert!(format!("{refused:?}").contains(why), "{refused:?}");
        }
        for (at, first) in [(1, 100), (5, 0)] {
            let expected = |result: &EventResult, sequence: u64| matches!(result, EventResult::Stored { sequence: s, duplicate, .. } if *s == sequence && *duplicate == (round > 0));
            let stored = results[at].as_ref().unwrap();
            assert!(!stored.is_empty() && stored.iter().zip(first..).all(|(r, s)| expected(r, s)), "{stored:?}");
        }
        assert_eq!(heads.keys().collect::<Vec<_>>(), if round == 0 { vec!["d", "e"] } else { Vec::new() });
    }
    assert_whole(&store, "d").await;
    // Where nothing is left, the group fails.
    assert!(store.write_sound(&group[..1]).await.is_err());
}

async fn the_database_refuses_to_change_checkpoints(home: &Home) {
    let store = home.open().await;
    let insert = match home.engine {
        Engine::Sqlite => "INSERT INTO audit_checkpoints VALUES ('a', 3, x'01', 7, 'note')",
        Engine::Postgres => "INSERT INTO audit_checkpoints VALUES ('a', 3, '\\x01', 7, 'note')",
    };
    let db = sql(home, &[insert]).await;
    let mut statements = vec!["UPDATE audit_checkpoints SET note = 'other'", "DELETE FROM audit_checkpoints"];
    statements.extend(match home.engine {
        Engine::Sqlite => [
            "INSERT OR REPLACE INTO audit_checkpoints VALUES ('a', 3, x'00', 7, 'other')",
            "UPDATE OR REPLACE audit_checkpoints SET size = 4",
        ],
        Engine::Postgres => [
            "TRUNCATE audit_checkpoints",
            "INSERT INTO audit_checkpoints SELECT * FROM audit_checkpoints ON CONFLICT (instance_id, size) \
             DO UPDATE SET note = 'other'",
        ],
    });
    for statement in statements {
        let refused = db.execute_unprepared(statement).await.expect_err(statement).to_string();
        assert!(refused.contains("immutable"), "{statement}: {refused}");
    }
    store.close().await;
}

async fn without_head(home: &Home, set: &str) {
    sql(home, &[&format!("UPDATE audit_log_heads SET {set} WHERE instance_id = 'a'")]).await;
}

async fn the_database_refuses_to_change_tiles(home: &Home) {
    let store = home.open().await;
    write(&store, (0..300).map(|at| event(T0 + at))).await;
    let mut statements = vec![
        "UPDATE audit_tiles SET hashes = root",
        "UPDATE audit_tiles SET tile = tile WHERE level = 0",
        "DELETE FROM audit_tiles",
        "DELETE FROM audit_tiles WHERE tile = 0",
    ];
    match home.engine {
        Engine::Sqlite => statements.extend([
            "INSERT OR REPLACE INTO audit_tiles SELECT instance_id, level, tile, root, root FROM audit_tiles",
            "UPDATE OR REPLACE audit_tiles SET tile = 1",
            "INSERT INTO audit_tiles SELECT * FROM audit_tiles WHERE true ON CONFLICT DO UPDATE SET hashes = root",
        ]),
        Engine::Postgres => statements.extend([
            "TRUNCATE audit_tiles",
            "INSERT INTO audit_tiles SELECT * FROM audit_tiles ON CONFLICT (instance_id, level, tile) \
             DO UPDATE SET hashes = EXCLUDED.root",
            "SET session_replication_role = replica; DELETE FROM audit_tiles",
        ]),
    }
    let db = Database::connect(home.url.expose()).await.unwrap();
    for statement in statements {
        let refused = db.execute_unprepared(statement).await.expect_err(statement).to_string();
        assert!(refused.contains("immutable"), "{statement}: {refused}");
    }
    assert_whole(&store, "prod").await;
}
