//! What an answer adds up: sections from memory, read from the snapshot, or made of others.
//!
//! ```text
//! here         what is in memory, what is to be read ─▶ a few statements ─▶ blobs
//! a thread     blobs ─▶ sections ─▶ sections of fewer keys, of blocks ─▶ the answer's own work
//! ```
//!
//! The thread that serves calls only waits for the database; what takes time is done on one for that. Beside stored
//! sections there are those that can be made of them: of other keys, and of blocks of spans. When a second answer asks
//! for one it is made, after that answer (`prepare`): what is asked once costs no more than it must, nobody waits for
//! what only others will use, and dashboards read little.

use std::collections::HashMap;
use std::sync::Arc;

use futures::TryStreamExt as _;
use sea_orm::{DatabaseTransaction, StreamTrait as _};
use service_core::error::{Error, Result};
use tokio::sync::mpsc;

use super::cache::{Cache, Found, SectionKey};
use super::read::{Node, Piece, View, damaged};
use super::{Place, Rollup};
use crate::rollup::{Block, Cut, Level, Section};
use crate::store::Store;

/// Parts that are fetched, folded and let go of together, and sections that are read for them: more would take memory,
/// and be read before the first is decoded.
const CHUNK: usize = 64;
/// A full section counts as so many.
const FULL: usize = 8;
/// Chunks that are read ahead of the fold.
const AHEAD: usize = 1;

/// A section, or what it is to be made of.
pub(super) enum Part {
    Ready(Arc<Section>),
    /// Its blob, once it is read.
    Stored(Piece, Cut, Option<Vec<u8>>),
    /// With fewer keys.
    Projected(SectionKey, Box<Part>),
    /// A block of its two halves.
    United(SectionKey, Box<[Part; 2]>),
}

/// What is to be read, and where to.
pub(super) type Blob<'a> = (Place, Cut, &'a mut Option<Vec<u8>>);

impl Part {
    /// The blobs that are to be read for it.
    pub(super) fn stored<'a>(&'a mut self, into: &mut Vec<Blob<'a>>) {
        match self {
            Self::Ready(_) => {}
            Self::Stored(piece, cut, data) => into.push((piece.place, *cut, data)),
            Self::Projected(_, full) => full.stored(into),
            Self::United(_, halves) => halves.iter_mut().for_each(|half| half.stored(into)),
        }
    }

    /// How much is to be read for it.
    pub(super) fn reads(&self) -> usize {
        match self {
            Self::Ready(_) => 0,
            Self::Stored(_, Cut::FULL, _) => FULL,
            Self::Stored(..) => 1,
            Self::Projected(_, full) => full.reads(),
            Self::United(_, halves) => halves.iter().map(Self::reads).sum(),
        }
    }
}

/// What would have been of use to an answer, and to one before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Wish {
    pub(super) block: Block,
    pub(super) instance: u32,
    pub(super) cut: Cut,
}

/// Looks for the parts of an answer.
pub(super) struct Walk<'a> {
    pub(super) cache: &'a mut Cache,
    pub(super) cut: Cut,
    pub(super) answer: u64,
    pub(super) wishes: Vec<Wish>,
}

