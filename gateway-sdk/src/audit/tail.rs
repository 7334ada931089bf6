//! Following an instance's log, over breaks of the connection.

use activity_proto::audit::v1 as proto;
use futures::stream::{self, BoxStream, StreamExt};
use tonic::{Status, Streaming};

use super::Audit;
use super::query::{AuditFilter, client};
use crate::AuditEntry;
use crate::error::Error;
use crate::query::Opened;

/// Which log to follow, and from where.
#[derive(Clone, Debug, PartialEq)]
#[must_use]
pub struct TailQuery {
    instance: String,
    filter: AuditFilter,
    from: Option<u64>,
}

impl TailQuery {
    /// The log of an instance, from now on.
    pub fn new(instance: impl Into<String>) -> Self {
        Self { instance: instance.into(), filter: AuditFilter::new(), from: None }
    }

    /// From this sequence on: 0 for the whole log, one after the last seen to go on. What
    /// lies beyond the end of the log is refused.
    pub fn from_sequence(mut self, sequence: u64) -> Self {
        self.from = Some(sequence);
        self
    }

    /// Only those. Without stages, all of them.
    pub fn filter(mut self, filter: AuditFilter) -> Self {
        self.filter = filter;
        self
    }
}

impl Audit {
    /// Follows a log: each entry once, in log order. It has no end of its own; where the
    /// connection breaks it goes on from the entry after the last it gave, however long
    /// that takes. An error that trying again can't mend is its last item.
    ///
    /// A tail from now on that breaks before the service told it where "now" is, starts
    /// again from the later now.
    pub fn tail(&self, query: TailQuery) -> BoxStream<'static, Result<AuditEntry, Error>> {
        let tail = Tail { audit: self.clone(), query, answers: None, breaks: 0 };
        stream::unfold(Some(tail), |tail| async move {
            let mut tail = tail?;
            match tail.next().await {
                Ok(entry) => Some((Ok(entry), Some(tail))),
                Err(error) => Some((Err(error), None)),
            }
        })
        .boxed()
    }
}

struct Tail {
    audit: Audit,
    query: TailQuery,
    answers: Option<Opened<Streaming<proto::TailEntriesResponse>>>,
    breaks: u32,
}

impl Tail {
    async fn next(&mut self) -> Result<AuditEntry, Error> {
        self.audit.reader.channel()?;
        loop {
            let status = match self.answer().await {
                Ok(Some(entry)) => return Ok(entry),
                Ok(None) => continue,
                Err(status) => status,
            };
            self.answers = None;
            let Some(delay) = self.audit.reader.again(&status, self.breaks) else {
                return Err(self.audit.reader.failed(status));
            };
            self.breaks = self.breaks.saturating_add(1);
            tokio::time::sleep(delay).await;
        }
    }

    /// The next entry, or `None` for a sign of life.
    async fn answer(&mut self) -> Result<Option<AuditEntry>, Status> {
        let reader = self.audit.reader.clone();
        let answers = match &mut self.answers {
            Some(answers) => answers,
            None => {
                let question = proto::TailEntriesRequest {
                    instance_id: self.query.instance.clone(),
                    filter: Some(self.query.filter.clone().into()),
                    from_sequence: self.query.from,
                };
                let ask = |channel, request| async { client(channel).tail_entries(request).await };
                self.answers.insert(reader.open(question, ask).await?)
            }
        };
        let answer = reader.next(answers).await?;
        let answer = answer.ok_or_else(|| Status::unavailable("the tail ended"))?;
        self.breaks = 0;
        let (next, entry) = match answer.event {
            Some(proto::tail_entries_response::Event::Entry(entry)) => {
                (entry.sequence.map(|sequence| sequence + 1), Some(entry))
            }
            Some(proto::tail_entries_response::Event::Heartbeat(beat)) => (beat.next_sequence, None),
            None => (None, None),
        };
        self.query.from = next.or(self.query.from);
        Ok(entry)
    }
}
