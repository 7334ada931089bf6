//! `AuditQueryService`.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::time::Duration;

use activity_proto::audit::v1 as proto;
use activity_proto::audit::v1::audit_query_service_server::AuditQueryService;
use async_stream::try_stream;
use futures::Stream;
use serde_json::json;
use service_core::auth::{Access, Caller};
use service_core::clock;
use service_core::error::{Error, Reason, Result};
use service_core::page::{self, Sealer};
use service_core::time_range::{self, WhenMissing};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};
use uuid::Uuid;

use crate::activity::{self, Activity, Exporting};
use crate::archive::hex;
use crate::convert;
use crate::event::Key;
use crate::export::{End, Export, Format, Scope};
use crate::filter::{Filter, Stages};
use crate::prover::{Connected, Prover};
use crate::store::{self, MAX_HOLDS, Range, Row, Sought, Store};
use crate::tail::Tails;
use crate::time::rfc3339;

/// Kinds of tokens, so that none is taken for another.
const PAGE_TOKEN: &str = "audit.list_entries.page";
const RESUME_TOKEN: &str = "audit.export_entries.resume";

const DEFAULT_FACETS: usize = 100;
const MAX_FACETS: usize = 1_000;

/// Between two reads of a tail that has caught up, at least.
const TAIL_PACE: Duration = Duration::from_millis(50);

type Streamed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Answers from the log.
#[derive(Debug)]
pub(crate) struct QueryService {
    store: Store,
    tails: Tails,
    sealer: Sealer,
    prover: Prover,
    activity: Activity,
    heartbeat: Duration,
    shutdown: CancellationToken,
}

impl QueryService {
    /// The service over a store. Tails and exports end when `shutdown` is cancelled.
    pub(crate) fn new(
        store: Store,
        tails: Tails,
        sealer: Sealer,
        prover: Prover,
        activity: Activity,
        heartbeat: Duration,
        shutdown: CancellationToken,
    ) -> Self {
        Self { store, tails, sealer, prover, activity, heartbeat, shutdown }
    }

    /// The sequence that the next entry of the instance gets.
    async fn head(&self, access: &Access, instance_id: &String) -> Result<u64> {
        Ok(self.store.heads(access, std::slice::from_ref(instance_id)).await?.remove(instance_id).unwrap_or(0))
    }

    /// Why there is nothing at a place of a log.
    async fn no_entry_at(&self, access: &Access, instance_id: &String, sequence: u64) -> Result<Error> {
        if let Some(gone) = self.store.gone(access, instance_id, sequence).await? {
            return Ok(gone.into());
        }
        Ok(Error::NotFound(match self.head(access, instance_id).await? {
            0 => format!("the log of instance {instance_id:?} has no entries"),
            head => format!("there is no entry with sequence {sequence} in this log, which ends with {}", head - 1),
        }))
    }
}

#[tonic::async_trait]
impl AuditQueryService for QueryService {
    async fn list_entries(
        &self,
        request: Request<proto::ListEntriesRequest>,
    ) -> Result<Response<proto::ListEntriesResponse>, Status> {
        let caller = Caller::of(&request)?;
        let mut request = request.into_inner();
        let limit = page::page_size(request.page_size)?;
        let token = std::mem::take(&mut request.page_token);
        request.page_size = 0;
        let query = query_hash(&request, caller.access());
        let order = convert::order(request.order)?;
        let filter = filter(&caller, request.filter, Stages::Settled)?;
        let (range, after) = if token.is_empty() {
            let range = time_range::resolve(request.time_range.as_ref(), clock::now_us(), WhenMissing::Last24Hours)?;
            (Range { start_us: range.start_us, end_us: range.end_us }, None)
        } else {
            let (range, after) = Position::read(&self.sealer.open(PAGE_TOKEN, &query, &token)?)?;
            (range, Some(after))
        };
        let page = self.store.list(caller.access(), &filter, range, order, after, limit, page::MAX_PAGE_BYTES).await?;
        self.store.refuse_removed(caller.access(), &filter, range.start_us).await?;
        let told = || activity::query(serde_json::to_string(&filter).unwrap_or_default());
        self.activity.page("ListEntries", &caller, told, page.entries.len());
        let next = page.next.map(|next| self.sealer.seal(PAGE_TOKEN, &query, &Position::write(range, next)));
        Ok(Response::new(proto::ListEntriesResponse {
            entries: page.entries.into_iter().map(|(entry, leaf)| convert::entry(entry, leaf)).collect(),
            next_page_token: next.unwrap_or_default(),
            interval: Some(convert::interval(range.start_us, range.end_us)),
        }))
    }

