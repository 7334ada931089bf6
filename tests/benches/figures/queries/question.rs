//! The questions as data: each is asked of the service by gRPC and of DuckDB by SQL, and both answers have one shape.

use activity_proto::common::v1::{Interval, TimeRange, time_range::Range};
use activity_proto::usage::v1 as usage;
use activity_proto::usage::v1::usage_query_service_client::UsageQueryServiceClient;
use tonic::transport::Channel;
use usage::Dimension;

use crate::traffic::{DAY_US, SPAN_US, micros, timestamp};

/// Asia/Kolkata, which has no daylight saving.
const KOLKATA_US: i64 = (5 * 60 + 30) * 60_000_000;

/// What an answer says, row by row: keys and figures as text. Money is in nano-dollars.
pub(crate) type Answer = Vec<Vec<String>>;

#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Window {
    /// All 30 days, which begin and end within a second.
    Days30,
    /// 24 hours near the end, which begin and end within a second.
    Hours24,
}

#[derive(Clone, Copy)]
pub(crate) enum Ask {
    Summary {
        compare: bool,
    },
    Breakdown(&'static [Dimension]),
    /// By provider and day in Asia/Kolkata.
    Series,
    Facets,
    /// The newest 50 requests.
    Page,
}

pub(crate) struct Question {
    pub(crate) name: &'static str,
    pub(crate) window: Window,
    pub(crate) ask: Ask,
    /// Only requests with these values.
    filter: &'static [(Dimension, &'static str)],
}

const fn ask(name: &'static str, ask: Ask) -> Question {
    Question { name, window: Window::Days30, ask, filter: &[] }
}

use Dimension::{ApiKey, Model, Provider, User};

pub(crate) const QUESTIONS: &[Question] = &[
    ask("summary", Ask::Summary { compare: false }),
    ask("summary with comparison", Ask::Summary { compare: true }),
    ask("by user", Ask::Breakdown(&[User])),
    ask("by model", Ask::Breakdown(&[Model])),
    ask("by provider", Ask::Breakdown(&[Provider])),
    ask("by key", Ask::Breakdown(&[ApiKey])),
    ask("by provider and model", Ask::Breakdown(&[Provider, Model])),
    ask("by user and model", Ask::Breakdown(&[User, Model])),
    ask("a day's series by provider, zone at :30", Ask::Series),
    Question { filter: &[(User, "user-3")], ..ask("summary of one user", Ask::Summary { compare: false }) },
    Question { filter: &[(User, "user-3")], ..ask("by model, of one user", Ask::Breakdown(&[Model])) },
    Question { filter: &[(Model, "gpt-4o")], ..ask("by user, of one model", Ask::Breakdown(&[User])) },
    Question { window: Window::Hours24, ..ask("24 hours: summary with comparison", Ask::Summary { compare: true }) },
    Question { window: Window::Hours24, ..ask("24 hours: by user", Ask::Breakdown(&[User])) },
    Question { window: Window::Hours24, ..ask("24 hours: by provider and model", Ask::Breakdown(&[Provider, Model])) },
    ask("facets", Ask::Facets),
    Question { filter: &[(User, "user-3")], ..ask("newest requests of a busy user", Ask::Page) },
    Question { filter: &[(User, "user-1234")], ..ask("newest requests of a rare user", Ask::Page) },
];

const FACETS: [Dimension; 7] = [User, Dimension::Team, Model, Provider, ApiKey, Dimension::Instance, Dimension::Status];

const TOTAL: &str = "input_uncached + input_cache_read + input_cache_write + output";

fn column(dimension: Dimension) -> &'static str {
    match dimension {
        User => "user_id",
        Dimension::Team => "team_id",
        Model => "model",
        Provider => "provider",
        ApiKey => "api_key_id",
        Dimension::Instance => "instance_id",
        Dimension::Status | Dimension::Unspecified => "status",
    }
}

