//! Both services in one process: `standalone serve` keeps its data in a folder,
//! `standalone demo` shows what the product does, `standalone check` compares rollups
//! with their requests and logs with their trees, `standalone verify` an export with
//! what was signed.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use audit_service::verify::PinnedKey;
use chrono::{DateTime, TimeDelta, Utc};
use clap::{Args, Parser, Subcommand};
use service_core::config::{self, EXIT_CONFIG};
use service_core::{server, telemetry};
use standalone::demo::folder::Wish;
use standalone::demo::{self, Demo};
use standalone::serve::{self, Settings};
use standalone::verify::VerifyArgs;
use standalone::{check, sample, verify};
use tokio_util::sync::CancellationToken;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The audit log and usage analytics in one process, on SQLite in a folder.
///
/// The environment variables of both services apply: AUDIT_LISTEN, USAGE_LISTEN,
/// AUDIT_METRICS_LISTEN and so on; logs and traces of the process are as
/// AUDIT_TELEMETRY__LOG and its like say.
#[derive(Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: ServeArgs,
}

#[derive(Subcommand)]
enum Command {
    /// Serve from a data folder (what happens without a command, too).
    Serve(ServeArgs),
    /// Stream 30 days of a sample platform, or real data, and show the answers.
    ///
    /// The sample is a platform of a few hundred users whose request sizes and arrivals
    /// are fitted to the Azure LLM inference trace 2023; the same seed and end make the
    /// same events. With --requests or --actions nothing is made up: what has no file
    /// stays empty.
    ///
    /// --requests takes the columns TIMESTAMP,ContextTokens,GeneratedTokens. For row i
    /// (from 0) let K be "i|TIMESTAMP|ContextTokens|GeneratedTokens" as in the file, and
    /// h(x) the first 8 bytes, big-endian, of SHA-256 of "x|K". Then u = ((h("user") >>
    /// 32) % 300) * (h("user") % 300) / 300 gives user-%03d of u, team-%02d of u % 12,
    /// key-%03d-%d of u and h("key") % 2; h("model") % 10 picks of: openai gpt-4o,
    /// openai gpt-4.1-mini, openai gpt-5.4-mini, anthropic claude-sonnet-4-5, anthropic
    /// claude-haiku-4-5, google gemini-2.5-flash, google gemini-2.5-pro, mistral
    /// codestral-2508, deepseek deepseek-chat, self-hosted llama-3.3-70b-instruct. The
    /// id is a UUIDv7 of the time and the first 10 bytes of SHA-256 of "id|K". Times are
    /// cut to microseconds and moved so that the latest is --until.
    ///
    /// --actions takes CloudTrail records, one a line: eventSource and eventName give
    /// the action (ec2.create_vpc), userIdentity the actor, requestParameters the
    /// resources and, with responseElements, the changes, errorCode the outcome; the id
    /// is a UUIDv7 of the time and SHA-256 of the line. Times are moved likewise. All
    /// rules in full: documentation of the modules replay::requests, replay::actions.
    #[command(verbatim_doc_comment)]
    Demo(DemoArgs),
    /// Check all that is stored: the usage service's rollups, and the audit service's logs.
    ///
    /// Rollups are compared with their requests. Of each log every entry is hashed anew and
    /// compared with its leaf, its tile, all tiles above and every root that was signed, and
    /// the segments of its archive are read; what is not as it was written is named. The
    /// services do both in the background. Prints a line for each day that differs and each
    /// log, and a summary; the exit status is 0 when all is well, or was made anew with
    /// --repair, and 1 when not. On SQLite the services must be stopped.
    Check(CheckArgs),
    /// Verify an export of the audit log against signed checkpoints, without any server.
    ///
    /// Makes every hash anew, compares the roots at the sizes of the checkpoints, and finds
    /// gaps and what is cut off at the end. Prints what it found and how far the evidence
    /// reaches. The exit status is 0 when all is as it was signed, 1 when something was
    /// altered, 2 when entries are missing, 3 when it is not established: no key was pinned,
    /// or entries are under no checkpoint. An export of one log from its beginning, all of it
    /// and not filtered, can be verified whole.
    Verify(VerifyArgs),
}

