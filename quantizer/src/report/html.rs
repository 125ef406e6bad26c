//! The report as one page: no script, no font, no picture from elsewhere.

use std::fmt::Write as _;
use std::time::Duration;

use super::svg::{Axis, Bar, Plot, stacked_bars};
use super::text::{bytes, duration, escape, number, power_of_two, tick};
use super::{Accuracy, AttentionLayer, Layer, ModelSummary, ReportData, UnitLog};
use crate::calibration::Decision;
use crate::quantizers::OctaveHistogram;

/// Size of a wide plot and of one of many, CSS pixels.
const WIDE: [f64; 2] = [940.0, 330.0];
const SMALL: [f64; 2] = [330.0, 200.0];

/// The part of the values that a histogram shows; the smallest ones lie beyond it.
const SHOWN: f64 = 0.95;

/// More levels than this are marked at the edge only.
const FEW_LEVELS: usize = 16;

/// The whole page.
pub fn page(data: &ReportData) -> String {
    let name = format!("{} {}", data.model.file, widths(data));
    let mut page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n\
         <meta name=\"color-scheme\" content=\"light dark\"/>\n\
         <title>{}</title>\n<style>\n{}</style>\n</head>\n<body>\n",
        escape(&name),
        include_str!("style.css")
    );
    for section in [
        header(data),
        warnings(&data.warnings),
        setup(data),
        data.accuracy.as_ref().map(accuracy).unwrap_or_default(),
        errors(&data.layers),
        units(&data.units),
        compensation(&data.compensation, &data.model),
        attention(&data.attention),
        sizes(data),
        notes(&data.layers),
    ] {
        page.push_str(&section);
    }
    page.push_str("</body>\n</html>\n");
    page
}

/// `W4A4`.
fn widths(data: &ReportData) -> String {
    let method = &data.method;
    format!("W{}A{}", method.weight_bits, method.activation_bits)
}

/// One decimal; a dash for what is no number.
fn tenths(x: f64) -> String {
    match x.is_finite() {
        true => format!("{x:.1}"),
        false => number(x),
    }
}

fn time(seconds: f64) -> String {
    Duration::try_from_secs_f64(seconds).map_or(number(seconds), duration)
}

/// Bytes that a `u64` counts, as people read them.
fn size(n: u64) -> String {
    bytes(usize::try_from(n).unwrap_or(usize::MAX))
}

fn header(data: &ReportData) -> String {
    let mut cards = Vec::new();
    if let Some(a) = &data.accuracy {
        cards.push((
            format!("{} → {} %", tenths(a.float.top1), tenths(a.integer.top1)),
            format!(
                "top-1, float → integer, {} {}",
                a.images,
                match a.calibration {
                    true => "calibration pictures (optimistic)",
                    false => "pictures",
                }
            ),
        ));
    }
    cards.push((
        format!("{} → {}", size(data.size.float), size(data.size.file)),
        format!(
            "parameters in f32 → file, {} times smaller",
            tenths(data.compression())
        ),
    ));
    if let Some(last) = data.layers.last() {
        let after = number(last.error.accumulated);
        cards.push(match last.error_before {
            Some(before) => (
                format!("{} → {after}", number(before.accumulated)),
                "error of the output, weights rounded → optimised".into(),
            ),
            None => (after, "error of the output against float".into()),
        });
    }
    cards.push((
        time(data.seconds),
        format!("to quantize, with {} pictures", data.calibration.pictures),
    ));
    let mut out = format!(
        "<header>\n<h1>{} <small>{}</small></h1>\n<p class=\"soft\">{}, attention {}, {} calibration pictures, seed {}, {}</p>\n\
         <div class=\"cards\">\n",
        escape(&data.model.file),
        widths(data),
        escape(&data.method.name),
        escape(&data.method.softmax),
        data.calibration.pictures,
        data.calibration.seed,
        escape(&data.tool)
    );
    for (value, what) in cards {
        let (value, what) = (escape(&value), escape(&what));
        let _ = writeln!(
            out,
            "<div class=\"card\"><b>{value}</b><span>{what}</span></div>"
        );
    }
    out + "</div>\n</header>\n"
}

