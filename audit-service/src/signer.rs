//! Signing the logs: a checkpoint soon after new entries, a cosignature now and then, and what was signed kept outside
//! the database, so that a database which was put back or changed is found out.
//!
//! ```text
//! commit ─▶ grown ─▶ (half a second) ─▶ lock the heads ─▶ does the tree begin as the one signed last?
//!                                                          │ yes                        │ no
//!                        state file, synced ◀── sign ◀─────┘                            └─▶ Fork: nothing is written
//!                               └─▶ checkpoint in the database, commit ─▶ shown             any more, NOT_SERVING
//! ```
//!
//! A checkpoint that is in the state file and not in the database is of entries that were committed before: it is true,
//! and the next one goes on from it. What another replica signed is checked and put into this one's state file before
//! it is shown here.

mod keys;
mod state;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use audit_proof::PinnedKey;
use service_core::auth::Access;
use service_core::clock;
use service_core::config::{ConfigError, DatabaseUrl};
use service_core::error::{Error, Result};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::checker::Trusted;
use crate::checkpoint::{Checkpoint, VerifierKey};
use crate::config::LogConfig;
use crate::merkle::{Plan, verify_consistency};
use crate::store::{Heads, LogEnd, NewCheckpoint, Signable, Signing, Store, TreeHead, damaged_log};

use keys::Keys;
use state::State;

/// Logs whose heads are locked at once.
const TOGETHER: usize = 64;
/// After a failure.
const PAUSE: Duration = Duration::from_secs(1);

/// Signs. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Signer(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    store: Store,
    keys: Keys,
    folder: PathBuf,
    interval: Duration,
    silence_s: u64,
    /// Written to and synced by threads that may wait, which no task does.
    state: Mutex<State>,
    /// What it has last of each log.
    last: Mutex<BTreeMap<String, Checkpoint>>,
    /// Of each log, the first size that the key has signed which is not retiring.
    since: Mutex<BTreeMap<String, u64>>,
    grown: Mutex<BTreeSet<String>>,
    wake: Notify,
    /// Who waits for what is signed.
    signed: Notify,
    fork: OnceLock<String>,
}

impl Signer {
    /// Opens what is kept outside the database, and compares the database with it. `None` where there is no place for
    /// it: nothing is signed.
    ///
    /// A database that does not fit is no error here: it can be read, and says why it cannot be written.
    pub(crate) async fn open(config: &LogConfig, url: &DatabaseUrl, store: Store) -> anyhow::Result<Option<Self>> {
        let Some(folder) = folder(config, url) else {
            if let Some(key) = config.only_with_a_folder() {
                let why = format!("log.{key} is set, and log.folder is not, where what was signed is kept");
                return Err(ConfigError::Refused(why).into());
            }
            tracing::warn!("checkpoints are not signed: on PostgreSQL log.folder says where keys and checkpoints are");
            return Ok(None);
        };
        if config.folder.is_none() {
            tracing::warn!(
                folder = %folder.display(),
                "what was signed is kept beside the database: who can change the one can change the other; log.folder \
                 names another place"
            );
        }
        let known = store.signing_keys().await?;
        let opened = (|| {
            std::fs::create_dir_all(&folder)?;
            let state = State::open(&folder, &config.origin)?;
            anyhow::Ok((Keys::load(config, &folder, &known, state.is_empty())?, state))
        })();
        let (keys, state) =
            opened.with_context(|| format!("cannot sign the log with what is in {}", folder.display()))?;
        let since = store.first_signed(&keys.primary().to_string()).await?;
        let signer = Self(Arc::new(Inner {
            store,
            keys,
            folder,
            interval: Duration::from_millis(config.checkpoint_interval_ms.get()),
            silence_s: config.silence_interval_ms.get().div_ceil(1_000),
            last: Mutex::new(state.all().into_iter().collect()),
            state: Mutex::new(state),
            since: Mutex::new(since),
            grown: Mutex::default(),
            wake: Notify::new(),
            signed: Notify::new(),
            fork: OnceLock::new(),
        }));
        let signed = lock(&signer.0.last).clone();
        for (instance_id, last) in signed {
            signer.0.store.was_signed(&instance_id, last.size);
            signer.fits(&instance_id, &last).await?;
        }
        signer.compare_newest().await?;
        Ok(Some(signer))
    }

