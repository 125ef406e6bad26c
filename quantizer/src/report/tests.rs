//! The page is well-formed and the JSON as documented, whatever the numbers and
//! names.

use std::collections::BTreeSet;

use super::*;
use crate::calibration::LayerGroup;

/// Text that means something to a browser.
const HOSTILE: &str = "<i>\"it's\"</i> & \u{0}\u{1b}[31m\u{7f}\n&lt;</svg></style><!-- ]]>";

/// A report in which each kind of thing occurs, every number being `x` and every
/// name `name`.
fn report(x: f64, name: &str) -> ReportData {
    let both = ErrorPair {
        accumulated: x,
        rounding: x,
    };
    let layer = |weights, error_before| Layer {
        name: format!("blocks.0.{name}"),
        kind: "linear".into(),
        weight: Some(name.into()),
        macs: 1,
        weights,
        weight_bits: (weights > 0).then_some(4),
        output_bits: Some(4),
        code_bytes: weights / 2,
        scale_bytes: 5,
        float_bytes: 4,
        error: both,
        error_before,
        notes: vec![name.into(), name.into()],
    };
    let attention = |bits: u32, relative_to_row_maximum, heads: usize| AttentionLayer {
        name: name.into(),
        bits,
        relative_to_row_maximum,
        renormalised: true,
        codebooks: vec![
            AttentionCodebook {
                levels: vec![x as f32; 1 << bits],
                thresholds: vec![x as f32; (1 << bits) - 1],
            };
            heads
        ],
        histogram: OctaveHistogram::default(),
    };
    let top = TopK { top1: x, top5: x };
    let mut data = ReportData {
        tool: name.into(),
        model: ModelSummary {
            file: name.into(),
            image: [32, 48],
            classes: 7,
            result: [1, 7],
            macs: 1_000_000,
            parameters: 20,
        },
        method: MethodSummary {
            name: name.into(),
            weight_bits: 4,
            activation_bits: 8,
            first_last_bits: Some(8),
            softmax: name.into(),
            softmax_bits: Some(4),
            range: name.into(),
        },
        calibration: CalibrationSummary {
            pictures: 8,
            skipped: 1,
            seed: u64::MAX,
        },
        seconds: x,
        size: Sizes {
            source: 100,
            float: 80,
            file: 40,
        },
        accuracy: Some(Accuracy {
            data: name.into(),
            calibration: true,
            images: 10,
            float: top,
            integer: top,
        }),
        layers: vec![layer(8, Some(both)), layer(0, None)],
        attention: vec![attention(4, false, 1), attention(8, true, 3)],
        compensation: vec![Decision {
            group: LayerGroup::Normed,
            rounded: x,
            compensated: x,
            damping: x,
        }],
        units: vec![UnitLog {
            name: name.into(),
            before: x,
            after: x,
            curve: vec![(0, x as f32), (10, 0.5), (20, x as f32)],
            note: name.into(),
        }],
        warnings: vec![name.into()],
    };
    data.warn();
    data
}

fn empty() -> ReportData {
    let mut data = report(0.0, "");
    data.accuracy = None;
    data.size.file = 0;
    data.model.macs = 0;
    data.layers.clear();
    data.attention.clear();
    data.compensation.clear();
    data.units.clear();
    data.warnings.clear();
    data
}

/// Numbers that break what does not look.
const NUMBERS: [f64; 10] = [
    0.5,
    0.0,
    -1.0,
    1e-30,
    1e30,
    f64::NAN,
    f64::INFINITY,
    f64::NEG_INFINITY,
    f64::MAX,
    f64::MIN_POSITIVE,
];

/// Checks that every tag is closed in order, attributes are quoted, and nothing
/// else has a meaning; returns the number of elements.
fn elements(page: &str) -> usize {
    let mut open: Vec<&str> = Vec::new();
    let mut count = 0;
    let mut rest = page.strip_prefix("<!DOCTYPE html>").expect("a doctype");
    while let Some(start) = rest.find('<') {
        check_text(&rest[..start]);
        let tag = &rest[start + 1..];
        let (mut quoted, mut end) = (false, None);
        for (at, c) in tag.char_indices() {
            match c {
                '"' => quoted = !quoted,
                '>' if !quoted => {
                    end = Some(at);
                    break;
                }
                '<' => panic!("< in a tag: {tag:.80}"),
                _ => {}
            }
        }
        let end = end.unwrap_or_else(|| panic!("a tag without an end: {tag:.80}"));
        let inside = &tag[..end];
        check_entities(inside);
        rest = &tag[end + 1..];
        if let Some(name) = inside.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name), "before {rest:.80}");
            continue;
        }
        count += 1;
        let name = inside.split([' ', '/']).next().unwrap_or_default();
        assert!(name.chars().all(|c| c.is_ascii_alphanumeric()), "{inside}");
        if !inside.ends_with('/') {
            open.push(name);
        }
    }
    assert_eq!(rest.trim(), "");
    assert!(open.is_empty(), "{open:?}");
    count
}