fn warnings(warnings: &[String]) -> String {
    if warnings.is_empty() {
        return String::new();
    }
    let items: String = warnings
        .iter()
        .map(|w| format!("<li>{}</li>", escape(w)))
        .collect();
    format!("<div class=\"warnings\"><strong>Warnings</strong><ul>{items}</ul></div>\n")
}

fn setup(data: &ReportData) -> String {
    let (model, method, calibration) = (&data.model, &data.method, &data.calibration);
    let [height, width] = model.image;
    let bits = |b: Option<u32>| b.map_or("–".into(), |b| format!("{b} bits"));
    let result = match (model.classes, model.result) {
        (0, [rows, cols]) => format!("features {rows} × {cols}"),
        (classes, _) => format!("{classes} classes"),
    };
    let rows = [
        (
            "model",
            format!(
                "{}: {height} × {width} pixels, {result}, {:.2} million parameters, {:.0} million multiplications",
                model.file,
                model.parameters as f64 / 1e6,
                model.macs as f64 / 1e6
            ),
        ),
        (
            "widths",
            format!(
                "weights {} bits, activations {} bits{}",
                method.weight_bits,
                method.activation_bits,
                method.first_last_bits.map_or(String::new(), |b| {
                    format!(", patch embedding and classifier {b} bits")
                })
            ),
        ),
        ("method", method.name.clone()),
        (
            "attention",
            format!("{}, {}", method.softmax, bits(method.softmax_bits)),
        ),
        ("ranges", method.range.clone()),
        (
            "calibration",
            format!(
                "{} pictures, {} skipped, seed {}",
                calibration.pictures, calibration.skipped, calibration.seed
            ),
        ),
        (
            "size",
            format!(
                "{} source file, {} as f32, {} now",
                size(data.size.source),
                size(data.size.float),
                size(data.size.file)
            ),
        ),
    ];
    let rows: String = rows
        .iter()
        .map(|(what, value)| format!("<dt>{what}</dt><dd>{}</dd>\n", escape(value)))
        .collect();
    format!("<section>\n<h2>How it was made</h2>\n<dl>\n{rows}</dl>\n</section>\n")
}

fn accuracy(a: &Accuracy) -> String {
    let rows = [
        ("top-1", a.float.top1, a.integer.top1),
        ("top-5", a.float.top5, a.integer.top5),
    ];
    let rows = rows.iter().map(|(what, float, integer)| {
        let percent = |x: f64| format!("{} %", tenths(x));
        vec![
            (*what).to_owned(),
            percent(*float),
            percent(*integer),
            match integer - float {
                difference if difference > 0.0 => format!("+{}", tenths(difference)),
                difference => tenths(difference),
            },
        ]
    });
    let caution = match a.calibration {
        true => {
            "These are the calibration pictures themselves: the quantizer was fitted to them, so \
             the integer model looks better here than on others."
        }
        false => "The integer model is the file that was written, run as it will be.",
    };
    let deviation = {
        let p = (a.float.top1 / 100.0).clamp(0.0, 1.0);
        100.0 * (p * (1.0 - p) / a.images as f64).sqrt()
    };
    format!(
        "<section>\n<h2>Accuracy</h2>\n<p>{} labelled pictures of {}. {caution} One standard \
         deviation of the float top-1 is {} points.</p>\n{}</section>\n",
        a.images,
        escape(&a.data),
        number(deviation),
        table(&["percent right", "float", "integer", "points"], rows, &[])
    )
}

/// A table; columns in `text` are words, which wrap.
fn table(headings: &[&str], rows: impl Iterator<Item = Vec<String>>, text: &[usize]) -> String {
    let class = |column: usize| match text.contains(&column) {
        true => " class=\"text\"",
        false => "",
    };
    let mut out = String::from("<div class=\"scroll\"><table>\n<thead><tr>");
    for (i, heading) in headings.iter().enumerate() {
        let _ = write!(out, "<th{}>{}</th>", class(i), escape(heading));
    }
    out.push_str("</tr></thead>\n<tbody>\n");
    for row in rows {
        out.push_str("<tr>");
        for (i, cell) in row.iter().enumerate() {
            let _ = write!(out, "<td{}>{}</td>", class(i), escape(cell));
        }
        out.push_str("</tr>\n");
    }
    out + "</tbody>\n</table></div>\n"
}