    async fn get_entry(
        &self,
        request: Request<proto::GetEntryRequest>,
    ) -> Result<Response<proto::GetEntryResponse>, Status> {
        use proto::get_entry_request::Key;
        let caller = Caller::of(&request)?;
        let row = match request.into_inner().key {
            None => {
                let message = "key is required: id or position";
                return Err(Error::invalid_because(Reason::Required, "key", message).into());
            }
            Some(Key::Id(text)) => {
                let id = Uuid::try_parse(&text).map_err(|_| {
                    Error::invalid_because(Reason::InvalidId, "id", "id is not a UUID, allowed is the id of an event")
                })?;
                match self.store.by_id(caller.access(), id).await? {
                    Sought::Found(row) => *row,
                    Sought::Archived { instance_id, sequence } => {
                        return Err(self.no_entry_at(caller.access(), &instance_id, sequence).await?.into());
                    }
                    sought => {
                        if let Sought::Hidden { instance_id } = sought {
                            caller.was_hidden(Some(&instance_id), None);
                        }
                        return Err(Error::NotFound(format!("there is no entry with id {id}")).into());
                    }
                }
            }
            Some(Key::Position(position)) => {
                convert::instance_id("position.instance_id", &position.instance_id)?;
                caller.may_see("position.instance_id", [position.instance_id.as_str()])?;
                let sequence = position.sequence.ok_or_else(|| Error::required("position.sequence"))?;
                let row = self.store.by_place(caller.access(), &position.instance_id, sequence).await?;
                match row {
                    Some(row) => row,
                    None => {
                        return Err(self.no_entry_at(caller.access(), &position.instance_id, sequence).await?.into());
                    }
                }
            }
        };
        let told = || json!({ "instance_id": row.instance_id, "sequence": row.sequence.to_string() });
        self.activity.page("GetEntry", &caller, told, 1);
        Ok(Response::new(proto::GetEntryResponse { entry: Some(answer(row)?) }))
    }

