//! The sample gateway and the sample admin application: everything goes to the
//! services through the SDK, as a platform would do it.

use std::io::Write;
use std::time::{Duration, Instant};

use activity_proto::audit::v1::AuditEvent;
use activity_proto::usage::v1::UsageEvent;
use anyhow::{Context, Result, bail};
use futures::{StreamExt, stream};
use gateway_sdk::{Error, GatewaySdk};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::show;

/// How long the gateway waits for room in the SDK's queue: storage that takes
/// nothing for so long is broken.
const ROOM: Duration = Duration::from_secs(60);
/// How long all of it may wait for its acknowledgement in the end.
const LAST: Duration = Duration::from_secs(120);
/// How often the progress is looked at.
const LOOK: Duration = Duration::from_millis(100);
/// How many actions are recorded at once. The SDK takes them in order.
const AT_ONCE: usize = 64;

/// What the services acknowledged.
#[derive(Clone, Debug, Default)]
pub struct Streamed {
    /// Requests on disk, duplicates among them.
    pub requests: u64,
    /// Actions on disk, duplicates among them.
    pub actions: u64,
    /// Those of both that were there already.
    pub duplicates: u64,
    /// Events that were refused for good.
    pub refused: u64,
}

/// Streams both at once, and comes back when everything has its answer.
///
/// # Errors
///
/// Services that take nothing for a minute.
pub async fn stream(
    gateway: &GatewaySdk,
    admin: &GatewaySdk,
    requests: impl Iterator<Item = UsageEvent>,
    request_count: usize,
    actions: Vec<AuditEvent>,
) -> Result<Streamed> {
    let progress = MultiProgress::with_draw_target(ProgressDrawTarget::stderr());
    let request_bar = Bar::new(&progress, "requests", request_count);
    let action_bar = Bar::new(&progress, "actions", actions.len());
    let (sent, recorded) =
        tokio::join!(send_requests(gateway, requests, &request_bar), record_actions(admin, actions, &action_bar));
    sent?;
    recorded?;
    let (usage, audit) = (gateway.stats().usage, admin.stats().audit);
    Ok(Streamed {
        requests: usage.acknowledged,
        actions: audit.acknowledged,
        duplicates: usage.duplicates + audit.duplicates,
        refused: usage.rejected + usage.dropped + audit.rejected + audit.dropped,
    })
}

async fn send_requests(gateway: &GatewaySdk, requests: impl Iterator<Item = UsageEvent>, bar: &Bar) -> Result<()> {
    let mut looked = Instant::now();
    for request in requests {
        let event = gateway_sdk::UsageEvent::from_proto(request);
        gateway.usage().record_wait(event, ROOM).await.context("the usage service takes no requests")?;
        if looked.elapsed() >= LOOK {
            looked = Instant::now();
            bar.at(gateway.stats().usage.acknowledged);
            tokio::task::yield_now().await;
        }
    }
    let deadline = Instant::now() + LAST;
    while !gateway.flush(LOOK).await.is_complete() {
        bar.at(gateway.stats().usage.acknowledged);
        if Instant::now() > deadline {
            let why = gateway.stats().usage.last_error.unwrap_or_else(|| "no answer".into());
            bail!("the usage service does not acknowledge: {why}");
        }
    }
    bar.done(gateway.stats().usage.acknowledged);
    Ok(())
}

/// Records all of them in order. Those that are refused the caller learns of from the
/// counters and from the SDK's callback.
async fn record_actions(admin: &GatewaySdk, actions: Vec<AuditEvent>, bar: &Bar) -> Result<()> {
    let mut answers = stream::iter(actions)
        .map(|action| {
            let event = gateway_sdk::AuditEvent::from_proto(action);
            async move { admin.audit().record(event).await }
        })
        .buffered(AT_ONCE);
    while let Some(answer) = answers.next().await {
        match answer {
            Ok(_) | Err(Error::Rejected(_)) => {}
            Err(error) => return Err(error).context("the audit service takes no actions"),
        }
        bar.at(admin.stats().audit.acknowledged);
    }
    bar.done(admin.stats().audit.acknowledged);
    Ok(())
}

/// A progress bar on a terminal, and a line every tenth elsewhere.
struct Bar {
    bar: ProgressBar,
    name: &'static str,
    total: u64,
    tenths: std::cell::Cell<u64>,
}

impl Bar {
    fn new(progress: &MultiProgress, name: &'static str, total: usize) -> Self {
        let total = total as u64;
        let bar = progress.add(ProgressBar::new(total).with_message(name));
        if let Ok(style) = ProgressStyle::with_template("  {msg:9} {bar:40} {human_pos}/{human_len}  {eta}") {
            bar.set_style(style.progress_chars("█▓░"));
        }
        Self { bar, name, total, tenths: std::cell::Cell::new(0) }
    }

    fn at(&self, position: u64) {
        self.bar.set_position(position);
        let tenths = (position * 10).checked_div(self.total).unwrap_or(10);
        if self.bar.is_hidden() && tenths > self.tenths.get() {
            self.tenths.set(tenths);
            // With nobody to read it, progress is no loss.
            let (at, total) = (show::count(position), show::count(self.total));
            let _ = writeln!(std::io::stderr(), "{at} of {total} {} on disk", self.name);
        }
    }

    fn done(&self, position: u64) {
        self.at(position);
        self.bar.finish();
    }
}
