//! A strict reader of Prometheus' text format: it panics where `promtool check metrics` complains.

use std::collections::{BTreeMap, BTreeSet};

/// What a server gave at one moment.
#[derive(Debug)]
pub(crate) struct Scrape {
    /// Types of the metrics, by name.
    pub(crate) families: BTreeMap<String, String>,
    samples: Vec<Sample>,
}

#[derive(Debug)]
struct Sample {
    name: String,
    /// As they stand: `le="5"`.
    labels: Vec<String>,
    value: f64,
}

impl Scrape {
    /// Reads `text` and checks all of it.
    pub(crate) fn parse(text: &str) -> Scrape {
        let mut scrape = Scrape { families: BTreeMap::new(), samples: Vec::new() };
        // The family that the samples belong to, and its type.
        let (mut helped, mut family, mut kind) = ("", "", "");
        let mut seen = BTreeSet::new();
        for line in text.lines() {
            if let Some(help) = line.strip_prefix("# HELP ") {
                let (name, help) = help.split_once(' ').expect("a help has a text");
                assert!(help.len() > 5 && help.ends_with('.') && !help.ends_with(".."), "{line}");
                helped = name;
            } else if let Some(of_type) = line.strip_prefix("# TYPE ") {
                (family, kind) = of_type.split_once(' ').expect("a type has a name");
                assert_eq!(family, helped, "a type follows the help of its metric");
                check_name(family, kind);
                let again = scrape.families.insert(family.to_owned(), kind.to_owned());
                assert_eq!(again, None, "{family} comes twice");
            } else {
                let sample = Sample::parse(line);
                let suffix = sample.name.strip_prefix(family).expect("a sample is of its family");
                let fits = match kind {
                    "histogram" => matches!(suffix, "_bucket" | "_sum" | "_count"),
                    _ => suffix.is_empty(),
                };
                assert!(fits, "{line} is no sample of {family}");
                assert!(seen.insert((sample.name.clone(), sample.labels.clone())), "twice: {line}");
                scrape.samples.push(sample);
            }
        }
        scrape.check_histograms();
        scrape
    }

    /// The sum of all samples of `name` that have all of `labels`.
    pub(crate) fn value(&self, name: &str, labels: &[&str]) -> f64 {
        let has = |sample: &&Sample| {
            sample.name == name
                && labels.iter().all(|label| sample.labels.iter().any(|l| l == label))
        };
        self.samples.iter().filter(has).map(|sample| sample.value).sum()
    }

    fn check_histograms(&self) {
        for (family, _) in self.families.iter().filter(|(_, kind)| *kind == "histogram") {
            let counts = self.samples.iter().filter(|s| s.name == format!("{family}_count"));
            for count in counts {
                let bucket = |sample: &Sample| {
                    let (le, others) = sample.labels.split_last()?;
                    let le = le.strip_prefix("le=\"")?.strip_suffix('"')?;
                    let of_this =
                        sample.name == format!("{family}_bucket") && others == count.labels;
                    of_this.then(|| (le.parse::<f64>().unwrap(), sample.value))
                };
                let buckets: Vec<_> = self.samples.iter().filter_map(bucket).collect();
                assert!(buckets.is_sorted_by(|a, b| a.0 < b.0 && a.1 <= b.1), "{family}");
                assert_eq!(buckets.last(), Some(&(f64::INFINITY, count.value)), "{family}");
            }
        }
    }
}

/// The rules for names: base units last, `_total` for counters and for nothing else.
fn check_name(name: &str, kind: &str) {
    let legal = |c: char| c.is_ascii_lowercase() || c == '_';
    assert!(name.starts_with("pygmy_") && name.chars().all(legal), "{name}");
    assert!(matches!(kind, "counter" | "gauge" | "histogram"), "{name} is a {kind}");
    assert_eq!(name.ends_with("_total"), kind == "counter", "{name}");
    for unit in ["_ms", "_us", "_ns", "_milliseconds", "_kilobytes", "_percent"] {
        assert!(!name.contains(unit), "{name}: seconds, bytes, ratios");
    }
}

impl Sample {
    fn parse(line: &str) -> Sample {
        let (series, value) = line.rsplit_once(' ').expect("a sample has a value");
        let value: f64 = value.parse().unwrap();
        assert!(value.is_finite() && value >= 0.0, "{line}");
        let Some((name, labels)) = series.split_once('{') else {
            return Sample { name: series.to_owned(), labels: Vec::new(), value };
        };
        let labels = labels.strip_suffix('}').expect("labels end");
        let labels: Vec<_> = labels.split_inclusive("\",").map(check_label).collect();
        Sample { name: name.to_owned(), labels, value }
    }
}

/// No label of ours has quotes or backslashes in it.
fn check_label(label: &str) -> String {
    let label = label.strip_suffix(',').unwrap_or(label);
    let (name, value) = label.split_once("=\"").expect("a label has a value");
    let value = value.strip_suffix('"').expect("a value is quoted");
    assert!(
        name.chars().all(|c| c.is_ascii_lowercase()) && !value.contains(['"', '\\']),
        "{label}"
    );
    label.to_owned()
}
