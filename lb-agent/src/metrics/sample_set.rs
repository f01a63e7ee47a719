//! Metrics whose values are collected only when they are scraped.

use prometheus::proto::{Counter, Gauge, LabelPair, Metric, MetricFamily, MetricType};

/// A metric under construction.
pub(super) struct SampleSet {
    kind: MetricType,
    family: MetricFamily,
    samples: Vec<Metric>,
}

impl SampleSet {
    /// A counter: its values only grow.
    pub(super) fn counter(name: &str, help: &str) -> Self {
        Self::new(MetricType::COUNTER, name, help)
    }

    /// A gauge: its values go up and down.
    pub(super) fn gauge(name: &str, help: &str) -> Self {
        Self::new(MetricType::GAUGE, name, help)
    }

    fn new(kind: MetricType, name: &str, help: &str) -> Self {
        let mut family = MetricFamily::default();
        family.set_name(name.to_owned());
        family.set_help(help.to_owned());
        family.set_field_type(kind);
        Self {
            kind,
            family,
            samples: Vec::new(),
        }
    }

    /// Adds a value with its labels.
    pub(super) fn add(&mut self, labels: &[(&str, &str)], value: u64) {
        let label = |(name, value): &(&str, &str)| {
            let mut label = LabelPair::default();
            label.set_name((*name).to_owned());
            label.set_value((*value).to_owned());
            label
        };
        let mut metric = Metric::from_label(labels.iter().map(label).collect());
        // The format has only floating-point numbers.
        let value = value as f64;
        if self.kind == MetricType::COUNTER {
            let mut counter = Counter::default();
            counter.set_value(value);
            metric.set_counter(counter);
        } else {
            let mut gauge = Gauge::default();
            gauge.set_value(value);
            metric.set_gauge(gauge);
        }
        self.samples.push(metric);
    }

    /// Returns the metric. `None` without values, because the format does not allow that.
    pub(super) fn finish(mut self) -> Option<MetricFamily> {
        if self.samples.is_empty() {
            return None;
        }
        self.family.set_metric(self.samples);
        Some(self.family)
    }
}