/// The figures of an answer in SQL; distinct counts cost DuckDB the most, so that it is also asked without them.
fn figures(distinct: bool) -> String {
    let kinds = [
        "input_uncached",
        "input_cache_read",
        "input_cache_write",
        "input_cache_write_1h",
        "output",
        "output_reasoning",
    ];
    let sums: Vec<_> = kinds.iter().map(|kind| format!("coalesce(sum({kind}), 0)")).collect();
    let distinct = if distinct { "count(DISTINCT user_id), count(DISTINCT model), " } else { "" };
    format!(
        "count(*), count(*) FILTER (status <> 1), coalesce(sum({TOTAL}), 0), {}, coalesce(sum(cost_nanos), 0), \
         {distinct}count(*) FILTER (cost_nanos IS NULL), coalesce(sum({TOTAL}) FILTER (cost_nanos IS NULL), 0)",
        sums.join(", ")
    )
}

impl Question {
    fn range(&self, start_us: i64) -> (i64, i64) {
        let end_us = start_us + SPAN_US;
        match self.window {
            Window::Days30 => (start_us, end_us),
            Window::Hours24 => (end_us - DAY_US - 1_234_567_890, end_us - 1_234_567_890),
        }
    }

    pub(crate) async fn call(&self, channel: &Channel, start_us: i64) -> Answer {
        let mut client = UsageQueryServiceClient::new(channel.clone()).max_decoding_message_size(64 << 20);
        let (start_us, end_us) = self.range(start_us);
        let interval = Interval { start: Some(timestamp(start_us)), end: Some(timestamp(end_us)) };
        let zone = if matches!(self.ask, Ask::Series) { "Asia/Kolkata" } else { "" };
        let time_range = Some(TimeRange { range: Some(Range::Interval(interval)), time_zone: zone.into() });
        let mut filter = usage::UsageFilter::default();
        for (dimension, value) in self.filter {
            let values = match dimension {
                User => &mut filter.user_ids,
                Model => &mut filter.models,
                other => panic!("no filter by {other:?} here"),
            };
            values.push((*value).to_owned());
        }
        let filter = Some(filter);
        match self.ask {
            Ask::Summary { compare } => {
                let request = usage::GetSummaryRequest { time_range, filter, compare_to_previous: compare };
                let answer = client.get_summary(request).await.unwrap().into_inner();
                [answer.previous, answer.summary].iter().flatten().map(metrics).collect()
            }
            Ask::Breakdown(by) => {
                let group_by = by.iter().map(|dimension| (*dimension).into()).collect();
                let request = usage::ListBreakdownRequest { time_range, filter, group_by, ..Default::default() };
                let answer = client.list_breakdown(request).await.unwrap().into_inner();
                answer.rows.into_iter().map(|row| keyed(row.keys, row.metrics.as_ref().unwrap())).collect()
            }
            Ask::Series => {
                let request = usage::GetTimeSeriesRequest {
                    time_range,
                    filter,
                    bucket: usage::Bucket::Day.into(),
                    group_by: vec![Provider.into()],
                    ..Default::default()
                };
                let answer = client.get_time_series(request).await.unwrap().into_inner();
                let mut rows = Vec::new();
                for series in answer.series {
                    for point in series.points {
                        let start = micros(&point.interval.unwrap().start.unwrap());
                        let keys = vec![series.keys[0].clone(), start.to_string()];
                        rows.push(keyed(keys, &point.metrics.unwrap()));
                    }
                }
                rows.retain(|row| row[2] != "0");
                rows.sort();
                rows
            }
            Ask::Facets => {
                let request = usage::ListFacetsRequest { time_range, filter, ..Default::default() };
                let answer = client.list_facets(request).await.unwrap().into_inner();
                let mut rows = Vec::new();
                for facet in answer.facets {
                    let dimension = column(facet.dimension());
                    for value in facet.values {
                        let name = match usage::RequestStatus::from_str_name(&value.value) {
                            Some(status) => i32::from(status).to_string(),
                            None => value.value,
                        };
                        rows.push(vec![dimension.to_owned(), name, value.count.unwrap().to_string()]);
                    }
                }
                rows.sort();
                rows
            }
            Ask::Page => {
                let request = usage::ListRequestsRequest { time_range, filter, ..Default::default() };
                let answer = client.list_requests(request).await.unwrap().into_inner();
                let row = |request: usage::UsageRequest| {
                    vec![
                        request.id.replace('-', ""),
                        micros(&request.occurred_at.unwrap()).to_string(),
                        request.provider,
                        request.model,
                        request.cost.map_or_else(|| "None".into(), |cost| nanos(&cost)),
                    ]
                };
                answer.requests.into_iter().map(row).collect()
            }
        }
    }

