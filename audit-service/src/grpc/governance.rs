//! `AuditGovernanceService`.

use std::sync::Arc;

use activity_proto::audit::v1 as proto;
use activity_proto::audit::v1::audit_governance_service_server::AuditGovernanceService;
use service_core::auth::{Caller, CredentialKind};
use service_core::clock;
use service_core::coverage;
use service_core::error::{Error, Reason, Result};
use service_core::page::{self, Sealer};
use tokio::sync::Notify;
use tonic::{Request, Response, Status};
use uuid::Uuid;

use super::query::query_hash;
use crate::archive::{data_name, manifest_name};
use crate::config::RetentionConfig;
use crate::convert;
use crate::event::{Actor, ActorKind, Event, Outcome, Resource};
use crate::ingest::Followers;
use crate::store::{Hold, MAX_HOLDS, NewHold, Release, Segment, Store, Told};

const ARCHIVES_TOKEN: &str = "audit.list_archives.page";
const COVERAGE_TOKEN: &str = "audit.get_coverage.page";
const HOLDS_TOKEN: &str = "audit.list_legal_holds.page";
const PLACED: &str = "audit_log.legal_hold_placed";
const RELEASED: &str = "audit_log.legal_hold_released";
/// Who records them, and who did it when nobody has said its name.
const RECORDED_BY: &str = "audit-service";
const NOBODY: &str = "anonymous";

/// Says what is kept, and keeps more.
#[derive(Debug)]
pub(crate) struct GovernanceService {
    store: Store,
    followers: Followers,
    sealer: Sealer,
    retention: RetentionConfig,
    /// Wakes whoever removes what is not held any more.
    released: Arc<Notify>,
}

impl GovernanceService {
    pub(crate) fn new(
        store: Store,
        followers: Followers,
        sealer: Sealer,
        retention: RetentionConfig,
        released: Arc<Notify>,
    ) -> Self {
        Self { store, followers, sealer, retention, released }
    }

    /// Writes an entry with what it tells of.
    async fn tell(&self, event: Event, told: &Told<'_>) -> Result<()> {
        self.followers.check()?;
        let (_, heads) = self.store.write_told(event, RECORDED_BY, told).await?;
        self.followers.moved(&heads);
        Ok(())
    }

    /// A hold that the caller may know of.
    async fn hold(&self, caller: &Caller, hold_id: Uuid) -> Result<Hold> {
        match self.store.hold(hold_id).await? {
            Some(hold) if caller.access().has_instance(&hold.placed.instance_id) => return Ok(hold),
            Some(hold) => caller.was_hidden(Some(&hold.placed.instance_id), None),
            None => {}
        }
        Err(Error::NotFound(format!("there is no legal hold with id {hold_id}")))
    }

    /// Checks where a page begins: of a token, its payload.
    fn page(&self, kind: &str, query: &[u8; 32], token: &str) -> Result<Option<Vec<u8>>> {
        if token.is_empty() { Ok(None) } else { self.sealer.open(kind, query, token).map(Some) }
    }
}

/// Whose log, if the caller may see it.
fn seen(caller: &Caller, instance_id: &str) -> Result<()> {
    convert::instance_id("instance_id", instance_id)?;
    caller.may_see("instance_id", [instance_id])
}

/// Sealed by us, so a payload that cannot be read is of another version.
fn read<const BYTES: usize>(payload: Vec<u8>) -> Result<[u8; BYTES]> {
    let message = "page_token cannot be continued any more; repeat the query without it";
    payload.try_into().map_err(|_| Error::invalid_because(Reason::InvalidPageToken, "page_token", message))
}

/// What a caller has done to a log.
fn event(caller: &Caller, instance_id: &str, action: &str, hold_id: Uuid, reason: &str, details_json: String) -> Event {
    let subject = caller.subject();
    let subject = if subject.is_empty() { NOBODY } else { subject };
    // A token does not say whether a person or a program has it.
    let kind = caller.kind().filter(|kind| *kind == CredentialKind::Certificate).map(|_| ActorKind::ServiceAccount);
    Event {
        id: Uuid::now_v7(),
        occurred_at_us: clock::now_us(),
        instance_id: instance_id.to_owned(),
        actor: Actor { id: subject.to_owned(), kind, ..Actor::default() },
        action: action.to_owned(),
        resources: vec![Resource { kind: "legal_hold".to_owned(), id: hold_id.to_string(), name: String::new() }],
        outcome: Outcome::Success,
        reason: reason.to_owned(),
        changes: Vec::new(),
        details_json,
        request_id: String::new(),
        operation: None,
        producer: None,
    }
}

