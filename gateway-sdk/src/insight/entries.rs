//! Entries that name resources, in a span of time.

use std::collections::BTreeSet;
use std::time::SystemTime;

use activity_proto::common::v1::Interval;

use super::{Failed, Unanswered, told};
use crate::{Audit, AuditEntry, AuditFilter, AuditQuery, TimeRange};

/// Entries of a span of time.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Entries {
    /// The entries, newest first.
    pub items: Vec<AuditEntry>,
    /// Whether there are older ones that the limit left out.
    pub more: bool,
    /// Of which time these are.
    pub interval: Interval,
    /// Why that begins later than the traffic before: what retention has removed.
    pub removed: Option<Unanswered>,
}

/// Which ones.
#[derive(Clone, Debug, Default)]
pub(super) struct Naming {
    /// Ids and names.
    pub(super) names: BTreeSet<String>,
    pub(super) kind: Option<String>,
    pub(super) instance: Option<String>,
    pub(super) limit: u16,
}

impl Naming {
    pub(super) fn query(&self, range: TimeRange) -> AuditQuery {
        let filter = self.names.iter().fold(AuditFilter::new(), |filter, name| filter.resource(name));
        let filter = self.kind.iter().fold(filter, |filter, kind| filter.resource_type(kind));
        let filter = self.instance.iter().fold(filter, |filter, instance| filter.instance(instance));
        AuditQuery::new().range(range).filter(filter).page_size(self.limit)
    }

    /// From the earliest on, or where retention has removed that, from `later` on.
    pub(super) async fn between(
        &self,
        audit: &Audit,
        earliest: SystemTime,
        later: SystemTime,
        end: SystemTime,
    ) -> Result<Entries, Failed> {
        match told(self.page(audit, earliest, end).await)? {
            Ok(entries) => Ok(entries),
            Err(removed) => Ok(Entries { removed: Some(removed), ..self.page(audit, later, end).await? }),
        }
    }

    async fn page(&self, audit: &Audit, start: SystemTime, end: SystemTime) -> Result<Entries, Failed> {
        let page = audit.entries_page(&self.query(TimeRange::between(start, end)), None).await?;
        let interval = page.interval.unwrap_or(Interval { start: Some(start.into()), end: Some(end.into()) });
        Ok(Entries { items: page.items, more: page.next.is_some(), interval, removed: None })
    }
}
