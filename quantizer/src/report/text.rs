//! Numbers and names as people read them.

use std::time::Duration;

/// `12.3 MB`; decimal units, as disks and networks count.
pub fn bytes(n: usize) -> String {
    match n as f64 {
        n if n < 1e3 => format!("{n} B"),
        n if n < 1e6 => format!("{:.1} kB", n / 1e3),
        n => format!("{:.1} MB", n / 1e6),
    }
}

/// `3.2 s` or `4 min 10 s`.
pub fn duration(d: Duration) -> String {
    match d.as_secs() {
        s if s < 60 => format!("{:.1} s", d.as_secs_f64()),
        s => format!("{} min {} s", s / 60, s % 60),
    }
}

/// Three significant digits: `0.0123`, `4.56`, `1230`, `1.2e-7`; a dash for what
/// is no number.
pub(super) fn number(x: f64) -> String {
    if !x.is_finite() {
        return "–".into();
    }
    if x == 0.0 {
        return "0".into();
    }
    let magnitude = x.abs().log10().floor() as i32;
    if (-4..6).contains(&magnitude) {
        let decimals = (2 - magnitude).max(0) as usize;
        return format!("{x:.decimals$}");
    }
    format!("{x:.2e}")
}

/// The same without zeros at the end, for the ticks of an axis.
pub(super) fn tick(x: f64) -> String {
    let text = number(x);
    let (mantissa, exponent) = match text.find('e') {
        Some(at) => text.split_at(at),
        None => (text.as_str(), ""),
    };
    let mantissa = match mantissa.contains('.') {
        true => mantissa.trim_end_matches('0').trim_end_matches('.'),
        false => mantissa,
    };
    format!("{mantissa}{exponent}")
}

/// `2⁻¹²`.
pub(super) fn power_of_two(exponent: i32) -> String {
    let digit = |c: char| match c.to_digit(10) {
        Some(d) => ['⁰', '¹', '²', '³', '⁴', '⁵', '⁶', '⁷', '⁸', '⁹'][d as usize],
        None => '⁻',
    };
    match exponent {
        0 => "1".into(),
        e => format!("2{}", e.to_string().chars().map(digit).collect::<String>()),
    }
}

/// `text` as content or attribute of HTML. Control characters have no place
/// there and become replacement characters.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c if c.is_control() => out.push(char::REPLACEMENT_CHARACTER),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_digits() {
        for (x, text) in [
            (0.0, "0"),
            (0.012345, "0.0123"),
            (4.5678, "4.57"),
            (1234.5, "1234"),
            (-0.5, "-0.500"),
            (1.23e-7, "1.23e-7"),
            (4.5e9, "4.50e9"),
            (f64::NAN, "–"),
            (f64::INFINITY, "–"),
        ] {
            assert_eq!(number(x), text);
        }
        assert_eq!([tick(0.5), tick(20.0), tick(1e-7)], ["0.5", "20", "1e-7"]);
        assert_eq!(
            [power_of_two(-12), power_of_two(0), power_of_two(3)],
            ["2⁻¹²", "1", "2³"]
        );
    }

    #[test]
    fn nothing_escapes_unescaped() {
        assert_eq!(
            escape("<b title=\"it's\">&\u{0}\u{1b}\u{7f}\n</b>"),
            "&lt;b title=&quot;it&#39;s&quot;&gt;&amp;\u{fffd}\u{fffd}\u{fffd}\u{fffd}&lt;/b&gt;"
        );
        assert_eq!(escape("Katze, chat, 猫"), "Katze, chat, 猫");
    }
}
