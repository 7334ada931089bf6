//! The demo: both services, a sample gateway and a sample admin application that
//! stream to them through the SDK, and the answers.

pub mod ask;
pub mod chart;
pub mod folder;
pub mod investigate;
pub mod recipes;
pub mod report;
pub mod show;
pub mod stream;

use std::fs::{self, File};
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use activity_proto::audit::v1::AuditEvent;
use activity_proto::usage::v1::{Dimension, UsageEvent};
use anyhow::{Context, Result, bail};
use gateway_sdk::{AuditFilter, GatewaySdk, RejectedEvent};
use tokio_util::sync::CancellationToken;

use self::ask::{Ask, Range};
use self::folder::{Settled, Wish};
use self::recipes::Subject;
use crate::replay;
use crate::sample::Plan;
use crate::sample::actions::actions;
use crate::sample::traffic::Traffic;
use crate::serve::{self, Settings};
use crate::time::{DAY_US, SECOND_US, now_us, rfc3339};

/// How long the SDK may take to hand over what it still holds at the end.
const HAND_OVER: Duration = Duration::from_secs(10);

/// What the demo is to do.
#[derive(Debug)]
pub struct Demo {
    /// Replay this file instead of making requests up.
    pub requests: Option<PathBuf>,
    /// Replay this file instead of making actions up.
    pub actions: Option<PathBuf>,
    /// What to make up, and when either ends.
    pub wish: Wish,
    /// Where to keep the databases; a temporary folder if not given.
    pub data_dir: Option<PathBuf>,
    /// Where the audit service listens.
    pub audit_listen: Option<SocketAddr>,
    /// Where the usage service listens.
    pub usage_listen: Option<SocketAddr>,
    /// End after printing.
    pub exit: bool,
}

/// What is streamed: made up as it goes, or read from files.
struct Source {
    requests: Box<dyn Iterator<Item = UsageEvent> + Send>,
    request_count: usize,
    actions: Vec<AuditEvent>,
}

/// Runs the demo until it is done or stopped.
///
/// # Errors
///
/// Files that cannot be replayed, services that cannot start, and answers that fail.
pub async fn run(demo: Demo, env: impl IntoIterator<Item = (String, String)>, stop: CancellationToken) -> Result<()> {
    // Lives until the end: dropped, the folder goes.
    let mut temporary = None;
    let data_dir = match &demo.data_dir {
        Some(folder) => folder.clone(),
        None => {
            let folder = tempfile::Builder::new().prefix("activity-demo-").tempdir()?;
            let path = folder.path().to_owned();
            temporary = Some(folder);
            path
        }
    };
    let files = [("requests", demo.requests.as_deref()), ("actions", demo.actions.as_deref())];
    let settled = folder::settle(&data_dir, &demo.wish, files, now_us())?;
    let source = source(&demo, &settled.plan)?;
    let opening = opening(&data_dir, temporary.is_some(), &settled);
    let settings = Settings {
        data_dir,
        audit_listen: Some(demo.audit_listen.unwrap_or_else(|| free_or(50051))),
        usage_listen: Some(demo.usage_listen.unwrap_or_else(|| free_or(50052))),
    };
    let mut configs = serve::configs(&settings, quiet(env))?;
    // What is shown is the platform's, and the same in every run.
    configs.audit.activity.instance = String::new();
    let _telemetry = service_core::telemetry::init(&configs.audit.telemetry, "standalone-demo")?;
    let pair = serve::bind(&settings, configs).await?;
    let addresses = pair.addresses()?;

    let shutdown = CancellationToken::new();
    let serving = tokio::spawn(pair.serve(shutdown.clone()));
    let shown = tokio::select! {
        shown = show(&demo, &settled.plan, &opening, source, addresses) => shown,
        () = shutdown.cancelled() => Ok(()),
        () = stop.cancelled() => Ok(()),
    };
    if shown.is_ok() && !demo.exit && !stop.is_cancelled() && !shutdown.is_cancelled() {
        tokio::select! {
            () = stop.cancelled() => {}
            () = shutdown.cancelled() => {}
        }
    }
    shutdown.cancel();
    let served = serving.await.context("the services' task")?;
    drop(temporary);
    match shown {
        // Whoever reads has read enough: `demo | head`.
        Err(error) if error.downcast_ref::<std::io::Error>().is_some_and(is_broken_pipe) => served,
        shown => shown.and(served),
    }
}

fn is_broken_pipe(error: &std::io::Error) -> bool {
    error.kind() == std::io::ErrorKind::BrokenPipe
}

