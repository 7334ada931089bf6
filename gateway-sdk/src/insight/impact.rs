//! From an entry to the traffic before and after it, of everything that it touched.

use std::future::IntoFuture;
use std::pin::Pin;
use std::time::{Duration, SystemTime};

use activity_proto::audit::v1::Resource;
use futures::stream::{self, StreamExt, TryStreamExt};

use super::entries::{Entries, Naming};
use super::subject::Subject;
use super::traffic::{Asked, Traffic};
use super::{Unanswered, scope, told};
use crate::error::Error;
use crate::{AuditEntry, Bucket, GatewaySdk, TimeRange};

/// Of so many resources the traffic is asked for; an entry may touch a hundred.
const MAX_TOUCHED: usize = 10;
/// At once; each takes two calls at a time.
const AT_ONCE: usize = 2;
const DAY: Duration = Duration::from_secs(24 * 3600);

/// What came out; see [`GatewaySdk::impact`].
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Impact {
    /// The entry.
    pub entry: AuditEntry,
    /// How long before and after it is compared.
    pub window: Duration,
    /// Its resources, in its order.
    pub touched: Vec<Touched>,
    /// What else was done to any of them in that time: other causes, and what was done about it.
    pub others: Result<Entries, Unanswered>,
}

/// A resource that an entry touched.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Touched {
    /// Which.
    pub resource: Resource,
    /// Its requests in the entry's instance, before the entry and from it on.
    pub traffic: Result<Traffic, Unanswered>,
}

/// A question under way, to be awaited; see [`GatewaySdk::impact`].
#[derive(Clone, Debug)]
#[must_use = "nothing is asked until it is awaited"]
pub struct ImpactQuery {
    sdk: GatewaySdk,
    entry: AuditEntry,
    window: Duration,
    bucket: Option<Bucket>,
    limit: u16,
}

impl GatewaySdk {
    /// What the traffic of everything that an entry touched was before it, and from it on: as
    /// long after as before, a day or as long as the entry is ago. By this machine's clock.
    ///
    /// That it changed does not show that the entry changed it: [`Impact::others`] is what else
    /// was done. Of an entry of two stages ask with the outcome, which is when it was done.
    ///
    /// ```no_run
    /// # async fn example(sdk: gateway_sdk::GatewaySdk) -> Result<(), gateway_sdk::Error> {
    /// let entry = sdk.audit().entry_at("prod", 17).await?;
    /// for touched in sdk.impact(&entry).await?.touched {
    ///     match touched.traffic {
    ///         Ok(traffic) => println!("{}: {:?}", touched.resource.id, traffic.change),
    ///         Err(why) => println!("{}: {why}", touched.resource.id),
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// As all queries, of either service: one that the caller may not ask refuses the whole, and the
    /// error's [`service`](crate::ServiceError::service) says which it was. [`Error::Config`] for an
    /// entry without its time.
    pub fn impact(&self, entry: &AuditEntry) -> ImpactQuery {
        ImpactQuery { sdk: self.clone(), entry: entry.clone(), window: DAY, bucket: None, limit: 50 }
    }
}

impl ImpactQuery {
    /// How long before and after the entry. Default: a day.
    pub fn window(mut self, window: Duration) -> Self {
        self.window = window;
        self
    }

    /// How wide a point of the series is. Default: such that there are some tens to hundreds.
    pub fn bucket(mut self, bucket: Bucket) -> Self {
        self.bucket = Some(bucket);
        self
    }

    /// How many other entries at most, up to 999. Default: 50.
    pub fn entries(mut self, limit: u16) -> Self {
        self.limit = limit;
        self
    }

    async fn ask(self) -> Result<Impact, Error> {
        let at = self.entry.occurred_at.and_then(|at| SystemTime::try_from(at).ok());
        let Some(at) = at else {
            return Err(Error::Config { setting: "entry", message: "it has no occurred_at".into() });
        };
        let window = self.window.min(SystemTime::now().duration_since(at).unwrap_or_default());
        let (touched, others) = futures::try_join!(self.touched(at, at + window), self.others(at, window))?;
        Ok(Impact { entry: self.entry, window, touched, others })
    }

    async fn touched(&self, at: SystemTime, end: SystemTime) -> Result<Vec<Touched>, Error> {
        let resources = self.entry.resources.iter().enumerate();
        let asked: Vec<_> = resources
            .map(|(number, resource)| async move {
                let traffic = match Subject::of(resource) {
                    None => Err(Unanswered::NoDimension { resource_type: resource.r#type.clone() }),
                    Some(_) if number >= MAX_TOUCHED => Err(Unanswered::TooMany { asked: MAX_TOUCHED }),
                    Some(subject) => self.traffic(&subject, TimeRange::between(at, end)).await?,
                };
                Ok(Touched { resource: resource.clone(), traffic })
            })
            .collect();
        stream::iter(asked).buffered(AT_ONCE).try_collect().await
    }

    async fn traffic(&self, subject: &Subject<'_>, range: TimeRange) -> Result<Result<Traffic, Unanswered>, Error> {
        let (usage, bucket) = (&self.sdk.usage, self.bucket);
        let scope = scope(Some(self.entry.instance_id.as_str()));
        let told = told(Asked { usage, subject, range, scope, bucket }.ask().await)?;
        Ok(told.map(|told| told.traffic))
    }

    async fn others(&self, at: SystemTime, window: Duration) -> Result<Result<Entries, Unanswered>, Error> {
        let names = self.entry.resources.iter().flat_map(|resource| [&resource.id, &resource.name]);
        let naming = Naming {
            names: names.filter(|name| !name.is_empty()).cloned().collect(),
            kind: None,
            instance: Some(self.entry.instance_id.clone()).filter(|id| !id.is_empty()),
            // The entry itself is among them.
            limit: self.limit.saturating_add(1),
        };
        let before = at.checked_sub(window).unwrap_or(at);
        let mut entries = told(naming.between(&self.sdk.audit, before, at, at + window).await)?;
        if let Ok(entries) = &mut entries {
            entries.items.retain(|entry| entry.id != self.entry.id);
            entries.more |= entries.items.len() > usize::from(self.limit);
            entries.items.truncate(usize::from(self.limit));
        }
        Ok(entries)
    }
}

impl IntoFuture for ImpactQuery {
    type Output = Result<Impact, Error>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.ask())
    }
}
