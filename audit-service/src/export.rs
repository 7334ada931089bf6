//! An export: the log walked over pages into chunks of whole lines, which can be left off after any of them.
//!
//! ```text
//! open ── heads of the logs ──▶ frozen        (below them everything is committed, and nothing comes any more)
//! chunk, token │ chunk, token │ … │ end: entries, SHA-256, heads
//!                     └─ resume: position, counts, the hash so far, the heads: byte for byte the rest
//! ```
//!
//! Nothing is held between two chunks but two pages of rows, the one that is written and the one behind it, which a task
//! reads meanwhile that ends with the export: a reader may take its time.

use std::vec;

use serde::{Deserialize, Serialize};
use service_core::auth::Access;
use service_core::clock;
use service_core::error::{Error, Reason, Result};
use sha2::digest::common::hazmat::{SerializableState as _, SerializedState};
use sha2::{Digest as _, Sha256};
use tokio_util::task::AbortOnDropHandle;
use uuid::Uuid;

use crate::csv;
use crate::event::{Event, Key};
use crate::filter::Filter;
use crate::history::History;
use crate::store::{Heads, Order, Range, Row, Store, TimeWalk};

/// A chunk is sent when it has this many bytes; its last line may pass them.
const CHUNK_BYTES: usize = 256 * 1024;
/// Heads that take more than this are kept in the database instead of the token.
const TOKEN_HEADS_BYTES: usize = 6 * 1024;

/// What is exported, and in which order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Scope {
    /// By (`occurred_at`, `id`).
    Time {
        /// First microsecond inside.
        start_us: i64,
        /// First microsecond after.
        end_us: i64,
    },
    /// By sequence, within one log.
    Log {
        /// Whose.
        instance_id: String,
        /// First sequence inside.
        from: u64,
        /// First sequence after.
        to: u64,
    },
}

/// How it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Canonical JSON, a line an entry.
    Jsonl,
    /// RFC 4180.
    Csv,
}

/// How far an export has come: what a resume token carries.
#[derive(Serialize, Deserialize)]
struct Saved {
    scope: Scope,
    /// The last entry of the last chunk: its key, or its sequence in the place of the time.
    after: Option<(i64, Uuid)>,
    entries: u64,
    /// SHA-256 so far, in hex.
    sha256: String,
    heads: SavedHeads,
    /// When it was opened; 0 in a token from before that was told.
    #[serde(default)]
    frozen_us: i64,
}

#[derive(Serialize, Deserialize)]
enum SavedHeads {
    Here(Heads),
    Kept(Vec<u8>),
}

impl Saved {
    /// What a token's payload says, and the hash to go on with.
    fn read(payload: &[u8]) -> Result<(Self, Sha256)> {
        let saved: Self = serde_json::from_slice(payload).map_err(|_| Self::refused())?;
        let sha256 = unhex(&saved.sha256).as_deref().and_then(restore).ok_or_else(Self::refused)?;
        Ok((saved, sha256))
    }

    /// Sealed by us, so a payload that cannot be read is of another version.
    fn refused() -> Error {
        let message = "resume_token cannot be resumed any more; open the export anew";
        Error::invalid_because(Reason::InvalidPageToken, "resume_token", message)
    }

    fn write(&self) -> Result<Vec<u8>> {
        serde_json::to_vec(self).map_err(Error::internal)
    }
}

/// A payload read, its hash taken to the end, and written again.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn rewritten(payload: &[u8]) -> Result<Vec<u8>> {
    let (saved, sha256) = Saved::read(payload)?;
    assert_eq!(sha256.clone().finalize().len(), 32);
    Saved { sha256: hex(&sha256), ..saved }.write()
}

/// An export under way.
#[derive(Debug)]
pub struct Export {
    store: Store,
    /// `None`: nothing may be seen.
    filter: Option<Filter>,
    format: Format,
    scope: Scope,
    heads: Heads,
    /// The digest of the heads, where they are kept in the database.
    kept: Option<[u8; 32]>,
    frozen_us: i64,
    ahead: Option<Ahead>,
    rows: vec::IntoIter<Row>,
    after: Option<(i64, Uuid)>,
    entries: u64,
    sha256: Sha256,
    /// Whether the header is still to be written.
    fresh: bool,
    /// Whether every entry is wanted.
    whole: bool,
    /// Where the entries of the chunk are, if somebody wants to know.
    places: Option<Vec<(String, u64)>>,
}

/// Where an export is frozen.
struct Frozen {
    heads: Heads,
    kept: Option<[u8; 32]>,
    frozen_us: i64,
}

