//! Legal holds: what retention leaves in the database, for as long as they stand.

use std::ops;

use sea_orm::{ConnectionTrait, QueryResult};
use service_core::auth::Access;
use service_core::error::{Error, Result};
use uuid::Uuid;

use super::{Range, Store, unsigned};
use crate::event::Entry;
use crate::filter::Filter;

/// Holds that may stand in one log: each is asked of every entry that is due.
pub const MAX_HOLDS: usize = 200;

/// A hold to be placed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewHold {
    /// Its id.
    pub hold_id: Uuid,
    /// Of which log.
    pub instance_id: String,
    /// Of these sequences.
    pub sequences: ops::Range<u64>,
    /// That occurred then.
    pub occurred_us: Range,
    /// And match this.
    pub filter: Filter,
    /// The matter.
    pub reason: String,
    /// By whom; empty where nobody is authenticated.
    pub placed_by: String,
}

impl NewHold {
    pub(super) fn filter_text(&self) -> Result<String> {
        serde_json::to_string(&self.filter).map_err(Error::internal)
    }

    /// Whether it holds an entry of its log.
    pub fn holds(&self, entry: &Entry) -> bool {
        self.sequences.contains(&entry.sequence)
            && self.occurred_us.contains(entry.event.occurred_at_us)
            && self.filter.matches(&entry.event)
    }
}

/// A hold to be released.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Release {
    /// Which.
    pub hold_id: Uuid,
    /// Of which log.
    pub instance_id: String,
    /// Why.
    pub reason: String,
    /// By whom; empty where nobody is authenticated.
    pub released_by: String,
}

/// A hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hold {
    /// As it was placed.
    pub placed: NewHold,
    /// When.
    pub placed_at_us: i64,
    /// The entry that tells of it.
    pub placed_sequence: u64,
    /// When it was released, the entry that tells of that, and the release.
    pub released: Option<(i64, u64, Release)>,
}

const COLUMNS: &str = "hold_id, instance_id, first_sequence, end_sequence, start_us, end_us, filter, reason, placed_at, \
     placed_by, placed_sequence, released_at, released_by, released_sequence, release_reason";

impl Hold {
    fn from_result(row: &QueryResult) -> Result<Self> {
        let (hold_id, instance_id): (Uuid, String) = (row.try_get_by_index(0)?, row.try_get_by_index(1)?);
        let filter: String = row.try_get_by_index(6)?;
        let released_at: Option<i64> = row.try_get_by_index(11)?;
        let released = match released_at {
            None => None,
            Some(at) => {
                let release = Release {
                    hold_id,
                    instance_id: instance_id.clone(),
                    reason: row.try_get_by_index(14)?,
                    released_by: row.try_get_by_index(12)?,
                };
                Some((at, unsigned(row.try_get_by_index(13)?)?, release))
            }
        };
        Ok(Self {
            placed: NewHold {
                hold_id,
                instance_id,
                // No end is the greatest number that a database has.
                sequences: unsigned(row.try_get_by_index(2)?)?..unsigned(row.try_get_by_index(3)?)?,
                occurred_us: Range { start_us: row.try_get_by_index(4)?, end_us: row.try_get_by_index(5)? },
                filter: serde_json::from_str(&filter).map_err(Error::internal)?,
                reason: row.try_get_by_index(7)?,
                placed_by: row.try_get_by_index(9)?,
            },
            placed_at_us: row.try_get_by_index(8)?,
            placed_sequence: unsigned(row.try_get_by_index(10)?)?,
            released,
        })
    }
}

impl Store {
    /// A page of a log's holds in the order of their ids, which is that in which they were placed.
    pub async fn holds(
        &self,
        access: &Access,
        instance_id: &str,
        released_too: bool,
        after: Option<Uuid>,
        limit: usize,
    ) -> Result<Vec<Hold>> {
        if !access.has_instance(instance_id) {
            return Ok(Vec::new());
        }
        let only = if released_too { "" } else { "AND released_at IS NULL" };
        let sql = format!(
            "SELECT {COLUMNS} FROM audit_legal_holds WHERE instance_id = $1 AND hold_id > $2 {only} \
             ORDER BY hold_id LIMIT $3"
        );
        let after = after.unwrap_or(Uuid::nil());
        let values = vec![instance_id.into(), after.into(), i64::try_from(limit).unwrap_or(i64::MAX).into()];
        self.read(sql, values).await?.iter().map(Hold::from_result).collect()
    }

    /// The hold with an id; whether the caller may know of it is to be asked of what it says.
    pub async fn hold(&self, hold_id: Uuid) -> Result<Option<Hold>> {
        let sql = format!("SELECT {COLUMNS} FROM audit_legal_holds WHERE hold_id = $1");
        let rows = self.read(sql, vec![hold_id.into()]).await?;
        rows.first().map(Hold::from_result).transpose()
    }

    /// The holds that stand in a log, as whoever removes from it sees them.
    pub(super) async fn standing(&self, db: &impl ConnectionTrait, instance_id: &str) -> Result<Vec<Hold>> {
        let sql = format!("SELECT {COLUMNS} FROM audit_legal_holds WHERE instance_id = $1 AND released_at IS NULL");
        let rows = db.query_all_raw(self.statement(sql, [instance_id.into()])).await?;
        rows.iter().map(Hold::from_result).collect()
    }
}
