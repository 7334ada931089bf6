//! The tree over a log, from the database, beside RFC 6962's definition over the entries.

use audit_service::canonical;
use audit_service::merkle::{Hash, Tile, TileId, empty_root, node_hash};
use audit_service::store::{LogWalk, Store, TreeHead};
use service_core::auth::Access;
use service_core::config::{DatabaseConfig, DatabaseUrl};

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