/// The next rows on their way, with the walk that goes on behind them; without rows at the end.
type Ahead = AbortOnDropHandle<Result<Option<(Walk, Vec<Row>)>>>;

#[derive(Debug)]
enum Walk {
    Time(TimeWalk, Whole),
    Log(History),
}

/// Which part of the logs must be here for a walk over time to be whole.
#[derive(Debug)]
struct Whole {
    access: Access,
    filter: Filter,
    start_us: i64,
}

impl Walk {
    /// Reads beside whatever goes on; not if nobody waits for it any more.
    fn ahead(mut self, store: &Store) -> Ahead {
        let store = store.clone();
        AbortOnDropHandle::new(tokio::spawn(async move {
            let rows = match &mut self {
                Self::Time(walk, Whole { access, filter, start_us }) => {
                    let rows = walk.next(&store).await?.map(|rows| rows.seen);
                    store.refuse_removed(access, filter, *start_us).await?;
                    rows
                }
                Self::Log(walk) => Some(walk.next(&store).await?).filter(|rows| !rows.is_empty()),
            };
            Ok(rows.map(|rows| (self, rows)))
        }))
    }
}

/// What a whole export held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    /// Entries in all.
    pub entries: u64,
    /// SHA-256 over all bytes.
    pub sha256: [u8; 32],
    /// Where it was frozen.
    pub heads: Heads,
    /// When that was.
    pub frozen_us: i64,
    /// The scope as it was resolved when it was opened.
    pub scope: Scope,
}

impl Export {
    /// Opens an export of what may be seen, frozen at the heads of now.
    pub async fn open(store: Store, access: &Access, filter: Filter, format: Format, scope: Scope) -> Result<Self> {
        let filter = filter.within(access);
        // Before the heads are read: what was signed before that is in it.
        let frozen_us = clock::now_us();
        let instances = filter.as_ref().map(|filter| filter.instance_ids.values()).unwrap_or_default();
        let (heads, scope) = match scope {
            Scope::Log { instance_id, from, to } => {
                let heads = store.heads(access, std::slice::from_ref(&instance_id)).await?;
                let head = heads.get(&instance_id).copied().unwrap_or(0);
                (heads, Scope::Log { instance_id, from, to: to.min(head) })
            }
            scope if filter.is_none() => (Heads::new(), scope),
            scope if instances.is_empty() => (store.all_heads(access).await?, scope),
            scope => (store.heads(access, instances).await?, scope),
        };
        let large = serde_json::to_string(&heads).map_err(Error::internal)?.len() > TOKEN_HEADS_BYTES;
        let kept = if large { Some(store.freeze(&heads).await?) } else { None };
        Ok(Self::at(store.for_export().await, access, filter, format, scope, Frozen { heads, kept, frozen_us }, None))
    }

    /// Goes on behind the chunk that came with a token's payload. Access, filter and format are the same as when it was
    /// opened; the token is bound to them.
    pub async fn resume(store: Store, access: &Access, filter: Filter, format: Format, payload: &[u8]) -> Result<Self> {
        let (saved, sha256) = Saved::read(payload)?;
        let (heads, kept) = match saved.heads {
            SavedHeads::Here(heads) => (heads, None),
            SavedHeads::Kept(digest) => {
                let heads = store.frozen(&digest).await?.ok_or_else(Saved::refused)?;
                (heads, Some(<[u8; 32]>::try_from(digest).map_err(|_| Saved::refused())?))
            }
        };
        let store = store.for_export().await;
        let frozen = Frozen { heads, kept, frozen_us: saved.frozen_us };
        let mut export = Self::at(store, access, filter.within(access), format, saved.scope, frozen, saved.after);
        export.entries = saved.entries;
        export.sha256 = sha256;
        export.fresh = false;
        Ok(export)
    }

    fn at(
        store: Store,
        access: &Access,
        filter: Option<Filter>,
        format: Format,
        scope: Scope,
        Frozen { heads, kept, frozen_us }: Frozen,
        after: Option<(i64, Uuid)>,
    ) -> Self {
        let walk = match &scope {
            Scope::Time { start_us, end_us } => {
                let range = Range { start_us: *start_us, end_us: *end_us };
                let after = after.map(|(occurred_at_us, id)| Key { occurred_at_us, id });
                let filter = filter.clone().unwrap_or_default();
                let whole = Whole { access: access.clone(), filter, start_us: *start_us };
                Walk::Time(TimeWalk::new(access, range, Order::OldestFirst, after, usize::MAX), whole)
            }
            Scope::Log { instance_id, from, to } => {
                let from = after.map_or(*from, |(sequence, _)| sequence.cast_unsigned() + 1);
                Walk::Log(History::new(access, instance_id, from, *to))
            }
        };
        let ahead = Some(walk.ahead(&store));
        let whole = filter.as_ref().is_some_and(|filter| !filter.narrows());
        Self {
            store,
            filter,
            format,
            scope,
            heads,
            kept,
            frozen_us,
            ahead,
            rows: Vec::new().into_iter(),
            after,
            entries: 0,
            sha256: Sha256::new(),
            fresh: true,
            whole,
            places: None,
        }
    }

