//! Plots as inline SVG.
//!
//! ```text
//!   y label
//!   10 ┤        ╭─ line        position = (f(x) - f(low)) / (f(high) - f(low))
//!      │   ▃ █ ╱               f is the identity, or log10 on a logarithmic axis
//!    1 ┼───┴─┴┴──┤
//!      0    x label
//! ```
//!
//! Bars start at zero. What an axis cannot show, such as NaN or zero on a
//! logarithmic one, is left out and interrupts its line. Colours are classes that the
//! page defines, so that one plot serves light, dark and paper.

use std::fmt::Write as _;

use super::text::{escape, tick};

/// Where the plot's area begins and ends, from each side.
const MARGIN_LEFT: f64 = 46.0;
const MARGIN_RIGHT: f64 = 14.0;
const MARGIN_TOP: f64 = 22.0;
const MARGIN_BOTTOM: f64 = 36.0;

/// Values beyond this are as good as infinite: differences stay finite.
const LARGEST: f64 = 1e150;

/// About so many ticks on an axis.
const TICKS: usize = 6;

/// The range of one direction of a plot.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Axis {
    logarithmic: bool,
    low: f64,
    high: f64,
    ticks: Vec<(f64, String)>,
    label: String,
}

impl Axis {
    /// From `low` to `high` with the given ticks.
    pub(super) fn new(label: &str, low: f64, high: f64, ticks: Vec<(f64, String)>) -> Axis {
        Axis {
            logarithmic: false,
            low,
            high,
            ticks,
            label: label.into(),
        }
    }

    /// Around `values`, widened to round numbers.
    pub(super) fn linear(label: &str, values: impl Iterator<Item = f64>) -> Axis {
        let (low, high) = match bounds(values) {
            None => (0.0, 1.0),
            Some((low, high)) if low == high => match low {
                0.0 => (0.0, 1.0),
                x => (x - 0.5 * x.abs(), x + 0.5 * x.abs()),
            },
            Some(both) => both,
        };
        let step = round_step((high - low) / TICKS as f64);
        let (first, last) = ((low / step).floor(), (high / step).ceil());
        // Bounded, whatever rounding did to the quotients.
        let count = (last - first).clamp(1.0, 2.0 * TICKS as f64) as usize;
        let at = |i: usize| (first + i as f64) * step;
        let ticks = (0..=count).map(|i| (at(i), tick(at(i)))).collect();
        Axis::new(label, at(0), at(count).max(high), ticks)
    }

    /// Around the positive ones of `values`, widened to 1, 2 or 5 times a power of ten.
    pub(super) fn logarithmic(label: &str, values: impl Iterator<Item = f64>) -> Axis {
        let positive = values.filter(|&x| x > 1.0 / LARGEST);
        let (low, high) = bounds(positive).unwrap_or((1.0, 10.0));
        let near = |x: f64| {
            let decade = 3 * x.log10().floor() as i32;
            decade - 1..=decade + 4
        };
        // What is round already needs no more room, whatever the logarithm's last bit.
        let below = near(low).rev().find(|&i| third(i) <= low * (1.0 + 1e-9));
        let above = near(high).find(|&i| third(i) >= high * (1.0 - 1e-9));
        let first = below.expect("a power of ten is below");
        let last = above.expect("a power of ten is above");
        let (first, last) = match first == last {
            true => (first - 1, last + 1),
            false => (first, last),
        };
        // 1, 2, 5, or decades, or every so many decades.
        let every = match (last - first) as usize {
            0..=8 => 1,
            thirds => 3 * (thirds / 3).div_ceil(TICKS) as i32,
        };
        let ticks = (first..=last).filter(|t| t.rem_euclid(every) == 0);
        Axis {
            logarithmic: true,
            ticks: ticks.map(|t| (third(t), tick(third(t)))).collect(),
            ..Axis::new(label, third(first), third(last), Vec::new())
        }
    }

    /// Where `value` is: 0 at the low end, 1 at the high one.
    fn at(&self, value: f64) -> Option<f64> {
        let map = |x: f64| match self.logarithmic {
            true => x.log10(),
            false => x,
        };
        let at = (map(value) - map(self.low)) / (map(self.high) - map(self.low));
        // A rounding error beyond the ends is no reason to lose a point.
        (-1e-6..=1.0 + 1e-6).contains(&at).then_some(at)
    }
}

/// The smallest and the largest finite value.
fn bounds(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    values
        .filter(|x| x.abs() < LARGEST)
        .map(|x| (x, x))
        .reduce(|a, b| (a.0.min(b.0), a.1.max(b.1)))
}

