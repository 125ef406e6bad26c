//! The gate of SwiGLU: Shazeer 2020, arXiv:2002.05202, Eq. 5.
//!
//! ```text
//! gate(g, v) = silu(g) * v,     silu(g) = g * sigmoid(g)
//! e = 2^(-|g| log2(e)),         sigmoid(|g|) = 1 / (1 + e),     sigmoid(-|g|) = e / (1 + e)
//! ```
//!
//! The exponential never sees a positive number, so nothing overflows, and either
//! tail keeps its digits: sigmoid is off by at most 3e-7.

use super::exp_log::exp2_nonpositive;

/// `silu(g) * v`.
///
/// NaN in `g` or `v` gives NaN; `g` of minus infinity gives NaN too.
#[inline(always)]
pub fn gate(g: f32, v: f32) -> f32 {
    let e = exp2_nonpositive(-g.abs() * core::f32::consts::LOG2_E);
    let p = 1.0 / (1.0 + e);
    let sigmoid = if g < 0.0 { e * p } else { p };
    (g * sigmoid) * v
}

#[cfg(test)]
mod tests {
    use super::gate;

    #[test]
    fn it_is_silu_times_the_value() {
        for i in -4000..=4000 {
            let g = i as f32 / 100.0;
            let x = f64::from(g);
            let exact = 3.0 * x / (1.0 + (-x).exp());
            let off = (f64::from(gate(g, 3.0)) - exact).abs();
            // Sigmoid's error, and three roundings of the result.
            let bound = 3.0 * 3e-7 * x.abs() + 2e-7 * exact.abs();
            assert!(off <= bound, "{g}: off by {off:.1e}");
        }
    }

    #[test]
    fn ends_and_zero() {
        assert_eq!(gate(0.0, 5.0), 0.0);
        assert_eq!(gate(1e30, 2.0), 2e30);
        assert_eq!(gate(-1e30, 2.0), 0.0);
        assert!(gate(f32::NAN, 1.0).is_nan());
        assert!(gate(1.0, f32::NAN).is_nan());
    }
}
