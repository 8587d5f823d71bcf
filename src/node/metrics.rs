//! Collects the metrics that [`crate::telemetry`] names and renders them for Prometheus.
//!
//! Never opens a port: the REST front-end serves the text. Never keeps a duration, only how many
//! fell into each bucket, so that nothing grows while nobody looks. Relies on being installed
//! once, before any metric is recorded; what is recorded earlier is lost.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use metrics::atomics::AtomicU64;
use metrics::{
    Counter, Gauge, GaugeFn, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder,
    SharedString, Unit, counter, gauge,
};
use metrics_util::registry::{Registry, Storage};

use super::version;
use crate::telemetry::{BUILD_INFO, METRICS, Metric, MetricKind};

/// Bounds of the buckets in seconds: from a fast decode step to a client's limit of 30 s.
const SECONDS: [f64; 14] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

/// The collected metrics. Clones are handles to the same.
#[derive(Clone)]
pub struct Metrics {
    registry: Arc<Registry<Key, Cells>>,
}

/// Metrics could not be installed.
#[derive(Debug, thiserror::Error)]
#[error("metrics cannot be collected: something else in this process collects them already")]
pub struct MetricsError;

impl Metrics {
    /// Makes this process's metrics go here.
    ///
    /// # Errors
    /// [`MetricsError`] when something else collects them already.
    pub fn install() -> Result<Self, MetricsError> {
        Self::default().installed()
    }

    /// As [`Self::install`] for a process that is no node: metrics appear when they are recorded,
    /// so that those of chain and sessions never do.
    ///
    /// # Errors
    /// As [`Self::install`].
    pub fn install_bare() -> Result<Self, MetricsError> {
        Self::bare().installed()
    }

    fn installed(self) -> Result<Self, MetricsError> {
        metrics::set_global_recorder(self.clone()).map_err(|_| MetricsError)?;
        Ok(self)
    }

    fn bare() -> Self {
        let metrics = Self { registry: Arc::new(Registry::new(Cells)) };
        metrics::with_local_recorder(&metrics, || {
            gauge!(BUILD_INFO, "version" => version::VERSION, "commit" => version::COMMIT).set(1.0);
        });
        metrics
    }

    /// All declared metrics that have a value, in the order of their declaration.
    ///
    /// Source: Prometheus' text format 0.0.4.
    #[must_use]
    pub fn render(&self) -> String {
        let families = self.families();
        let mut text = String::new();
        for metric in METRICS {
            if let Some(series) = families.get(metric.name) {
                let Metric { name, about, .. } = metric;
                let about = about.replace('\\', r"\\").replace('\n', r"\n");
                text += &format!("# HELP {name} {about}\n# TYPE {name} {}\n", metric.kind.word());
                text.extend(series.values().map(String::as_str));
            }
        }
        text
    }

    /// The lines of every metric, by its name and its labels.
    fn families(&self) -> BTreeMap<String, BTreeMap<String, String>> {
        let mut families: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
        let mut add = |key: &Key, lines: &dyn Fn(&str) -> String| {
            let labels = labels(key);
            let lines = lines(&labels);
            families.entry(key.name().to_owned()).or_default().insert(labels, lines);
        };
        self.registry.visit_counters(|key, cell| {
            let value = cell.load(Ordering::Acquire);
            add(key, &|labels| line(key.name(), labels, value));
        });
        self.registry.visit_gauges(|key, cell| {
            let value = f64::from_bits(cell.load(Ordering::Acquire));
            add(key, &|labels| line(key.name(), labels, value));
        });
        self.registry.visit_histograms(|key, buckets| {
            add(key, &|labels| buckets.lines(key.name(), labels));
        });
        families
    }
}

impl Default for Metrics {
    /// The plain ones stand at 0, so that a dashboard sees 0 instead of nothing; labels are only
    /// known once they occur.
    fn default() -> Self {
        let metrics = Self::bare();
        metrics::with_local_recorder(&metrics, || {
            for Metric { name, kind, .. } in METRICS.iter().filter(|one| one.labels.is_empty()) {
                match kind {
                    MetricKind::Counter => counter!(*name).absolute(0),
                    MetricKind::Gauge => gauge!(*name).set(0.0),
                    MetricKind::Histogram => {}
                }
            }
        });
        metrics
    }
}