/// Entries of a legend: what is drawn, and what it means.
fn legend(entries: &[(&str, &str)]) -> String {
    let mut out = String::from("<ul class=\"legend\">\n");
    for (mark, text) in entries {
        let _ = writeln!(
            out,
            "<li><svg viewBox=\"0 0 22 10\" aria-hidden=\"true\">{mark}</svg>{}</li>",
            escape(text)
        );
    }
    out + "</ul>\n"
}

/// The number of a block whose operation is called `blocks.3.norm1`.
fn block(name: &str) -> Option<&str> {
    name.strip_prefix("blocks.")?.split('.').next()
}

fn errors(layers: &[Layer]) -> String {
    if layers.is_empty() {
        return String::new();
    }
    let optimised = layers.iter().any(|l| l.error_before.is_some());
    let before = |l: &Layer| l.error_before.map_or(f64::NAN, |e| e.accumulated);
    let mut ticks = Vec::new();
    let mut last = None;
    for (i, layer) in layers.iter().enumerate() {
        let block = block(&layer.name);
        if let Some(number) = block.filter(|_| block != last) {
            ticks.push((i as f64, number.to_owned()));
        }
        last = block;
    }
    let x = Axis::new(
        "block, its operations in order",
        0.0,
        layers.len() as f64,
        ticks,
    );
    let all = layers
        .iter()
        .flat_map(|l| [l.error.accumulated, l.error.rounding, before(l)]);
    let y = Axis::logarithmic("error, logarithmic", all);
    let mut plot = Plot::new("Error of each operation's output", WIDE, x, y);
    let points = |of: fn(&Layer) -> f64| {
        let points = layers.iter().enumerate();
        points.map(move |(i, l)| (i as f64 + 0.5, of(l)))
    };
    plot.dots(
        "s3",
        2.2,
        layers
            .iter()
            .zip(points(|l| l.error.rounding))
            .map(|(l, at)| (at, format!("{}: own rounding {}", l.name, number(at.1)))),
    );
    plot.line(
        "s2 dashed",
        points(|l| l.error_before.map_or(f64::NAN, |e| e.accumulated)),
    );
    plot.line("s1", points(|l| l.error.accumulated));
    plot.dots(
        "s1",
        2.6,
        layers
            .iter()
            .zip(points(|l| l.error.accumulated))
            .map(|(l, at)| {
                let before = match l.error_before {
                    Some(e) => format!(", {} before", number(e.accumulated)),
                    None => String::new(),
                };
                (at, format!("{}: {}{before}", l.name, number(at.1)))
            }),
    );
    let mut entries = vec![(
        "<path class=\"line s1\" d=\"M1 5h20\"/>",
        match optimised {
            true => "with optimised weights",
            false => "all that went wrong up to here",
        },
    )];
    if optimised {
        entries.push((
            "<path class=\"line s2 dashed\" d=\"M1 5h20\"/>",
            "before, each weight rounded by itself",
        ));
    }
    entries.push((
        "<circle class=\"s3\" cx=\"11\" cy=\"5\" r=\"3\"/>",
        "rounding of this output alone",
    ));
    let rows = layers.iter().map(|l| {
        vec![
            l.name.clone(),
            number(before(l)),
            number(l.error.accumulated),
            number(l.error_before.map_or(f64::NAN, |e| e.rounding)),
            number(l.error.rounding),
            l.kind.clone(),
        ]
    });
    format!(
        "<section>\n<h2>Error of each operation</h2>\n\
         <p>How far each output is from the float network's: |ŷ − y| / |y − mean y| on a few \
         calibration pictures. 0 is exact, 1 is no better than always answering the mean.</p>\n\
         {}<figure class=\"wide\">{}</figure>\n{}</section>\n",
        legend(&entries),
        plot.finish(),
        table(
            &[
                "output of",
                "before",
                "after",
                "rounding before",
                "rounding after",
                "kind"
            ],
            rows,
            &[]
        )
    )
}

