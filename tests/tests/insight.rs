//! Questions that join both services, against what a walk over every request and entry says.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use activity_proto::audit::v1::audit_ingest_service_client::AuditIngestServiceClient;
use activity_proto::audit::v1::{AuditEvent, RecordEventsRequest, Resource as Touch};
use activity_proto::common::v1::Interval;
use activity_proto::usage::v1::usage_ingest_service_client::UsageIngestServiceClient;
use activity_proto::usage::v1::{Metrics, RecordUsageRequest, RequestStatus, UsageEvent};
use e2e::sandbox::database_url;
use e2e::{Engine, Sandbox, Service, events};
use futures::TryStreamExt as _;
use gateway_sdk::{
    AccessProblem, AuditEntry, AuditQuery, Bucket, Change, Credentials, Dimension, Error, GatewaySdk, Resource, Stage,
    TimeRange, Tls, Traffic, Unanswered, UsageQuery, UsageRequest, Window,
};
use prost_types::Timestamp;
use service_core::clock::now_us;
use testkit::{Realm, eventually};

const PATIENCE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);
const REQUESTS: u64 = 2_000;
/// All is within so long before now.
const SPAN: Duration = Duration::from_secs(4 * 24 * 3600);

/// Providers and models: two have a model of one name, and one a model whose name is like both.
const MODELS: [(&str, &str); 5] = [
    ("openai", "gpt-4o"),
    ("azure", "gpt-4o"),
    ("openai", "gpt-4o-mini"),
    ("router", "openai/gpt-4o"),
    ("self-hosted", "llama"),
];