    /// Compares the database with what it says itself was signed: all there is to go by where the state file is behind,
    /// or was taken away. What fits is kept.
    async fn compare_newest(&self) -> Result<()> {
        let mut after = String::new();
        loop {
            let page = self.0.store.newest_checkpoints(&after).await?;
            let Some((end, _)) = page.last() else { return Ok(()) };
            after.clone_from(end);
            let foreign = self.take_over(page).await?;
            // They are signed anew.
            lock(&self.0.grown).extend(foreign);
        }
    }

    /// Takes over what other replicas have signed: should it be lost, it is missed here too.
    pub(crate) async fn follow(&self, ends: &[LogEnd]) -> Result<()> {
        let mut notes = Vec::new();
        for LogEnd { instance_id, signed, .. } in ends {
            if self.last(instance_id).is_none_or(|last| last.size < *signed)
                && let Some(note) = self.0.store.checkpoint(&Access::unrestricted(), instance_id, None).await?
            {
                notes.push((instance_id.clone(), note));
            }
        }
        self.take_over(notes).await.map(drop)
    }

    /// Keeps those of the database's notes that fit it, where less is kept; the instances of those that are not ours.
    async fn take_over(&self, notes: Vec<(String, String)>) -> Result<Vec<String>> {
        let (mut behind, mut foreign) = (Vec::new(), Vec::new());
        for (instance_id, note) in notes {
            let Some(newest) = self.ours(&instance_id, &note) else {
                foreign.push(instance_id);
                continue;
            };
            let last = self.last(&instance_id);
            if last.as_ref() != Some(&newest) && self.fits(&instance_id, &newest).await? {
                self.0.store.was_signed(&instance_id, newest.size);
                if last.is_none_or(|last| last.size < newest.size) {
                    behind.push((instance_id, note));
                }
            }
        }
        self.keep(behind).await?;
        Ok(foreign)
    }

    /// Whether a log begins with what was signed. One that is damaged is reported, and keeps no other from being served.
    async fn fits(&self, instance_id: &str, signed: &Checkpoint) -> Result<bool> {
        let compared = match self.head(&Access::unrestricted(), instance_id).await {
            Ok(head) => self.compare(None, instance_id, signed, &head).await,
            Err(error) => Err(error),
        };
        compared.or_else(|error| match damaged_log(&error) {
            Some(_) => {
                unsignable(instance_id, &error);
                Ok(false)
            }
            None => Err(error),
        })
    }

    /// What was signed of the logs of a database that nobody serves, as far as it is known beside it: nothing is made.
    pub(crate) fn trusted_beside(config: &LogConfig, url: &DatabaseUrl) -> anyhow::Result<Trusted> {
        let Some(folder) = folder(config, url) else { return Ok(Trusted::default()) };
        let keys = keys::there(config, &folder)?.into_iter().map(PinnedKey::from).collect();
        Ok(Trusted { keys, kept: state::there(&folder, &config.origin)? })
    }

    async fn head(&self, access: &Access, instance_id: &str) -> Result<TreeHead> {
        let head = self.0.store.tree_head(access, instance_id).await?;
        Ok(head.unwrap_or(TreeHead { size: 0, root: crate::merkle::empty_root() }))
    }

    /// What a note of the database says, if it is of this log and signed by a key of ours. Whoever can write to the
    /// database can put another one there, which is worth nothing.
    fn ours(&self, instance_id: &str, note: &str) -> Option<Checkpoint> {
        let since = lock(&self.0.since).get(instance_id).copied();
        match self.0.keys.read(instance_id, note, since) {
            Ok(checkpoint) => Some(checkpoint),
            Err(error) => {
                tracing::error!(instance_id, %error, "a checkpoint in the database is passed over: it is not this log's by a key that signs now");
                None
            }
        }
    }

