//! Collects the metrics that [`crate::telemetry`] names and renders them for Prometheus.
//!
//! Never opens a port: the REST front-end serves the text. Relies on being installed once, before
//! any metric is recorded; what is recorded earlier is lost.

use metrics::{counter, describe_counter, describe_gauge, describe_histogram, gauge};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};

use super::version;
use crate::telemetry::{BUILD_INFO, INTER_TOKEN, LEDGER_APPEND, METRICS, Metric, MetricKind, TTFT};

/// Bounds of the buckets in seconds: from a fast decode step to a client's limit of 30 s.
const SECONDS: [f64; 14] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

/// The collected metrics.
#[derive(Clone)]
pub struct Metrics {
    handle: PrometheusHandle,
}

/// Metrics could not be installed.
#[derive(Debug, thiserror::Error)]
#[error("metrics cannot be collected: {0}")]
pub struct MetricsError(#[from] BuildError);

impl Metrics {
    /// Makes this process's metrics go here, describes them and starts the plain ones at 0.
    ///
    /// # Errors
    /// [`MetricsError`] when something else collects them already.
    pub fn install() -> Result<Self, MetricsError> {
        let mut builder = PrometheusBuilder::new();
        for name in [TTFT, INTER_TOKEN, LEDGER_APPEND] {
            builder = builder.set_buckets_for_metric(Matcher::Full(name.to_owned()), &SECONDS)?;
        }
        let handle = builder.install_recorder()?;
        METRICS.iter().for_each(declare);
        gauge!(BUILD_INFO, "version" => version::VERSION, "commit" => version::COMMIT).set(1.0);
        Ok(Self { handle })
    }

    /// All metrics as Prometheus text.
    #[must_use]
    pub fn render(&self) -> String {
        self.handle.render()
    }

    /// Folds what was recorded since the last call. Call it every few seconds: a node that nobody
    /// scrapes would otherwise keep every single duration.
    pub fn upkeep(&self) {
        self.handle.run_upkeep();
    }
}

fn declare(metric: &Metric) {
    let Metric { name, about, .. } = *metric;
    match metric.kind {
        MetricKind::Counter => describe_counter!(name, about),
        MetricKind::Gauge => describe_gauge!(name, about),
        MetricKind::Histogram => describe_histogram!(name, about),
    }
    // So that a dashboard sees 0 instead of nothing; labels are only known once they occur.
    match metric.kind {
        MetricKind::Counter if metric.labels.is_empty() => counter!(name).absolute(0),
        MetricKind::Gauge if metric.labels.is_empty() => gauge!(name).set(0.0),
        MetricKind::Counter | MetricKind::Gauge | MetricKind::Histogram => {}
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn the_text_has_every_plain_metric_from_the_start() {
        let metrics = Metrics::install().unwrap();
        metrics::histogram!(TTFT, "api" => "rest").record(0.02);
        metrics.upkeep();
        let text = metrics.render();
        for metric in METRICS.iter().filter(|metric| metric.labels.is_empty()) {
            let is_there = metric.kind == MetricKind::Histogram || text.contains(metric.name);
            assert!(is_there, "{} is not in:\n{text}", metric.name);
        }
        assert!(text.contains("build_info{"), "{text}");
        assert!(text.contains("ttft_seconds_bucket{api=\"rest\",le=\"0.025\"} 1"), "{text}");
    }

    #[test]
    fn no_file_records_a_metric_that_is_not_declared() {
        fn visit(folder: &Path, found: &mut Vec<String>) {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    visit(&path, found);
                } else if path.extension().is_some_and(|ending| ending == "rs") {
                    let text = std::fs::read_to_string(&path).unwrap();
                    for call in ["counter!(\"", "gauge!(\"", "histogram!(\""] {
                        let names = text.split(call).skip(1);
                        found.extend(names.filter_map(|rest| Some(rest.split_once('"')?.0.into())));
                    }
                }
            }
        }
        let mut found: Vec<String> = Vec::new();
        visit(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut found);
        // The list of calls above is found as well, and is no name.
        let unknown: Vec<_> = found
            .iter()
            .filter(|name| name.chars().all(|symbol| symbol.is_ascii_lowercase() || symbol == '_'))
            .filter(|name| METRICS.iter().all(|metric| metric.name != name.as_str()))
            .collect();
        assert!(unknown.is_empty(), "not declared in telemetry.rs: {unknown:?}");
    }
}