    /// The statements that give DuckDB's answer, one after the other; without distinct counts on demand.
    pub(crate) fn sql(&self, start_us: i64, distinct: bool) -> Vec<String> {
        let (start_us, end_us) = self.range(start_us);
        let figures = figures(distinct);
        let filter: String =
            self.filter.iter().map(|(dimension, value)| format!(" AND {} = '{value}'", column(*dimension))).collect();
        let from = |start: i64, end: i64| {
            format!("FROM requests WHERE occurred_at >= {start} AND occurred_at < {end}{filter}")
        };
        let rows = from(start_us, end_us);
        match self.ask {
            Ask::Summary { compare } => {
                let previous = from(start_us - (end_us - start_us), start_us);
                let previous = compare.then(|| format!("SELECT {figures} {previous}"));
                previous.into_iter().chain([format!("SELECT {figures} {rows}")]).collect()
            }
            Ask::Breakdown(by) => {
                let by: Vec<_> = by.iter().map(|dimension| column(*dimension)).collect();
                let by = by.join(", ");
                vec![format!(
                    "SELECT {by}, {figures} {rows} GROUP BY {by} ORDER BY coalesce(sum(cost_nanos), 0) DESC, {by} LIMIT 50"
                )]
            }
            Ask::Series => {
                let day = format!("((occurred_at + {KOLKATA_US}) // {DAY_US})");
                let begin = format!("greatest({day} * {DAY_US} - {KOLKATA_US}, {start_us})");
                vec![format!("SELECT provider, {begin}, {figures} {rows} GROUP BY provider, {day} ORDER BY ALL")]
            }
            Ask::Facets => FACETS
                .map(|dimension| {
                    let column = column(dimension);
                    format!(
                        "SELECT '{column}', {column}, count(*) {rows} GROUP BY {column} \
                         ORDER BY count(*) DESC, {column} LIMIT 100"
                    )
                })
                .to_vec(),
            Ask::Page => vec![format!(
                "SELECT replace(CAST(id AS VARCHAR), '-', ''), occurred_at, provider, model, cost_nanos {rows} \
                 ORDER BY occurred_at DESC, id DESC LIMIT 50"
            )],
        }
    }

    /// Whether DuckDB is asked without distinct counts as well.
    pub(crate) fn has_distinct(&self) -> bool {
        !matches!(self.ask, Ask::Facets | Ask::Page)
    }

    /// Whether rows of an answer may come in any order.
    pub(crate) fn unordered(&self) -> bool {
        matches!(self.ask, Ask::Facets | Ask::Series)
    }
}

fn keyed(mut keys: Vec<String>, metrics_of: &usage::Metrics) -> Vec<String> {
    keys.extend(metrics(metrics_of));
    keys
}

fn metrics(metrics: &usage::Metrics) -> Vec<String> {
    let tokens = metrics.tokens.as_ref().unwrap();
    let counts = [metrics.requests, metrics.failed_requests, metrics.total_tokens];
    let kinds = [
        tokens.input_uncached,
        tokens.input_cache_read,
        tokens.input_cache_write,
        tokens.input_cache_write_1h,
        tokens.output,
        tokens.output_reasoning,
    ];
    let rest = [metrics.unique_users, metrics.unique_models, metrics.unpriced_requests, metrics.unpriced_tokens];
    let counts = counts.iter().map(|count| count.unwrap().to_string());
    let kinds = kinds.iter().map(|count| count.unwrap().to_string());
    let cost = nanos(metrics.cost.as_ref().unwrap());
    counts.chain(kinds).chain([cost]).chain(rest.iter().map(|count| count.unwrap().to_string())).collect()
}

/// A decimal number of dollars in nano-dollars.
fn nanos(dollars: &str) -> String {
    let (whole, part) = dollars.split_once('.').unwrap_or((dollars, ""));
    format!("{whole}{part:0<9}").parse::<i128>().unwrap().to_string()
}