#[tonic::async_trait]
impl AuditGovernanceService for GovernanceService {
    async fn get_retention(
        &self,
        request: Request<proto::GetRetentionRequest>,
    ) -> Result<Response<proto::GetRetentionResponse>, Status> {
        let caller = Caller::of(&request)?;
        let instance_id = request.into_inner().instance_id;
        seen(&caller, &instance_id)?;
        let kept = self.store.kept(caller.access(), &instance_id).await?;
        let holds = self.store.holds(caller.access(), &instance_id, false, None, MAX_HOLDS + 1).await?;
        let kept_from_us = kept.map_or(0, |kept| kept.kept_from_us);
        Ok(Response::new(proto::GetRetentionResponse {
            days: self.retention.days.map(std::num::NonZeroU32::get),
            profile: self.retention.profile.map(|profile| profile.name().to_owned()).unwrap_or_default(),
            floor_days: self.retention.profile.map(crate::Profile::floor_days),
            archive: self.store.archive().map(|archive| archive.shown().to_owned()).unwrap_or_default(),
            archived_through: Some(kept.map_or(0, |kept| kept.archived_through)),
            kept_from: (kept_from_us > 0).then(|| convert::micros(kept_from_us)),
            legal_holds: Some(u32::try_from(holds.len()).unwrap_or(u32::MAX)),
        }))
    }

    async fn list_archives(
        &self,
        request: Request<proto::ListArchivesRequest>,
    ) -> Result<Response<proto::ListArchivesResponse>, Status> {
        let caller = Caller::of(&request)?;
        let mut request = request.into_inner();
        seen(&caller, &request.instance_id)?;
        let limit = page::page_size(std::mem::take(&mut request.page_size))?;
        let token = std::mem::take(&mut request.page_token);
        let query = query_hash(&request, caller.access());
        let from = match self.page(ARCHIVES_TOKEN, &query, &token)? {
            None => 0,
            Some(payload) => u64::from_be_bytes(read(payload)?),
        };
        let mut segments = self.store.segments(caller.access(), &request.instance_id, from, limit + 1).await?;
        let next = segments.get(limit).map(|segment| segment.sequences.start);
        segments.truncate(limit);
        Ok(Response::new(proto::ListArchivesResponse {
            segments: segments.into_iter().map(segment).collect(),
            next_page_token: next
                .map(|next| self.sealer.seal(ARCHIVES_TOKEN, &query, &next.to_be_bytes()))
                .unwrap_or_default(),
        }))
    }