    /// The keys with which checkpoints are signed now.
    pub(crate) fn verifiers(&self) -> Vec<VerifierKey> {
        self.0.keys.verifiers()
    }

    /// How long a log may be silent before it is cosigned again.
    pub(crate) fn silence(&self) -> Duration {
        Duration::from_secs(self.0.silence_s)
    }

    /// What was signed, as is known here, and by which keys.
    pub(crate) fn trusted(&self) -> Trusted {
        let kept = lock(&self.0.last).iter().map(|(instance, last)| (instance.clone(), last.clone())).collect();
        Trusted { keys: self.0.keys.logs().into_iter().map(PinnedKey::from).collect(), kept }
    }

    /// Refuses while the database does not fit what was signed.
    pub(crate) fn check(&self) -> Result<()> {
        match self.0.fork.get() {
            None => Ok(()),
            Some(why) => Err(Error::storage_unavailable(anyhow::anyhow!("{why}"))),
        }
    }

    /// These logs have new entries.
    pub(crate) fn grown(&self, heads: &Heads) {
        if !heads.is_empty() {
            lock(&self.0.grown).extend(heads.keys().cloned());
            self.0.wake.notify_one();
        }
    }

    /// Resolves when something is signed after this call.
    pub(crate) fn signed(&self) -> impl Future<Output = ()> + '_ {
        self.0.signed.notified()
    }

    /// Signs what has grown, and what has been silent, until `stop`; and then what is left.
    pub(crate) async fn run(self, stop: CancellationToken) {
        while self.0.fork.get().is_none() {
            tokio::select! {
                () = stop.cancelled() => break,
                () = self.0.wake.notified() => {}
            }
            let pause = if self.sign_all().await {
                self.0.interval
            } else {
                self.0.wake.notify_one();
                PAUSE
            };
            let _ = stop.run_until_cancelled(tokio::time::sleep(pause)).await;
        }
        self.sign_all().await;
    }

    /// Takes logs that have entries under no checkpoint, that a replica may have left behind, that were last signed long
    /// ago, or that have fewer entries than were signed.
    pub(crate) fn sweep(&self, ends: &[LogEnd]) {
        let now_s = now_s();
        let waits =
            |end: &&LogEnd| end.entries > 0 && (end.signed != end.entries || self.is_silent(end.cosigned_at_s, now_s));
        let waiting: Vec<String> = ends.iter().filter(waits).map(|end| end.instance_id.clone()).collect();
        self.take(waiting);
    }

    /// Whether a log was cosigned so long ago that it is to be cosigned again, or by a clock that was ahead.
    fn is_silent(&self, cosigned_at_s: u64, now_s: u64) -> bool {
        let silence_s = self.0.silence_s;
        cosigned_at_s.saturating_add(silence_s) <= now_s || cosigned_at_s > now_s.saturating_add(silence_s)
    }

    /// Takes logs that have fewer entries than were signed, or of which nothing is left.
    pub(crate) fn sweep_lost(&self, entries: &BTreeMap<String, u64>) {
        let last = lock(&self.0.last);
        let lost = |(instance, last): &(&String, &Checkpoint)| entries.get(*instance).copied().unwrap_or(0) < last.size;
        let lost: Vec<String> = last.iter().filter(lost).map(|(instance, _)| instance.clone()).collect();
        drop(last);
        self.take(lost);
    }

    fn take(&self, instances: Vec<String>) {
        if !instances.is_empty() {
            lock(&self.0.grown).extend(instances);
            self.0.wake.notify_one();
        }
    }

    /// Signs all that has grown; whether that went well. What fails is tried again, with what comes until then.
    async fn sign_all(&self) -> bool {
        let mut grown: Vec<String> = std::mem::take(&mut *lock(&self.0.grown)).into_iter().collect();
        while !grown.is_empty() && self.0.fork.get().is_none() {
            let rest = grown.split_off(grown.len().min(TOGETHER));
            if let Err(error) = self.sign(&grown).await {
                tracing::warn!(%error, cause = ?std::error::Error::source(&error), "checkpoints are not signed; they will be tried again");
                lock(&self.0.grown).extend(grown.into_iter().chain(rest));
                return false;
            }
            grown = rest;
        }
        true
    }

    async fn sign(&self, instances: &[String]) -> Result<()> {
        let mut signing = self.0.store.begin_signing(instances).await?;
        let now_s = now_s();
        let mut made: Vec<NewCheckpoint> = Vec::new();
        for (instance_id, Signable { head, newest, cosigned_at_s }) in signing.take() {
            let newest = newest.and_then(|note| self.ours(&instance_id, &note));
            match self.compare_both(&signing, &instance_id, newest.as_ref(), &head).await {
                Ok(true) => {}
                Ok(false) => {
                    signing.give_up().await?;
                    return Ok(());
                }
                Err(error) => {
                    unsignable(&instance_id, &error);
                    continue;
                }
            }
            let silent = self.is_silent(cosigned_at_s, now_s);
            if head.size > 0 && (newest.is_none_or(|newest| newest.size < head.size) || silent) {
                made.push(self.0.keys.checkpoint(&instance_id, head, now_s)?);
            }
        }
        self.keep(made.iter().map(|made| (made.instance_id.clone(), made.note.clone())).collect()).await?;
        for made in &made {
            self.0.store.was_signed(&made.instance_id, made.head.size);
            lock(&self.0.since).entry(made.instance_id.clone()).or_insert(made.head.size);
        }
        signing.finish(&made, &self.verifiers()).await?;
        self.0.signed.notify_waiters();
        Ok(())
    }

    /// Puts notes that were just made, or found to be [`ours`](Self::ours), into the state file, on disk.
    async fn keep(&self, notes: Vec<(String, String)>) -> Result<()> {
        if notes.is_empty() {
            return Ok(());
        }
        let signer = self.clone();
        let kept = tokio::task::spawn_blocking(move || {
            let mut state = lock(&signer.0.state);
            state.append(&notes)?;
            let last = notes.iter().filter_map(|(instance, _)| Some((instance.clone(), state.last(instance)?.clone())));
            lock(&signer.0.last).extend(last);
            anyhow::Ok(())
        });
        let kept = kept.await;
        let kept = kept.map_err(Error::internal)?;
        kept.with_context(|| format!("checkpoints cannot be kept in {}", self.0.folder.display()))
            .map_err(Error::storage_unavailable)
    }

    /// The note of the newest checkpoint of a log, or of the oldest over at least so many entries.
    ///
    /// The database's, once it fits what is kept outside; which it is then part of.
    pub(crate) async fn checkpoint(
        &self,
        access: &Access,
        instance_id: &str,
        least: Option<u64>,
    ) -> Result<Option<String>> {
        self.check()?;
        // Once, and before the head: what is signed meanwhile may be of more than a head that was read before.
        let last = self.last(instance_id);
        let Some((note, found)) = self.stored(access, instance_id, least).await? else { return Ok(None) };
        match last {
            Some(last) if last.size > found.size => {}
            Some(last) if last.size == found.size => {
                if last.root != found.root {
                    let has = format!("a checkpoint of {} entries with another root", found.size);
                    self.found_fork(instance_id, &last, &has);
                }
            }
            last => {
                // Another replica's: it is shown when it is known here to go on from what was signed.
                let head = self.head(access, instance_id).await?;
                for signed in last.iter().chain([&found]) {
                    if !self.compare(None, instance_id, signed, &head).await? {
                        return self.check().map(|()| None);
                    }
                }
                self.keep(vec![(instance_id.to_owned(), note.clone())]).await?;
                self.0.store.was_signed(instance_id, found.size);
            }
        }
        self.check().map(|()| Some(note))
    }

    /// The database's note that was asked for. In place of an older one that is not ours, as before a change of keys,
    /// the newest, which is over as many entries.
    async fn stored(
        &self,
        access: &Access,
        instance_id: &str,
        least: Option<u64>,
    ) -> Result<Option<(String, Checkpoint)>> {
        for asked in [least, None] {
            let Some(note) = self.0.store.checkpoint(access, instance_id, asked).await? else { return Ok(None) };
            if let Some(found) = self.ours(instance_id, &note) {
                return Ok((found.size >= least.unwrap_or(0)).then_some((note, found)));
            }
            if asked.is_none() {
                break;
            }
        }
        Ok(None)
    }

    /// Whether a log still begins with what was signed last: as is known here, and as the database says.
    async fn compare_both(
        &self,
        signing: &Signing,
        instance_id: &str,
        newest: Option<&Checkpoint>,
        head: &TreeHead,
    ) -> Result<bool> {
        let last = self.last(instance_id);
        let other = newest.filter(|newest| last.as_ref() != Some(newest));
        for signed in last.iter().chain(other) {
            if !self.compare(Some(signing), instance_id, signed, head).await? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether a log still begins with what was signed. Who has locked its head reads by that lock's connection: writers
    /// would wait for as long as it waited for another one.
    async fn compare(
        &self,
        signing: Option<&Signing>,
        instance_id: &str,
        last: &Checkpoint,
        head: &TreeHead,
    ) -> Result<bool> {
        let Ok(plan) = Plan::consistency(last.size, head.size) else {
            self.found_fork(instance_id, last, &format!("{} entries", head.size));
            return Ok(false);
        };
        let tiles = match signing {
            Some(signing) => signing.tiles(instance_id, &plan).await?,
            None => self.0.store.tiles(&Access::unrestricted(), instance_id, &plan).await?,
        };
        let holds = plan.prove(&tiles).map_err(|error| error.to_string()).and_then(|proof| {
            verify_consistency(last.size, head.size, &last.root, &head.root, &proof).map_err(|error| error.to_string())
        });
        match holds {
            Ok(()) => Ok(true),
            Err(why) => {
                self.found_fork(
                    instance_id,
                    last,
                    &format!("{} entries that do not begin with those: {why}", head.size),
                );
                Ok(false)
            }
        }
    }

    fn found_fork(&self, instance_id: &str, last: &Checkpoint, has: &str) {
        let why = format!(
            "the log of instance {instance_id:?} was signed with {} entries, and the database has {has}: it was put back \
             from a backup or changed. Nothing is written until it is as it was, or the file of checkpoints in {} and \
             the log's row of audit_newest_checkpoints are taken away, which is to accept the loss",
            last.size,
            self.0.folder.display()
        );
        tracing::error!(why, "the database does not fit what was signed");
        // The first is told until somebody has looked.
        let _ = self.0.fork.set(why);
    }

    fn last(&self, instance_id: &str) -> Option<Checkpoint> {
        lock(&self.0.last).get(instance_id).cloned()
    }
}

/// Where keys and what was signed are, if there is a place.
fn folder(config: &LogConfig, url: &DatabaseUrl) -> Option<PathBuf> {
    let beside = || url.sqlite_path().map(|path| path.with_added_extension("checkpoints"));
    config.folder.clone().or_else(beside)
}

/// A log that cannot be signed keeps no other from it. It is tried again.
fn unsignable(instance_id: &str, error: &Error) {
    tracing::error!(instance_id, %error, cause = ?std::error::Error::source(error), "a log cannot be compared with what was signed");
}

/// Seconds since 1970.
fn now_s() -> u64 {
    clock::now_us().max(0).unsigned_abs() / clock::MICROS_PER_SECOND.unsigned_abs()
}

/// A poisoned lock is no matter: what it guards is whole after each statement.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Opens a file of our folder that only we may read, made if it is missing.
fn own_file(path: &Path) -> std::io::Result<std::fs::File> {
    use std::os::unix::fs::OpenOptionsExt as _;
    std::fs::File::options().create(true).truncate(false).read(true).write(true).mode(0o600).open(path)
}

/// Makes what was made, renamed or removed in a folder durable.
fn sync_folder(folder: &Path) -> std::io::Result<()> {
    std::fs::File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests;