fn units(units: &[UnitLog]) -> String {
    if units.is_empty() {
        return String::new();
    }
    let mut figures = String::new();
    for unit in units {
        let curve = || {
            unit.curve
                .iter()
                .map(|&(s, l)| (f64::from(s), f64::from(l)))
        };
        let x = Axis::linear("step", curve().map(|p| p.0));
        let y = Axis::logarithmic("training loss", curve().map(|p| p.1));
        let mut plot = Plot::new(&format!("Training loss of {}", unit.name), SMALL, x, y);
        plot.line("s1", curve());
        let _ = writeln!(
            figures,
            "<figure><h3>{}</h3>{}<figcaption>error {} → {}</figcaption></figure>",
            escape(&unit.name),
            plot.finish(),
            number(unit.before),
            number(unit.after)
        );
    }
    let rows = units.iter().map(|u| {
        vec![
            u.name.clone(),
            number(u.before),
            number(u.after),
            number(u.after / u.before),
            u.note.clone(),
        ]
    });
    format!(
        "<section>\n<h2>Reconstruction</h2>\n\
         <p>Training loss of each unit, and the relative squared error of its output on pictures \
         that were held back, before → after.</p>\n<div class=\"grid\">\n{figures}</div>\n{}</section>\n",
        table(&["unit", "before", "after", "ratio", "note"], rows, &[4])
    )
}

fn compensation(decisions: &[Decision], model: &ModelSummary) -> String {
    if decisions.is_empty() {
        return String::new();
    }
    let rows = decisions.iter().map(|d| {
        vec![
            d.group.name().into(),
            number(d.rounded),
            number(d.compensated),
            tick(d.damping),
            match d.kept() {
                true => "yes".into(),
                false => "no".into(),
            },
        ]
    });
    let (name, measure) = match model.classes {
        0 => ("error", "relative squared error of the features"),
        _ => ("KL", "Kullback-Leibler divergence, nats"),
    };
    let [rounded, compensated] = ["rounded", "compensated"].map(|after| format!("{name} {after}"));
    format!(
        "<section>\n<h2>Compensation</h2>\n\
         <p>Weights of a row rounded so that their errors cancel in the layer's output (GPTQ). \
         Each kind of layer keeps its new codes only if the network's output comes closer to \
         float on held-back calibration pictures: {measure}.</p>\n{}</section>\n",
        table(
            &["layers", &rounded, &compensated, "damping", "kept"],
            rows,
            &[]
        )
    )
}

fn attention(layers: &[AttentionLayer]) -> String {
    if layers.is_empty() {
        return String::new();
    }
    let range = octaves_shown(layers);
    let mut figures = String::new();
    for layer in layers {
        figures.push_str(&attention_figure(layer, range));
    }
    let relative = match layers.iter().all(|l| l.relative_to_row_maximum) {
        true => "relative to the largest of its row",
        false => "after softmax",
    };
    format!(
        "<section>\n<h2>Attention and its codes</h2>\n\
         <p>Where each attention value lies, {relative}, in the calibration pictures, and the \
         values its codes can express. Most values are tiny; few carry most of the attention.</p>\n\
         {}<div class=\"grid\">\n{figures}</div>\n</section>\n",
        legend(&[
            (
                "<rect class=\"pale\" x=\"3\" width=\"16\" height=\"10\"/>",
                "share of the values, quarter octaves"
            ),
            (
                "<path class=\"line s3\" d=\"M1 5h20\"/>",
                "share of the attention they carry"
            ),
            (
                "<path class=\"mark s2\" d=\"M6 0v10M16 0v10\"/>",
                "levels of the quantizer"
            ),
        ])
    )
}

/// Exponents of the smallest and the largest value that every histogram shows.
fn octaves_shown(layers: &[AttentionLayer]) -> (i32, i32) {
    let mut low = 8;
    let mut high = 0;
    for layer in layers {
        let counts = &layer.histogram.counts;
        let wanted = SHOWN * counts.iter().sum::<u64>() as f64;
        let mut seen = 0;
        let bins = counts.iter().take_while(|&&count| {
            let more = (seen as f64) < wanted;
            seen += count;
            more
        });
        low = low.max(bins.count().div_ceil(OctaveHistogram::BINS_PER_OCTAVE) as i32);
        for exponent in positive_levels(layer) {
            low = low.max((-exponent).ceil() as i32);
            high = high.max(exponent.ceil() as i32);
        }
    }
    // The last bin holds all that is smaller, so it is not shown as a place.
    (-low.min(OctaveHistogram::OCTAVES as i32 - 1), high)
}

/// The levels of all heads.
fn levels(layer: &AttentionLayer) -> impl Iterator<Item = f32> {
    layer.codebooks.iter().flat_map(|c| &c.levels).copied()
}