    async fn place_legal_hold(
        &self,
        request: Request<proto::PlaceLegalHoldRequest>,
    ) -> Result<Response<proto::PlaceLegalHoldResponse>, Status> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        seen(&caller, &request.instance_id)?;
        let hold = convert::new_hold(request, caller.subject())?;
        let (access, instance_id) = (caller.access(), hold.instance_id.as_str());
        let Some(kept) = self.store.kept(access, instance_id).await? else {
            return Err(Error::NotFound(format!("the log of instance {instance_id:?} has no entries")).into());
        };
        let archived_through = Some(kept.archived_through);
        if let Some(known) = self.store.hold(hold.hold_id).await? {
            if known.placed != (NewHold { placed_by: known.placed.placed_by.clone(), ..hold.clone() }) {
                let message = format!("hold_id {} is that of another hold, which stays as it is", hold.hold_id);
                return Err(Error::invalid_because(Reason::IdConflict, "hold_id", message).into());
            }
            let hold = Some(convert::hold(known));
            return Ok(Response::new(proto::PlaceLegalHoldResponse { hold, archived_through }));
        }
        if self.store.holds(access, instance_id, false, None, MAX_HOLDS).await?.len() >= MAX_HOLDS {
            let message = format!("{MAX_HOLDS} legal holds stand in this log, which is how many are allowed");
            return Err(Error::TooLarge(message).into());
        }
        let details = serde_json::json!({ "hold": convert::hold_details(&hold) }).to_string();
        let event = event(&caller, instance_id, PLACED, hold.hold_id, &hold.reason, details);
        self.tell(event, &Told::Hold(&hold)).await?;
        let placed = self.hold(&caller, hold.hold_id).await?;
        Ok(Response::new(proto::PlaceLegalHoldResponse { hold: Some(convert::hold(placed)), archived_through }))
    }

    async fn release_legal_hold(
        &self,
        request: Request<proto::ReleaseLegalHoldRequest>,
    ) -> Result<Response<proto::ReleaseLegalHoldResponse>, Status> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        let hold_id = convert::hold_id(&request.hold_id)?;
        convert::reason(&request.reason)?;
        let hold = self.hold(&caller, hold_id).await?;
        if hold.released.is_none() {
            let release = Release {
                hold_id,
                instance_id: hold.placed.instance_id,
                reason: request.reason,
                released_by: caller.subject().to_owned(),
            };
            let details = serde_json::json!({ "placed_sequence": hold.placed_sequence.to_string() }).to_string();
            let event = event(&caller, &release.instance_id, RELEASED, hold_id, &release.reason, details);
            match self.tell(event, &Told::Release(&release)).await {
                // Somebody else was quicker, which comes to the same.
                Ok(()) | Err(Error::Contention(_)) => self.released.notify_one(),
                Err(error) => return Err(error.into()),
            }
        }
        let hold = self.hold(&caller, hold_id).await?;
        Ok(Response::new(proto::ReleaseLegalHoldResponse { hold: Some(convert::hold(hold)) }))
    }

    async fn list_legal_holds(
        &self,
        request: Request<proto::ListLegalHoldsRequest>,
    ) -> Result<Response<proto::ListLegalHoldsResponse>, Status> {
        let caller = Caller::of(&request)?;
        let mut request = request.into_inner();
        seen(&caller, &request.instance_id)?;
        let limit = page::page_size(std::mem::take(&mut request.page_size))?;
        let token = std::mem::take(&mut request.page_token);
        let query = query_hash(&request, caller.access());
        let after = self.page(HOLDS_TOKEN, &query, &token)?.map(read).transpose()?.map(Uuid::from_bytes);
        let (instance_id, all) = (&request.instance_id, request.include_released);
        let mut holds = self.store.holds(caller.access(), instance_id, all, after, limit + 1).await?;
        let more = holds.len() > limit;
        holds.truncate(limit);
        let last = holds.last().filter(|_| more).map(|hold| hold.placed.hold_id);
        Ok(Response::new(proto::ListLegalHoldsResponse {
            holds: holds.into_iter().map(convert::hold).collect(),
            next_page_token: last
                .map(|last| self.sealer.seal(HOLDS_TOKEN, &query, last.as_bytes()))
                .unwrap_or_default(),
        }))
    }

    async fn get_coverage(
        &self,
        request: Request<proto::GetCoverageRequest>,
    ) -> Result<Response<proto::GetCoverageResponse>, Status> {
        let caller = Caller::of(&request)?;
        coverage::allow(&caller)?;
        let mut request = request.into_inner();
        let limit = page::page_size(std::mem::take(&mut request.page_size))?;
        let token = std::mem::take(&mut request.page_token);
        let query = query_hash(&request, caller.access());
        let mut wanted = coverage::Wanted::new(
            request.time_range.as_ref(),
            request.producer_ids,
            request.first_sequence,
            request.last_sequence,
        )?;
        let after = match self.page(COVERAGE_TOKEN, &query, &token)? {
            None => None,
            Some(payload) => Some(wanted.go_on(&payload)?),
        };
        let (access, store) = (caller.access(), &self.store);
        let (open_intents, more_open_intents) = match after {
            None => store.open_intents(access, &wanted).await?,
            Some(_) => (Vec::new(), false),
        };
        let mut page = coverage::Page::new(limit);
        for epoch in store.heard(access, &wanted, after, limit + 1).await? {
            if !page.has_room() {
                break;
            }
            let (covered, blocks) = store.covered(access, &epoch, &wanted, coverage::MAX_BLOCKS).await?;
            page.push(epoch, covered, blocks);
        }
        let next = page.next.map(|last| self.sealer.seal(COVERAGE_TOKEN, &query, &wanted.position(&last)));
        Ok(Response::new(proto::GetCoverageResponse {
            producers: page.producers,
            open_intents: open_intents.into_iter().map(convert::open_intent).collect(),
            more_open_intents,
            next_page_token: next.unwrap_or_default(),
            interval: Some(wanted.range.to_interval()),
        }))
    }
}

fn segment(segment: Segment) -> proto::ArchiveSegment {
    proto::ArchiveSegment {
        first_sequence: Some(segment.sequences.start),
        end_sequence: Some(segment.sequences.end),
        entries: Some(segment.sequences.end - segment.sequences.start),
        first_occurred_at: Some(convert::micros(segment.occurred_us.0)),
        last_occurred_at: Some(convert::micros(segment.occurred_us.1)),
        archived_at: Some(convert::micros(segment.archived_at_us)),
        recorded_sequence: Some(segment.recorded_sequence),
        lines: data_name(&segment.place),
        lines_bytes: Some(segment.data_bytes),
        object_sha256: segment.data_sha256.to_vec(),
        lines_sha256: segment.lines_sha256.to_vec(),
        manifest: manifest_name(&segment.place),
        manifest_sha256: segment.manifest_sha256.to_vec(),
    }
}
