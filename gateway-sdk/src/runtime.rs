//! Where the SDK's tasks run: on the tokio runtime in which it is built, or on a thread of its own.
//!
//! ```text
//! handles, connections, tasks ── each holds a [`Runtime`] ──▶ the thread ends with the last of them
//! ```

use std::convert::Infallible;
use std::io;
use std::thread;

use tokio::runtime::{Builder, EnterGuard, Handle};
use tokio::sync::mpsc;

use crate::Error;

/// Of the thread, for whoever looks at the process.
const NAME: &str = "gateway-sdk";

/// A way to a runtime. One of the SDK's own lives as long as somebody has this.
#[derive(Clone, Debug)]
pub(crate) struct Runtime {
    handle: Handle,
    own: Option<mpsc::Sender<Infallible>>,
}

impl Runtime {
    /// The one that this is called in; outside of any, or where it is wanted, a new one.
    pub(crate) fn here(own: bool) -> Result<Self, Error> {
        match Handle::try_current() {
            Ok(handle) if !own => Ok(Self { handle, own: None }),
            _ => Self::own().map_err(|error| Error::Runtime(error.to_string())),
        }
    }

    fn own() -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (own, mut held) = mpsc::channel(1);
        // It is dropped where it ran: in a runtime of the caller's that would be a panic.
        thread::Builder::new().name(NAME.to_owned()).spawn(move || {
            let _none: Option<Infallible> = runtime.block_on(held.recv());
        })?;
        Ok(Self { handle, own: Some(own) })
    }

    /// Starts a task, for whose time the runtime stays.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) -> tokio::task::AbortHandle {
        let stays = self.clone();
        let task = async move {
            let _stays = stays;
            task.await;
        };
        self.handle.spawn(task).abort_handle()
    }

    /// For what is made for a runtime by plain functions.
    pub(crate) fn enter(&self) -> EnterGuard<'_> {
        self.handle.enter()
    }

    /// The same for what was begun elsewhere: on the caller's runtime, as long as the thread is in it.
    pub(crate) fn enter_own(&self) -> Option<EnterGuard<'_>> {
        self.own.is_some().then(|| self.handle.enter())
    }

    /// Waits on a thread that is in no runtime.
    pub(crate) fn block_on<F: Future>(&self, future: F) -> Result<F::Output, Error> {
        if Handle::try_current().is_ok() {
            return Err(Error::InRuntime);
        }
        if self.own.is_some() {
            return Ok(self.handle.block_on(future));
        }
        // The caller's may have ended, or have no thread left to run on.
        let waiting = Builder::new_current_thread().enable_all().build();
        Ok(waiting.map_err(|error| Error::Runtime(error.to_string()))?.block_on(future))
    }
}
