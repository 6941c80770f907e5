use std::{
    fmt,
    sync::{Arc, Mutex},
};

use prometheus_client::{
    encoding::{EncodeMetric, MetricEncoder},
    metrics::{MetricType, TypedMetric},
};

use super::lock;

/// Metrics of one name that one label tells apart. Whoever counts holds the metric itself, so
/// nothing is looked up while requests are served. Clones are the same.
#[derive(Debug)]
pub struct Labelled<M> {
    label: &'static str,
    metrics: Arc<Mutex<Vec<(&'static str, M)>>>,
}

impl<M> Labelled<M> {
    /// None yet, told apart by `label`.
    pub fn new(label: &'static str) -> Labelled<M> {
        Labelled { label, metrics: Arc::default() }
    }

    /// The one with this value of the label; `metric` if there is none yet.
    pub fn get_or_add(&self, value: &'static str, metric: M) -> M
    where
        M: Clone,
    {
        let mut metrics = lock(&self.metrics);
        if let Some((_, known)) = metrics.iter().find(|(known, _)| *known == value) {
            return known.clone();
        }
        metrics.push((value, metric.clone()));
        metric
    }

    /// Adds `metrics`, by values of the label that no other has.
    pub fn with(self, metrics: impl IntoIterator<Item = (&'static str, M)>) -> Labelled<M> {
        lock(&self.metrics).extend(metrics);
        self
    }
}

impl<M> Clone for Labelled<M> {
    fn clone(&self) -> Labelled<M> {
        Labelled { label: self.label, metrics: Arc::clone(&self.metrics) }
    }
}

impl<M: EncodeMetric + TypedMetric> EncodeMetric for Labelled<M> {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        for (value, metric) in &*lock(&self.metrics) {
            metric.encode(encoder.encode_family(&[(self.label, *value)])?)?;
        }
        Ok(())
    }

    fn metric_type(&self) -> MetricType {
        M::TYPE
    }
}
