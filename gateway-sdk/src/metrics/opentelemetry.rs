//! The numbers as observable instruments of an OpenTelemetry meter.

use std::sync::{Arc, Weak};

use ::opentelemetry::KeyValue;
use ::opentelemetry::metrics::Meter;

use super::{ALL, SampleKind};
use crate::audit::operation::Operations;
use crate::feed::Feed;
use crate::stats::Stats;
use crate::{GatewaySdk, audit};

/// What to look at, without keeping it: the SDK ends with its last handle.
#[derive(Clone)]
struct Source {
    usage: Weak<Feed<()>>,
    audit: Weak<Feed<audit::Waiter>>,
    operations: Weak<Operations>,
}

impl Source {
    /// None once the SDK is gone.
    fn stats(&self) -> Option<Stats> {
        Some(Stats {
            usage: self.usage.upgrade()?.stats(),
            audit: self.audit.upgrade()?.stats(),
            operations: self.operations.upgrade()?.stats(),
        })
    }
}

impl GatewaySdk {
    /// With the feature `opentelemetry`: the numbers of [`Stats::samples`] as observable
    /// instruments of a meter, with the attribute `service`, for as long as a clone of this SDK is
    /// held. They are read when the meter's provider collects; nothing is done in between. Two
    /// SDKs of one process need a meter each: their numbers are not added up.
    ///
    /// ```
    /// # fn example(sdk: &gateway_sdk::GatewaySdk) {
    /// sdk.observe(&opentelemetry::global::meter("gateway"));
    /// # }
    /// ```
    pub fn observe(&self, meter: &Meter) {
        let source = Source {
            usage: Arc::downgrade(&self.usage.feed),
            audit: Arc::downgrade(&self.audit.feed),
            operations: Arc::downgrade(&self.audit.operations),
        };
        for about in &ALL {
            let source = source.clone();
            let observe = move |observer: &dyn ::opentelemetry::metrics::AsyncInstrument<u64>| {
                let stats = source.stats();
                for (service, value) in stats.iter().flat_map(|stats| about.values(stats)) {
                    observer.observe(value, &[KeyValue::new("service", service)]);
                }
            };
            // The meter keeps an instrument; what is given back only names it.
            match about.kind {
                SampleKind::Counter => drop(
                    meter
                        .u64_observable_counter(about.name)
                        .with_description(about.description)
                        .with_unit(about.unit)
                        .with_callback(observe)
                        .build(),
                ),
                SampleKind::Gauge => drop(
                    meter
                        .u64_observable_gauge(about.name)
                        .with_description(about.description)
                        .with_unit(about.unit)
                        .with_callback(observe)
                        .build(),
                ),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::sync::Mutex;

    use ::opentelemetry::metrics::{
        AsyncInstrument, AsyncInstrumentBuilder, Callback, InstrumentProvider, ObservableCounter, ObservableGauge,
    };

    use super::*;
    use crate::UsageEvent;

    /// A meter's provider that keeps its instruments, and collects when it is told to.
    #[derive(Default)]
    struct Instruments(Mutex<Vec<(String, Callback<u64>)>>);

    impl InstrumentProvider for Instruments {
        fn u64_observable_counter(
            &self,
            builder: AsyncInstrumentBuilder<'_, ObservableCounter<u64>, u64>,
        ) -> ObservableCounter<u64> {
            self.keep(&builder.name, builder.callbacks);
            ObservableCounter::new()
        }

        fn u64_observable_gauge(
            &self,
            builder: AsyncInstrumentBuilder<'_, ObservableGauge<u64>, u64>,
        ) -> ObservableGauge<u64> {
            self.keep(&builder.name, builder.callbacks);
            ObservableGauge::new()
        }
    }

    struct Observed<'a>(&'a str, &'a Mutex<BTreeMap<String, u64>>);

    impl AsyncInstrument<u64> for Observed<'_> {
        fn observe(&self, value: u64, attributes: &[KeyValue]) {
            let name = format!("{} {}", self.0, attributes[0].value);
            assert_eq!(self.1.lock().unwrap().insert(name, value), None);
        }
    }

    impl Instruments {
        fn keep(&self, name: &str, callbacks: Vec<Callback<u64>>) {
            self.0.lock().unwrap().extend(callbacks.into_iter().map(|callback| (name.to_owned(), callback)));
        }

        fn collect(&self) -> BTreeMap<String, u64> {
            let observed = Mutex::default();
            for (name, callback) in self.0.lock().unwrap().iter() {
                callback(&Observed(name, &observed));
            }
            observed.into_inner().unwrap()
        }
    }

    #[tokio::test]
    async fn a_meter_sees_the_snapshot_whenever_it_collects_and_keeps_no_sdk_alive() {
        let sdk = GatewaySdk::builder().usage_endpoint("127.0.0.1:1").instance("i").build().unwrap();
        let instruments = Arc::new(Instruments::default());
        sdk.observe(&Meter::new(Arc::clone(&instruments) as _));
        for _ in 0..3 {
            sdk.usage().record(UsageEvent::builder("p", "m"));
        }
        let seen = instruments.collect();
        assert_eq!(seen["gateway_sdk.events.recorded usage"], 3);
        let stats = sdk.stats();
        let all = stats.samples().map(|sample| format!("{} {}", sample.name, sample.service));
        assert_eq!(seen.into_keys().collect::<BTreeSet<_>>(), all.collect::<BTreeSet<_>>());
        sdk.usage().record(UsageEvent::builder("p", "m"));
        assert_eq!(instruments.collect()["gateway_sdk.events.recorded usage"], 4);
        drop(sdk);
        assert_eq!(instruments.collect(), BTreeMap::new());
    }
}