fn check_text(text: &str) {
    assert!(!text.contains('>'), "a stray > in {text:.80}");
    check_entities(text);
}

fn check_entities(text: &str) {
    let known = ["&amp;", "&lt;", "&gt;", "&quot;", "&#39;"];
    for (at, _) in text.match_indices('&') {
        let entity = &text[at..];
        assert!(known.iter().any(|k| entity.starts_with(k)), "{entity:.80}");
    }
}

#[test]
fn the_page_is_well_formed_whatever_it_says() {
    let plain = elements(&page(&report(0.5, "name")));
    assert!(plain > 100, "{plain}");
    for x in NUMBERS {
        let text = page(&report(x, HOSTILE));
        elements(&text);
        let control = text.chars().find(|&c| c.is_control() && c != '\n');
        assert_eq!(control, None, "{x}");
        for broken in ["NaN", "inf ", "inf\"", "<i>", "</svg></style>", "<!--"] {
            assert!(!text.contains(broken), "{broken} with {x}");
        }
    }
    let hostile = elements(&page(&report(0.5, HOSTILE)));
    assert_eq!(hostile, plain, "names are no elements");
    elements(&page(&empty()));
}

#[test]
fn the_page_needs_nothing_from_elsewhere() {
    for text in [page(&report(0.5, "name")), page(&empty())] {
        for word in ["http", "<script", "src=", "url(", "@import", "<link"] {
            assert!(!text.contains(word), "{word}");
        }
    }
}

#[test]
fn the_page_shows_what_there_is() {
    let full = page(&report(0.5, "name"));
    let bare = page(&empty());
    for section in [
        "Warnings",
        "Accuracy",
        "Error of each operation",
        "Reconstruction",
        "Compensation",
        "Attention and its codes",
        "What was decided",
    ] {
        let heading = |text: &str| text.contains(&format!(">{section}"));
        assert!(heading(&full), "{section}");
        assert!(!heading(&bare), "{section}");
    }
    assert!(full.contains("optimistic"));
}

/// The fields of a value: `a.b`, and `a[].b` in lists.
fn fields(value: &Value, path: &str, found: &mut BTreeSet<String>) {
    if let Some(object) = value.as_object() {
        for (key, value) in object {
            let path = match path {
                "" => key.clone(),
                _ => format!("{path}.{key}"),
            };
            fields(value, &path, found);
        }
        return;
    }
    found.insert(path.to_owned());
    let elements = value.as_array().into_iter().flatten();
    for element in elements.filter(|e| e.is_object()) {
        fields(element, &format!("{path}[]"), found);
    }
}

#[test]
fn every_field_is_documented_and_every_documented_field_is_there() {
    let table = include_str!("../../../docs/report.md").lines();
    let first = table.filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    let documented: BTreeSet<String> = first.map(str::to_owned).collect();
    let mut found = BTreeSet::new();
    fields(&report(0.5, "name").json(), "", &mut found);
    let mut without = report(0.5, "name");
    without.accuracy = None;
    fields(&without.json(), "", &mut found);
    assert_eq!(found, documented);
}

#[test]
fn json_comes_back_as_it_was_written() {
    // serde_json reads the last bit of extreme numbers otherwise than it was.
    for x in NUMBERS
        .into_iter()
        .filter(|x| !(1e-300..=1e-20).contains(x))
    {
        let value = report(x, HOSTILE).json();
        let text = format!("{value:#}");
        let back: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
        assert_eq!(
            back["layers"][0]["error"].as_f64(),
            x.is_finite().then_some(x)
        );
        assert_eq!(back["units"][0]["name"], HOSTILE);
        assert_eq!(back["calibration"]["seed"], u64::MAX);
        assert_eq!(back, value);
    }
}

#[test]
fn what_went_wrong_is_a_warning() {
    let warnings = |x| report(x, "name").warnings.join("\n");
    // `report` has one warning of its own, and its accuracy is of the calibration.
    assert_eq!(report(0.5, "name").warnings.len(), 2);
    for x in [1.0, f64::INFINITY, f64::NAN] {
        assert!(warnings(x).contains("no worse than the output"), "{x}");
    }
    assert!(warnings(f64::NAN).contains("did not bring name closer"));
    assert!(!warnings(0.5).contains("closer"));
}
