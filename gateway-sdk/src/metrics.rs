//! The SDK's counters as a metrics system has them.
//!
//! **Why a snapshot and no facade.** A facade is called where something happens, which here is
//! the hot path of a request, and finds its recorder by a static of its own crate: where an
//! application has another version of `metrics`, or another global of `opentelemetry`, the numbers
//! go nowhere, and nobody is told. The SDK counts anyway, under locks it holds anyway. So it
//! shows what it has counted, and whoever collects asks when it collects: [`Stats::samples`]
//! for anything, and for OpenTelemetry, whose observable instruments are made for just that,
//! `GatewaySdk::observe`. That one is told its meter, so another version is an error of the
//! compiler, and its API crate depends on nothing.

#[cfg(feature = "opentelemetry")]
mod opentelemetry;

use SampleKind::{Counter, Gauge};

use crate::stats::{ServiceStats, Stats};

/// How a [`Sample`] behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SampleKind {
    /// It only grows, from 0 when the SDK was built.
    Counter,
    /// It goes up and down.
    Gauge,
}

/// One number of a snapshot; see [`Stats::samples`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Sample {
    /// `gateway_sdk.events.acknowledged`; for Prometheus put `_` in place of the dots, and
    /// `_total` behind a counter.
    pub name: &'static str,
    /// In a few words.
    pub description: &'static str,
    /// By UCUM, as OpenTelemetry has it: `{event}`, `By`, `1`.
    pub unit: &'static str,
    /// Whether it only grows.
    pub kind: SampleKind,
    /// Its one label, `service`: `usage` or `audit`.
    pub service: &'static str,
    /// The number.
    pub value: u64,
}

/// What a sample is of, but for its service and its value.
pub(crate) struct About {
    pub(crate) name: &'static str,
    pub(crate) description: &'static str,
    pub(crate) unit: &'static str,
    pub(crate) kind: SampleKind,
    read: Read,
}

enum Read {
    /// Of each service.
    Service(fn(&ServiceStats) -> u64),
    /// Of audit alone.
    Audit(fn(&Stats) -> u64),
}

const fn service(
    kind: SampleKind,
    name: &'static str,
    unit: &'static str,
    description: &'static str,
    read: fn(&ServiceStats) -> u64,
) -> About {
    About { name, description, unit, kind, read: Read::Service(read) }
}

const fn audit(
    kind: SampleKind,
    name: &'static str,
    unit: &'static str,
    description: &'static str,
    read: fn(&Stats) -> u64,
) -> About {
    About { name, description, unit, kind, read: Read::Audit(read) }
}

