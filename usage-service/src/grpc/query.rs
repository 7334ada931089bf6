//! `UsageQueryService`: totals, groups, series, requests, facets.

use std::sync::Arc;

use activity_proto::common::v1::TimeRange;
use activity_proto::usage::v1 as proto;
use prost::Message;
use proto::usage_query_service_server::UsageQueryService;
use service_core::auth::{Access, Caller};
use service_core::clock;
use service_core::coverage;
use service_core::error::{Error, Reason, Result};
use service_core::page::{self, MAX_PAGE_BYTES};
use service_core::time_range::{self, Bucket, Resolved, WhenMissing};
use tonic::{Request, Response, Status};
use uuid::Uuid;

use super::{Shared, export};
use crate::answer::Ranked;
use crate::convert;
use crate::model::{Dimension, Event, Filter, Metric, Position, Scope, StoredRequest};
use crate::store::{Kept, Order, Window};

/// Points in one answer.
const MAX_POINTS: usize = 10_000;

/// Kind of the tokens of `ListRequests`.
const PAGE_KIND: &str = "usage.list_requests";
/// Kind of the tokens of `GetCoverage`.
const COVERAGE_KIND: &str = "usage.get_coverage";

#[derive(Debug)]
pub(super) struct Query(pub(super) Shared);

/// A series as it was asked for.
pub(super) struct SeriesQuery {
    pub(super) range: Resolved,
    pub(super) seen: Seen,
    pub(super) bucket: Bucket,
    pub(super) keys: Vec<Dimension>,
    pub(super) order_by: Metric,
    pub(super) limit: usize,
}

pub(super) fn resolve(range: Option<&TimeRange>, when_missing: WhenMissing) -> Result<Resolved> {
    time_range::resolve(range, clock::now_us(), when_missing)
}

pub(super) fn scope(range: &Resolved, seen: &Seen) -> Scope {
    let Seen { access, filter, caller } = seen.clone();
    Scope { start_us: range.start_us, end_us: range.end_us, access, filter, watermark: None, caller }
}

/// What a caller may see, what of it is asked for, and who it is.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    pub(super) access: Access,
    pub(super) filter: Filter,
    caller: Arc<str>,
}

impl Seen {
    /// Refuses by name what is not the caller's: an instance, a user.
    pub(super) fn new(caller: &Caller, filter: Option<&proto::UsageFilter>) -> Result<Self> {
        let filter = convert::filter(filter)?;
        caller.may_see("filter.instance_ids", filter.instance_ids.iter().map(String::as_str))?;
        caller.may_see_users("filter.user_ids", filter.user_ids.iter().map(String::as_str))?;
        Ok(Self { access: caller.access().clone(), filter, caller: caller.key().into() })
    }

    /// Labels are not summed up.
    fn needs_requests(&self) -> bool {
        !self.filter.labels.is_empty()
    }
}

/// What the personal page breaks its one user's usage down by.
const OWN_DIMENSIONS: [Dimension; 2] = [Dimension::Model, Dimension::ApiKey];

/// The dimensions of `group_by`; a caller who sees its own usage only has those of the
/// personal page.
pub(super) fn group_by(caller: &Caller, numbers: &[i32], required: bool) -> Result<Vec<Dimension>> {
    let keys = convert::dimensions(numbers, required)?;
    let foreign = |key: &&Dimension| caller.access().user().is_some() && !OWN_DIMENSIONS.contains(key);
    match keys.iter().find(foreign) {
        None => Ok(keys),
        Some(key) => {
            let allowed = OWN_DIMENSIONS.map(Dimension::name).join(" and ");
            let message =
                format!("group_by has {}, allowed to a caller who sees its own usage only are {allowed}", key.name());
            Err(caller.refuse(message))
        }
    }
}

/// What a token is bound to that continues a query.
pub(super) fn query_hash(caller: &Caller, query: &impl Message) -> [u8; 32] {
    page::query_hash([query.encode_to_vec().as_slice(), caller.access().fingerprint().as_slice()])
}

/// Whether a caller may see who numbered a request. A producer numbers what it records of all
/// instances and users together: what lies between two numbers is told to those alone who see it all.
pub(super) fn sees_producers(access: &Access) -> bool {
    access.is_everything()
}

/// A request as a caller may see it.
fn shown(access: &Access, stored: StoredRequest) -> StoredRequest {
    match sees_producers(access) {
        true => stored,
        false => StoredRequest { event: Event { producer: None, ..stored.event }, ..stored },
    }
}