impl Walk<'_> {
    /// What comes to a block: itself if it is there, or what is there of it. `asks` whether it would be of use.
    fn parts(&mut self, block: Block, pieces: &[Piece], asks: bool, into: &mut Vec<Part>) {
        let [first, second] = match (pieces, block.halves()) {
            ([], _) => return,
            ([piece], _) => return into.push(self.leaf(piece, asks)),
            // More than one piece is more than one span.
            (_, None) => return,
            (_, Some(halves)) => divided(halves, pieces),
        };
        if first.1.is_empty() || second.1.is_empty() {
            let (half, pieces) = if first.1.is_empty() { second } else { first };
            return self.parts(half, pieces, asks, into);
        }
        let key = self.key(block, pieces);
        match self.ask(&key, asks) {
            Found::There(section) => into.push(Part::Ready(section)),
            found => {
                // What it is made of is made with it.
                let asks = asks && !matches!(found, Found::Again);
                self.parts(first.0, first.1, asks, into);
                self.parts(second.0, second.1, asks, into);
            }
        }
    }

    fn ask(&mut self, key: &SectionKey, asks: bool) -> Found<Section> {
        if !asks {
            return self.cache.get(key).map_or(Found::First, Found::There);
        }
        let found = self.cache.ask(key, self.answer);
        if let Found::Again = found {
            self.wishes.push(Wish { block: key.block, instance: key.instance, cut: self.cut });
        }
        found
    }

    /// A block of some pieces as one section.
    pub(super) fn whole(&mut self, block: Block, pieces: &[Piece]) -> Option<Part> {
        let [first, second] = match (pieces, block.halves()) {
            ([], _) => return None,
            ([piece, ..], None) | ([piece], _) => return Some(self.whole_leaf(piece)),
            (_, Some(halves)) => divided(halves, pieces),
        };
        if first.1.is_empty() || second.1.is_empty() {
            let (half, pieces) = if first.1.is_empty() { second } else { first };
            return self.whole(half, pieces);
        }
        let key = self.key(block, pieces);
        Some(match self.cache.get(&key) {
            Some(section) => Part::Ready(section),
            None => Part::United(key, Box::new([self.whole(first.0, first.1)?, self.whole(second.0, second.1)?])),
        })
    }

    /// A single segment: by the keys, if that is stored or there; else the full one.
    fn leaf(&mut self, piece: &Piece, asks: bool) -> Part {
        if self.cut.number().is_some() {
            return self.stored(piece, self.cut);
        }
        let key = self.key(Block::one(piece.place.span()), &[*piece]);
        match self.ask(&key, asks) {
            Found::There(section) => Part::Ready(section),
            _ => self.stored(piece, Cut::FULL),
        }
    }

    fn whole_leaf(&mut self, piece: &Piece) -> Part {
        if self.cut.number().is_some() {
            return self.stored(piece, self.cut);
        }
        let key = self.key(Block::one(piece.place.span()), &[*piece]);
        match self.cache.get(&key) {
            Some(section) => Part::Ready(section),
            None => Part::Projected(key, Box::new(self.stored(piece, Cut::FULL))),
        }
    }

    fn stored(&mut self, piece: &Piece, cut: Cut) -> Part {
        match self.cache.get(&stored_key(piece, cut)) {
            Some(section) => Part::Ready(section),
            None => Part::Stored(*piece, cut, None),
        }
    }

    fn key(&self, block: Block, pieces: &[Piece]) -> SectionKey {
        let instance = pieces.first().map_or(0, |piece| piece.place.instance);
        let version = pieces.iter().map(|piece| piece.version).max().unwrap_or(0);
        SectionKey { block, instance, cut: self.cut, version }
    }
}

fn distinct(numbers: impl Iterator<Item = i64>) -> Vec<i64> {
    let mut numbers: Vec<i64> = numbers.collect();
    numbers.sort_unstable();
    numbers.dedup();
    numbers
}

/// Which pieces are in which half.
fn divided([first, second]: [Block; 2], pieces: &[Piece]) -> [(Block, &[Piece]); 2] {
    let at = pieces.partition_point(|piece| piece.place.start_us < first.end_us());
    [(first, &pieces[..at]), (second, &pieces[at..])]
}

pub(super) fn stored_key(piece: &Piece, cut: Cut) -> SectionKey {
    let Piece { place, version } = *piece;
    SectionKey { block: Block::one(place.span()), instance: place.instance, cut, version }
}

/// The sections of an answer as they come, each with the bucket and the instance it counts for.
pub(crate) struct Sections {
    rollup: Arc<Rollup>,
    chunks: mpsc::Receiver<Vec<(usize, u32, Part)>>,
    chunk: std::vec::IntoIter<(usize, u32, Part)>,
}

impl Iterator for Sections {
    type Item = Result<(usize, u32, Arc<Section>)>;

    /// Waits for what is read; to be called where waiting and working are allowed.
    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some((bucket, instance, part)) = self.chunk.next() {
                return Some(self.rollup.make(part).map(|section| (bucket, instance, section)));
            }
            self.chunk = self.chunks.blocking_recv()?.into_iter();
        }
    }
}

impl Rollup {
    /// The section of a part whose blobs were read.
    pub(super) fn make(&self, part: Part) -> Result<Arc<Section>> {
        let (key, section) = match part {
            Part::Ready(section) => return Ok(section),
            Part::Stored(piece, cut, None) => return Err(damaged(piece.place, cut, "it is not there")),
            Part::Stored(piece, cut, Some(data)) => {
                let section = Section::decode(cut, &data).map_err(|error| damaged(piece.place, cut, error))?;
                (stored_key(&piece, cut), section)
            }
            Part::Projected(key, full) => (key, Section::project(&*self.make(*full)?, key.cut)),
            Part::United(key, halves) => {
                let [first, second] = *halves;
                (key, Section::unite(&*self.make(first)?, &*self.make(second)?))
            }
        };
        let section = Arc::new(section);
        self.cache().insert(key, Arc::clone(&section));
        Ok(section)
    }
}