/// One of the services.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Which {
    Usage,
    Audit,
}

#[derive(Args)]
struct CheckArgs {
    /// Only this one. Default: both, or the one that has a database by its variable.
    #[arg(value_name = "SERVICE")]
    which: Option<Which>,
    /// Where the databases are kept; USAGE_DATABASE_URL and AUDIT_DATABASE_URL come before it.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Make anew what differs of usage. Of an audit log nothing is ever made anew.
    #[arg(long)]
    repair: bool,
    /// Checkpoints of logs that were kept elsewhere, as for `verify`. They are compared beside
    /// those in the service's own folder. Again for more files.
    #[arg(long, value_name = "FILE")]
    checkpoints: Vec<PathBuf>,
    /// A key that they are signed with, as for `verify`. Again for more.
    #[arg(long = "key", value_name = "KEY")]
    keys: Vec<PinnedKey>,
}

#[derive(Args)]
struct ServeArgs {
    /// Where the databases are kept; made if there is none.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Where the audit service listens; default AUDIT_LISTEN or 127.0.0.1:50051, port 0
    /// takes a free one.
    #[arg(long, value_name = "ADDR", value_parser = config::address)]
    audit_listen: Option<SocketAddr>,
    /// Where the usage service listens; default USAGE_LISTEN or 127.0.0.1:50052, port 0
    /// takes a free one.
    #[arg(long, value_name = "ADDR", value_parser = config::address)]
    usage_listen: Option<SocketAddr>,
}

#[derive(Args)]
struct DemoArgs {
    /// Replay these requests (the Azure trace's columns, CSV).
    #[arg(long, value_name = "FILE.csv")]
    requests: Option<PathBuf>,
    /// Replay these actions (CloudTrail records, JSONL).
    #[arg(long, value_name = "FILE.jsonl")]
    actions: Option<PathBuf>,
    /// Decides all that is drawn in the sample; default 1.
    #[arg(long)]
    seed: Option<u64>,
    /// Days of the sample; default 30.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=i64::from(sample::MOST_DAYS)))]
    days: Option<u32>,
    /// Users of the sample; default 300.
    #[arg(long, value_parser = users)]
    users: Option<usize>,
    /// Requests of the sample; default 90000.
    #[arg(long)]
    events: Option<usize>,
    /// When the data ends, RFC 3339; default now.
    #[arg(long, value_name = "TIME", value_parser = until)]
    until: Option<DateTime<Utc>>,
    /// Keep the databases here, and what they were made with: another run repeats
    /// exactly that. Default a temporary folder that goes in the end.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Where the audit service listens; default 127.0.0.1:50051, or a free port if
    /// that is taken.
    #[arg(long, value_name = "ADDR", value_parser = config::address)]
    audit_listen: Option<SocketAddr>,
    /// Where the usage service listens; default 127.0.0.1:50052, or a free port if
    /// that is taken.
    #[arg(long, value_name = "ADDR", value_parser = config::address)]
    usage_listen: Option<SocketAddr>,
    /// End after printing, instead of serving until Ctrl-C.
    #[arg(long)]
    exit: bool,
}

/// From 2001 on, so that the whole sample is in the services' years.
const EARLIEST: TimeDelta = TimeDelta::days(11_323);
/// How far ahead of their clocks the services take events.
const AHEAD: TimeDelta = TimeDelta::minutes(5);

fn users(text: &str) -> Result<usize, String> {
    let allowed = sample::FEWEST_USERS..=sample::MOST_USERS;
    match text.parse() {
        Ok(count) if allowed.contains(&count) => Ok(count),
        _ => Err(format!("allowed are {} to {}", allowed.start(), allowed.end())),
    }
}

fn until(text: &str) -> Result<DateTime<Utc>, String> {
    let time: DateTime<Utc> =
        text.parse().map_err(|_| "wanted is a time in RFC 3339, such as 2026-03-01T12:00:00Z".to_owned())?;
    let (earliest, latest) = (DateTime::<Utc>::UNIX_EPOCH + EARLIEST, Utc::now() + AHEAD);
    if (earliest..=latest).contains(&time) {
        return Ok(time);
    }
    Err(format!("allowed are times from {} to now", earliest.format("%Y-%m-%dT%H:%M:%SZ")))
}

