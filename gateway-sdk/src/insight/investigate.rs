//! From a resource to its traffic, how that changed, and what was done to the resource meanwhile.

use std::future::IntoFuture;
use std::pin::Pin;

use activity_proto::audit::v1 as proto;
use activity_proto::common::v1::Interval;

use super::entries::{Entries, Naming};
use super::subject::Subject;
use super::traffic::{Asked, Told, Traffic};
use super::{Unanswered, ends, scope, told};
use crate::error::Error;
use crate::{Bucket, GatewaySdk, Resource, TimeRange};

/// What came out; see [`GatewaySdk::investigate`].
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Investigation {
    /// What was asked about.
    pub resource: proto::Resource,
    /// The range, as it was resolved and answered for.
    pub interval: Interval,
    /// The resource's requests in the range, and in the one before it, which is as long.
    pub traffic: Result<Traffic, Unanswered>,
    /// Entries that name the resource, from the beginning of the range before to the end of the
    /// range: what happened, and what happened before it.
    pub entries: Result<Entries, Unanswered>,
}

/// A question under way, to be awaited; see [`GatewaySdk::investigate`].
#[derive(Clone, Debug)]
#[must_use = "nothing is asked until it is awaited"]
pub struct InvestigationQuery {
    sdk: GatewaySdk,
    range: TimeRange,
    resource: proto::Resource,
    instance: Option<String>,
    bucket: Option<Bucket>,
    limit: u16,
}

impl GatewaySdk {
    /// What a resource's traffic was in a range, how it differs from the range before, and what
    /// administrators did to the resource in both: of both services, as one answer.
    ///
    /// Requests are told by the resource's type: of a `model`, `provider`, `team`, `user`, `api_key` or
    /// `instance`, by its id or name ([`Traffic::by`] says which); other types have no traffic.
    ///
    /// ```no_run
    /// # async fn example(sdk: gateway_sdk::GatewaySdk) -> Result<(), gateway_sdk::Error> {
    /// use gateway_sdk::{Resource, TimeRange};
    ///
    /// let found = sdk.investigate(TimeRange::last_24_hours(), Resource::new("model", "openai/gpt-4o")).await?;
    /// if let Some(change) = found.traffic.as_ref().ok().and_then(|traffic| traffic.change) {
    ///     println!("cost rose by {} nano-dollars", change.cost_nanos.difference());
    /// }
    /// for entry in found.entries.iter().flat_map(|entries| &entries.items) {
    ///     println!("{} {:?}", entry.action, entry.reason);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// As all queries, of either service: one that the caller may not ask refuses the whole, and the
    /// error's [`service`](crate::ServiceError::service) says which it was. So does a range of which
    /// neither has anything left.
    pub fn investigate(&self, range: TimeRange, resource: Resource) -> InvestigationQuery {
        let (sdk, resource) = (self.clone(), resource.into_proto());
        InvestigationQuery { sdk, range, resource, instance: None, bucket: None, limit: 50 }
    }
}

impl InvestigationQuery {
    /// Only of this platform instance.
    pub fn instance(mut self, id: impl Into<String>) -> Self {
        self.instance = Some(id.into());
        self
    }

    /// How wide a point of the series is. Default: such that there are some tens to hundreds.
    pub fn bucket(mut self, bucket: Bucket) -> Self {
        self.bucket = Some(bucket);
        self
    }

    /// How many entries at most, up to 1,000. Default: 50.
    pub fn entries(mut self, limit: u16) -> Self {
        self.limit = limit;
        self
    }

    async fn ask(self) -> Result<Investigation, Error> {
        let resource = &self.resource;
        let mut naming = Naming {
            names: [&resource.id, &resource.name].into_iter().filter(|name| !name.is_empty()).cloned().collect(),
            kind: Some(resource.r#type.clone()),
            instance: self.instance.clone(),
            limit: self.limit,
        };
        let traffic = match Subject::of(resource) {
            None => Err(Unanswered::NoDimension { resource_type: resource.r#type.clone() }),
            Some(subject) => {
                let asked = Asked {
                    usage: &self.sdk.usage,
                    subject: &subject,
                    range: self.range.clone(),
                    scope: scope(self.instance.as_deref()),
                    bucket: self.bucket,
                };
                told(asked.ask().await)?
            }
        };
        let traffic = traffic.map(|Told { traffic, also_known_as }| {
            naming.names.extend(also_known_as);
            traffic
        });
        let interval = match &traffic {
            Ok(traffic) => Some(traffic.after.interval),
            Err(_) => self.sdk.audit.entries_page(&naming.query(self.range), None).await?.interval,
        };
        let (start, end) = ends(interval.as_ref())?;
        let before = start.checked_sub(end.duration_since(start).unwrap_or_default()).unwrap_or(start);
        let entries = told(naming.between(&self.sdk.audit, before, start, end).await)?;
        let interval = Interval { start: Some(start.into()), end: Some(end.into()) };
        Ok(Investigation { resource: self.resource, interval, traffic, entries })
    }
}

impl IntoFuture for InvestigationQuery {
    type Output = Result<Investigation, Error>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.ask())
    }
}