impl Store {
    /// Hands the sections of the view to a thread of their own, which adds them up while more are read.
    pub(crate) async fn fold<T: Send + 'static>(
        &self,
        view: &View,
        cut: Cut,
        wants: impl Fn(u32) -> bool,
        work: impl FnOnce(Sections) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (send, chunks) = mpsc::channel(AHEAD);
        let sections = Sections { rollup: Arc::clone(&self.rollup), chunks, chunk: Vec::new().into_iter() };
        let worker = tokio::task::spawn_blocking(move || work(sections));
        let nodes = view.nodes.iter().filter(|node| wants(node.instance)).collect();
        let read = self.send_parts(view, nodes, cut, send).await;
        let done = worker.await.map_err(Error::internal)?;
        read.and(done)
    }

    async fn send_parts(
        &self,
        view: &View,
        nodes: Vec<&Node>,
        cut: Cut,
        send: mpsc::Sender<Vec<(usize, u32, Part)>>,
    ) -> Result<()> {
        let mut nodes = &nodes[..];
        while !nodes.is_empty() {
            let mut chunk = self.next_parts(view, &mut nodes, cut);
            let mut blobs = Vec::new();
            chunk.iter_mut().for_each(|(_, _, part)| part.stored(&mut blobs));
            self.read_blobs(&view.snapshot, blobs).await?;
            if send.send(chunk).await.is_err() {
                // The worker has failed, and says why.
                break;
            }
        }
        Ok(())
    }

    /// The parts of the next nodes.
    fn next_parts(&self, view: &View, nodes: &mut &[&Node], cut: Cut) -> Vec<(usize, u32, Part)> {
        let (mut chunk, mut found, mut reads) = (Vec::new(), Vec::new(), 0);
        while let Some((Node { bucket, instance, block, pieces }, rest)) = nodes.split_first()
            && reads.max(chunk.len()) < CHUNK
        {
            *nodes = rest;
            let mut walk = Walk { cache: &mut self.rollup.cache(), cut, answer: view.answer, wishes: Vec::new() };
            walk.parts(*block, pieces, true, &mut found);
            let wishes = walk.wishes;
            view.wishes().sections.extend(wishes);
            reads += found.iter().map(Part::reads).sum::<usize>();
            chunk.extend(found.drain(..).map(|part| (*bucket, *instance, part)));
        }
        chunk
    }

    pub(super) async fn read_blobs(&self, snapshot: &DatabaseTransaction, blobs: Vec<Blob<'_>>) -> Result<()> {
        type Places<'a> = HashMap<Place, &'a mut Option<Vec<u8>>>;
        let mut by_statement: HashMap<(Level, Cut), Places<'_>> = HashMap::new();
        for (place, cut, data) in blobs {
            by_statement.entry((place.level, cut)).or_default().insert(place, data);
        }
        for ((level, cut), mut places) in by_statement {
            let starts = distinct(places.keys().map(|place| place.start_us));
            let instances = distinct(places.keys().map(|place| i64::from(place.instance)));
            let mut rows = snapshot.stream_raw(self.segments(level, cut, &starts, Some(&instances))).await?;
            while let Some(row) = rows.try_next().await? {
                let instance: i32 = row.try_get_by_index(1)?;
                let place = Place { level, start_us: row.try_get_by_index(0)?, instance: instance.unsigned_abs() };
                if let Some(data) = places.get_mut(&place) {
                    **data = Some(row.try_get_by_index(2)?);
                }
            }
        }
        Ok(())
    }

    /// The sections of these pieces.
    pub(super) async fn sections(
        &self,
        snapshot: &DatabaseTransaction,
        pieces: &[Piece],
        cut: Cut,
    ) -> Result<Vec<(Piece, Arc<Section>)>> {
        let mut parts: Vec<(Piece, Part)> = {
            let mut cache = self.rollup.cache();
            let mut walk = Walk { cache: &mut cache, cut, answer: 0, wishes: Vec::new() };
            pieces.iter().map(|piece| (*piece, walk.whole_leaf(piece))).collect()
        };
        let mut blobs = Vec::new();
        parts.iter_mut().for_each(|(_, part)| part.stored(&mut blobs));
        self.read_blobs(snapshot, blobs).await?;
        let rollup = Arc::clone(&self.rollup);
        let make = move || parts.into_iter().map(|(piece, part)| Ok((piece, rollup.make(part)?))).collect();
        tokio::task::spawn_blocking(make).await.map_err(Error::internal)?
    }
}
