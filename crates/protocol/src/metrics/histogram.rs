//! A histogram without a lock: that of `prometheus-client` 0.26 takes one for each observation.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use prometheus_client::{
    encoding::{EncodeMetric, MetricEncoder, NoLabelSet},
    metrics::{MetricType, TypedMetric},
};

/// Upper ends of the buckets for times, in nanoseconds: from what a cached read takes to what a
/// request may take, three for each power of ten, as finely as an operator can act on.
const TIMES: &[u64] = &{
    const US: u64 = 1_000;
    const MS: u64 = 1_000 * US;
    const S: u64 = 1_000 * MS;
    [
        50 * US,
        100 * US,
        200 * US,
        500 * US,
        MS,
        2 * MS,
        5 * MS,
        10 * MS,
        20 * MS,
        50 * MS,
        100 * MS,
        200 * MS,
        500 * MS,
        S,
        2 * S,
        5 * S,
    ]
};
/// The same for sizes of batches: the largest is the most that the configuration allows.
const SIZES: &[u64] = &[1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000];

/// How often values fell into each of a few ranges, and their sum. Clones are the same.
#[derive(Debug, Clone)]
pub struct Histogram(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// Ascending.
    bounds: &'static [u64],
    /// How many make one of the unit that is shown.
    per_unit: f64,
    /// One for each bound, and one for what is larger than all.
    counts: Box<[AtomicU64]>,
    sum: AtomicU64,
}

impl Histogram {
    /// Of times, shown in seconds.
    pub fn of_times() -> Histogram {
        Histogram::new(TIMES, 1e9)
    }

    /// Of whole numbers: how many at a time.
    pub fn of_sizes() -> Histogram {
        Histogram::new(SIZES, 1.0)
    }

    fn new(bounds: &'static [u64], per_unit: f64) -> Histogram {
        let counts = (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect();
        Histogram(Arc::new(Inner { bounds, per_unit, counts, sum: AtomicU64::new(0) }))
    }

    /// Takes one value: two atomic additions.
    pub fn observe(&self, value: u64) {
        let Inner { bounds, counts, sum, .. } = &*self.0;
        let bucket = bounds.partition_point(|bound| *bound < value);
        counts[bucket].fetch_add(1, Relaxed);
        sum.fetch_add(value, Relaxed);
    }

    /// Takes one time.
    pub fn observe_time(&self, time: Duration) {
        // 64 bits of nanoseconds last for 584 years.
        self.observe(time.as_nanos() as u64);
    }

    /// How many values there were.
    pub fn count(&self) -> u64 {
        self.0.counts.iter().map(|count| count.load(Relaxed)).sum()
    }
}

impl TypedMetric for Histogram {
    const TYPE: MetricType = MetricType::Histogram;
}

impl EncodeMetric for Histogram {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        let Inner { bounds, per_unit, counts, sum } = &*self.0;
        let ends = bounds.iter().map(|bound| *bound as f64 / per_unit).chain([f64::INFINITY]);
        let buckets: Vec<_> = ends.zip(counts.iter().map(|count| count.load(Relaxed))).collect();
        // From the same readings: a count that is not that of the last bucket is malformed.
        let count = buckets.iter().map(|(_, count)| count).sum();
        let sum = sum.load(Relaxed) as f64 / per_unit;
        encoder.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::{encoding::prometheus_text::encode, registry::Registry};

    use super::*;

    fn text(histogram: &Histogram) -> String {
        let mut registry = Registry::default();
        registry.register("h", "", histogram.clone());
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        text
    }

    #[test]
    fn a_bucket_holds_what_is_at_most_its_end_and_all_of_the_lower_ones() {
        let histogram = Histogram::of_times();
        for time_us in [0, 50, 51, 5_000_000, 5_000_001] {
            histogram.observe_time(Duration::from_micros(time_us));
        }
        let text = text(&histogram);
        for line in [
            "h_bucket{le=\"5e-05\"} 2",
            "h_bucket{le=\"0.0001\"} 3",
            "h_bucket{le=\"2\"} 3",
            "h_bucket{le=\"5\"} 4",
            "h_bucket{le=\"+Inf\"} 5",
            "h_sum 10.000102",
            "h_count 5",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn bounds_ascend() {
        assert!(TIMES.is_sorted() && SIZES.is_sorted());
    }
}
