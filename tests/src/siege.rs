//! Attackers that are held against a server for as long as a test or a benchmark wants.
//!
//! ```text
//! 127.0.0.2   half-open connections: half a preface, and made anew as soon as the server gives one up
//! 127.0.0.3   rapid reset: streams opened and reset at a steady rate, on a new connection when one is cut off
//! 127.0.0.4   readers of exports that take one chunk and stop
//! ```
//!
//! Each kind comes from an address of its own, so that the caps by peer keep them apart from those who behave.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use activity_proto::audit::v1 as audit;
use activity_proto::common::v1::{TimeRange, TimeRangePreset, time_range::Range};
use activity_proto::usage::v1 as usage;
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::wire::{self, END_HEADERS, END_STREAM, HEADERS, PREFACE, RST_STREAM, Wire, call, frame, message};

/// Streams reset in one go; more than a server has accepted (h2: 20) would cut the connection off.
const BURST: u32 = 10;

/// Attackers of one server. Dropped, they are gone.
#[derive(Debug, Default)]
pub struct Siege {
    attackers: JoinSet<()>,
    half_open: Arc<AtomicUsize>,
    resets: Arc<AtomicU64>,
    stopped: Arc<AtomicUsize>,
    cut_off: Arc<AtomicU64>,
}

impl Siege {
    /// Holds this many connections that never finish their preface.
    pub fn half_open(&mut self, server: SocketAddr, count: usize) {
        for _ in 0..count {
            let open = self.half_open.clone();
            self.attackers.spawn(async move {
                loop {
                    let Ok(mut socket) = wire::connect(&server.to_string(), Ipv4Addr::new(127, 0, 0, 2)).await else {
                        tokio::task::yield_now().await;
                        continue;
                    };
                    if socket.write_all(&PREFACE[..12]).await.is_ok() {
                        open.fetch_add(1, Ordering::Relaxed);
                        // Until the server closes it; it says its own preface before.
                        while socket.read(&mut [0; 64]).await.is_ok_and(|read| read > 0) {}
                        open.fetch_sub(1, Ordering::Relaxed);
                    }
                }
            });
        }
    }

    /// Opens and resets this many streams a second.
    pub fn rapid_reset(&mut self, server: SocketAddr, path: &'static str, per_second: u32) {
        let (resets, cut_off) = (self.resets.clone(), self.cut_off.clone());
        self.attackers.spawn(async move {
            let mut pace = interval(Duration::from_secs(1) * BURST / per_second);
            pace.set_missed_tick_behavior(MissedTickBehavior::Burst);
            loop {
                let Ok(mut wire) = Wire::open(&server.to_string(), Ipv4Addr::new(127, 0, 0, 3)).await else { continue };
                let mut stream = 1;
                while stream < u32::MAX / 4 {
                    pace.tick().await;
                    let mut bytes = Vec::new();
                    for _ in 0..BURST {
                        bytes.extend(frame(HEADERS, END_HEADERS, stream, &call(path)));
                        // CANCEL.
                        bytes.extend(frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes()));
                        stream += 2;
                    }
                    if wire.send(&bytes).await.is_err() {
                        cut_off.fetch_add(1, Ordering::Relaxed);
                        break;
                    }
                    resets.fetch_add(u64::from(BURST), Ordering::Relaxed);
                }
            }
        });
    }

    /// Asks for this many exports, each on a connection of its own, and takes no more of each than its window.
    pub fn stopped_readers(&mut self, server: SocketAddr, path: &'static str, request: &[u8], count: usize) {
        let request = message(request);
        for _ in 0..count {
            let (stopped, request) = (self.stopped.clone(), request.clone());
            self.attackers.spawn(async move {
                loop {
                    let opened = Wire::open(&server.to_string(), Ipv4Addr::new(127, 0, 0, 4)).await;
                    let Ok(mut wire) = opened else { continue };
                    let mut bytes = frame(HEADERS, END_HEADERS, 1, &call(path));
                    bytes.extend(frame(wire::DATA, END_STREAM, 1, &request));
                    if wire.send(&bytes).await.is_err() {
                        continue;
                    }
                    let mut data = 0;
                    loop {
                        let Ok(next) = wire.reader.next().await else { break };
                        if next.kind == wire::DATA {
                            data += next.payload.len();
                        }
                        // The whole of the window that HTTP/2 begins with was sent, and no more can be.
                        if data == 65_535 {
                            break;
                        }
                    }
                    if data == 65_535 {
                        stopped.fetch_add(1, Ordering::Relaxed);
                        while wire.reader.next().await.is_ok() {}
                        stopped.fetch_sub(1, Ordering::Relaxed);
                    }
                }
            });
        }
    }

    /// Half-open connections at this moment.
    pub fn half_open_now(&self) -> usize {
        self.half_open.load(Ordering::Relaxed)
    }

    /// Stopped readers at this moment.
    pub fn stopped_now(&self) -> usize {
        self.stopped.load(Ordering::Relaxed)
    }

    /// Streams that were reset until now.
    pub fn resets(&self) -> u64 {
        self.resets.load(Ordering::Relaxed)
    }

    /// How often the flood's connection was cut off.
    pub fn cut_off(&self) -> u64 {
        self.cut_off.load(Ordering::Relaxed)
    }

    /// Ends all attackers.
    pub async fn lift(mut self) {
        self.attackers.shutdown().await;
    }
}

