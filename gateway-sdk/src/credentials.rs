//! How the SDK shows who it is: a bearer token, taken from where the application says,
//! renewed before it expires, and once more when a service refuses it.
//!
//! ```text
//! token, file or callback ──take──▶ held ──header──▶ every call and stream
//!            ▲                       │
//!            └── soon to expire, or refused (never more often than the waits between)
//! ```
//!
//! One task takes a token while all others go on with the one there is, as long as it holds.
//! Nothing here
//! says what a token is: not in `Debug`, not in an error, not in a log.

use std::fmt;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use tokio::time::{Instant, timeout};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::{Code, Request, Status};

use crate::error::AccessProblem;
use crate::retry::Backoff;

/// How long a file or a callback may take.
const TAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// A token is renewed so long before it expires, or a fifth of its life, if that is less.
const MARGIN: Duration = Duration::from_secs(60);
/// A file is read again so often, whatever its token says.
const FILE_AGE: Duration = Duration::from_secs(60);
/// A token that was just taken is not renewed, whatever it says.
const LEAST_AGE: Duration = Duration::from_secs(1);
/// What servers take as a header.
const MAX_TOKEN_BYTES: usize = 12 * 1024;

type Failure = Box<dyn std::error::Error + Send + Sync>;
type Call = dyn Fn() -> BoxFuture<'static, Result<Token, Failure>> + Send + Sync;

/// A bearer token, and how long it holds.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    text: String,
    valid_for: Option<Duration>,
}

impl Token {
    /// A token. Of a JWT the claim `exp` says how long it holds; another one is used until
    /// a service refuses it.
    pub fn new(text: impl Into<String>) -> Self {
        Self { text: text.into(), valid_for: None }
    }

    /// For how long from now on it holds, where it doesn't say so itself (`expires_in` of
    /// an OAuth 2 answer). `Duration::MAX`: until a service refuses it.
    #[must_use]
    pub fn valid_for(mut self, lifetime: Duration) -> Self {
        self.valid_for = Some(lifetime);
        self
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token").field("valid_for", &self.valid_for).finish_non_exhaustive()
    }
}

impl From<String> for Token {
    fn from(text: String) -> Self {
        Self::new(text)
    }
}

impl From<&str> for Token {
    fn from(text: &str) -> Self {
        Self::new(text)
    }
}

/// Where bearer tokens come from; see [`Builder::credentials`](crate::Builder::credentials).
///
/// ```
/// use gateway_sdk::{Credentials, Token};
/// use std::time::Duration;
///
/// let fixed = Credentials::token("eyJhbGciOiJFZERTQSIs…");
/// let mounted = Credentials::file("/var/run/secrets/activity/token");
/// let asked = Credentials::callback(|| async {
///     let text = ask_identity_provider().await?;
///     Ok::<_, std::io::Error>(Token::new(text).valid_for(Duration::from_secs(300)))
/// });
/// # async fn ask_identity_provider() -> Result<String, std::io::Error> { Ok(String::new()) }
/// ```
#[derive(Clone)]
pub struct Credentials(Source);

#[derive(Clone)]
enum Source {
    Fixed(Token),
    File(PathBuf),
    Call(Arc<Call>),
}

impl Credentials {
    /// One token for as long as the process lives.
    pub fn token(token: impl Into<Token>) -> Self {
        Self(Source::Fixed(token.into()))
    }

    /// A file that holds the token and nothing else, blanks around it aside. It is read
    /// when a token is needed: at first, before its token expires, when that was refused,
    /// and every minute.
    pub fn file(path: impl Into<PathBuf>) -> Self {
        Self(Source::File(path.into()))
    }

    /// A callback that makes a token. It is called when one is needed: at first, before the
    /// last one expires, and when that was refused; by one task at a time, with growing
    /// waits between failures. It has ten seconds. What its error says goes into errors and
    /// logs, so it must not hold a secret.
    pub fn callback<F, R, E>(make: F) -> Self
    where
        F: Fn() -> R + Send + Sync + 'static,
        R: Future<Output = Result<Token, E>> + Send + 'static,
        E: Into<Failure> + 'static,
    {
        Self(Source::Call(Arc::new(move || {
            let made = make();
            async move { made.await.map_err(Into::into) }.boxed()
        })))
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Source::Fixed(_) => f.write_str("Credentials::token(..)"),
            Source::File(path) => write!(f, "Credentials::file({path:?})"),
            Source::Call(_) => f.write_str("Credentials::callback(..)"),
        }
    }
}

/// What stands in a header, and what is known of its life.
#[derive(Clone)]
struct Held {
    header: MetadataValue<Ascii>,
    /// Which one it is, counted.
    number: u64,
    taken_at: Instant,
    expires_at: Option<Instant>,
    /// When the next one is taken: of a file earlier than the token asks for.
    take_at: Option<Instant>,
    /// When streams move over to the next one.
    renew_at: Option<Instant>,
    refused: bool,
}