/// `limit` of a breakdown.
pub(super) fn breakdown_limit(given: i32) -> Result<usize> {
    convert::limit(given, 50, 1_000)
}

/// `limit` of a time series.
pub(super) fn series_limit(given: i32) -> Result<usize> {
    convert::limit(given, 10, 100)
}

/// An answer, and what it is of.
pub(super) struct Answered<T> {
    pub(super) range: Resolved,
    pub(super) resolution_seconds: i32,
    pub(super) answer: T,
}

impl Shared {
    /// Asks about a range as far, and as finely, as it is kept.
    pub(super) async fn within<T, F>(
        &self,
        range: Resolved,
        needs_requests: bool,
        ask: impl Fn(Resolved, Kept) -> F,
    ) -> Result<Answered<T>>
    where
        F: Future<Output = Result<T>>,
    {
        let mut again = true;
        loop {
            let kept = self.store.kept().await?;
            let Window { start_us, end_us, resolution_seconds } =
                kept.fit(range.start_us, range.end_us, needs_requests)?;
            let range = Resolved { start_us, end_us, ..range };
            match ask(range, kept).await {
                Ok(answer) => return Ok(Answered { range, resolution_seconds, answer }),
                // The horizon moved after it was looked at; it does so once a day.
                Err(Error::OutOfRange(_)) if again => again = false,
                Err(error) => return Err(error),
            }
        }
    }

    /// The groups of a range.
    pub(super) async fn breakdown(
        &self,
        range: Resolved,
        seen: &Seen,
        keys: &[Dimension],
        order_by: Metric,
        limit: usize,
    ) -> Result<Answered<Ranked>> {
        let ask = |range, _| async move { self.store.breakdown(&scope(&range, seen), keys, order_by, limit).await };
        self.within(range, seen.needs_requests(), ask).await
    }

    /// The series, and the edges of their buckets.
    pub(super) async fn series(&self, query: &SeriesQuery) -> Result<Answered<(Ranked, Vec<i64>)>> {
        let needs_requests = query.bucket == Bucket::Minute || query.seen.needs_requests();
        self.within(query.range, needs_requests, |range, _| self.series_of(query, range)).await
    }

    async fn series_of(&self, query: &SeriesQuery, range: Resolved) -> Result<(Ranked, Vec<i64>)> {
        let edges = time_range::bucket_edges(&range, query.bucket, MAX_POINTS)?;
        let buckets = edges.len() - 1;
        let scope = scope(&range, &query.seen);
        let fits = |series: usize| match series.saturating_mul(buckets) <= MAX_POINTS {
            true => Ok(()),
            false => Err(too_many_points(query, series, buckets)),
        };
        let ranked = self.store.series(&scope, &query.keys, query.order_by, query.limit, &edges, fits).await?;
        Ok((ranked, edges))
    }
}

/// The refusal that names the bucket that would fit.
fn too_many_points(query: &SeriesQuery, series: usize, buckets: usize) -> Error {
    let max = MAX_POINTS / series.max(1);
    let coarser = [Bucket::Minute, Bucket::Hour, Bucket::Day, Bucket::Week, Bucket::Month];
    let fits = coarser
        .into_iter()
        .filter(|bucket| *bucket > query.bucket)
        .find(|bucket| time_range::bucket_edges(&query.range, *bucket, max).is_ok());
    let advice = match fits {
        Some(bucket) => format!("BUCKET_{} would fit", bucket.name()),
        None => "no bucket would fit; narrow the range or lower the limit".to_owned(),
    };
    Error::invalid_because(
        Reason::TooManyPoints,
        "bucket",
        format!(
            "bucket BUCKET_{} gives {series} series of {buckets} points, allowed are {MAX_POINTS} points in all; {advice}",
            query.bucket.name(),
        ),
    )
}

