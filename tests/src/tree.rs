//! The tree over a log, from the database, beside RFC 6962's definition over the entries; and how its owner would rewrite
//! it.

use audit_service::canonical;
use audit_service::merkle::{Hash, Tile, TileId, empty_root, node_hash};
use audit_service::store::{LogWalk, Store, TreeHead};
use sea_orm::{ConnectionTrait as _, DbBackend, Statement};
use service_core::auth::Access;
use service_core::config::{DatabaseConfig, DatabaseUrl};

use crate::Engine;

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

/// Compares head and tiles of leaves of a log with its entries; how many these are. On SQLite no service may run.
pub async fn assert_whole(url: &str, instance: &str) -> u64 {
    let store = Store::open(&DatabaseUrl::new(url).unwrap(), &DatabaseConfig::default()).await.unwrap();
    let everything = Access::unrestricted();
    let mut walk = LogWalk::new(&everything, instance, 0, u64::MAX);
    let mut leaves = Vec::new();
    loop {
        let rows = walk.next(&store).await.unwrap();
        if rows.is_empty() {
            break;
        }
        leaves.extend(rows.iter().map(|row| canonical::leaf_hash(&row.canonical)));
    }
    let size = leaves.len() as u64;
    let head = store.tree_head(&everything, instance).await.unwrap();
    assert_eq!(head, Some(TreeHead { size, root: mth(&leaves) }), "{instance}");
    for (index, hashes) in (0..).zip(leaves.chunks(256)) {
        let id = TileId { level: 0, index };
        let tile = store.tile(&everything, instance, id, hashes.len() as u64).await.unwrap();
        assert_eq!(tile, Some(Tile::new(hashes.to_vec()).unwrap()), "{instance}, {id:?}");
    }
    store.close().await;
    size
}

/// Runs statements as the database's owner, beside a service that may be running.
pub async fn tamper(url: &str, statements: &[&str]) {
    let db = sea_orm::Database::connect(url).await.unwrap();
    for statement in statements {
        db.execute_unprepared(statement).await.unwrap_or_else(|why| panic!("{statement}: {why}"));
    }
    db.close().await.unwrap();
}

/// How the owner switches off what refuses to change entries, tiles and checkpoints.
pub fn guards_off(engine: Engine) -> &'static [&'static str] {
    match engine {
        Engine::Sqlite => &[
            "DROP TRIGGER audit_entries_no_update",
            "DROP TRIGGER audit_entries_no_delete",
            "DROP TRIGGER audit_tiles_no_update",
            "DROP TRIGGER audit_tiles_no_delete",
            "DROP TRIGGER audit_checkpoints_no_update",
            "DROP TRIGGER audit_checkpoints_no_delete",
        ],
        Engine::Postgres => &[
            "ALTER TABLE audit_entries DISABLE TRIGGER ALL",
            "ALTER TABLE audit_tiles DISABLE TRIGGER ALL",
            "ALTER TABLE audit_checkpoints DISABLE TRIGGER ALL",
        ],
    }
}

/// Does to a log what its database's owner can: changes an entry and its hash, and takes the trees away, which the next
/// program builds anew over what is there.
pub async fn rewrite(url: &str, instance: &str, sequence: i64) {
    let db = sea_orm::Database::connect(url).await.unwrap();
    let sqlite = db.get_database_backend() == DbBackend::Sqlite;
    let off: &[&str] = match sqlite {
        true => &["DROP TRIGGER IF EXISTS audit_entries_no_update"],
        false => &["ALTER TABLE audit_entries DISABLE TRIGGER ALL"],
    };
    let take: &[&str] = &[
        "DROP TABLE audit_tiles",
        "ALTER TABLE audit_log_heads DROP COLUMN tree_size",
        "ALTER TABLE audit_log_heads DROP COLUMN frontier",
        "DELETE FROM seaql_migrations WHERE version = 'audit_0003_tree'",
    ];
    for statement in off.iter().chain(take) {
        db.execute_unprepared(statement).await.expect(statement);
    }
    if !sqlite {
        db.execute_unprepared("DROP FUNCTION audit_tiles_refuse").await.unwrap();
    }
    let values = [instance.into(), sequence.into()];
    let select = "SELECT canonical FROM audit_entries WHERE instance_id = $1 AND sequence = $2";
    let statement = Statement::from_sql_and_values(db.get_database_backend(), select, values.clone());
    let canonical: String = db.query_one_raw(statement).await.unwrap().unwrap().try_get_by_index(0).unwrap();
    let changed = canonical.replace("\"outcome\":\"OUTCOME_SUCCESS\"", "\"outcome\":\"OUTCOME_FAILURE\"");
    assert_ne!(changed, canonical);
    let hash = canonical::leaf_hash(&changed).to_vec();
    let update = "UPDATE audit_entries SET canonical = $3, leaf_hash = $4 WHERE instance_id = $1 AND sequence = $2";
    let [instance, sequence] = values;
    let values = [instance, sequence, changed.into(), hash.into()];
    db.execute_raw(Statement::from_sql_and_values(db.get_database_backend(), update, values)).await.unwrap();
    db.close().await.unwrap();
}