/// The least of 1, 2, 5 times a power of ten that is at least `x`.
fn round_step(x: f64) -> f64 {
    let x = x.max(f64::MIN_POSITIVE);
    let power = 10f64.powf(x.log10().floor());
    let factor = [1.0, 2.0, 5.0].into_iter().find(|f| f * power >= x);
    factor.unwrap_or(10.0) * power
}

/// Number `i` of ..., 0.5, 1, 2, 5, 10, ...; 0 is 1.
fn third(i: i32) -> f64 {
    let mantissa = [1.0, 2.0, 5.0][i.rem_euclid(3) as usize];
    mantissa * 10f64.powi(i.div_euclid(3))
}

/// A plot to which marks are added.
pub(super) struct Plot {
    title: String,
    size: [f64; 2],
    x: Axis,
    y: Axis,
    body: String,
}

impl Plot {
    /// An empty plot of `size`, width and height in CSS pixels.
    pub(super) fn new(title: &str, size: [f64; 2], x: Axis, y: Axis) -> Plot {
        Plot {
            title: title.into(),
            size,
            x,
            y,
            body: String::new(),
        }
    }

    fn left(&self, x: f64) -> Option<f64> {
        let width = self.size[0] - MARGIN_LEFT - MARGIN_RIGHT;
        Some(MARGIN_LEFT + self.x.at(x)? * width)
    }

    fn top(&self, y: f64) -> Option<f64> {
        let height = self.size[1] - MARGIN_TOP - MARGIN_BOTTOM;
        Some(MARGIN_TOP + (1.0 - self.y.at(y)?) * height)
    }

    fn point(&self, (x, y): (f64, f64)) -> Option<(f64, f64)> {
        Some((self.left(x)?, self.top(y)?))
    }

    fn add(&mut self, element: std::fmt::Arguments<'_>) {
        // Writing to a String cannot fail.
        let _ = self.body.write_fmt(element);
    }

    /// A line through `points`, interrupted where one cannot be shown.
    pub(super) fn line(&mut self, class: &str, points: impl Iterator<Item = (f64, f64)>) {
        let mut path = String::new();
        let mut drawing = false;
        for point in points {
            let Some((x, y)) = self.point(point) else {
                drawing = false;
                continue;
            };
            // A lone point is a line of no length, which its round ends show.
            let _ = match drawing {
                true => write!(path, "L{x:.1} {y:.1}"),
                false => write!(path, "M{x:.1} {y:.1}h0"),
            };
            drawing = true;
        }
        if !path.is_empty() {
            self.add(format_args!("<path class=\"line {class}\" d=\"{path}\"/>"));
        }
    }

    /// Dots, each with what it says when pointed at.
    pub(super) fn dots(
        &mut self,
        class: &str,
        radius: f64,
        points: impl Iterator<Item = ((f64, f64), String)>,
    ) {
        for (point, text) in points {
            if let Some((x, y)) = self.point(point) {
                let text = escape(&text);
                self.add(format_args!(
                    "<circle class=\"{class}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{radius}\">\
                     <title>{text}</title></circle>"
                ));
            }
        }
    }

    /// Bars from zero, each `(from, to, height)`.
    pub(super) fn bars(&mut self, class: &str, bars: impl Iterator<Item = (f64, f64, f64)>) {
        let mut path = String::new();
        for (from, to, height) in bars {
            let corners = (self.left(from), self.left(to), self.top(0.0));
            let ((Some(left), Some(right), Some(bottom)), Some(top)) = (corners, self.top(height))
            else {
                continue;
            };
            if height > 0.0 {
                let _ = write!(
                    path,
                    "M{left:.1} {bottom:.1}V{top:.1}H{right:.1}V{bottom:.1}z"
                );
            }
        }
        if !path.is_empty() {
            self.add(format_args!("<path class=\"{class}\" d=\"{path}\"/>"));
        }
    }

    /// Vertical lines that come down from the top over `part` of the height.
    pub(super) fn marks(&mut self, class: &str, part: f64, xs: impl Iterator<Item = f64>) {
        let bottom = MARGIN_TOP + part * (self.size[1] - MARGIN_TOP - MARGIN_BOTTOM);
        let mut path = String::new();
        for x in xs.filter_map(|x| self.left(x)) {
            let _ = write!(path, "M{x:.1} {MARGIN_TOP}V{bottom:.1}");
        }
        if !path.is_empty() {
            self.add(format_args!("<path class=\"mark {class}\" d=\"{path}\"/>"));
        }
    }

