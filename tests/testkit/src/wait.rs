//! Waiting for a condition, so that no test sleeps for a guessed time.

use std::fmt::Debug;
use std::future::Future;
use std::panic::Location;
use std::time::Duration;

use tokio::time::{Instant, sleep};

const PAUSE: Duration = Duration::from_millis(5);

/// What a check may answer: `bool`, `Option` or `Result`. `Err` is why the condition does not hold yet.
pub trait Condition {
    type Value;

    fn met(self) -> Result<Self::Value, String>;
}

impl Condition for bool {
    type Value = ();

    fn met(self) -> Result<(), String> {
        if self { Ok(()) } else { Err("false".into()) }
    }
}

impl<T> Condition for Option<T> {
    type Value = T;

    fn met(self) -> Result<T, String> {
        self.ok_or_else(|| "none".into())
    }
}

impl<T, E: Debug> Condition for Result<T, E> {
    type Value = T;

    fn met(self) -> Result<T, String> {
        self.map_err(|why| format!("{why:?}"))
    }
}

/// Calls `check` until its answer holds and gives its value; panics at the caller's line with the last answer when
/// it does not within `timeout`. A check that itself hangs counts as not holding.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// let mut tries = 0;
/// let third = testkit::eventually(std::time::Duration::from_secs(5), async || {
///     tries += 1;
///     (tries == 3).then_some(tries)
/// });
/// assert_eq!(third.await, 3);
/// # }
/// ```
#[track_caller]
pub fn eventually<C: Condition>(
    timeout: Duration,
    mut check: impl AsyncFnMut() -> C,
) -> impl Future<Output = C::Value> {
    // Taken here and not in the future, which is polled from elsewhere.
    let caller = Location::caller();
    async move {
        let end = Instant::now() + timeout;
        let mut last = "no answer".to_owned();
        // An answer that comes at once wins over the time-out, so that the end is asked for as well.
        while Instant::now() < end {
            match tokio::time::timeout_at(end, check()).await.map(C::met) {
                Ok(Ok(value)) => return value,
                Ok(Err(why)) => last = why,
                Err(_elapsed) => break,
            }
            sleep(PAUSE).await;
        }
        panic!("{caller}: not within {timeout:?}; the last answer was: {last}");
    }
}
