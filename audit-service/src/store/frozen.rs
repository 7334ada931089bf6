//! Heads at which an export is frozen, kept in the database where they are too many for its resume token.

use sea_orm::ConnectionTrait as _;
use service_core::clock;
use service_core::error::{Error, Result};
use sha2::{Digest as _, Sha256};

use super::{Heads, Store};

/// How long an export can be resumed whose heads are kept here.
const KEPT_US: i64 = 30 * 24 * 3_600 * clock::MICROS_PER_SECOND;

impl Store {
    /// Keeps heads under their digest: the same heads are kept once. Forgets those that are a month old.
    pub async fn freeze(&self, heads: &Heads) -> Result<[u8; 32]> {
        let bytes = serde_json::to_vec(heads).map_err(Error::internal)?;
        let digest: [u8; 32] = Sha256::digest(&bytes).into();
        let now_us = clock::now_us();
        let statements = [
            self.statement("DELETE FROM audit_export_heads WHERE opened_at < $1", [(now_us - KEPT_US).into()]),
            self.statement(
                "INSERT INTO audit_export_heads (digest, heads, opened_at) VALUES ($1, $2, $3) \
                 ON CONFLICT (digest) DO UPDATE SET opened_at = excluded.opened_at",
                [digest.to_vec().into(), bytes.into(), now_us.into()],
            ),
        ];
        for statement in statements {
            self.db.writer.execute_raw(statement).await?;
        }
        Ok(digest)
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
