//! Safe Rust without intrinsics: what runs where nothing else does.

mod attention;
mod gemm;
mod peak;
mod tile;

use crate::{
    ActCodebook, ActQuant, Isa, Kernels,
    arch::common::{float, lanes::Arrays},
    table::{Functions, NormCall},
};

/// The kernels of every CPU.
pub(crate) static KERNELS: Kernels = Kernels {
    isa: Isa::Portable,
    functions: FUNCTIONS,
};

pub(crate) const FUNCTIONS: Functions = Functions {
    panels: gemm::layout,
    gemm_scratch_len: gemm::gemm_scratch_len,
    gemm: gemm::gemm,
    row_sums,
    layer_norm,
    layer_norm_codes,
    quantize,
    snap,
    gate,
    add,
    attention_pack_len: attention::attention_pack_len,
    attention_pack: attention::attention_pack,
    attention_scratch_len: attention::attention_scratch_len,
    attention: attention::attention,
    peak: peak::peak,
};

fn row_sums(a: &[u8], k: usize, out: &mut [i32]) {
    float::row_sums(a, k, out);
}

fn layer_norm(call: &NormCall, out: &mut [f32]) {
    float::layer_norm(Arrays, call, out);
}

fn layer_norm_codes(call: &NormCall, quant: &ActQuant, out: &mut [u8]) {
    float::layer_norm_codes(Arrays, call, quant, out);
}

fn quantize(x: &[f32], d: usize, quant: &ActQuant, out: &mut [u8]) {
    float::quantize(Arrays, x, d, quant, out);
}

/// One look-up for each code: the level of every byte is found first.
fn snap(book: &ActCodebook, codes: &mut [u8]) {
    let mut table = [0; 256];
    let mut start = 0;
    for (&level, &threshold) in book.levels.iter().zip(book.thresholds) {
        let end = usize::from(threshold) + 1;
        table[start..end].fill(level);
        start = end;
    }
    if let Some(&last) = book.levels.last() {
        table[start..].fill(last);
    }
    for code in codes {
        *code = table[usize::from(*code)];
    }
}

fn gate(gates: &[f32], values: &[f32], out: &mut [f32]) {
    float::gate(gates, values, out);
}

fn add(x: &[f32], y: &[f32], out: &mut [f32]) {
    float::add(x, y, out);
}