    /// The whole `<svg>` element.
    pub(super) fn finish(self) -> String {
        let [width, height] = self.size;
        let (right, bottom) = (width - MARGIN_RIGHT, height - MARGIN_BOTTOM);
        let mut axes = String::new();
        let mut grid = String::new();
        for (value, text) in &self.y.ticks {
            if let Some(y) = self.top(*value) {
                let _ = write!(grid, "M{MARGIN_LEFT} {y:.1}H{right}");
                let _ = write!(
                    axes,
                    "<text x=\"{}\" y=\"{:.1}\" class=\"end\">{}</text>",
                    MARGIN_LEFT - 5.0,
                    y + 4.0,
                    escape(text)
                );
            }
        }
        for (value, text) in &self.x.ticks {
            if let Some(x) = self.left(*value) {
                let _ = write!(grid, "M{x:.1} {MARGIN_TOP}V{}", bottom + 4.0);
                let _ = write!(
                    axes,
                    "<text x=\"{x:.1}\" y=\"{}\" class=\"middle\">{}</text>",
                    bottom + 16.0,
                    escape(text)
                );
            }
        }
        let _ = write!(
            axes,
            "<text x=\"{:.1}\" y=\"{}\" class=\"middle label\">{}</text>\
             <text x=\"2\" y=\"12\" class=\"label\">{}</text>",
            0.5 * (MARGIN_LEFT + right),
            height - 5.0,
            escape(&self.x.label),
            escape(&self.y.label)
        );
        let body = match self.body.is_empty() {
            true => format!(
                "<text x=\"{:.1}\" y=\"{:.1}\" class=\"middle label\">no values</text>",
                0.5 * (MARGIN_LEFT + right),
                0.5 * (MARGIN_TOP + bottom)
            ),
            false => self.body,
        };
        format!(
            "{}<path class=\"grid\" d=\"{grid}\"/>\
             <path class=\"axis\" d=\"M{MARGIN_LEFT} {MARGIN_TOP}V{bottom}H{right}\"/>\
             {axes}{body}</svg>",
            open(&self.title, self.size),
        )
    }
}

