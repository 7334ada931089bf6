//! Which intents have their outcome. An outcome may come at any time after its intent was put into a run; so a run
//! knows those that had come when it was made, its intents are looked at again when it is merged, and now and then.

use std::collections::{BTreeMap, HashMap, HashSet};

use sea_orm::Value;
use service_core::error::Result;
use uuid::Uuid;

use super::postings::{Places, Posting, Shard, encode, own_part, shard_part};
use super::runs::{Run, damaged};
use super::{Store, placeholders};
use crate::canonical::Line;
use crate::event::{Event, Stage};
use crate::filter::{SETTLED, intents};

/// Operations that are looked up at once.
const LOOKUP: usize = 128;

/// Keeps an intent only while no outcome of its operation is there; 2 and 3 are the numbers of `Stage::Intent` and
/// `Stage::Outcome`.
///
/// An outcome may be in the archive already. Outcomes are looked up one by one, here and below, and LIMIT keeps
/// PostgreSQL from anything else: as a join, and before it has statistics of a table that grows fast, it reads all
/// outcomes of an instance for some of them.
pub(super) const OPEN_INTENT: &str = "AND NOT (e.stage = 2 AND ((SELECT 1 FROM audit_entries o \
     WHERE o.instance_id = e.instance_id AND o.operation_id = e.operation_id AND o.stage = 3 LIMIT 1) IS NOT NULL \
     OR (SELECT 1 FROM audit_archived o \
     WHERE o.instance_id = e.instance_id AND o.operation_id = e.operation_id AND o.stage = 3 LIMIT 1) IS NOT NULL))";

/// An intent, and what the caller calls it.
pub(super) struct Intent {
    pub(super) at: usize,
    pub(super) instance_id: String,
    pub(super) operation_id: String,
}

impl Intent {
    /// An event as an intent, if it is one.
    pub(super) fn of(event: &Event, at: usize) -> Option<Self> {
        let operation = event.operation.as_ref().filter(|operation| operation.stage == Stage::Intent)?;
        Some(Self { at, instance_id: event.instance_id.clone(), operation_id: operation.id.clone() })
    }

    /// An entry's line as an intent, if it is one.
    pub(super) fn of_line(line: &Line<'_>, at: usize) -> Option<Self> {
        let operation = line.operation.as_ref().filter(|operation| operation.stage == Stage::Intent.name())?;
        Some(Self { at, instance_id: line.instance_id.clone().into(), operation_id: operation.id.clone().into() })
    }
}

impl Store {
    /// Those whose outcome is there.
    pub(super) async fn settled_of(&self, intents: &[Intent]) -> Result<Vec<usize>> {
        let mut by_instance: BTreeMap<&str, HashMap<&str, Vec<usize>>> = BTreeMap::new();
        for intent in intents {
            let operations = by_instance.entry(&intent.instance_id).or_default();
            operations.entry(&intent.operation_id).or_default().push(intent.at);
        }
        let mut settled = Vec::new();
        for (instance, operations) in by_instance {
            let names: Vec<&str> = operations.keys().copied().collect();
            for names in names.chunks(LOOKUP) {
                // Few sizes, so that the statements stay prepared; 3 is the number of `Stage::Outcome`.
                let size = names.len().next_power_of_two();
                let rows: Vec<String> = (0..size).map(|row| format!("(${})", row + 2)).collect();
                let sql = format!(
                    "WITH wanted (operation_id) AS (VALUES {}) SELECT w.operation_id FROM wanted w \
                     WHERE (SELECT 1 FROM audit_entries o WHERE o.instance_id = $1 \
                     AND o.operation_id = w.operation_id AND o.stage = 3 LIMIT 1) IS NOT NULL \
                     OR (SELECT 1 FROM audit_archived o WHERE o.instance_id = $1 \
                     AND o.operation_id = w.operation_id AND o.stage = 3 LIMIT 1) IS NOT NULL",
                    rows.join(",")
                );
                let padding = std::iter::repeat_n(names[0], size - names.len());
                let values = [instance].into_iter().chain(names.iter().copied()).chain(padding).map(Value::from);
                let mut found = HashSet::new();
                for row in self.read(sql, values.collect()).await? {
                    found.insert(row.try_get_by_index::<String>(0)?);
                }
                settled.extend(found.iter().filter_map(|name| operations.get(name.as_str())).flatten());
            }
        }
        Ok(settled)
    }