/// All there are; names are for ever.
#[rustfmt::skip]
pub(crate) const ALL: [About; 20] = [
    service(Counter, "gateway_sdk.events.recorded", "{event}", "events handed to the SDK", |s| s.recorded),
    service(Counter, "gateway_sdk.events.recovered", "{event}", "events that an earlier run had left in the spool", |s| s.recovered),
    service(Counter, "gateway_sdk.events.acknowledged", "{event}", "events that the service has on its disk", |s| s.acknowledged),
    service(Counter, "gateway_sdk.events.duplicate", "{event}", "events among the acknowledged that it had already", |s| s.duplicates),
    service(Counter, "gateway_sdk.events.rejected", "{event}", "events refused for good", |s| s.rejected),
    service(Counter, "gateway_sdk.events.dropped", "{event}", "events given up for want of room", |s| s.dropped),
    service(Counter, "gateway_sdk.events.damaged", "{event}", "events of the spool that could not be read any more", |s| s.damaged),
    service(Gauge, "gateway_sdk.events.queued", "{event}", "events that wait to be sent", |s| s.queued),
    service(Gauge, "gateway_sdk.events.in_flight", "{event}", "events sent and not yet answered for", |s| s.in_flight),
    service(Gauge, "gateway_sdk.queue.size", "By", "encoded bytes of events that wait in memory", |s| s.queued_bytes),
    service(Gauge, "gateway_sdk.spool.size", "By", "bytes of the spool's segments on disk", |s| s.spool_bytes),
    service(Gauge, "gateway_sdk.spool.limit", "By", "what they may be", |s| s.spool_limit),
    service(Counter, "gateway_sdk.spool.errors", "{error}", "failures of the disk under the spool", |s| s.disk_errors),
    service(Counter, "gateway_sdk.streams.reopened", "{stream}", "streams opened after the first", |s| s.reconnects),
    service(Counter, "gateway_sdk.streams.refused", "{stream}", "streams refused for want of credentials or rights", |s| s.refused),
    service(Gauge, "gateway_sdk.connected", "1", "1 while a stream to the service is open", |s| u64::from(s.connected)),
    audit(Counter, "gateway_sdk.operations.begun", "{operation}", "operations whose intent was recorded", |s| s.operations.begun),
    audit(Counter, "gateway_sdk.operations.ended", "{operation}", "operations whose outcome was recorded", |s| s.operations.ended),
    audit(Counter, "gateway_sdk.operations.abandoned", "{operation}", "operations that stand open in the log", |s| s.operations.abandoned),
    audit(Gauge, "gateway_sdk.operations.open", "{operation}", "operations under way", |s| s.operations.open),
];

impl About {
    /// Its numbers in a snapshot, by service.
    pub(crate) fn values(&self, stats: &Stats) -> impl Iterator<Item = (&'static str, u64)> {
        let (usage, audit) = match self.read {
            Read::Service(read) => (Some(read(&stats.usage)), read(&stats.audit)),
            Read::Audit(read) => (None, read(stats)),
        };
        usage.map(|value| ("usage", value)).into_iter().chain([("audit", audit)])
    }
}

impl Stats {
    /// Every number of the snapshot, with what a metrics system wants to know of it. For the
    /// `metrics` facade, at each collection or at an interval:
    ///
    /// ```ignore
    /// for sample in sdk.stats().samples() {
    ///     match sample.kind {
    ///         SampleKind::Counter => metrics::counter!(sample.name, "service" => sample.service).absolute(sample.value),
    ///         SampleKind::Gauge => metrics::gauge!(sample.name, "service" => sample.service).set(sample.value as f64),
    ///     }
    /// }
    /// ```
    ///
    /// `examples/metrics.rs` makes a page for Prometheus of it, without any other crate.
    pub fn samples(&self) -> impl Iterator<Item = Sample> {
        ALL.iter().flat_map(|about| {
            let &About { name, description, unit, kind, .. } = about;
            about.values(self).map(move |(service, value)| Sample { name, description, unit, kind, service, value })
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_counter_of_a_snapshot_is_there_once_by_name_and_service() {
        let mut stats = Stats::default();
        (stats.usage.acknowledged, stats.audit.acknowledged, stats.audit.connected) = (7, 3, true);
        stats.operations.open = 2;
        let samples: Vec<Sample> = stats.samples().collect();
        let value = |name: &str, service: &str| {
            samples.iter().find(|sample| sample.name == name && sample.service == service).map(|sample| sample.value)
        };
        assert_eq!(value("gateway_sdk.events.acknowledged", "usage"), Some(7));
        assert_eq!(value("gateway_sdk.events.acknowledged", "audit"), Some(3));
        assert_eq!(value("gateway_sdk.connected", "audit"), Some(1));
        assert_eq!(value("gateway_sdk.operations.open", "audit"), Some(2));
        assert_eq!(value("gateway_sdk.operations.open", "usage"), None);
        let names: BTreeSet<_> = samples.iter().map(|sample| (sample.name, sample.service)).collect();
        assert_eq!(names.len(), samples.len());
        let other = samples.iter().filter(|sample| sample.value == 0).count();
        assert_eq!(other, samples.len() - 4, "each reads its own number");
    }
}