impl Recorder for Metrics {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        self.registry.get_or_create_counter(key, |cell| Counter::from_arc(Arc::clone(cell)))
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        self.registry.get_or_create_gauge(key, |cell| Gauge::from_arc(Arc::clone(cell)))
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        let handle = |buckets: &Arc<_>| Histogram::from_arc(Arc::clone(buckets));
        self.registry.get_or_create_histogram(key, handle)
    }
}

/// Makes what holds a metric's value.
struct Cells;

impl Storage<Key> for Cells {
    type Counter = Arc<AtomicU64>;
    type Gauge = Arc<AtomicU64>;
    type Histogram = Arc<Buckets>;

    fn counter(&self, _: &Key) -> Self::Counter {
        Arc::default()
    }
    fn gauge(&self, _: &Key) -> Self::Gauge {
        Arc::default()
    }
    fn histogram(&self, _: &Key) -> Self::Histogram {
        Arc::default()
    }
}

/// A distribution of durations.
#[derive(Default)]
struct Buckets {
    /// Values above the bound before and not above [`SECONDS`]'s; the last one has no bound.
    counts: [AtomicU64; SECONDS.len() + 1],
    /// Of all values, the bits of an f64.
    sum: AtomicU64,
}

impl HistogramFn for Buckets {
    fn record(&self, value: f64) {
        // What is no number is above every bound.
        let bucket = SECONDS.iter().position(|bound| value <= *bound).unwrap_or(SECONDS.len());
        if let Some(count) = self.counts.get(bucket) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        GaugeFn::increment(&self.sum, value);
    }
}

impl Buckets {
    /// The count up to each bound, the sum and the count of all.
    fn lines(&self, name: &str, labels: &str) -> String {
        let bounds = SECONDS.iter().map(ToString::to_string).chain(["+Inf".to_owned()]);
        let comma = if labels.is_empty() { "" } else { "," };
        let (mut text, mut so_far) = (String::new(), 0_u64);
        for (bound, count) in bounds.zip(&self.counts) {
            so_far = so_far.saturating_add(count.load(Ordering::Relaxed));
            let labels = format!("{labels}{comma}le=\"{bound}\"");
            text += &line(&format!("{name}_bucket"), &labels, so_far);
        }
        let sum = f64::from_bits(self.sum.load(Ordering::Acquire));
        text += &line(&format!("{name}_sum"), labels, sum);
        text + &line(&format!("{name}_count"), labels, so_far)
    }
}

fn line(name: &str, labels: &str, value: impl Display) -> String {
    match labels {
        "" => format!("{name} {value}\n"),
        labels => format!("{name}{{{labels}}} {value}\n"),
    }
}

