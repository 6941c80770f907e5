use std::{
    fmt::{self, Debug, Formatter},
    sync::Arc,
};

use prometheus_client::{
    encoding::{EncodeMetric, MetricEncoder},
    metrics::{MetricType, TypedMetric},
};

/// A value that some part of the server knows, asked whenever somebody scrapes. It must be quick,
/// and must not keep alive what holds the metrics.
#[derive(Clone)]
pub struct Gauge(Arc<dyn Fn() -> u64 + Send + Sync>);

impl Gauge {
    /// A gauge that shows what `read` gives.
    pub fn new(read: impl Fn() -> u64 + Send + Sync + 'static) -> Gauge {
        Gauge(Arc::new(read))
    }
}

impl Debug for Gauge {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Gauge").field(&(self.0)()).finish()
    }
}

impl TypedMetric for Gauge {
    const TYPE: MetricType = MetricType::Gauge;
}

impl EncodeMetric for Gauge {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        encoder.encode_gauge(&(self.0)())
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}