/// Exponents of the levels above zero.
fn positive_levels(layer: &AttentionLayer) -> impl Iterator<Item = f64> {
    let positive = levels(layer).filter(|&l| l > 0.0 && l.is_finite());
    positive.map(|l| f64::from(l).log2())
}

fn attention_figure(layer: &AttentionLayer, (low, high): (i32, i32)) -> String {
    let histogram = &layer.histogram;
    let per_octave = OctaveHistogram::BINS_PER_OCTAVE as f64;
    let values = histogram.counts.iter().sum::<u64>().max(1) as f64;
    let carried = histogram.mass.iter().sum::<f64>().max(f64::MIN_POSITIVE);
    // A bin's upper end, as an exponent.
    let end = |bin: usize| -(bin as f64) / per_octave;
    let shown = histogram
        .counts
        .len()
        .min((f64::from(-low) * per_octave) as usize);
    let counts = || (0..shown).map(|b| (b, 100.0 * histogram.counts[b] as f64 / values));
    let mass = || (0..shown).map(|b| (b, 100.0 * histogram.mass[b] / carried));

    let every = ((high - low) / 7 + 1).max(2);
    let ticks = (low..=high).filter(|e| e % every == 0);
    let x = Axis::new(
        match layer.relative_to_row_maximum {
            true => "value / largest of its row, logarithmic",
            false => "attention value, logarithmic",
        },
        f64::from(low),
        f64::from(high),
        ticks.map(|e| (f64::from(e), power_of_two(e))).collect(),
    );
    let heights = counts().chain(mass()).map(|p| p.1).chain([0.0]);
    let y = Axis::linear("percent", heights);
    let title = format!("Values and levels of {}", layer.name);
    let mut plot = Plot::new(&title, SMALL, x, y);
    let part = match levels(layer).count() <= FEW_LEVELS {
        true => 1.0,
        false => 0.08,
    };
    plot.marks("s2", part, positive_levels(layer));
    plot.bars("pale", counts().map(|(b, p)| (end(b + 1), end(b), p)));
    plot.line("s3", mass().map(|(b, p)| (end(b) - 0.5 / per_octave, p)));

    let beyond: u64 = histogram.counts[shown..].iter().sum();
    let mut facts = vec![format!("{} bits", layer.bits)];
    if layer.codebooks.len() > 1 {
        facts.push("levels of each head".into());
    }
    if levels(layer).any(|l| l <= 0.0) {
        facts.push("has a code for 0".into());
    }
    if layer.renormalised {
        facts.push("rows renormalised".into());
    }
    facts.push(format!(
        "{} % below {}",
        number(100.0 * beyond as f64 / values),
        power_of_two(low)
    ));
    format!(
        "<figure><h3>{}</h3>{}<figcaption>{}</figcaption></figure>\n",
        escape(&layer.name),
        plot.finish(),
        escape(&facts.join(", "))
    )
}

/// The layer that an operation's weight belongs to, or else what the operation writes.
fn weight_name(layer: &Layer) -> String {
    let weight = layer.weight.as_ref().unwrap_or(&layer.name);
    weight.strip_suffix(".weight").unwrap_or(weight).to_owned()
}

/// The class of weights of a width.
fn width_class(bits: u32) -> &'static str {
    match bits {
        0..=2 => "w2",
        3 => "w3",
        4..=5 => "w4",
        6..=7 => "w6",
        8.. => "w8",
    }
}