/// `api="rest",outcome="stop"`, values escaped.
fn labels(key: &Key) -> String {
    let escape = |text: &str| text.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n");
    let pairs = key.labels().map(|label| format!("{}=\"{}\"", label.key(), escape(label.value())));
    pairs.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use metrics::{histogram, with_local_recorder};

    use super::*;
    use crate::telemetry::{INTER_TOKEN, LEDGER_APPEND, REQUESTS, TOKENS_DELIVERED, TTFT};

    /// What is printed of one metric after `record`.
    fn printed(name: &str, record: impl FnOnce()) -> String {
        let metrics = Metrics::default();
        with_local_recorder(&metrics, record);
        let text = metrics.render();
        let starts = [format!("# HELP {name} "), format!("# TYPE {name} "), name.to_owned()];
        let is_its = |line: &&str| starts.iter().any(|start| line.starts_with(start));
        text.lines().filter(is_its).map(|line| format!("{line}\n")).collect()
    }

    #[test]
    fn plain_metrics_are_there_from_the_start_and_labelled_ones_when_they_occur() {
        let text = Metrics::default().render();
        for metric in METRICS {
            let is_plain = metric.labels.is_empty() && metric.kind != MetricKind::Histogram;
            let found = text.contains(&format!("\n{} 0\n", metric.name));
            assert_eq!(found, is_plain, "{} in:\n{text}", metric.name);
        }
        assert!(text.lines().any(|line| line.starts_with("build_info{version=\"")), "{text}");
        assert_eq!(text.matches("# TYPE requests_total").count(), 0);
    }

    #[test]
    fn a_family_has_one_head_and_a_line_for_each_of_its_labels() {
        let text = printed(REQUESTS, || {
            for (api, outcome) in [("ws", "stop"), ("rest", "length"), ("ws", "stop")] {
                counter!(REQUESTS, "api" => api, "outcome" => outcome).increment(2);
            }
        });
        let wanted = "# HELP requests_total Requests that ended, by front-end and how: a finish \
                      reason or an error code\n\
                      # TYPE requests_total counter\n\
                      requests_total{api=\"rest\",outcome=\"length\"} 2\n\
                      requests_total{api=\"ws\",outcome=\"stop\"} 4\n";
        assert_eq!(text, wanted);
    }

    #[test]
    fn values_of_labels_are_escaped() {
        for (value, wanted) in [
            (r#"a "quoted" one"#, r#"a \"quoted\" one"#),
            (r"back\slash", r"back\\slash"),
            (r"\\", r"\\\\"),
            ("two\nlines", r"two\nlines"),
            (r"\n", r"\\n"),
            ("ünï", "ünï"),
        ] {
            let text = printed(TTFT, || histogram!(TTFT, "api" => value).record(0.02));
            let line = format!("\nttft_seconds_bucket{{api=\"{wanted}\",le=\"0.025\"}} 1\n");
            assert!(text.contains(&line), "{value}: {text}");
        }
    }

    #[test]
    fn counters_only_rise_and_gauges_follow() {
        let text = printed(TOKENS_DELIVERED, || {
            let tokens = counter!(TOKENS_DELIVERED);
            tokens.absolute(u64::MAX - 5);
            tokens.absolute(3);
            tokens.increment(2);
        });
        assert!(text.ends_with("\ntokens_delivered_total 18446744073709551612\n"), "{text}");
        let text = printed("sessions_active", || {
            let sessions = gauge!("sessions_active");
            sessions.set(7.0);
            sessions.increment(1.5);
            sessions.decrement(9.0);
        });
        assert!(text.contains("# TYPE sessions_active gauge\nsessions_active -0.5\n"), "{text}");
    }

    #[test]
    fn a_bucket_counts_what_is_not_above_its_bound() {
        let text = printed(LEDGER_APPEND, || {
            let appends = histogram!(LEDGER_APPEND);
            // Below all bounds, on one, just above it; on the last one and beyond. Powers of two,
            // so that their sum is exact.
            for seconds in [0.000_976_562_5, 0.5, 0.75, 30.0, 31.0] {
                appends.record(seconds);
            }
        });
        let counts = [1, 1, 1, 1, 1, 1, 1, 1, 2, 3, 3, 3, 3, 4];
        let mut wanted = "# HELP ledger_append_seconds Time from handing a group to the ledger to \
                          its acknowledgement\n# TYPE ledger_append_seconds histogram\n"
            .to_owned();
        for (bound, count) in SECONDS.iter().zip(counts) {
            wanted += &format!("ledger_append_seconds_bucket{{le=\"{bound}\"}} {count}\n");
        }
        wanted += "ledger_append_seconds_bucket{le=\"+Inf\"} 5\n\
                   ledger_append_seconds_sum 62.2509765625\n\
                   ledger_append_seconds_count 5\n";
        assert_eq!(text, wanted);
        let text = printed(INTER_TOKEN, || histogram!(INTER_TOKEN, "api" => "ws").record(f64::NAN));
        assert!(text.contains("{api=\"ws\",le=\"30\"} 0\n"), "{text}");
        assert!(text.ends_with("inter_token_seconds_count{api=\"ws\"} 1\n"), "{text}");
    }

    #[test]
    fn all_distributions_are_of_seconds() {
        assert!(SECONDS.is_sorted());
        let distributions = METRICS.iter().filter(|metric| metric.kind == MetricKind::Histogram);
        assert!(distributions.clone().count() > 0);
        for metric in distributions {
            assert_eq!(metric.unit, "seconds", "{}", metric.name);
        }
    }

    #[test]
    fn what_is_not_declared_is_not_shown() {
        let metrics = Metrics::default();
        let before = metrics.render();
        with_local_recorder(&metrics, || counter!(concat!("a library", "'s")).increment(1));
        assert_eq!(metrics.render(), before);
    }

    #[test]
    fn only_the_first_to_be_installed_collects() {
        let metrics = Metrics::install().unwrap();
        let line = "claims_total{outcome=\"one that no other test counts\"} 1\n";
        counter!("claims_total", "outcome" => "one that no other test counts").increment(1);
        assert!(metrics.render().contains(line));
        let words = Metrics::install().map(|_| ()).unwrap_err().to_string();
        assert!(words.contains("collects them already"), "{words}");
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
