//! Heads at which an export is frozen, kept in the database where they are too many for its resume token.

use sea_orm::ConnectionTrait as _;
use service_core::clock;
use service_core::error::{Error, Result};
use sha2::{Digest as _, Sha256};

use super::{Heads, Store};

/// How long an export can be resumed whose heads are kept here.
const KEPT_US: i64 = 24 * 3_600 * clock::MICROS_PER_SECOND;
/// How many are kept; of more, the newest.
const MAX_KEPT: u32 = 1_000;

impl Store {
    /// Keeps heads under their digest: the same heads are kept once.
    pub async fn freeze(&self, heads: &Heads) -> Result<[u8; 32]> {
        let bytes = serde_json::to_vec(heads).map_err(Error::internal)?;
        let digest: [u8; 32] = Sha256::digest(&bytes).into();
        let statement = self.statement(
            "INSERT INTO audit_export_heads (digest, heads, opened_at) VALUES ($1, $2, $3) \
             ON CONFLICT (digest) DO UPDATE SET opened_at = excluded.opened_at",
            [digest.to_vec().into(), bytes.into(), clock::now_us().into()],
        );
        self.db.writer.execute_raw(statement).await?;
        Ok(digest)
    }

    /// Forgets the heads of exports that were opened too long ago, or before too many others.
    pub(super) async fn forget_frozen(&self) -> Result<()> {
        self.forget_frozen_but(clock::now_us() - KEPT_US, MAX_KEPT).await
    }

    async fn forget_frozen_but(&self, since_us: i64, newest: u32) -> Result<()> {
        let statements = [
            self.statement("DELETE FROM audit_export_heads WHERE opened_at < $1", [since_us.into()]),
            self.statement(
                "DELETE FROM audit_export_heads WHERE opened_at <= \
                 (SELECT opened_at FROM audit_export_heads ORDER BY opened_at DESC LIMIT 1 OFFSET $1)",
                [i64::from(newest).into()],
            ),
        ];
        for statement in statements {
            self.db.writer.execute_raw(statement).await?;
        }
        Ok(())
    }

    /// The heads with a digest, if they are still kept.
    pub async fn frozen(&self, digest: &[u8]) -> Result<Option<Heads>> {
        let rows =
            self.read("SELECT heads FROM audit_export_heads WHERE digest = $1", vec![digest.to_vec().into()]).await?;
        let Some(row) = rows.first() else {
            return Ok(None);
        };
        let bytes: Vec<u8> = row.try_get_by_index(0)?;
        serde_json::from_slice(&bytes).map(Some).map_err(Error::internal)
    }
}

#[cfg(test)]
mod tests {
    use service_core::config::{DatabaseConfig, DatabaseUrl};

    use super::*;

    #[tokio::test]
    async fn frozen_heads_are_forgotten_by_age_and_beyond_a_number() {
        let folder = tempfile::tempdir().unwrap();
        let url = DatabaseUrl::sqlite(folder.path().join("audit.db"));
        let store = Store::open(&url, &DatabaseConfig::default()).await.unwrap();
        let mut digests = Vec::new();
        for next in 1..=4 {
            digests.push(store.freeze(&Heads::from([("prod".to_owned(), next)])).await.unwrap());
        }
        let kept = async || {
            let mut kept = Vec::new();
            for digest in &digests {
                kept.push(store.frozen(digest).await.unwrap().is_some());
            }
            kept
        };
        store.forget_frozen().await.unwrap();
        assert_eq!(kept().await, [true; 4]);
        store.forget_frozen_but(0, 2).await.unwrap();
        assert_eq!(kept().await, [false, false, true, true]);
        store.forget_frozen_but(clock::now_us() + 1, 2).await.unwrap();
        assert_eq!(kept().await, [false; 4]);
    }
}