/// Prints at once. A reader that has gone is an error and no panic: the databases in
/// the temporary folder want to be closed before the folder goes.
fn say(text: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// The environment, with metrics off and fewer logs unless it says otherwise: on a
/// terminal the demo's own lines are what counts.
fn quiet(env: impl IntoIterator<Item = (String, String)>) -> Vec<(String, String)> {
    let mut variables: Vec<(String, String)> = env
        .into_iter()
        // The demo's data are its own, whatever database the shell is set up for.
        .filter(|(name, _)| !name.ends_with("_DATABASE_URL"))
        .collect();
    for (name, value) in [("AUDIT_METRICS_LISTEN", ""), ("USAGE_METRICS_LISTEN", ""), ("AUDIT_TELEMETRY__LOG", "error")]
    {
        if !variables.iter().any(|(other, _)| other == name) {
            variables.push((name.into(), value.into()));
        }
    }
    variables
}

/// The port of the contract where it is free, so that the commands of the
/// documentation work as they stand; otherwise any.
fn free_or(port: u16) -> SocketAddr {
    let wanted = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    match std::net::TcpListener::bind(wanted) {
        Ok(_) => wanted,
        Err(_) => SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
    }
}

/// Where the data are, and what is made of them.
fn opening(folder: &Path, is_temporary: bool, settled: &Settled) -> String {
    let Plan { seed, days, users, events, until_us } = settled.plan;
    let folder = show::inert(&folder.display().to_string());
    match (is_temporary, settled.again) {
        (true, _) => format!("Data in {folder}, which goes in the end; --data-dir DIR keeps it.\n"),
        (false, false) => format!("Data in {folder}.\n"),
        (false, true) => format!(
            "Data in {folder}, which holds this demo already: --seed {seed} --days {days} --users {users} \
             --events {events} --until {}. The same again:\n",
            rfc3339(until_us)
        ),
    }
}

fn source(demo: &Demo, plan: &Plan) -> Result<Source> {
    if demo.requests.is_none() && demo.actions.is_none() {
        return Ok(Source {
            requests: Box::new(Traffic::new(plan)),
            request_count: plan.events,
            actions: actions(plan),
        });
    }
    let until_us = plan.until_us;
    let requests = match &demo.requests {
        None => Vec::new(),
        Some(path) => File::open(path)
            .map_err(anyhow::Error::from)
            .and_then(|file| Ok(replay::requests::requests(file, until_us)?))
            .with_context(|| format!("cannot replay {}", path.display()))?,
    };
    let actions = match &demo.actions {
        None => Vec::new(),
        Some(path) => fs::read_to_string(path)
            .map_err(anyhow::Error::from)
            .and_then(|text| Ok(replay::actions::actions(&text, until_us)?))
            .with_context(|| format!("cannot replay {}", path.display()))?,
    };
    Ok(Source { request_count: requests.len(), requests: Box::new(requests.into_iter()), actions })
}

/// Streams, asks and prints.
async fn show(
    demo: &Demo,
    plan: &Plan,
    opening: &str,
    source: Source,
    (audit, usage): (SocketAddr, SocketAddr),
) -> Result<()> {
    say(opening)?;
    let refusal = Arc::new(OnceLock::new());
    let on_rejected = {
        let refusal = Arc::clone(&refusal);
        move |rejected: RejectedEvent| {
            refusal.get_or_init(|| rejected.rejection.to_string());
        }
    };
    let gateway = GatewaySdk::builder()
        .on_rejected(on_rejected.clone())
        .usage_endpoint(format!("http://{usage}"))
        .producer_id("sample-gateway")
        .build()?;
    let admin = GatewaySdk::builder()
        .on_rejected(on_rejected)
        .audit_endpoint(format!("http://{audit}"))
        .usage_endpoint(format!("http://{usage}"))
        .producer_id("sample-admin-application")
        .build()?;

    let began = Instant::now();
    let action_count = source.actions.len();
    let streamed = stream::stream(&gateway, &admin, source.requests, source.request_count, source.actions).await?;
    if streamed.requests != source.request_count as u64 || streamed.actions != action_count as u64 {
        // What is not refused is only ever given up for want of room.
        let why = refusal.get().map_or("there was no room for it", String::as_str);
        let stored = streamed.requests + streamed.actions;
        let missing = (source.request_count + action_count) as u64 - stored;
        bail!("{} events were not stored; the first: {}", show::count(missing), show::inert(why));
    }
    say(&format!(
        "Streamed {} requests and {} administrative actions in {:.1} s; all of them are on disk.\n",
        show::count(streamed.requests),
        show::count(streamed.actions),
        began.elapsed().as_secs_f64()
    ))?;
    if streamed.duplicates > 0 {
        say(&format!(
            "The folder had {} of these events already; each is stored once.\n",
            show::count(streamed.duplicates)
        ))?;
    }

    // Whole seconds, so that it reads well; the last event may be at the very end.
    let end_us = (plan.until_us.div_euclid(SECOND_US) + 1) * SECOND_US;
    let range = Range { start_us: end_us - i64::from(plan.days) * DAY_US, end_us };
    let ask = Ask::new(&admin);
    print(&ask, range, (audit, usage)).await?;
    if !demo.exit {
        say(&format!("Serving audit={audit} usage={usage} until Ctrl-C.\n"))?;
    }
    for sdk in [gateway, admin] {
        let _ = sdk.shutdown(HAND_OVER).await;
    }
    Ok(())
}

async fn print(ask: &Ask, range: Range, (audit, usage): (SocketAddr, SocketAddr)) -> Result<()> {
    say(&report::totals(ask, range).await?)?;
    for dimension in [Dimension::User, Dimension::Model, Dimension::Provider, Dimension::ApiKey] {
        say(&report::breakdown(ask, range, dimension).await?)?;
    }
    say(&report::cost_chart(ask, range).await?)?;
    say(&report::latest_entries(ask, range).await?)?;
    let finding = investigate::investigate(ask, range).await?;
    say(&report::investigation(finding.as_ref()))?;

    let top_user = ask.breakdown(range, Dimension::User, 1).await?.rows.into_iter().next();
    let latest = ask.entries(range, AuditFilter::new(), 1, true).await?.into_iter().next();
    let subject = Subject {
        audit: audit.to_string(),
        usage: usage.to_string(),
        range: (range.start_us, range.end_us),
        model: finding.and_then(|finding| finding.model),
        user: top_user.and_then(|row| row.keys.into_iter().next()).filter(|user| !user.is_empty()),
        instance: latest.map(|entry| entry.instance_id),
    };
    say("\nAsk further, from another shell:\n\n")?;
    for recipe in recipes::recipes(&subject) {
        say(&format!("  # {}\n  {}\n\n", recipe.question, show::inert(&recipe.command())))?;
    }
    Ok(())
}
