//! The histogram of gaps between tokens, `sluice_inter_token_seconds`.
//!
//! Problem: every gap must count once (a histogram of each stream's p50 or p99 would answer no question), but a stream has
//! thousands of them, the meter keeps them in narrow buckets only, and OpenTelemetry's histogram takes one value at a time.
//! Rule: when a stream ends, the meter's buckets are added here in one go, each with the length that stands for it. A gap is
//! so off by half the width of the meter's bucket at most (5 %), and so is the sum.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus::core::{Collector, Desc};
use prometheus::proto::{Bucket, Histogram, LabelPair, Metric, MetricFamily, MetricType};

use super::labels::OTHER;

const NAME: &str = "sluice_inter_token_seconds";
const HELP: &str = "Gaps between the tokens of a stream";

/// Pairs of model and replica; as many as OpenTelemetry keeps of an instrument.
const SERIES_LIMIT: usize = 2_000;

/// Upper bounds in microseconds: 1 ms to 10 s.
const BOUNDS_US: [u64; 21] = [
    1_000, 2_000, 3_000, 5_000, 7_500, 10_000, 15_000, 20_000, 30_000, 40_000, 50_000, 75_000, 100_000, 150_000,
    200_000, 300_000, 500_000, 1_000_000, 2_000_000, 5_000_000, 10_000_000,
];

/// The gaps of one model on one replica.
#[derive(Default)]
pub(super) struct Gaps {
    /// Not cumulative; the last one is for gaps beyond all bounds.
    counts: [AtomicU64; BOUNDS_US.len() + 1],
    sum_us: AtomicU64,
}

impl Gaps {
    /// Adds `count` gaps of length `gap`.
    pub(super) fn add(&self, gap: Duration, count: u64) {
        let gap_us = u64::try_from(gap.as_micros()).unwrap_or(u64::MAX);
        let index = BOUNDS_US.partition_point(|bound| *bound < gap_us);
        if let Some(bucket) = self.counts.get(index) {
            bucket.fetch_add(count, Ordering::Relaxed);
            self.sum_us.fetch_add(gap_us.saturating_mul(count), Ordering::Relaxed);
        }
    }

    fn histogram(&self) -> Histogram {
        let mut cumulative = 0;
        let mut buckets = Vec::with_capacity(BOUNDS_US.len());
        for (bound, count) in BOUNDS_US.iter().zip(&self.counts) {
            cumulative += count.load(Ordering::Relaxed);
            let mut bucket = Bucket::default();
            bucket.set_upper_bound(Duration::from_micros(*bound).as_secs_f64());
            bucket.set_cumulative_count(cumulative);
            buckets.push(bucket);
        }
        let beyond = self.counts.last().map_or(0, |last| last.load(Ordering::Relaxed));
        let mut histogram = Histogram::default();
        histogram.set_bucket(buckets);
        histogram.set_sample_count(cumulative + beyond);
        histogram.set_sample_sum(Duration::from_micros(self.sum_us.load(Ordering::Relaxed)).as_secs_f64());
        histogram
    }
}

/// All gaps, as one family for the registry. Clones share it.
#[derive(Clone)]
pub(super) struct GapFamily {
    desc: Arc<Desc>,
    series: Arc<Mutex<Vec<Series>>>,
}

struct Series {
    model: Arc<str>,
    replica: Arc<str>,
    gaps: Arc<Gaps>,
}

impl GapFamily {
    pub(super) fn new() -> prometheus::Result<Self> {
        let labels = vec!["model".to_owned(), "replica".to_owned()];
        let desc = Desc::new(NAME.to_owned(), HELP.to_owned(), labels, Default::default())?;
        Ok(Self {
            desc: Arc::new(desc),
            series: Arc::default(),
        })
    }

    /// The series of these labels, a new one if there is none. Beyond [`SERIES_LIMIT`] pairs all share one.
    pub(super) fn series(&self, model: &Arc<str>, replica: &Arc<str>) -> Arc<Gaps> {
        let mut series = self.series.lock().unwrap_or_else(PoisonError::into_inner);
        let other = Arc::<str>::from(OTHER);
        let (model, replica) = if series.len() < SERIES_LIMIT {
            (model, replica)
        } else {
            (&other, &other)
        };
        if let Some(known) = series.iter().find(|of| of.model == *model && of.replica == *replica) {
            return Arc::clone(&known.gaps);
        }
        let gaps = Arc::<Gaps>::default();
        series.push(Series {
            model: Arc::clone(model),
            replica: Arc::clone(replica),
            gaps: Arc::clone(&gaps),
        });
        gaps
    }
}

impl Collector for GapFamily {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.desc]
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let series = self.series.lock().unwrap_or_else(PoisonError::into_inner);
        let metrics = series.iter().map(Series::metric).collect::<Vec<_>>();
        drop(series);
        if metrics.is_empty() {
            return Vec::new();
        }
        let mut family = MetricFamily::default();
        family.set_name(NAME.to_owned());
        family.set_help(HELP.to_owned());
        family.set_field_type(MetricType::HISTOGRAM);
        family.set_metric(metrics);
        vec![family]
    }
}

impl Series {
    fn metric(&self) -> Metric {
        let label = |name: &str, value: &str| {
            let mut pair = LabelPair::default();
            pair.set_name(name.to_owned());
            pair.set_value(value.to_owned());
            pair
        };
        let mut metric = Metric::default();
        metric.set_label(vec![label("model", &self.model), label("replica", &self.replica)]);
        metric.set_histogram(self.gaps.histogram());
        metric
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_are_made_once_and_bounded() {
        let family = GapFamily::new().unwrap();
        let name = |number: usize| Arc::<str>::from(format!("r{number}"));
        let first = family.series(&name(0), &name(0));
        assert!(Arc::ptr_eq(&first, &family.series(&name(0), &name(0))));
        (0..SERIES_LIMIT + 100).for_each(|number| family.series(&name(1), &name(number)).add(Duration::ZERO, 1));
        let metrics = family.collect().remove(0);
        assert_eq!(metrics.get_metric().len(), SERIES_LIMIT + 1);
        let counted = metrics
            .get_metric()
            .iter()
            .map(|metric| metric.get_histogram().get_sample_count());
        assert_eq!(counted.sum::<u64>(), SERIES_LIMIT as u64 + 100);
    }

    #[test]
    fn each_gap_counts_once_and_in_its_bucket() {
        let gaps = Gaps::default();
        gaps.add(Duration::from_micros(1_000), 3); // the bound itself belongs to the bucket
        gaps.add(Duration::from_micros(1_001), 2);
        gaps.add(Duration::from_secs(3_600), 1);
        let histogram = gaps.histogram();
        let counts = histogram
            .get_bucket()
            .iter()
            .map(Bucket::cumulative_count)
            .collect::<Vec<_>>();
        assert_eq!(counts[..3], [3, 5, 5]);
        assert_eq!(counts[BOUNDS_US.len() - 1], 5);
        assert_eq!(histogram.get_sample_count(), 6);
        assert!((histogram.get_sample_sum() - 3_600.005_002).abs() < 1e-9);
    }
}