/// Times of the writes of one phase, sorted.
#[derive(Debug)]
pub struct Phase {
    times: Vec<Duration>,
}

impl Phase {
    /// Writes one after the other for a while; each must be acknowledged.
    pub async fn of(span: Duration, mut write: impl AsyncFnMut()) -> Self {
        let end = Instant::now() + span;
        let mut times = Vec::new();
        while Instant::now() < end {
            let begun = Instant::now();
            write().await;
            times.push(begun.elapsed());
        }
        times.sort();
        Self { times }
    }

    /// Writes at a steady pace for a while. Timed from when each was due, so that one which goes out late because of
    /// another has waited all the same.
    pub async fn paced(span: Duration, per_second: u32, mut write: impl AsyncFnMut()) -> Self {
        let begun = Instant::now();
        let mut times = Vec::new();
        for number in 0.. {
            let due = begun + Duration::from_secs(1) * number / per_second;
            if due - begun >= span {
                break;
            }
            tokio::time::sleep_until(due).await;
            write().await;
            times.push(due.elapsed());
        }
        times.sort();
        Self { times }
    }

    /// Writes that were acknowledged.
    pub fn count(&self) -> usize {
        self.times.len()
    }

    pub fn at(&self, per_mille: usize) -> Duration {
        self.times[(self.times.len() * per_mille / 1000).min(self.times.len() - 1)]
    }

    /// `1,234 writes, p50 1.2 ms, p99 3.4 ms, slowest 5.6 ms`.
    pub fn figures(&self) -> String {
        let ms = |per_mille| self.at(per_mille).as_secs_f64() * 1e3;
        format!("{} writes, p50 {:.2} ms, p99 {:.2} ms, slowest {:.2} ms", self.count(), ms(500), ms(990), ms(1000))
    }
}

/// What a service is attacked with.
#[derive(Debug, Clone)]
pub struct Attacks {
    /// The method whose calls are reset.
    pub path: &'static str,
    /// The export that nobody reads.
    pub export: &'static str,
    /// Its request, encoded: the last day.
    pub request: Vec<u8>,
}

fn last_day() -> TimeRange {
    TimeRange { range: Some(Range::Preset(TimeRangePreset::Last24Hours.into())), time_zone: String::new() }
}

/// For audit-service.
pub fn audit() -> Attacks {
    let request = audit::ExportEntriesRequest {
        range: Some(audit::export_entries_request::Range::TimeRange(last_day())),
        format: audit::ExportFormat::Jsonl.into(),
        ..Default::default()
    };
    Attacks {
        path: "/activity.audit.v1.AuditQueryService/ListEntries",
        export: "/activity.audit.v1.AuditQueryService/ExportEntries",
        request: request.encode_to_vec(),
    }
}

/// For usage-service.
pub fn usage() -> Attacks {
    let request = usage::ExportUsageRequest {
        time_range: Some(last_day()),
        shape: usage::ExportShape::Requests.into(),
        format: usage::ExportFormat::Csv.into(),
        ..Default::default()
    };
    Attacks {
        path: "/activity.usage.v1.UsageQueryService/GetSummary",
        export: "/activity.usage.v1.UsageQueryService/ExportUsage",
        request: request.encode_to_vec(),
    }
}