    async fn list_facets(
        &self,
        request: Request<proto::ListFacetsRequest>,
    ) -> Result<Response<proto::ListFacetsResponse>, Status> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        let limit = match usize::try_from(request.limit) {
            Ok(0) => DEFAULT_FACETS,
            Ok(limit) if limit <= MAX_FACETS => limit,
            _ => {
                let message =
                    format!("limit is {}, allowed are 1 to {MAX_FACETS}, or 0 for {DEFAULT_FACETS}", request.limit);
                return Err(Error::invalid("limit", message).into());
            }
        };
        let filter = filter(&caller, request.filter, Stages::Settled)?;
        let range = time_range::resolve(request.time_range.as_ref(), clock::now_us(), WhenMissing::Last24Hours)?;
        let range = Range { start_us: range.start_us, end_us: range.end_us };
        let facets = self.store.facets(caller.access(), &filter, range, limit).await;
        // First: names of what was removed meanwhile cannot be read.
        self.store.refuse_removed(caller.access(), &filter, range.start_us).await?;
        let facets = facets?;
        let told = || activity::query(serde_json::to_string(&filter).unwrap_or_default());
        self.activity.page("ListFacets", &caller, told, facets.actors.len());
        Ok(Response::new(proto::ListFacetsResponse {
            actors: facet(facets.actors),
            actions: facet(facets.actions),
            resource_types: facet(facets.resource_types),
            instances: facet(facets.instances),
            interval: Some(convert::interval(range.start_us, range.end_us)),
        }))
    }

    type TailEntriesStream = Streamed<proto::TailEntriesResponse>;

    async fn tail_entries(
        &self,
        request: Request<proto::TailEntriesRequest>,
    ) -> Result<Response<Self::TailEntriesStream>, Status> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        let instance_id = request.instance_id;
        convert::instance_id("instance_id", &instance_id)?;
        caller.may_see("instance_id", [instance_id.as_str()])?;
        let filter = filter(&caller, request.filter, Stages::All)?;
        if filter.instance_ids.values().iter().any(|other| *other != instance_id) {
            let message = "filter.instance_ids names another instance than instance_id, allowed is just that or none";
            return Err(Error::invalid("filter.instance_ids", message).into());
        }
        // Waiting begins before the head is read, so nothing falls between the two.
        let mut tail = self.tails.follow(caller.access(), &instance_id);
        let (store, shutdown, heartbeat) = (self.store.clone(), self.shutdown.clone(), self.heartbeat);
        let access = caller.access().clone();
        let head = self.head(caller.access(), &instance_id).await?;
        let mut next = request.from_sequence.unwrap_or(head);
        if next > head {
            // Whoever resumes there has seen entries that this log does not have: of another instance, or from before
            // a database was put back. What comes until then would be left out without a word.
            let message =
                format!("from_sequence is {next}, allowed are 0 to {head}, where the log of this instance ends");
            return Err(Error::invalid("from_sequence", message).into());
        }
        if let Some(gone) = self.store.gone(caller.access(), &instance_id, next).await? {
            return Err(Error::from(gone).into());
        }
        let told = || json!({ "instance_id": instance_id, "from_sequence": next.to_string() });
        self.activity.page("TailEntries", &caller, told, 0);
        Ok(Response::new(Box::pin(try_stream! {
            yield beat(next);
            let mut told = tokio::time::Instant::now();
            loop {
                let read_at = tokio::time::Instant::now();
                loop {
                    let rows = tail.rows(&store, next).await?;
                    if rows.is_empty() {
                        break;
                    }
                    let from = next;
                    for row in rows.iter().filter(|row| row.sequence >= from) {
                        if row.sequence > next {
                            // So far behind that retention was here first: nothing is left out without a word.
                            Err(lost(&store, &access, &instance_id, next).await)?;
                        }
                        next = row.sequence + 1;
                        let entry = row.entry()?;
                        if filter.matches(&entry.event) {
                            yield proto::TailEntriesResponse {
                                event: Some(proto::tail_entries_response::Event::Entry(convert::entry(entry, row.leaf_hash.clone()))),
                            };
                            told = tokio::time::Instant::now();
                        }
                    }
                    if told.elapsed() >= heartbeat {
                        yield beat(next);
                        told = tokio::time::Instant::now();
                    }
                    if shutdown.is_cancelled() || tail.has_read_all(next) {
                        break;
                    }
                }
                let behind = async {
                    tail.moved_beyond(next).await;
                    // The first after a while comes at once, a stream of them a few at a time.
                    tokio::time::sleep_until(read_at + TAIL_PACE).await;
                };
                let idle = tokio::select! {
                    biased;
                    () = shutdown.cancelled() => false,
                    () = behind => false,
                    () = tokio::time::sleep_until(told + heartbeat) => true,
                };
                if shutdown.is_cancelled() {
                    Err(Error::ShuttingDown)?;
                }
                if idle {
                    yield beat(next);
                    told = tokio::time::Instant::now();
                }
            }
        })))
    }

    type ExportEntriesStream = Streamed<proto::ExportEntriesResponse>;

    async fn export_entries(
        &self,
        request: Request<proto::ExportEntriesRequest>,
    ) -> Result<Response<Self::ExportEntriesStream>, Status> {
        use proto::export_entries_request::Range as Wire;
        use proto::export_entries_response::Part;
        let caller = Caller::of(&request)?;
        let mut request = request.into_inner();
        let token = std::mem::take(&mut request.resume_token);
        let query = query_hash(&request, caller.access());
        let format = match proto::ExportFormat::try_from(request.format) {
            Ok(proto::ExportFormat::Jsonl) => Format::Jsonl,
            Ok(proto::ExportFormat::Csv) => Format::Csv,
            Ok(proto::ExportFormat::Unspecified) => return Err(Error::required("format").into()),
            Err(_) => {
                let message = format!("format is {}, allowed are the values of ExportFormat", request.format);
                return Err(Error::invalid("format", message).into());
            }
        };
        let filter = filter(&caller, request.filter, Stages::All)?;
        let scope = match request.range {
            None => {
                return Err(
                    Error::invalid("time_range", "time_range is required, or sequence_range in its place").into()
                );
            }
            Some(Wire::TimeRange(range)) => {
                let range = time_range::resolve(Some(&range), clock::now_us(), WhenMissing::Refuse)?;
                Scope::Time { start_us: range.start_us, end_us: range.end_us }
            }
            Some(Wire::SequenceRange(range)) => {
                caller.may_see("sequence_range.instance_id", [range.instance_id.as_str()])?;
                log_scope(range)?
            }
        };
        let reads_archive = match &scope {
            Scope::Log { from, .. } => Some(*from),
            Scope::Time { .. } => None,
        };
        let log = match &scope {
            Scope::Log { instance_id, .. } => Some(instance_id.clone()),
            Scope::Time { .. } => None,
        };
        let asked = json!({
            "range": match &scope {
                Scope::Time { start_us, end_us } => json!([rfc3339(*start_us), rfc3339(*end_us)]),
                Scope::Log { from, to, .. } => json!([from.to_string(), to.to_string()]),
            },
            "filter": activity::query(serde_json::to_string(&filter).unwrap_or_default()),
            "format": format!("{format:?}").to_lowercase(),
            "resumed": !token.is_empty(),
            "entries": "0",
        });
        // Told too where it is refused, or left off.
        let mut exporting = Exporting::new(&self.activity, &caller, log.clone(), asked);
        let (store, access) = (self.store.clone(), caller.access().clone());
        let mut export = if token.is_empty() {
            Export::open(store.clone(), caller.access(), filter, format, scope).await?
        } else {
            let payload = self.sealer.open_field("resume_token", RESUME_TOKEN, &query, &token)?;
            Export::resume(store.clone(), caller.access(), filter, format, &payload).await?
        };
        if request.with_proofs && format == Format::Csv {
            let message = "with_proofs is of lines that are hashed, allowed is format EXPORT_FORMAT_JSONL";
            return Err(Error::invalid("with_proofs", message).into());
        }
        let mut rows = request.with_proofs.then(|| self.prover.rows(caller.access()));
        if rows.is_some() {
            export.note_places();
        }
        exporting.begin().await?;
        let (sealer, shutdown, prover) = (self.sealer.clone(), self.shutdown.clone(), self.prover.clone());
        Ok(Response::new(Box::pin(try_stream! {
            loop {
                // A chunk of rare entries may be long in coming: a stop does not wait for it, the client resumes.
                let chunk = tokio::select! {
                    biased;
                    () = shutdown.cancelled() => Err(Error::ShuttingDown),
                    chunk = export.chunk() => chunk,
                };
                let Some(data) = chunk? else { break };
                let resume_token = sealer.seal(RESUME_TOKEN, &query, &export.save()?);
                exporting.entries(export.entries());
                let entries_so_far = Some(export.entries());
                let proofs = match &mut rows {
                    Some(rows) => {
                        let places = export.take_places();
                        rows.prove(export.heads(), places).await?
                    }
                    None => Vec::new(),
                };
                let chunk = proto::ExportChunk { data, resume_token, entries_so_far, proofs };
                yield proto::ExportEntriesResponse { part: Some(Part::Chunk(chunk)) };
            }
            let end_of = export.end();
            let connected = match format {
                Format::Jsonl => prover.connect(&access, &end_of.heads, &shutdown).await?,
                Format::Csv => BTreeMap::new(),
            };
            let mut end = end(end_of, connected);
            exporting.entries(end.entries.unwrap_or_default());
            if let Some(instance_id) = log {
                let kept = store.kept(&access, &instance_id).await?;
                end.archived_through = Some(kept.map_or(0, |kept| kept.archived_through));
                let holds = store.holds(&access, &instance_id, false, None, MAX_HOLDS).await?;
                end.legal_hold_ids = holds.into_iter().map(|hold| hold.placed.hold_id.to_string()).collect();
            }
            exporting.ended(&hex(&end.sha256), reads_archive.is_some_and(|from| end.archived_through > Some(from)));
            yield proto::ExportEntriesResponse { part: Some(Part::End(end)) };
        })))
    }
}

