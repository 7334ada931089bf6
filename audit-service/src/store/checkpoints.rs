//! Checkpoints in the database, signed while the heads of their logs are locked: replicas take turns.

use std::collections::BTreeMap;

use sea_orm::{ConnectionTrait as _, DatabaseTransaction, Value};
use service_core::auth::Access;
use service_core::database::{Engine, begin};
use service_core::error::Result;

use super::tree::{Head, TreeHead};
use super::{Store, placeholders, signed, unsigned};
use crate::checkpoint::VerifierKey;
use crate::merkle::{Plan, TileSet};

/// Logs that are looked up at once.
const LOOKUP: u32 = 500;

/// Between two checkpoints of a log that are kept for good, in seconds.
const KEPT_S: i64 = 60;

/// A log whose head is locked.
#[derive(Debug, Clone)]
pub(crate) struct Signable {
    /// What there is to sign.
    pub(crate) head: TreeHead,
    /// The note of its newest checkpoint, as it is in the database.
    pub(crate) newest: Option<String>,
    /// When that was signed last.
    pub(crate) cosigned_at_s: u64,
}

/// A checkpoint that is on disk outside the database.
#[derive(Debug)]
pub(crate) struct NewCheckpoint {
    /// Whose.
    pub(crate) instance_id: String,
    /// Of what.
    pub(crate) head: TreeHead,
    /// When it was signed.
    pub(crate) at_s: u64,
    /// The signed note.
    pub(crate) note: String,
}

/// Logs whose heads are locked. Dropped, it changes nothing.
#[derive(Debug)]
pub(crate) struct Signing {
    store: Store,
    transaction: DatabaseTransaction,
    logs: BTreeMap<String, Signable>,
}

/// Of a log, the first and the last size that a key has signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedBy {
    /// The key, as those who check have it.
    pub key: String,
    /// The smallest size.
    pub first_size: u64,
    /// The largest one.
    pub last_size: u64,
}

impl Store {
    /// The keys that have signed any log.
    pub(crate) async fn signing_keys(&self) -> Result<Vec<VerifierKey>> {
        let sql = format!("SELECT DISTINCT verifier_key FROM audit_signing_keys LIMIT {LOOKUP}");
        let rows = self.read(sql, Vec::new()).await?;
        let keys = rows.iter().map(|row| Ok(row.try_get_by_index::<String>(0)?.parse().ok()));
        // One that is none was not written by us.
        Ok(keys.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
    }

    /// Of each log that a key has signed, the first size.
    pub(crate) async fn first_signed(&self, key: &str) -> Result<BTreeMap<String, u64>> {
        let sql = "SELECT instance_id, first_size FROM audit_signing_keys WHERE verifier_key = $1";
        let rows = self.read(sql, vec![key.into()]).await?;
        rows.iter().map(|row| Ok((row.try_get_by_index(0)?, unsigned(row.try_get_by_index(1)?)?))).collect()
    }

    /// The notes of the newest checkpoints, a page at a time, in the order of the logs' names behind one.
    pub(crate) async fn newest_checkpoints(&self, after: &str) -> Result<Vec<(String, String)>> {
        let sql = format!(
            "SELECT instance_id, note FROM audit_newest_checkpoints WHERE instance_id > $1 \
             ORDER BY instance_id LIMIT {LOOKUP}"
        );
        let rows = self.read(sql, vec![after.into()]).await?;
        rows.iter().map(|row| Ok((row.try_get_by_index(0)?, row.try_get_by_index(1)?))).collect()
    }

    /// Locks the heads of these logs, in the order of their names as every writer does. A log whose head is damaged is
    /// reported and left out; one that has none has no entries.
    pub(crate) async fn begin_signing(&self, instances: &[String]) -> Result<Signing> {
        let transaction = begin(&self.db.writer).await?;
        let list = placeholders(1, instances.len());
        let lock = match self.db.engine {
            Engine::Sqlite => "",
            Engine::Postgres => " FOR UPDATE",
        };
        let values = || instances.iter().map(|instance| Value::from(instance.as_str()));
        let heads = format!(
            "SELECT instance_id, next_sequence, tree_size, frontier FROM audit_log_heads \
             WHERE instance_id IN ({list}) ORDER BY instance_id{lock}"
        );
        let nothing = TreeHead { size: 0, root: crate::merkle::empty_root() };
        let nothing = Signable { head: nothing, newest: None, cosigned_at_s: 0 };
        let mut logs: BTreeMap<String, Signable> =
            instances.iter().map(|instance| (instance.clone(), nothing.clone())).collect();
        for row in transaction.query_all_raw(self.statement(heads, values())).await? {
            let instance: String = row.try_get_by_index(0)?;
            let frontier: Vec<u8> = row.try_get_by_index(3)?;
            let head = Head::new(row.try_get_by_index(1)?, row.try_get_by_index(2)?, frontier);
            match head.and_then(|head| head.tree_head(&instance)) {
                Ok(head) => {
                    logs.insert(instance, Signable { head, newest: None, cosigned_at_s: 0 });
                }
                Err(error) => {
                    logs.remove(&instance);
                    let cause = std::error::Error::source(&error);
                    tracing::error!(instance_id = instance, %error, ?cause, "a log is not signed, the others are");
                }
            }
        }
        let newest = format!(
            "SELECT instance_id, note, cosigned_at FROM audit_newest_checkpoints WHERE instance_id IN ({list})"
        );
        for row in transaction.query_all_raw(self.statement(newest, values())).await? {
            if let Some(log) = logs.get_mut(&row.try_get_by_index::<String>(0)?) {
                log.newest = Some(row.try_get_by_index(1)?);
                // A time that nobody has told is long ago: it is signed again.
                log.cosigned_at_s = row.try_get_by_index::<i64>(2)?.max(0).unsigned_abs();
            }
        }
        Ok(Signing { store: self.clone(), transaction, logs })
    }

    /// The note of a log's newest checkpoint, or of the oldest one that is kept over at least so many entries.
    pub(crate) async fn checkpoint(
        &self,
        access: &Access,
        instance_id: &str,
        least: Option<u64>,
    ) -> Result<Option<String>> {
        if !access.has_instance(instance_id) {
            return Ok(None);
        }
        let (sql, values) = match least {
            None => {
                ("SELECT note FROM audit_newest_checkpoints WHERE instance_id = $1", vec![Value::from(instance_id)])
            }
            Some(least) => (
                "SELECT note FROM (SELECT size, 0 AS newest, note FROM audit_checkpoints \
                 WHERE instance_id = $1 AND size >= $2 \
                 UNION ALL SELECT size, 1 AS newest, note FROM audit_newest_checkpoints \
                 WHERE instance_id = $1 AND size >= $2) found ORDER BY size, newest LIMIT 1",
                vec![instance_id.into(), signed(least).into()],
            ),
        };
        let rows = self.read(sql, values).await?;
        rows.first().map(|row| Ok(row.try_get_by_index(0)?)).transpose()
    }

    /// The keys that have signed a log, the first one first.
    pub(crate) async fn signed_by(&self, access: &Access, instance_id: &str) -> Result<Vec<SignedBy>> {
        if !access.has_instance(instance_id) {
            return Ok(Vec::new());
        }
        let sql = "SELECT verifier_key, first_size, last_size FROM audit_signing_keys WHERE instance_id = $1 \
                   ORDER BY first_size, verifier_key";
        let rows = self.read(sql, vec![instance_id.into()]).await?;
        rows.iter()
            .map(|row| {
                Ok(SignedBy {
                    key: row.try_get_by_index(0)?,
                    first_size: unsigned(row.try_get_by_index(1)?)?,
                    last_size: unsigned(row.try_get_by_index(2)?)?,
                })
            })
            .collect()
    }
}

impl Signing {
    /// The logs, each once.
    pub(crate) fn take(&mut self) -> BTreeMap<String, Signable> {
        std::mem::take(&mut self.logs)
    }