/// One bar, made of parts.
pub(super) struct Bar {
    /// To its left.
    pub(super) label: String,
    /// Class, length, and what the part says when pointed at.
    pub(super) parts: Vec<(&'static str, f64, String)>,
    /// To its right.
    pub(super) value: String,
}

/// Height of a bar and its distance to the next.
const BAR: f64 = 13.0;
const BAR_STEP: f64 = 18.0;

/// Horizontal bars on one scale from zero, labels of at most `label` pixels to
/// their left, values of at most `value` pixels to their right.
pub(super) fn stacked_bars(
    title: &str,
    width: f64,
    [label, value]: [f64; 2],
    bars: &[Bar],
) -> String {
    let usable = |x: f64| if x > 0.0 && x < LARGEST { x } else { 0.0 };
    let total = |bar: &Bar| bar.parts.iter().map(|p| usable(p.1)).sum::<f64>();
    let longest = bars.iter().map(total).fold(f64::MIN_POSITIVE, f64::max);
    let mut body = String::new();
    for (i, bar) in bars.iter().enumerate() {
        let top = i as f64 * BAR_STEP + 2.0;
        let mut left = label;
        let _ = write!(
            body,
            "<text x=\"{}\" y=\"{}\" class=\"end\">{}</text>",
            label - 6.0,
            top + 10.5,
            escape(&bar.label)
        );
        for (class, length, text) in &bar.parts {
            let length = usable(*length) / longest * (width - label - value);
            if length > 0.0 {
                let _ = write!(
                    body,
                    "<rect class=\"{class}\" x=\"{left:.2}\" y=\"{top}\" width=\"{length:.2}\" \
                     height=\"{BAR}\"><title>{}</title></rect>",
                    escape(text)
                );
            }
            left += length;
        }
        let _ = write!(
            body,
            "<text x=\"{:.1}\" y=\"{}\">{}</text>",
            left + 6.0,
            top + 10.5,
            escape(&bar.value)
        );
    }
    let height = bars.len().max(1) as f64 * BAR_STEP + 2.0;
    format!("{}{body}</svg>", open(title, [width, height]))
}

/// The start of an `<svg>` element, with its title for those who cannot see it.
fn open(title: &str, [width, height]: [f64; 2]) -> String {
    format!(
        "<svg role=\"img\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" \
         aria-label=\"{}\">",
        escape(title)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(axis: &Axis) -> Vec<f64> {
        axis.ticks.iter().map(|t| t.0).collect()
    }

    #[test]
    fn ticks_are_round_and_cover_the_values() {
        let axis = Axis::linear("", [0.3, 9.7].into_iter());
        assert_eq!(values(&axis), [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]);
        let axis = Axis::logarithmic("", [0.03, 0.9].into_iter());
        let expected = [0.02, 0.05, 0.1, 0.2, 0.5, 1.0];
        assert!(
            values(&axis)
                .iter()
                .zip(expected)
                .all(|(a, b)| (a / b - 1.0).abs() < 1e-12)
        );
        assert_eq!(axis.ticks.len(), expected.len());
        let axis = Axis::logarithmic("", [1e-9, 1.0, 0.0, -1.0].into_iter());
        assert_eq!(axis.ticks.first().map(|t| t.1.as_str()), Some("1e-8"));
        assert_eq!(axis.at(0.0), None);
        assert_eq!(axis.at(1e-9), Some(0.0));
    }

    /// Every axis has a range that is not empty, and few ticks, all inside.
    #[test]
    fn nothing_breaks_an_axis() {
        let tiny = f64::from_bits(1);
        let hostile: [&[f64]; 12] = [
            &[],
            &[f64::NAN],
            &[f64::INFINITY, f64::NEG_INFINITY],
            &[0.0],
            &[-3.0],
            &[7.0, 7.0],
            &[f64::MAX, f64::MIN],
            &[1e149, -1e149],
            &[tiny],
            &[tiny, 1e149],
            &[1e17, 1e17 + 16.0],
            &[1.0, 1.0 + f64::EPSILON],
        ];
        for data in hostile {
            for axis in [
                Axis::linear("", data.iter().copied()),
                Axis::logarithmic("", data.iter().copied()),
            ] {
                assert!(axis.low < axis.high, "{data:?}: {axis:?}");
                assert!((1..=13).contains(&axis.ticks.len()), "{data:?}: {axis:?}");
                for x in data.iter().filter(|x| x.abs() < LARGEST) {
                    let shown = axis.at(*x).is_some();
                    let beyond = axis.logarithmic && *x < 1.0 / LARGEST;
                    assert!(shown || beyond, "{x} on {axis:?}");
                }
            }
        }
    }

    #[test]
    fn a_line_is_interrupted_where_it_has_no_value() {
        let ys = [1.0, 2.0, f64::NAN, 3.0, 0.0, f64::INFINITY, 2.0];
        let y = Axis::logarithmic("", ys.into_iter());
        let x = Axis::linear("", [0.0, 6.0].into_iter());
        let mut plot = Plot::new("", [100.0, 100.0], x, y);
        plot.line("s1", ys.into_iter().enumerate().map(|(i, y)| (i as f64, y)));
        let svg = plot.finish();
        let line = svg.split("class=\"line s1\"").nth(1).expect("a line");
        let path = line.split('"').nth(1).expect("its path");
        assert_eq!(path.matches('M').count(), 3, "{path}");
        assert_eq!(path.matches('L').count(), 1, "{path}");
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
    }

    #[test]
    fn an_empty_plot_says_so() {
        let axis = || Axis::linear("", std::iter::empty());
        let mut plot = Plot::new("", [100.0, 100.0], axis(), axis());
        plot.line("s1", std::iter::empty());
        plot.bars("s1", [(0.0, 1.0, f64::NAN)].into_iter());
        assert!(plot.finish().contains("no values"));
        assert!(stacked_bars("", 100.0, [10.0, 10.0], &[]).ends_with("</svg>"));
    }

    #[test]
    fn bars_are_as_long_as_their_values() {
        let bar = |parts: &[f64]| Bar {
            label: "<&>".into(),
            parts: parts.iter().map(|&p| ("s1", p, String::new())).collect(),
            value: String::new(),
        };
        let bars = [bar(&[3.0, 1.0]), bar(&[2.0, f64::NAN, -1.0])];
        let svg = stacked_bars("", 120.0, [10.0, 10.0], &bars);
        let widths: Vec<&str> = svg.split("width=\"").skip(2).collect();
        let widths: Vec<&str> = widths.iter().filter_map(|w| w.split('"').next()).collect();
        assert_eq!(widths, ["75.00", "25.00", "50.00"]);
        assert!(svg.contains("&lt;&amp;&gt;"));
    }
}