    /// Of these ranks of a run, which are intents, those whose outcome is there.
    pub(super) async fn settled_ranks(&self, run: &Run, ranks: &[u64]) -> Result<Vec<u64>> {
        const SETTLED_ONLY: &str = "AND e.stage = 2 AND ((SELECT 1 FROM audit_entries o WHERE o.instance_id = \
            e.instance_id AND o.operation_id = e.operation_id AND o.stage = 3 LIMIT 1) IS NOT NULL OR \
            (SELECT 1 FROM audit_archived o WHERE o.instance_id = \
            e.instance_id AND o.operation_id = e.operation_id AND o.stage = 3 LIMIT 1) IS NOT NULL)";
        let mut settled = Vec::new();
        for ranks in ranks.chunks(LOOKUP) {
            let places: Vec<(i64, u64)> = ranks.iter().map(|rank| (run.id, *rank)).collect();
            let keys = self.keys_at(&places).await?;
            let by_id: HashMap<Uuid, u64> = keys.iter().map(|key| key.id).zip(ranks.iter().copied()).collect();
            let size = keys.len().next_power_of_two();
            let padding = keys.last().into_iter().cycle().take(size - keys.len());
            let values = keys.iter().chain(padding).map(|key| Value::from(key.id));
            let sql =
                format!("SELECT e.id FROM audit_entries e WHERE e.id IN ({}) {SETTLED_ONLY}", placeholders(1, size));
            for row in self.read(sql, values.collect()).await? {
                settled.extend(by_id.get(&row.try_get_by_index(0)?));
            }
        }
        Ok(settled)
    }

    /// The places of a term in a run, if it has any.
    pub(super) async fn places_of(&self, run: &Run, term: u64) -> Result<Option<Places>> {
        let mut places = Places::none(run.entries);
        let part = (run.id, shard_part(term, run.entries));
        let parts = self.parts(&[part]).await?;
        let Some(bytes) = parts.get(&part) else { return Ok(None) };
        let shard = Shard::read(bytes).ok_or_else(|| damaged("shards"))?;
        match shard.find(term).ok_or_else(|| damaged("shards"))? {
            None => return Ok(None),
            Some(Posting::Here(posting)) => places.add(posting),
            Some(Posting::Apart) => {
                let part = (run.id, own_part(term));
                places.add(self.parts(&[part]).await?.get(&part).ok_or_else(|| damaged("postings"))?)
            }
        }
        .ok_or_else(|| damaged("postings"))?;
        Ok(Some(places))
    }

    /// The intents of a run that were settled when last looked at, and those that were not.
    async fn intents_of(&self, run: &Run) -> Result<(Places, Places)> {
        let mut settled = Places::none(run.entries);
        let part = (run.id, own_part(SETTLED));
        if let Some(posting) = self.parts(&[part]).await?.get(&part) {
            settled.add(posting).ok_or_else(|| damaged("postings"))?;
        }
        let mut open = self.places_of(run, intents()).await?.unwrap_or_else(|| Places::none(run.entries));
        open.and_not(&settled);
        Ok((settled, open))
    }

    /// The ranks of a run's settled intents as of now, and how many are not.
    pub(super) async fn settled_now(&self, run: &Run) -> Result<(Vec<u32>, u64)> {
        let (settled, open) = self.intents_of(run).await?;
        let open: Vec<u64> = open.iter().collect();
        let late = self.settled_ranks(run, &open).await?;
        let unsettled = (open.len() - late.len()) as u64;
        let mut ranks: Vec<u32> = settled.iter().chain(late).map(|rank| rank as u32).collect();
        ranks.sort_unstable();
        Ok((ranks, unsettled))
    }

    /// Looks again at the intents of the run that was not looked at for the longest time.
    pub(super) async fn settle_again(&self) -> Result<()> {
        let sql = "SELECT run, entries, first_occurred_at, last_occurred_at, unsettled FROM audit_index_runs \
                   WHERE state = 1 AND unsettled > 0 ORDER BY since LIMIT 1";
        let rows = self.read(sql, Vec::new()).await?;
        let Some(row) = rows.first() else { return Ok(()) };
        let run = Run {
            id: row.try_get_by_index(0)?,
            entries: super::unsigned(row.try_get_by_index(1)?)?,
            first_us: row.try_get_by_index(2)?,
            last_us: row.try_get_by_index(3)?,
            unsettled: super::unsigned(row.try_get_by_index(4)?)?,
        };
        let (ranks, unsettled) = self.settled_now(&run).await?;
        let mut posting = Vec::new();
        encode(&ranks, &mut posting);
        self.save_settled(run.id, own_part(SETTLED), posting, unsettled).await
    }
}