impl Held {
    /// Whether a service may still take it.
    fn holds(&self) -> bool {
        !self.refused && self.expires_at.is_none_or(|at| at > Instant::now())
    }

    /// While there is no other: streams stay with it, and don't move over to the same at once.
    fn for_now(mut self) -> Self {
        let soon = Instant::now() + LEAST_AGE;
        self.renew_at = self.renew_at.map(|at| at.max(soon));
        self
    }
}

#[derive(Default)]
struct State {
    held: Option<Held>,
    /// How many there were.
    taken: u64,
    /// In a row, without a token that held.
    refusals: u32,
    /// In a row.
    failures: u32,
    /// Nothing is taken before.
    not_before: Option<Instant>,
    /// Why there is none.
    why: String,
}

/// What a call or stream went with.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Ticket {
    number: u64,
    /// When a stream should move over to the next token.
    pub(crate) renew_at: Option<Instant>,
}

/// The credentials of calls and streams to one service or both. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Access(Option<Arc<Bearer>>);

struct Bearer {
    source: Source,
    backoff: Backoff,
    state: Mutex<State>,
    /// Held by whoever takes a token.
    taking: tokio::sync::Mutex<()>,
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Access(bearer)" } else { "Access(none)" })
    }
}

impl Access {
    pub(crate) fn new(credentials: Option<Credentials>, backoff: Backoff) -> Self {
        Self(credentials.map(|Credentials(source)| {
            Arc::new(Bearer { source, backoff, state: Mutex::default(), taking: tokio::sync::Mutex::default() })
        }))
    }

    /// Puts the token into a request.
    pub(crate) async fn attach<T>(&self, request: &mut Request<T>) -> Result<Ticket, Status> {
        let Some(bearer) = &self.0 else {
            return Ok(Ticket::default());
        };
        let held = bearer.held().await?;
        request.metadata_mut().insert("authorization", held.header);
        Ok(Ticket { number: held.number, renew_at: held.renew_at })
    }

    /// Whether a refusal may be answered with another token.
    pub(crate) fn renews(&self) -> bool {
        self.0.as_ref().is_some_and(|bearer| !matches!(bearer.source, Source::Fixed(_)))
    }

    /// Reads the end of a call or stream: a refusal says what was wrong with its token, and
    /// makes the next call take a new one.
    pub(crate) fn judge(&self, mut status: Status, ticket: Ticket) -> Status {
        if status.code() == Code::Unauthenticated && std::error::Error::source(&status).is_none() {
            let problem = match &self.0 {
                None => AccessProblem::Missing,
                Some(bearer) => bearer.refused(ticket),
            };
            status.set_source(Arc::new(problem));
        }
        status
    }
}

impl Bearer {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The token to go with; a new one where that is due.
    async fn held(&self) -> Result<Held, Status> {
        let usable = |state: &State| state.held.clone().filter(|held| !state.is_due(held, Instant::now()));
        if let Some(held) = usable(&self.lock()) {
            return Ok(held);
        }
        let taking = self.taking.try_lock();
        if taking.is_err() {
            // Somebody is at it.
            let held = self.lock().held.clone().filter(Held::holds);
            if let Some(held) = held {
                return Ok(held.for_now());
            }
        }
        let _taking = match taking {
            Ok(taking) => taking,
            Err(_) => self.taking.lock().await,
        };
        if let Some(held) = usable(&self.lock()) {
            return Ok(held);
        }
        if self.lock().not_before.is_none_or(|at| at <= Instant::now()) {
            let taken = match timeout(TAKE_TIMEOUT, self.take()).await {
                Ok(taken) => taken,
                Err(_) => Err(format!("{} gave no token within {TAKE_TIMEOUT:?}", self.name())),
            };
            self.lock().take_over(taken.and_then(|token| self.hold(&token)), &self.backoff);
        }
        let state = self.lock();
        state.held.clone().ok_or_else(|| {
            let mut status = Status::unauthenticated(state.why.clone());
            status.set_source(Arc::new(AccessProblem::NoToken));
            status
        })
    }

    async fn take(&self) -> Result<Token, String> {
        match &self.source {
            Source::Fixed(token) => Ok(token.clone()),
            Source::File(path) => read(path).await,
            Source::Call(call) => {
                // Both the call and what it returns are the application's.
                let made = AssertUnwindSafe(async { call().await }).catch_unwind().await;
                match made {
                    Ok(Ok(token)) => Ok(token),
                    Ok(Err(error)) => Err(format!("the credentials' callback failed: {error}")),
                    Err(_) => Err("the credentials' callback panicked".to_owned()),
                }
            }
        }
    }