/// Why an entry that a tail comes to is not there.
async fn lost(store: &Store, access: &Access, instance_id: &str, sequence: u64) -> Error {
    match store.gone(access, instance_id, sequence).await {
        Ok(Some(gone)) => gone.into(),
        Ok(None) => store::lost(store::damaged(instance_id, &format!("entry {sequence} is missing"))),
        Err(error) => error,
    }
}

/// A filter that names nothing that the caller may not see.
fn filter(caller: &Caller, wire: Option<proto::AuditFilter>, none: Stages) -> Result<Filter> {
    let filter = convert::filter(wire, none)?;
    caller.may_see("filter.instance_ids", filter.instance_ids.values().iter().map(String::as_str))?;
    Ok(filter)
}

pub(super) fn log_scope(range: proto::SequenceRange) -> Result<Scope> {
    convert::instance_id("sequence_range.instance_id", &range.instance_id)?;
    let (from, to) = (range.from.unwrap_or(0), range.to.unwrap_or(u64::MAX));
    if from > to {
        let message = format!("sequence_range.to is {to}, allowed is {from} (from) or more");
        return Err(Error::invalid("sequence_range.to", message));
    }
    Ok(Scope::Log { instance_id: range.instance_id, from, to })
}

fn end(end: End, mut connected: BTreeMap<String, Connected>) -> proto::ExportEnd {
    let head = |(instance_id, size): (String, u64)| {
        let head = proto::LogHead { size: Some(size), ..Default::default() };
        let head = match connected.remove(&instance_id) {
            None => head,
            Some(Connected { root, note, consistency }) => proto::LogHead {
                root_hash: root.to_vec(),
                checkpoint: note,
                consistency_hashes: consistency.into_iter().map(Vec::from).collect(),
                ..head
            },
        };
        proto::LogHead { instance_id, ..head }
    };
    proto::ExportEnd {
        entries: Some(end.entries),
        sha256: end.sha256.to_vec(),
        heads: end.heads.into_iter().map(head).collect(),
        interval: match end.scope {
            Scope::Time { start_us, end_us } => Some(convert::interval(start_us, end_us)),
            Scope::Log { .. } => None,
        },
        archived_through: None,
        legal_hold_ids: Vec::new(),
        frozen_at: Some(convert::micros(end.frozen_us)),
    }
}

