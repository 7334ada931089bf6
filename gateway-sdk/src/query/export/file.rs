//! An export into a file: there is none under its name until it is whole and verified.

use std::path::PathBuf;

use futures::Stream;
use sha2::{Digest, Sha256};
use tonic::Status;

use super::partial::{Partial, Plan};
use super::{ExportProgress, Exported, Opened, Step, Walk, verified};
use crate::ErrorReason;
use crate::error::Error;

/// Which file, and what is asked for; `question` without its token, encoded.
pub(crate) fn plan(target: PathBuf, service: &str, question: &[u8], resumable: bool, with_proofs: bool) -> Plan {
    let question = Sha256::new().chain_update(service).chain_update([0]).chain_update(question).finalize();
    Plan { target, question: question.into(), resumable, with_proofs }
}

/// Goes on with what an earlier call has left, or begins, and puts the whole under its name.
/// `kept` makes what is to be kept of the end in a file of its own.
pub(crate) async fn to_file<A, E, S, O, F>(
    mut walk: Walk<'_, A, E, S, O>,
    plan: Plan,
    mut progress: impl FnMut(ExportProgress),
    kept: impl FnOnce(&E) -> Option<Vec<u8>>,
) -> Result<Exported<E>, Error>
where
    S: Stream<Item = Result<A, Status>> + Unpin,
    O: Fn(String) -> F,
    F: Future<Output = Result<Opened<S>, Status>>,
{
    walk.reader.channel()?;
    let mut partial = blocking(|| Partial::open(plan)).await?;
    walk.go_on(partial.token().to_owned());
    let mut continued = partial.bytes();
    let mut may_begin_anew = true;
    loop {
        let step = walk.next().await;
        let at = |partial: &Partial| {
            let (rows, bytes) = (partial.rows(), partial.bytes());
            ExportProgress { rows, bytes, continued, resumed: walk.resumed }
        };
        match step {
            Ok(Step::Chunk(chunk)) => {
                partial = on_disk(partial, |partial| partial.take(chunk)).await?;
                progress(at(&partial));
            }
            Ok(Step::Anew) => {
                partial = on_disk(partial, Partial::begin_anew).await?;
                continued = 0;
            }
            Ok(Step::End(end)) => match verified(at(&partial), partial.sha256(), end) {
                Ok(exported) => {
                    let end = kept(&exported.end);
                    blocking(|| partial.finish(end)).await?;
                    return Ok(exported);
                }
                Err(error) => {
                    // What is wrong with it stays wrong.
                    on_disk(partial, Partial::forget).await?;
                    return Err(error);
                }
            },
            // The service does not know any more where that was, or the caller may see something else now.
            Err(error)
                if may_begin_anew
                    && error.reason() == Some(ErrorReason::InvalidPageToken)
                    && !walk.token.is_empty() =>
            {
                tracing::warn!(%error, "an export can't be resumed, and begins anew");
                partial = on_disk(partial, Partial::begin_anew).await?;
                walk.go_on(String::new());
                (continued, may_begin_anew) = (0, false);
            }
            Err(error) => {
                // Without a mark more would have to come again; why it broke off is what counts.
                if let Err(error) = on_disk(partial, Partial::keep).await {
                    tracing::warn!(%error, "what has come of an export could not be marked");
                }
                return Err(error);
            }
        }
    }
}

async fn on_disk(
    mut partial: Partial,
    work: impl FnOnce(&mut Partial) -> Result<(), Error> + Send + 'static,
) -> Result<Partial, Error> {
    blocking(move || work(&mut partial).map(|()| partial)).await
}

/// On a thread that may wait for the disk. A call that is dropped meanwhile ends what it was at.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.map_err(std::io::Error::other)?
}
