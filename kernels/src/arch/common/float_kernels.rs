//! Instantiates the float kernels for one ISA.

/// Defines the float kernels of an ISA: [`super::float`] compiled with its
/// features, on its [lanes](super::lanes).
macro_rules! float_kernels {
    ($features:literal, $lanes:expr) => {
        #[target_feature(enable = $features)]
        fn row_sums(a: &[u8], k: usize, out: &mut [i32]) {
            $crate::arch::common::float::row_sums(a, k, out);
        }

        #[target_feature(enable = $features)]
        fn layer_norm(call: &$crate::table::NormCall, out: &mut [f32]) {
            $crate::arch::common::float::layer_norm($lanes, call, out);
        }

        #[target_feature(enable = $features)]
        fn layer_norm_codes(
            call: &$crate::table::NormCall,
            quant: &$crate::ActQuant,
            out: &mut [u8],
        ) {
            $crate::arch::common::float::layer_norm_codes($lanes, call, quant, out);
        }

        #[target_feature(enable = $features)]
        fn quantize(x: &[f32], d: usize, quant: &$crate::ActQuant, out: &mut [u8]) {
            $crate::arch::common::float::quantize($lanes, x, d, quant, out);
        }

        #[target_feature(enable = $features)]
        fn gate(gates: &[f32], values: &[f32], out: &mut [f32]) {
            $crate::arch::common::float::gate(gates, values, out);
        }

        #[target_feature(enable = $features)]
        fn add(x: &[f32], y: &[f32], out: &mut [f32]) {
            $crate::arch::common::float::add(x, y, out);
        }
    };
}
pub(crate) use float_kernels;
