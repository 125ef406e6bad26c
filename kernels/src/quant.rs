//! The quantizers that turn a float into an activation code.

/// Turns `y` of channel `c` into a code, one scale and zero point per channel.
///
/// ```text
/// code = round_half_even(clamp(y * inv_scale[c], -zero_point[c], max_code - zero_point[c])) + zero_point[c]
/// ```
///
/// The product is clamped before it is rounded, so no conversion overflows.
/// NaN becomes the lower bound, code 0.
#[derive(Clone, Copy, Debug)]
pub struct ActQuant<'a> {
    /// One over the scale of each channel.
    pub inv_scale: &'a [f32], // [n]
    /// The code of 0.0 of each channel, at most `max_code`.
    pub zero_point: &'a [u8], // [n]
    /// The largest code, `2^b - 1`.
    pub max_code: u8,
}

impl ActQuant<'_> {
    /// # Panics
    /// If the slices do not have `n` entries, or a zero point exceeds `max_code`.
    pub(crate) fn check(&self, n: usize) {
        assert_eq!(
            self.inv_scale.len(),
            n,
            "inv_scale has one entry per channel"
        );
        assert_eq!(
            self.zero_point.len(),
            n,
            "zero_point has one entry per channel"
        );
        let largest = self
            .zero_point
            .iter()
            .fold(0, |max, &zero| u8::max(max, zero));
        assert!(
            largest <= self.max_code,
            "zero point {largest} exceeds max_code {}",
            self.max_code
        );
    }
}

/// Levels of a code of at most 4 bits that are not uniform, out of the codes of
/// an 8-bit grid.
///
/// ```text
/// level = levels[#{ i : fine > thresholds[i] }]
/// ```
#[derive(Clone, Copy, Debug)]
pub struct ActCodebook<'a> {
    /// Ascending; equal ones are allowed.
    pub thresholds: &'a [u8], // [2^b - 1]
    /// What stands for each code.
    pub levels: &'a [u8], // [2^b]
}

impl ActCodebook<'_> {
    /// # Panics
    /// If the lengths are not those of a code of 1 to 4 bits, or the thresholds
    /// do not ascend.
    pub(crate) fn check(&self) {
        let levels = self.levels.len();
        assert!(
            matches!(levels, 2 | 4 | 8 | 16),
            "{levels} levels are not those of a code of at most 4 bits"
        );
        assert_eq!(
            self.thresholds.len() + 1,
            levels,
            "one threshold between two levels"
        );
        assert!(self.thresholds.is_sorted(), "thresholds ascend");
    }
}