fn sizes(data: &ReportData) -> String {
    let layers = &data.layers;
    let weighted = || layers.iter().filter(|l| l.weights > 0);
    let mut widths: Vec<u32> = weighted().filter_map(|l| l.weight_bits).collect();
    widths.sort_unstable();
    widths.dedup();
    widths.reverse();
    let total = |of: &dyn Fn(&Layer) -> usize| layers.iter().map(of).sum::<usize>();
    let part = |class, n: usize, what: &str| (class, n as f64, format!("{what}: {}", bytes(n)));

    let mut whole = Vec::new();
    for &bits in &widths {
        let codes = total(&|l| {
            if l.weight_bits == Some(bits) {
                l.code_bytes
            } else {
                0
            }
        });
        whole.push(part(
            width_class(bits),
            codes,
            &format!("{bits}-bit weights"),
        ));
    }
    let scales = total(&|l| l.scale_bytes);
    let floats = total(&|l| l.float_bytes);
    let other = usize::try_from(data.other_bytes()).unwrap_or(usize::MAX);
    whole.push(part("scales", scales, "scales and zero points"));
    whole.push(part("floats", floats, "f32 constants"));
    whole.push(part("other", other, "all else in the file"));
    let float = usize::try_from(data.size.float).unwrap_or(usize::MAX);
    let totals = [
        Bar {
            label: "f32".into(),
            parts: vec![part("floats", float, "parameters in f32")],
            value: bytes(float),
        },
        Bar {
            label: "this file".into(),
            parts: whole,
            value: format!(
                "{}, {} times smaller",
                size(data.size.file),
                tenths(data.compression())
            ),
        },
    ];

    let mut bars: Vec<Bar> = weighted()
        .map(|l| {
            let bits = l.weight_bits.unwrap_or(32);
            Bar {
                label: weight_name(l),
                parts: vec![
                    part(
                        width_class(bits),
                        l.code_bytes,
                        &format!("{bits}-bit weights"),
                    ),
                    part("scales", l.scale_bytes, "scales and zero points"),
                    part("floats", l.float_bytes, "f32 constants"),
                ],
                value: format!(
                    "{}, {bits} bits",
                    bytes(l.code_bytes + l.scale_bytes + l.float_bytes)
                ),
            }
        })
        .collect();
    let rest = total(&|l| if l.weights == 0 { l.float_bytes } else { 0 });
    for (label, class, n) in [
        ("LayerNorm, all", "floats", rest),
        ("rest of the file", "other", other),
    ] {
        bars.push(Bar {
            label: label.into(),
            parts: vec![part(class, n, label)],
            value: bytes(n),
        });
    }

    let squares: Vec<(String, String)> = widths
        .iter()
        .map(|&bits| (width_class(bits), format!("{bits}-bit weights")))
        .chain([
            ("scales", "scales and zero points".into()),
            ("floats", "f32 constants".into()),
            (
                "other",
                "program, activation scales, attention tables, class names".into(),
            ),
        ])
        .map(|(class, text)| {
            let mark = format!("<rect class=\"{class}\" x=\"3\" width=\"16\" height=\"10\"/>");
            (mark, text)
        })
        .collect();
    let entries: Vec<(&str, &str)> = squares
        .iter()
        .map(|(m, t)| (m.as_str(), t.as_str()))
        .collect();

    let weights = total(&|l| l.weights);
    let coded = total(&|l| l.code_bytes) + scales;
    let rows = layers.iter().map(|l| {
        let bits = |b: Option<u32>| b.map_or("–".into(), |b: u32| b.to_string());
        vec![
            weight_name(l),
            l.weights.to_string(),
            bits(l.weight_bits),
            l.output_bits.map_or("f32".into(), |b| b.to_string()),
            l.code_bytes.to_string(),
            l.scale_bytes.to_string(),
            l.float_bytes.to_string(),
        ]
    });
    format!(
        "<section>\n<h2>Bits and bytes</h2>\n\
         <p>A weight takes {} bits on average, with its share of scales and zero points.</p>\n\
         {}<figure class=\"wide\">{}</figure>\n<figure class=\"wide\">{}</figure>\n{}</section>\n",
        number(8.0 * coded as f64 / weights as f64),
        legend(&entries),
        stacked_bars("Size before and after", WIDE[0], [160.0, 190.0], &totals),
        stacked_bars("Bytes of each layer", WIDE[0], [160.0, 120.0], &bars),
        table(
            &[
                "operation",
                "weights",
                "weight bits",
                "output bits",
                "code bytes",
                "scale bytes",
                "f32 bytes"
            ],
            rows,
            &[]
        )
    )
}

fn notes(layers: &[Layer]) -> String {
    let noted = layers.iter().filter(|l| !l.notes.is_empty());
    let mut rows = noted
        .map(|l| vec![l.name.clone(), l.notes.join("; ")])
        .peekable();
    if rows.peek().is_none() {
        return String::new();
    }
    format!(
        "<section>\n<h2>What was decided, operation by operation</h2>\n{}</section>\n",
        table(&["operation", "notes"], rows, &[1])
    )
}