    /// The tiles that a proof needs, by the connection that has the lock.
    pub(crate) async fn tiles(&self, instance_id: &str, plan: &Plan) -> Result<TileSet> {
        self.store.tiles_by(&self.transaction, instance_id, plan).await
    }

    /// Lets go of the heads.
    pub(crate) async fn give_up(self) -> Result<()> {
        Ok(self.transaction.rollback().await?)
    }

    /// Stores the checkpoints, and which keys have signed them. The newest of a log is kept, with its newest cosignature,
    /// and for good one a minute: between the others a proof of consistency is as good, and a log that never rests would
    /// have two a second. One that was signed by a clock that was ahead is as if it were of long ago.
    pub(crate) async fn finish(self, made: &[NewCheckpoint], keys: &[VerifierKey]) -> Result<()> {
        for NewCheckpoint { instance_id, head, at_s, note } in made {
            let (size, at) = (signed(head.size), signed(*at_s));
            self.execute(
                "INSERT INTO audit_checkpoints (instance_id, size, root, signed_at, note) SELECT $1, $2, $3, $4, $5 \
                 WHERE COALESCE((SELECT signed_at FROM audit_checkpoints WHERE instance_id = $1 \
                 ORDER BY size DESC LIMIT 1), 0) NOT BETWEEN $4 - $6 + 1 AND $4 + $6 \
                 AND NOT EXISTS (SELECT 1 FROM audit_checkpoints WHERE instance_id = $1 AND size = $2)",
                vec![
                    instance_id.as_str().into(),
                    size.into(),
                    head.root.to_vec().into(),
                    at.into(),
                    note.as_str().into(),
                    KEPT_S.into(),
                ],
            )
            .await?;
            self.execute(
                "INSERT INTO audit_newest_checkpoints (instance_id, size, cosigned_at, note) VALUES ($1, $2, $3, $4) \
                 ON CONFLICT (instance_id) DO UPDATE SET size = excluded.size, cosigned_at = excluded.cosigned_at, \
                 note = excluded.note",
                vec![instance_id.as_str().into(), size.into(), at.into(), note.as_str().into()],
            )
            .await?;
            for key in keys {
                self.execute(
                    "INSERT INTO audit_signing_keys (instance_id, verifier_key, first_size, last_size) \
                     VALUES ($1, $2, $3, $3) \
                     ON CONFLICT (instance_id, verifier_key) DO UPDATE SET last_size = excluded.last_size",
                    vec![instance_id.as_str().into(), key.to_string().into(), size.into()],
                )
                .await?;
            }
        }
        Ok(self.transaction.commit().await?)
    }

    async fn execute(&self, sql: &str, values: Vec<Value>) -> Result<()> {
        self.transaction.execute_raw(self.store.statement(sql, values)).await?;
        Ok(())
    }
}
