//! A reader of OpenMetrics text that takes nothing but what OpenMetrics 1.0 allows, for tests.

use std::collections::BTreeMap;

/// Type of a family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Counter,
    Gauge,
    Histogram,
    Info,
}

struct Family {
    kind: Kind,
    unit: String,
    help: bool,
}

pub(crate) struct Parsed {
    families: BTreeMap<String, Family>,
    samples: BTreeMap<String, f64>,
}

impl Parsed {
    /// Name, type and unit, by name.
    pub(crate) fn families(&self) -> impl Iterator<Item = (&str, Kind, &str)> {
        self.families
            .iter()
            .map(|(name, family)| (name.as_str(), family.kind, family.unit.as_str()))
    }

    /// The value of a sample: `name` or `name{label="value"}`.
    pub(crate) fn value(&self, sample: &str) -> Option<f64> {
        self.samples.get(sample).copied()
    }
}

/// Reads the whole of a text.
pub(crate) fn parse(text: &str) -> Parsed {
    let body = text.strip_suffix("# EOF\n").expect("the text ends with an end mark");
    let mut parsed = Parsed { families: BTreeMap::new(), samples: BTreeMap::new() };
    let mut current = String::new();
    for line in body.lines() {
        match line.strip_prefix("# ") {
            Some(meta) => current = metadata(&mut parsed, meta, &current),
            None => sample(&mut parsed, line, &current),
        }
    }
    for (name, family) in &parsed.families {
        assert!(family.help, "{name} has no help");
        assert!(family.unit.is_empty() || name.ends_with(&format!("_{}", family.unit)), "{name}");
    }
    parsed
}

/// `HELP`, `TYPE` or `UNIT` of a family; returns its name.
fn metadata(parsed: &mut Parsed, meta: &str, current: &str) -> String {
    let mut words = meta.splitn(3, ' ');
    let (what, name, rest) = (words.next().unwrap(), words.next().unwrap(), words.next().unwrap());
    if name != current {
        assert!(!parsed.families.contains_key(name), "{name} comes twice");
        let family = Family { kind: Kind::Gauge, unit: String::new(), help: false };
        parsed.families.insert(name.into(), family);
    }
    let family = parsed.families.get_mut(name).unwrap();
    match what {
        "HELP" => family.help = !rest.is_empty(),
        "UNIT" => family.unit = rest.into(),
        "TYPE" => {
            family.kind = match rest {
                "counter" => Kind::Counter,
                "gauge" => Kind::Gauge,
                "histogram" => Kind::Histogram,
                "info" => Kind::Info,
                other => panic!("{name} has type {other}"),
            }
        }
        other => panic!("{other} is no metadata"),
    }
    name.into()
}

fn sample(parsed: &mut Parsed, line: &str, current: &str) {
    let (name, value) = line.rsplit_once(' ').unwrap();
    let value: f64 = value.parse().unwrap_or_else(|error| panic!("{line}: {error}"));
    let bare = name.split('{').next().unwrap();
    let suffix = bare.strip_prefix(current).unwrap_or_else(|| panic!("{line} under {current}"));
    let family = &parsed.families[current];
    let suffixes: &[&str] = match family.kind {
        Kind::Counter => &["_total"],
        Kind::Gauge => &[""],
        Kind::Histogram => &["_bucket", "_count", "_sum"],
        Kind::Info => &["_info"],
    };
    assert!(suffixes.contains(&suffix), "{line} is no {:?}", family.kind);
    assert!(family.kind == Kind::Gauge || value >= 0.0, "{line}");
    assert!(parsed.samples.insert(name.into(), value).is_none(), "{line} comes twice");
}