#[tokio::main]
async fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help goes to standard output; if that is closed there is nobody to tell.
            let _ = error.print();
            return if error.use_stderr() { EXIT_CONFIG.into() } else { ExitCode::SUCCESS };
        }
    };
    let outcome = match cli.command {
        Some(Command::Demo(args)) => run_demo(args).await.map(|()| ExitCode::SUCCESS),
        Some(Command::Serve(args)) => run_serve(args).await.map(|()| ExitCode::SUCCESS),
        Some(Command::Check(args)) => run_check(args).await,
        Some(Command::Verify(args)) => verify::run(args).map(ExitCode::from),
        None => run_serve(cli.serve).await.map(|()| ExitCode::SUCCESS),
    };
    match outcome {
        Ok(status) => status,
        Err(error) => {
            eprintln!("standalone: {}", server::explain(&error));
            standalone::exit_code(&error).into()
        }
    }
}

/// Variables that are text; others cannot be ours.
fn environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
}

/// Cancelled at SIGTERM or SIGINT.
fn stop_at_signal() -> CancellationToken {
    let stop = CancellationToken::new();
    let signal = server::shutdown_signal();
    tokio::spawn({
        let stop = stop.clone();
        async move {
            signal.await;
            stop.cancel();
        }
    });
    stop
}

async fn run_serve(args: ServeArgs) -> Result<()> {
    let Some(data_dir) = args.data_dir else {
        return Err(standalone::refused("--data-dir DIR is required"));
    };
    let settings = Settings { data_dir, audit_listen: args.audit_listen, usage_listen: args.usage_listen };
    let configs = serve::configs(&settings, environment())?;
    let _telemetry = telemetry::init(&configs.audit.telemetry, "standalone")?;
    serve::warn_of_unknown(environment());
    let stop = stop_at_signal();
    let pair = serve::bind(&settings, configs).await?;
    let (audit, usage) = pair.addresses()?;
    println!("ready audit={audit} usage={usage}");
    pair.serve(stop).await
}

async fn run_check(args: CheckArgs) -> Result<ExitCode> {
    let wanted = |which| args.which.is_none_or(|only| only == which);
    let (usage, audit) = match args.data_dir {
        Some(data_dir) => {
            let configs = serve::configs(&Settings { data_dir, ..Settings::default() }, environment())?;
            (Some(configs.usage), Some(configs.audit))
        }
        None => {
            let is_set = |variable| environment().any(|(name, _)| name == variable);
            let usage = is_set("USAGE_DATABASE_URL")
                .then(|| config::load(usage_service::config::ENV_PREFIX, None, environment()));
            let audit = is_set("AUDIT_DATABASE_URL").then(|| serve::audit(environment()));
            (usage.transpose()?, audit.transpose()?)
        }
    };
    let (usage, audit) = (usage.filter(|_| wanted(Which::Usage)), audit.filter(|_| wanted(Which::Audit)));
    let telemetry = usage.as_ref().map(|usage| &usage.telemetry).or(audit.as_ref().map(|audit| &audit.telemetry));
    let Some(telemetry) = telemetry else {
        let variables = "USAGE_DATABASE_URL or AUDIT_DATABASE_URL";
        return Err(standalone::refused(format!("--data-dir DIR is required, or {variables}")));
    };
    let _telemetry = telemetry::init(telemetry, "standalone-check")?;
    let mut well = true;
    if let Some(usage) = &usage {
        well &= check::usage(usage, args.repair).await?;
    }
    if let Some(audit) = &audit {
        well &= check::audit(audit, &args.checkpoints, args.keys).await?;
    }
    Ok(if well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn run_demo(args: DemoArgs) -> Result<()> {
    let demo = Demo {
        requests: args.requests,
        actions: args.actions,
        wish: Wish {
            seed: args.seed,
            days: args.days,
            users: args.users,
            events: args.events,
            until_us: args.until.map(|time| time.timestamp_micros()),
        },
        data_dir: args.data_dir,
        audit_listen: args.audit_listen,
        usage_listen: args.usage_listen,
        exit: args.exit,
    };
    demo::run(demo, environment(), stop_at_signal()).await
}