#[tonic::async_trait]
impl UsageQueryService for Query {
    async fn get_summary(
        &self,
        request: Request<proto::GetSummaryRequest>,
    ) -> Result<Response<proto::GetSummaryResponse>, Status> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        let range = resolve(request.time_range.as_ref(), WhenMissing::Last24Hours)?;
        let seen = Seen::new(&caller, request.filter.as_ref())?;
        let needs_requests = seen.needs_requests();
        let ask = |range, kept: Kept| {
            let seen = &seen;
            async move {
                let before = match request.compare_to_previous {
                    true => {
                        let before = Resolved::previous(&range);
                        Some((before, kept.fit(before.start_us, before.end_us, needs_requests)?))
                    }
                    false => None,
                };
                // Both of one snapshot.
                let first_us = before.map(|(_, window)| window.start_us);
                let edges: Vec<i64> = first_us.into_iter().chain([range.start_us, range.end_us]).collect();
                let whole = Scope { start_us: edges[0], ..scope(&range, seen) };
                Ok((self.0.store.totals(&whole, &edges).await?, before))
            }
        };
        let Answered { range, resolution_seconds, answer: (totals, before) } =
            self.0.within(range, needs_requests, ask).await?;
        let mut response = proto::GetSummaryResponse {
            summary: totals.last().map(convert::metrics),
            currency_code: convert::currency(),
            interval: Some(range.to_interval()),
            resolution_seconds,
            ..Default::default()
        };
        if let Some((previous, window)) = before {
            response.previous = totals.first().map(convert::metrics);
            response.previous_interval = Some(Resolved { start_us: window.start_us, ..previous }.to_interval());
            response.resolution_seconds = resolution_seconds.max(window.resolution_seconds);
        }
        Ok(Response::new(response))
    }

    async fn list_breakdown(
        &self,
        request: Request<proto::ListBreakdownRequest>,
    ) -> Result<Response<proto::ListBreakdownResponse>, Status> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        let range = resolve(request.time_range.as_ref(), WhenMissing::Last24Hours)?;
        let seen = Seen::new(&caller, request.filter.as_ref())?;
        let keys = group_by(&caller, &request.group_by, true)?;
        let order_by = convert::metric(request.order_by)?;
        let limit = breakdown_limit(request.limit)?;
        let Answered { range, resolution_seconds, answer: ranked } =
            self.0.breakdown(range, &seen, &keys, order_by, limit).await?;
        Ok(Response::new(proto::ListBreakdownResponse {
            rows: ranked.rows.iter().map(convert::breakdown_row).collect(),
            other: ranked.other.iter().flatten().next().map(convert::metrics),
            total: ranked.total.first().map(convert::metrics),
            groups: Some(ranked.groups),
            currency_code: convert::currency(),
            interval: Some(range.to_interval()),
            resolution_seconds,
        }))
    }

    async fn get_time_series(
        &self,
        request: Request<proto::GetTimeSeriesRequest>,
    ) -> Result<Response<proto::GetTimeSeriesResponse>, Status> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        let query = SeriesQuery {
            range: resolve(request.time_range.as_ref(), WhenMissing::Last24Hours)?,
            seen: Seen::new(&caller, request.filter.as_ref())?,
            bucket: convert::bucket(request.bucket)?,
            keys: group_by(&caller, &request.group_by, false)?,
            order_by: convert::metric(request.order_by)?,
            limit: series_limit(request.limit)?,
        };
        let Answered { range, resolution_seconds, answer: (ranked, edges) } = self.0.series(&query).await?;
        let rows = ranked.rows.into_iter();
        Ok(Response::new(proto::GetTimeSeriesResponse {
            series: rows.map(|group| convert::series(group.keys, &edges, &group.buckets)).collect(),
            other: ranked.other.map(|buckets| convert::series(Vec::new(), &edges, &buckets)),
            currency_code: convert::currency(),
            interval: Some(range.to_interval()),
            resolution_seconds,
        }))
    }

    async fn list_requests(
        &self,
        request: Request<proto::ListRequestsRequest>,
    ) -> Result<Response<proto::ListRequestsResponse>, Status> {
        let caller = Caller::of(&request)?;
        let mut request = request.into_inner();
        let page_size = page::page_size(request.page_size)?;
        let page_token = std::mem::take(&mut request.page_token);
        // Pages of one walk may differ in size.
        request.page_size = 0;
        let query_hash = query_hash(&caller, &request);

        let mut range = resolve(request.time_range.as_ref(), WhenMissing::Last24Hours)?;
        let mut after = None;
        if !page_token.is_empty() {
            let payload = self.0.sealer.open(PAGE_KIND, &query_hash, &page_token)?;
            let (start_us, end_us, position) = unpack(&payload)?;
            (range.start_us, range.end_us) = (start_us, end_us);
            after = Some(position);
        }
        let scope = scope(&range, &Seen::new(&caller, request.filter.as_ref())?);
        // One more than asked for says whether there is another page.
        let found = self.0.store.requests(&scope, Order::NewestFirst, after, page_size + 1).await?;
        let mut requests = Vec::with_capacity(found.len().min(page_size));
        let mut bytes = 0;
        let mut next_page_token = String::new();
        let mut last = None;
        for stored in found {
            let position = Position { occurred_at_us: stored.event.occurred_at_us, id: stored.event.id };
            let message = convert::request(shown(&scope.access, stored));
            // With tag and length, each request takes some bytes more.
            bytes += message.encoded_len() + 8;
            if requests.len() == page_size || (bytes > MAX_PAGE_BYTES && !requests.is_empty()) {
                let last = last.unwrap_or(position);
                let payload = pack(range.start_us, range.end_us, last);
                next_page_token = self.0.sealer.seal(PAGE_KIND, &query_hash, &payload);
                break;
            }
            last = Some(position);
            requests.push(message);
        }
        Ok(Response::new(proto::ListRequestsResponse {
            requests,
            next_page_token,
            currency_code: convert::currency(),
            interval: Some(range.to_interval()),
        }))
    }

    async fn get_coverage(
        &self,
        request: Request<proto::GetCoverageRequest>,
    ) -> Result<Response<proto::GetCoverageResponse>, Status> {
        let caller = Caller::of(&request)?;
        coverage::allow(&caller)?;
        let mut request = request.into_inner();
        let limit = page::page_size(std::mem::take(&mut request.page_size))?;
        let token = std::mem::take(&mut request.page_token);
        let query = query_hash(&caller, &request);
        let mut wanted = coverage::Wanted::new(
            request.time_range.as_ref(),
            request.producer_ids,
            request.first_sequence,
            request.last_sequence,
        )?;
        let after = match token.is_empty() {
            true => None,
            false => Some(wanted.go_on(&self.0.sealer.open(COVERAGE_KIND, &query, &token)?)?),
        };
        let (access, store) = (caller.access(), &self.0.store);
        let mut page = coverage::Page::new(limit);
        for epoch in store.heard(access, &wanted, after, limit + 1).await? {
            if !page.has_room() {
                break;
            }
            let (covered, blocks) = store.covered(access, &epoch, &wanted, coverage::MAX_BLOCKS).await?;
            page.push(epoch, covered, blocks);
        }
        let next = page.next.map(|last| self.0.sealer.seal(COVERAGE_KIND, &query, &wanted.position(&last)));
        Ok(Response::new(proto::GetCoverageResponse {
            producers: page.producers,
            next_page_token: next.unwrap_or_default(),
            interval: Some(wanted.range.to_interval()),
        }))
    }

    async fn list_facets(
        &self,
        request: Request<proto::ListFacetsRequest>,
    ) -> Result<Response<proto::ListFacetsResponse>, Status> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        let range = resolve(request.time_range.as_ref(), WhenMissing::Last24Hours)?;
        let seen = Seen::new(&caller, request.filter.as_ref())?;
        let limit = convert::limit(request.limit, 100, 1_000)?;
        let ask = |range, _| {
            let scope = scope(&range, &seen);
            async move { self.0.store.facets(&scope, limit).await }
        };
        let Answered { range, resolution_seconds, answer: facets } =
            self.0.within(range, seen.needs_requests(), ask).await?;
        Ok(Response::new(proto::ListFacetsResponse {
            facets: facets
                .into_iter()
                .map(|(dimension, values, distinct)| convert::facet(dimension, values, distinct))
                .collect(),
            interval: Some(range.to_interval()),
            resolution_seconds,
        }))
    }

    type ExportUsageStream = export::Chunks;

    async fn export_usage(
        &self,
        request: Request<proto::ExportUsageRequest>,
    ) -> Result<Response<Self::ExportUsageStream>, Status> {
        let caller = Caller::of(&request)?;
        Ok(Response::new(self.0.export(&caller, request.into_inner()).await?))
    }
}

pub(super) fn pack(start_us: i64, end_us: i64, position: Position) -> Vec<u8> {
    let mut payload = Vec::with_capacity(40);
    for number in [start_us, end_us, position.occurred_at_us] {
        payload.extend_from_slice(&number.to_be_bytes());
    }
    payload.extend_from_slice(position.id.as_bytes());
    payload
}

pub(super) fn unpack(payload: &[u8]) -> Result<(i64, i64, Position)> {
    let number = |at: usize| {
        let bytes = payload.get(at..at + 8)?;
        bytes.try_into().ok().map(i64::from_be_bytes)
    };
    let unpacked = || {
        let position = Position { occurred_at_us: number(16)?, id: Uuid::from_slice(payload.get(24..)?).ok()? };
        Some((number(0)?, number(8)?, position))
    };
    // Sealed, so ours; but another version's.
    unpacked().ok_or_else(|| {
        Error::invalid_because(
            Reason::InvalidPageToken,
            "page_token",
            "page_token is of another version of the service; repeat the query without it",
        )
    })
}