fn answer(row: Row) -> Result<proto::AuditEntry> {
    Ok(convert::entry(row.entry()?, row.leaf_hash))
}

fn facet(facets: Vec<store::Facet>) -> Vec<proto::Facet> {
    facets.into_iter().map(|facet| proto::Facet { value: facet.value, count: Some(facet.count) }).collect()
}

fn beat(next: u64) -> proto::TailEntriesResponse {
    let heartbeat = proto::Heartbeat { next_sequence: Some(next), time: Some(convert::micros(clock::now_us())) };
    proto::TailEntriesResponse { event: Some(proto::tail_entries_response::Event::Heartbeat(heartbeat)) }
}

/// What a token is bound to: what its caller may see, and the request without its token, and without what may change
/// between pages. Our messages have no maps, so the same request always has the same bytes.
pub(super) fn query_hash(request: &impl prost::Message, access: &Access) -> [u8; 32] {
    page::query_hash([request.encode_to_vec().as_slice(), &access.fingerprint()])
}

/// What a page token carries: the range of the first page, and the last entry.
pub(super) struct Position;

impl Position {
    pub(super) fn write(range: Range, after: Key) -> Vec<u8> {
        let times = [range.start_us, range.end_us, after.occurred_at_us];
        let mut payload: Vec<u8> = times.iter().flat_map(|time| time.to_be_bytes()).collect();
        payload.extend_from_slice(after.id.as_bytes());
        payload
    }

    pub(super) fn read(payload: &[u8]) -> Result<(Range, Key)> {
        let time = |at: usize| Some(i64::from_be_bytes(payload.get(at..at + 8)?.try_into().ok()?));
        let position = || {
            let range = Range { start_us: time(0)?, end_us: time(8)? };
            let id = Uuid::from_slice(payload.get(24..)?).ok()?;
            Some((range, Key { occurred_at_us: time(16)?, id }))
        };
        // Sealed by us, so a payload that cannot be read is of another version.
        position().ok_or_else(|| {
            let message = "page_token cannot be continued any more; repeat the query without it";
            Error::invalid_because(Reason::InvalidPageToken, "page_token", message)
        })
    }
}