    /// Notes where the entries of each chunk are.
    pub fn note_places(&mut self) {
        self.places = Some(Vec::new());
    }

    /// Instance and sequence of each entry of the last chunk.
    pub fn take_places(&mut self) -> Vec<(String, u64)> {
        self.places.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Where it is frozen.
    pub fn heads(&self) -> &Heads {
        &self.heads
    }

    /// The next chunk; `None` when all is told.
    pub async fn chunk(&mut self) -> Result<Option<Vec<u8>>> {
        let mut data = String::with_capacity(CHUNK_BYTES + CHUNK_BYTES / 8);
        if std::mem::take(&mut self.fresh) && self.format == Format::Csv {
            csv::push_header(&mut data);
        }
        'full: while data.len() < CHUNK_BYTES {
            while let Some(row) = self.rows.next() {
                self.push(&mut data, &row)?;
                if data.len() >= CHUNK_BYTES {
                    break 'full;
                }
            }
            let Some(ahead) = self.ahead.take() else { break };
            let Some((walk, rows)) = ahead.await.map_err(Error::internal)?? else { break };
            self.ahead = Some(walk.ahead(&self.store));
            self.rows = rows.into_iter();
        }
        if data.is_empty() {
            return Ok(None);
        }
        self.sha256.update(data.as_bytes());
        Ok(Some(data.into_bytes()))
    }

    fn push(&mut self, data: &mut String, row: &Row) -> Result<()> {
        let stored_since = self.heads.get(&row.instance_id).is_none_or(|head| row.sequence >= *head);
        if stored_since {
            return Ok(());
        }
        if !self.whole && !self.wants(&row.entry()?.event) {
            return Ok(());
        }
        match self.format {
            Format::Jsonl => {
                data.push_str(&row.canonical);
                data.push('\n');
            }
            Format::Csv => csv::push_entry(data, &row.line()?, &row.leaf_hash).map_err(Error::internal)?,
        }
        if let Some(places) = &mut self.places {
            places.push((row.instance_id.clone(), row.sequence));
        }
        self.entries += 1;
        self.after = Some(match self.scope {
            Scope::Time { .. } => (row.key.occurred_at_us, row.key.id),
            Scope::Log { .. } => (row.sequence.cast_signed(), row.key.id),
        });
        Ok(())
    }

    fn wants(&self, event: &Event) -> bool {
        self.filter.as_ref().is_some_and(|filter| filter.matches(event))
    }

    /// Entries so far, from the start of the export.
    pub fn entries(&self) -> u64 {
        self.entries
    }

    /// What a token must carry to go on behind the last chunk.
    pub fn save(&self) -> Result<Vec<u8>> {
        let heads = match &self.kept {
            Some(digest) => SavedHeads::Kept(digest.to_vec()),
            None => SavedHeads::Here(self.heads.clone()),
        };
        let saved = Saved {
            scope: self.scope.clone(),
            after: self.after,
            entries: self.entries,
            sha256: hex(&self.sha256),
            heads,
            frozen_us: self.frozen_us,
        };
        saved.write()
    }

    /// What the export held, once no chunk is left.
    pub fn end(self) -> End {
        End {
            entries: self.entries,
            sha256: self.sha256.finalize().into(),
            heads: self.heads,
            frozen_us: self.frozen_us,
            scope: self.scope,
        }
    }
}

fn hex(hash: &Sha256) -> String {
    hash.serialize().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn restore(state: &[u8]) -> Option<Sha256> {
    // Eight words, then how many blocks of 512 bits they are over, which SHA-256 counts in 64 bits: a state that says it
    // is further is none of ours.
    let blocks = state.get(32..40)?.iter().rev().fold(0_u64, |number, byte| (number << 8) | u64::from(*byte));
    let state = SerializedState::<Sha256>::try_from(state).ok()?;
    Sha256::deserialize(&state).ok().filter(|_| blocks < (u64::MAX >> 9) - 1)
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
    let pair = |pair: &[u8]| Some(digit(*pair.first()?)? << 4 | digit(*pair.get(1)?)?);
    text.as_bytes().chunks(2).map(pair).collect()
}