    fn name(&self) -> &'static str {
        match self.source {
            Source::Fixed(_) => "the token",
            Source::File(_) => "the credentials' file",
            Source::Call(_) => "the credentials' callback",
        }
    }

    fn hold(&self, token: &Token) -> Result<Held, String> {
        let text = token.text.trim();
        let length = text.len();
        let mut header: MetadataValue<Ascii> = (1..=MAX_TOKEN_BYTES)
            .contains(&length)
            .then(|| format!("Bearer {text}").parse().ok())
            .flatten()
            .filter(|_| text.bytes().all(|byte| byte.is_ascii_graphic()))
            .ok_or_else(|| {
                format!(
                    "{} gave {length} bytes that are no token, allowed are 1 to {MAX_TOKEN_BYTES} of visible ASCII",
                    self.name()
                )
            })?;
        header.set_sensitive(true);

        let taken_at = Instant::now();
        let left = token.valid_for.or_else(|| lifetime(text, SystemTime::now())).map(|left| left.min(crate::FOREVER));
        let renews = !matches!(self.source, Source::Fixed(_));
        // One that has expired already, by a clock that may be wrong, is the service's to judge.
        let renew_at = left.filter(|left| renews && !left.is_zero()).map(|left| {
            let early = left.saturating_sub(MARGIN.min(left / 5));
            taken_at + early.max(LEAST_AGE)
        });
        let read_at = matches!(self.source, Source::File(_)).then(|| taken_at + FILE_AGE);
        Ok(Held {
            header,
            number: 0,
            taken_at,
            expires_at: left.map(|left| taken_at + left),
            take_at: renew_at.into_iter().chain(read_at).min(),
            renew_at,
            refused: false,
        })
    }

    /// The service has refused what a call went with.
    fn refused(&self, ticket: Ticket) -> AccessProblem {
        let renews = !matches!(self.source, Source::Fixed(_));
        let mut state = self.lock();
        let now = Instant::now();
        let Some(held) = &mut state.held else {
            return AccessProblem::Refused;
        };
        let expired = held.expires_at.is_some_and(|at| at <= now);
        let lived = now.saturating_duration_since(held.taken_at);
        // A later token is not to blame.
        if renews && held.number == ticket.number && !held.refused {
            held.refused = true;
            let taken_at = held.taken_at;
            let young = !expired && lived < self.backoff.cap;
            state.refusals = if young { state.refusals.saturating_add(1) } else { 1 };
            // The first is answered at once; of tokens that are refused again and again none
            // is taken without a wait.
            let wait = if state.refusals > 1 { self.backoff.delay(state.refusals, 1.0) } else { Duration::ZERO };
            state.not_before = Some(taken_at + wait);
        }
        if expired { AccessProblem::Expired } else { AccessProblem::Refused }
    }
}

impl State {
    /// Whether a new one should be taken, and may be.
    fn is_due(&self, held: &Held, now: Instant) -> bool {
        (held.refused || held.take_at.is_some_and(|at| at <= now)) && self.not_before.is_none_or(|at| at <= now)
    }

    fn take_over(&mut self, taken: Result<Held, String>, backoff: &Backoff) {
        let now = Instant::now();
        match taken {
            Ok(held) => {
                self.failures = 0;
                self.not_before = None;
                self.taken += 1;
                self.held = Some(Held { number: self.taken, ..held });
            }
            Err(why) => {
                let wait = backoff.delay(self.failures, 1.0);
                self.failures = self.failures.saturating_add(1);
                self.not_before = Some(now + wait);
                tracing::warn!(why, "no new token");
                if let Some(held) = &mut self.held {
                    // Streams stay with what they have, and don't move over to the same.
                    held.renew_at = held.renew_at.map(|at| at.max(now + wait.max(LEAST_AGE)));
                }
                self.why = why;
            }
        }
    }
}

async fn read(path: &Path) -> Result<Token, String> {
    // The path is configuration, what is in the file is not told.
    let text = tokio::fs::read(path).await.map_err(|error| format!("{}: {error}", path.display()))?;
    String::from_utf8(text).map(Token::new).map_err(|_| format!("{} is not text", path.display()))
}

/// What `exp` of a JWT leaves; none where there is no such claim. Nothing is verified:
/// that is the service's business.
fn lifetime(token: &str, now: SystemTime) -> Option<Duration> {
    let mut parts = token.split('.');
    let (_, payload, _) = (parts.next()?, parts.next()?, parts.next()?);
    let payload = URL_SAFE_NO_PAD.decode(payload.trim_end_matches('=')).ok()?;
    let claims: serde_json::Value = serde_json::from_slice(&payload).ok()?;
    let expires = claims.get("exp")?.as_f64().filter(|exp| (0.0..1e12).contains(exp))?;
    let expires = SystemTime::UNIX_EPOCH + Duration::from_secs_f64(expires);
    Some(expires.duration_since(now).unwrap_or(Duration::ZERO))
}

#[cfg(test)]
mod tests;