/// An action, and what it is done to: type, id and name.
type Action = (&'static str, &'static [(&'static str, &'static str, &'static str)]);

/// What is done to what; the first resource is the one acted on.
const ACTIONS: [Action; 8] = [
    ("model.disabled", &[("model", "openai/gpt-4o", "GPT-4o")]),
    (
        "provider.updated",
        &[("provider", "openai", "OpenAI"), ("model", "openai/gpt-4o-mini", ""), ("team", "team-1", "")],
    ),
    ("model.enabled", &[("model", "azure/gpt-4o", "gpt-4o")]),
    ("api_key.revoked", &[("api_key", "ak_7", "key-7"), ("user", "usr_3", "user-3")]),
    ("user.role_changed", &[("user", "user-5", "five@example.com")]),
    ("sso.configured", &[("sso", "okta", "Okta")]),
    ("model.disabled", &[("model", "m-9", "llama"), ("model", "nobody/nothing", "")]),
    ("instance.updated", &[("instance", "eu-2", "Europe")]),
];

fn instance(n: u64) -> &'static str {
    if n.is_multiple_of(3) { "eu-2" } else { "eu-1" }
}

/// The `n`th of so many, spread evenly before `now`.
fn before(now: SystemTime, n: u64, of: u64) -> SystemTime {
    let back = u64::try_from(SPAN.as_micros()).unwrap() / of * n + 1;
    now - Duration::from_micros(back)
}

fn request(now: SystemTime, n: u64) -> UsageEvent {
    let at = before(now, n, REQUESTS);
    // In eu-2 there is of the first two nothing.
    let models = if instance(n) == "eu-2" { &MODELS[2..] } else { &MODELS[..] };
    let (provider, model) = models[(n / 3) as usize % models.len()];
    let status = if n.is_multiple_of(7) { RequestStatus::ProviderError } else { RequestStatus::Ok };
    UsageEvent {
        id: events::id(at, n),
        occurred_at: Some(at.into()),
        instance_id: instance(n).into(),
        provider: provider.into(),
        requested_model: model.into(),
        status: status.into(),
        ..events::usage(now, n)
    }
}

fn action(now: SystemTime, n: u64) -> AuditEvent {
    let at = before(now, n, 40);
    let (action, resources) = ACTIONS[n as usize % ACTIONS.len()];
    let touch = |(kind, id, name): &(&str, &str, &str)| Touch {
        r#type: (*kind).into(),
        id: (*id).into(),
        name: (*name).into(),
    };
    AuditEvent {
        id: events::id(at, n),
        occurred_at: Some(at.into()),
        instance_id: instance(n / 8).into(),
        action: action.into(),
        resources: resources.iter().map(touch).collect(),
        ..events::audit(now, n)
    }
}

async fn fill(audit: &Service, usage: &Service, now: SystemTime) {
    let events = (0..40).map(|n| action(now, n)).collect();
    let answer = AuditIngestServiceClient::new(audit.channel())
        .record_events(RecordEventsRequest { events, ..RecordEventsRequest::default() })
        .await;
    assert_eq!(answer.unwrap().into_inner().accepted(), 40);
    let mut client = UsageIngestServiceClient::new(usage.channel());
    for first in (0..REQUESTS).step_by(1_000) {
        let events = (first..first + 1_000).map(|n| request(now, n)).collect();
        let answer = client.record_usage(RecordUsageRequest { events }).await.unwrap().into_inner();
        assert_eq!(answer.accepted(), 1_000, "{:?}", answer.rejected);
    }
}

fn sdk(audit: &Service, usage: &Service) -> GatewaySdk {
    GatewaySdk::builder().audit_endpoint(audit.url()).usage_endpoint(usage.url()).build().unwrap()
}

/// All there is, by lists alone.
struct Everything {
    requests: Vec<UsageRequest>,
    entries: Vec<AuditEntry>,
}

impl Everything {
    async fn of(sdk: &GatewaySdk, now: SystemTime) -> Self {
        let range = TimeRange::between(now - 2 * SPAN, now + HOUR);
        let requests: Vec<_> =
            sdk.usage().requests(UsageQuery::new().range(range.clone())).try_collect().await.unwrap();
        let entries: Vec<_> = sdk.audit().entries(AuditQuery::new().range(range)).try_collect().await.unwrap();
        assert_eq!((requests.len() as u64, entries.len()), (REQUESTS, 40));
        Self { requests, entries }
    }

    /// The totals of the requests of an interval that are wanted.
    fn totals(&self, interval: Interval, wanted: impl Fn(&UsageRequest) -> bool) -> Sums {
        let within = |request: &&UsageRequest| is_within(request.occurred_at, interval) && wanted(request);
        let mut sums = Sums::default();
        let mut users = BTreeSet::new();
        for request in self.requests.iter().filter(within) {
            let tokens = request.tokens.unwrap_or_default();
            let kinds = [tokens.input_uncached, tokens.input_cache_read, tokens.input_cache_write, tokens.output];
            sums.requests += 1;
            sums.failed += i128::from(request.status() != RequestStatus::Ok);
            sums.tokens += kinds.into_iter().flatten().map(i128::from).sum::<i128>();
            match &request.cost {
                Some(cost) => sums.cost_nanos += nanos(cost),
                None => sums.unpriced += 1,
            }
            users.insert(request.user_id.clone());
        }
        Sums { users: users.len() as i128, ..sums }
    }

    /// Ids of the entries of an interval that are wanted, newest first.
    fn ids(&self, interval: Interval, wanted: impl Fn(&AuditEntry) -> bool) -> Vec<String> {
        let wanted = |entry: &&AuditEntry| is_within(entry.occurred_at, interval) && wanted(entry);
        self.entries.iter().filter(wanted).map(|entry| entry.id.clone()).collect()
    }
}

#[derive(Debug, Default, PartialEq)]
struct Sums {
    requests: i128,
    failed: i128,
    tokens: i128,
    cost_nanos: i128,
    users: i128,
    unpriced: i128,
}

fn sums(metrics: &Metrics) -> Sums {
    Sums {
        requests: metrics.requests().into(),
        failed: metrics.failed_requests().into(),
        tokens: metrics.total_tokens().into(),
        cost_nanos: nanos(metrics.cost()),
        users: metrics.unique_users().into(),
        unpriced: metrics.unpriced_requests().into(),
    }
}

fn nanos(cost: &str) -> i128 {
    let (whole, part) = cost.split_once('.').unwrap_or((cost, ""));
    whole.parse::<i128>().unwrap() * 1_000_000_000 + format!("{part:0<9}").parse::<i128>().unwrap()
}

fn is_within(at: Option<Timestamp>, interval: Interval) -> bool {
    let order = |at: Option<Timestamp>| at.map(|at| (at.seconds, at.nanos));
    (order(interval.start)..order(interval.end)).contains(&order(at))
}

fn interval(start: SystemTime, end: SystemTime) -> Interval {
    let micros = |at: SystemTime| {
        let at = Timestamp::from(at);
        Timestamp { nanos: at.nanos / 1_000 * 1_000, ..at }
    };
    Interval { start: Some(micros(start)), end: Some(micros(end)) }
}

type Wanted = Box<dyn Fn(&UsageRequest) -> bool>;

/// Which requests are a resource's, of the platform that this is; `None` where there is no way to tell.
fn wanted(resource: &Touch, instance: &str) -> Option<Wanted> {
    let of = |provider: &'static str, model: &'static str| -> Wanted {
        Box::new(move |request| (provider.is_empty() || request.provider == provider) && request.model == model)
    };
    let of_resource: Wanted = match (resource.r#type.as_str(), resource.id.as_str()) {
        // Here nobody but the router has such a model.
        ("model", "openai/gpt-4o") if instance == "eu-2" => of("router", "openai/gpt-4o"),
        ("model", "openai/gpt-4o") => of("openai", "gpt-4o"),
        ("model", "openai/gpt-4o-mini") => of("openai", "gpt-4o-mini"),
        ("model", "azure/gpt-4o") => of("azure", "gpt-4o"),
        ("model", "gpt-4o") => of("", "gpt-4o"),
        ("model", "m-9") => of("", "llama"),
        ("model", _) => Box::new(|_| false),
        ("provider", id) => {
            let id = id.to_owned();
            Box::new(move |request| request.provider == id)
        }
        ("team", "team-1") => Box::new(|request| request.team_id == "team-1"),
        ("api_key", "ak_7") => Box::new(|request| request.api_key_id == "key-7"),
        ("user", "usr_3") => Box::new(|request| request.user_id == "user-3"),
        ("user", "user-5") => Box::new(|request| request.user_id == "user-5"),
        ("instance", "eu-2") => return Some(Box::new(|request| request.instance_id == "eu-2")),
        _ => return None,
    };
    let instance = instance.to_owned();
    Some(Box::new(move |request| (instance.is_empty() || request.instance_id == instance) && of_resource(request)))
}

fn assert_window(all: &Everything, window: &Window, wanted: &Wanted) -> Sums {
    let expected = all.totals(window.interval, wanted);
    assert_eq!(sums(&window.totals), expected, "{:?}", window.interval);
    let mut end = window.interval.start;
    for point in &window.points {
        let bucket = point.interval.unwrap();
        assert_eq!(bucket.start, end);
        assert_eq!(sums(point.metrics.as_ref().unwrap()), all.totals(bucket, wanted), "{bucket:?}");
        end = bucket.end;
    }
    assert_eq!(end, window.interval.end);
    expected
}

fn assert_traffic(all: &Everything, traffic: &Traffic, wanted: &Wanted) {
    let before_window = traffic.before.as_ref().unwrap();
    assert_eq!(before_window.interval.end, traffic.after.interval.start);
    let before = assert_window(all, before_window, wanted);
    let after = assert_window(all, &traffic.after, wanted);
    let change = traffic.change.unwrap();
    let ends = |change: Change| (change.before, change.after);
    assert_eq!(ends(change.requests), (before.requests, after.requests));
    assert_eq!(ends(change.failed_requests), (before.failed, after.failed));
    assert_eq!(ends(change.total_tokens), (before.tokens, after.tokens));
    assert_eq!(ends(change.cost_nanos), (before.cost_nanos, after.cost_nanos));
    assert_eq!(ends(change.unique_users), (before.users, after.users));
    assert_eq!(ends(change.unpriced_requests), (before.unpriced, after.unpriced));
    assert_eq!(change.cost_nanos.difference(), after.cost_nanos - before.cost_nanos);
}

fn names(entry: &AuditEntry, names: &[&str]) -> bool {
    entry
        .resources
        .iter()
        .any(|resource| names.contains(&resource.id.as_str()) || names.contains(&resource.name.as_str()))
}

fn ids(entries: &[AuditEntry]) -> Vec<String> {
    entries.iter().map(|entry| entry.id.clone()).collect()
}

async fn investigations(sdk: &GatewaySdk, all: &Everything, now: SystemTime) {
    let start = now - 30 * HOUR - Duration::from_micros(123_457);
    let ranges = [
        TimeRange::between(start, start + 26 * HOUR),
        TimeRange::last_24_hours(),
        TimeRange::since(now - 40 * HOUR).in_zone("Asia/Kathmandu"),
    ];
    // Kind, id, name, instance, and what entries call it.
    let questions: [(&str, &str, &str, &str, &[&str]); 10] = [
        ("model", "openai/gpt-4o", "GPT-4o", "", &["openai/gpt-4o", "GPT-4o"]),
        ("model", "openai/gpt-4o", "", "eu-2", &["openai/gpt-4o", "router/openai/gpt-4o"]),
        ("model", "gpt-4o", "", "", &["gpt-4o", "openai/gpt-4o", "azure/gpt-4o"]),
        ("model", "m-9", "llama", "", &["m-9", "llama", "self-hosted/llama"]),
        ("model", "nobody/nothing", "", "", &["nobody/nothing"]),
        ("provider", "openai", "OpenAI", "eu-1", &["openai", "OpenAI"]),
        ("team", "team-1", "", "", &["team-1"]),
        ("api_key", "ak_7", "key-7", "", &["ak_7", "key-7"]),
        ("user", "usr_3", "user-3", "", &["usr_3", "user-3"]),
        ("instance", "eu-2", "", "", &["eu-2"]),
    ];
    for range in &ranges {
        for (kind, id, name, instance, known_as) in questions {
            let query = sdk.investigate(range.clone(), Resource::new(kind, id).name(name));
            let query = if instance.is_empty() { query } else { query.instance(instance) };
            let found = query.await.unwrap();
            let traffic = found.traffic.unwrap();
            assert_eq!(found.interval, traffic.after.interval);
            assert_traffic(all, &traffic, &wanted(&found.resource, instance).unwrap());
            let entries = found.entries.unwrap();
            let both = Interval { start: traffic.before.as_ref().unwrap().interval.start, ..found.interval };
            assert_eq!((entries.interval, &entries.removed, entries.more), (both, &None, false));
            let of_it = |entry: &AuditEntry| {
                let is_there = instance.is_empty() || entry.instance_id == instance;
                is_there && entry.resources.iter().any(|resource| resource.r#type == kind) && names(entry, known_as)
            };
            assert_eq!(ids(&entries.items), all.ids(both, of_it), "{kind} {id}");
        }
    }
    // Points where the caller wants them.
    let query = sdk.investigate(ranges[2].clone(), Resource::new("provider", "openai"));
    let found = query.bucket(Bucket::Day).entries(1).await.unwrap();
    let (traffic, entries) = (found.traffic.unwrap(), found.entries.unwrap());
    assert_eq!(traffic.after.bucket, Bucket::Day);
    assert_eq!(traffic.by, [(Dimension::Provider, "openai".to_owned())]);
    assert_traffic(all, &traffic, &wanted(&found.resource, "").unwrap());
    // Midnight in Kathmandu.
    assert_eq!(traffic.after.points[1].interval.unwrap().start.unwrap().seconds % (24 * 3600), 18 * 3600 + 15 * 60);
    assert_eq!((entries.items.len(), entries.more), (1, true));

    // Of what has no traffic there are its entries.
    let found = sdk.investigate(ranges[0].clone(), Resource::new("sso", "okta")).await.unwrap();
    assert_eq!(found.traffic, Err(Unanswered::NoDimension { resource_type: "sso".into() }));
    assert_eq!(found.interval, interval(start, start + 26 * HOUR));
    let both = interval(start - 26 * HOUR, start + 26 * HOUR);
    let of_it = |entry: &AuditEntry| names(entry, &["okta"]);
    assert_eq!(ids(&found.entries.unwrap().items), all.ids(both, of_it));
    let bad = sdk.investigate(TimeRange::last_hour().in_zone("Mars/Olympus"), Resource::new("sso", "okta")).await;
    assert_eq!(bad.unwrap_err().reason(), Some(gateway_sdk::ErrorReason::UnknownTimeZone));
}

async fn impacts(sdk: &GatewaySdk, all: &Everything) {
    for (number, entry) in all.entries.iter().enumerate() {
        let at = SystemTime::try_from(entry.occurred_at.unwrap()).unwrap();
        let query = sdk.impact(entry);
        let asked = SystemTime::now();
        // A day, an hour's part of it, and all that there is.
        let impact = match number % 3 {
            0 => query.await.unwrap(),
            1 => query.window(HOUR / 2).await.unwrap(),
            _ => query.window(10 * SPAN).bucket(Bucket::Hour).await.unwrap(),
        };
        let window = impact.window;
        match [DAY, HOUR / 2, 10 * SPAN][number % 3] {
            whole if whole < asked.duration_since(at).unwrap() => assert_eq!(window, whole),
            _ => assert!(window >= asked.duration_since(at).unwrap() && window <= at.elapsed().unwrap()),
        }
        assert_eq!(impact.entry, *entry);
        assert_eq!(
            impact.touched.iter().map(|touched| &touched.resource).collect::<Vec<_>>(),
            entry.resources.iter().collect::<Vec<_>>()
        );
        for touched in &impact.touched {
            match (wanted(&touched.resource, &entry.instance_id), &touched.traffic) {
                (Some(wanted), Ok(traffic)) => {
                    assert_eq!(traffic.after.interval, interval(at, at + window));
                    assert_traffic(all, traffic, &wanted);
                }
                (None, Err(Unanswered::NoDimension { resource_type })) => assert_eq!(resource_type, "sso"),
                (_, traffic) => panic!("{:?}: {traffic:?}", touched.resource),
            }
        }
        let others = impact.others.unwrap();
        let of_it: Vec<&str> =
            entry.resources.iter().flat_map(|resource| [resource.id.as_str(), &resource.name]).collect();
        let of_it: Vec<&str> = of_it.into_iter().filter(|name| !name.is_empty()).collect();
        let is_other =
            |other: &AuditEntry| other.id != entry.id && other.instance_id == entry.instance_id && names(other, &of_it);
        assert_eq!(ids(&others.items), all.ids(interval(at - window, at + window), is_other));
        assert!(!others.more && others.removed.is_none());
    }
}

async fn joined(engine: Engine) {
    let sandbox = Sandbox::start(engine).await;
    let now = SystemTime::now();
    fill(&sandbox.audit, &sandbox.usage, now).await;
    let sdk = sdk(&sandbox.audit, &sandbox.usage);
    let all = Everything::of(&sdk, now).await;
    investigations(&sdk, &all, now).await;
    impacts(&sdk, &all).await;

    // Bounded, whatever an entry names, and nothing where nothing can be known yet.
    let mut entry = all.entries[0].clone();
    let many = |n: u64| Touch { r#type: "user".into(), id: format!("user-{n}"), name: String::new() };
    entry.resources = (0..30).map(many).collect();
    let impact = sdk.impact(&entry).window(HOUR).entries(0).await.unwrap();
    assert_eq!(impact.touched.iter().filter(|touched| touched.traffic.is_ok()).count(), 10);
    assert_eq!(impact.touched[29].traffic, Err(Unanswered::TooMany { asked: 10 }));
    assert_eq!(impact.others.unwrap().items, []);
    entry.occurred_at = Some((SystemTime::now() + HOUR).into());
    entry.resources.truncate(1);
    let impact = sdk.impact(&entry).await.unwrap();
    assert_eq!(
        (impact.window, impact.touched[0].traffic.as_ref().unwrap().after.totals.requests()),
        (Duration::ZERO, 0)
    );
    entry.occurred_at = None;
    assert!(matches!(sdk.impact(&entry).await, Err(Error::Config { setting: "entry", .. })));
}

/// What retention has removed is said where it is missing, and the rest is told.
#[tokio::test]
async fn what_is_removed_is_said_where_it_is_missing() {
    let folder = tempfile::tempdir().unwrap();
    let now = SystemTime::now();
    let (audit_url, usage_url) =
        (database_url(Engine::Sqlite, &folder, "audit").await, database_url(Engine::Sqlite, &folder, "usage").await);
    let place = |name: &str| folder.path().join(name).display().to_string();
    let (beside, archive) = (place("beside"), place("archive"));
    let settings = [
        ("PROGRAM", "archivist"),
        ("LOG__FOLDER", beside.as_str()),
        ("RETENTION__DAYS", "1"),
        ("RETENTION__ARCHIVE", archive.as_str()),
    ];
    let mut audit = Service::start("audit", &audit_url, &settings).await;
    let mut usage = Service::start("usage", &usage_url, &[]).await;
    fill(&audit, &usage, now).await;
    let all = Everything::of(&sdk(&audit, &usage), now).await;
    usage.kill();
    let usage =
        Service::start("usage", &usage_url, &[("RETENTION__REQUESTS_DAYS", "1"), ("RETENTION__ROLLUPS_DAYS", "2")])
            .await;
    let sdk = sdk(&audit, &usage);
    let midnight = SystemTime::UNIX_EPOCH
        + Duration::from_secs(now.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs() / 86_400 * 86_400);
    let ago = |hours: u32| midnight - hours * HOUR;
    let openai = || Resource::new("provider", "openai");
    let ask = async |range: TimeRange| sdk.investigate(range, openai()).await.unwrap();
    let is_removed = |why: &Unanswered| matches!(why, Unanswered::Removed { service: "usage", message } if message.contains("kept from"));
    eventually(PATIENCE, async || ask(TimeRange::between(ago(60), ago(50))).await.traffic.is_err()).await;

    let wanted = wanted(&Touch { r#type: "provider".into(), id: "openai".into(), ..Touch::default() }, "").unwrap();
    let gone = ask(TimeRange::between(ago(60), ago(50))).await;
    assert!(is_removed(gone.traffic.as_ref().unwrap_err()), "{:?}", gone.traffic);
    assert_eq!(gone.interval, interval(ago(60), ago(50)));
    assert_eq!(
        ids(&gone.entries.unwrap().items),
        all.ids(interval(ago(70), ago(50)), |entry| names(entry, &["openai"]))
    );
    // Of a part of it there are sums, by the quarter of an hour and none by the minute.
    let found = ask(TimeRange::between(ago(25), ago(23))).await.traffic.unwrap();
    assert_eq!((found.resolution_seconds, found.after.bucket), (900, Bucket::Hour));
    assert_traffic(&all, &found, &wanted);
    let found = ask(TimeRange::between(ago(36), ago(12))).await.traffic.unwrap();
    assert!(is_removed(found.before.as_ref().unwrap_err()) && found.change.is_none(), "{found:?}");
    assert_window(&all, &found.after, &wanted);
    // An impact has the same.
    let mut entry = all.entries.iter().find(|entry| entry.action == "provider.updated").unwrap().clone();
    entry.occurred_at = Some(ago(40).into());
    let impact = sdk.impact(&entry).await.unwrap();
    let traffic = impact.touched[0].traffic.as_ref().unwrap();
    assert!(is_removed(traffic.before.as_ref().unwrap_err()), "{traffic:?}");
    assert!(impact.others.unwrap().removed.is_none());

    // Then all entries go to the archive.
    audit.kill();
    audit.archivist(now_us(), "");
    audit.start_again().await;
    let range = || TimeRange::between(ago(20), ago(10));
    let entries = async || sdk.investigate(range(), openai()).await.unwrap().entries;
    let is_archived = |why: &Unanswered| matches!(why, Unanswered::Removed { service: "audit", .. });
    eventually(PATIENCE, async || entries().await.is_err_and(|why| is_archived(&why))).await;
    assert!(sdk.investigate(range(), openai()).await.unwrap().traffic.is_ok());
    // Of what neither has there is an error, and it says whose.
    let error = sdk.investigate(range(), Resource::new("sso", "okta")).await.unwrap_err();
    assert!(matches!(&error, Error::Service(error) if error.service == Some("audit")), "{error}");
}

/// Whoever may ask one service alone is told which other it was.
#[tokio::test]
async fn a_service_that_refuses_is_named() {
    let (realm, folder) = (Realm::new(), tempfile::tempdir().unwrap());
    let settings = realm.settings();
    let settings: Vec<(&str, &str)> = settings.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    let audit = Service::start("audit", &database_url(Engine::Sqlite, &folder, "audit").await, &settings).await;
    let usage = Service::start("usage", &database_url(Engine::Sqlite, &folder, "usage").await, &settings).await;
    let at = |service: &Service| format!("https://localhost:{}", service.address().rsplit(':').next().unwrap());
    let sdk = |role: &str, instances: &[&str]| {
        let token = realm.token("ada", &[role], instances);
        let tls = Tls::new().roots_file(realm.path("clients.pem"));
        let builder = GatewaySdk::builder().usage_endpoint(at(&usage)).audit_endpoint(at(&audit));
        builder.tls(tls).credentials(Credentials::token(token)).build().unwrap()
    };
    let entry = AuditEntry {
        occurred_at: Some((SystemTime::now() - HOUR).into()),
        instance_id: "prod".into(),
        resources: vec![Touch { r#type: "model".into(), id: "gpt-4o".into(), ..Touch::default() }],
        operation: Some(activity_proto::audit::v1::Operation { stage: Stage::Outcome.into(), ..Default::default() }),
        ..AuditEntry::default()
    };
    for (role, instance, refusing) in [
        ("billing_admin", "prod", &["audit"][..]),
        ("auditor", "prod", &["usage"]),
        ("super_admin", "prod", &[]),
        // An entry of another instance, of which somebody told them: whoever is the first to refuse.
        ("super_admin", "elsewhere", &["audit", "usage"]),
    ] {
        let sdk = sdk(role, &[instance]);
        let investigated = sdk.investigate(TimeRange::last_hour(), Resource::new("model", "gpt-4o")).instance("prod");
        for result in [investigated.await.map(|_| ()), sdk.impact(&entry).await.map(|_| ())] {
            if refusing.is_empty() {
                result.unwrap();
                continue;
            }
            let error = result.unwrap_err();
            assert_eq!(error.access(), Some(AccessProblem::NotAllowed), "{role}: {error}");
            let named =
                refusing.iter().any(|service| error.to_string().starts_with(&format!("{service}: PERMISSION_DENIED")));
            assert!(named, "{role}: {error}");
        }
    }
}

#[tokio::test]
async fn both_services_are_joined_exactly_on_sqlite() {
    joined(Engine::Sqlite).await;
}

#[tokio::test]
async fn both_services_are_joined_exactly_on_postgres() {
    if !testkit::Postgres::skipped() {
        joined(Engine::Postgres).await;
    }
}
