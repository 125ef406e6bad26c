//! Codes to the levels of a codebook: [`crate::arch::common::snap`].
//!
//! Four registers of 16 codes side by side, for cores that execute in order:
//! each step waits for the one before.
//!
//! ```text
//! step 8        CMHI, AND                  with one threshold
//! step 4, 2, 1  TBL, CMHI, AND, ORR
//! level         TBL
//! ```

use core::arch::aarch64::{
    uint8x16_t, vandq_u8, vcgtq_u8, vdupq_n_u8, vld1q_u8, vorrq_u8, vqtbl1q_u8, vst1q_u8,
};

use crate::{
    ActCodebook,
    arch::common::snap::{STEPS, Tables},
};

/// Registers side by side.
const REGISTERS: usize = 4;

/// Codes in them.
const BLOCK: usize = 16 * REGISTERS;

#[inline]
#[target_feature(enable = "neon")]
fn load(bytes: &[u8; 16]) -> uint8x16_t {
    // SAFETY: `bytes` is 16 readable bytes, of any alignment.
    unsafe { vld1q_u8(bytes.as_ptr()) }
}

#[inline]
#[target_feature(enable = "neon")]
fn store(bytes: &mut [u8; 16], value: uint8x16_t) {
    // SAFETY: `bytes` is 16 writable bytes, of any alignment.
    unsafe { vst1q_u8(bytes.as_mut_ptr(), value) }
}

/// The tables in registers.
#[derive(Clone, Copy)]
struct Search {
    thresholds: [uint8x16_t; 4],
    levels: uint8x16_t,
}

impl Search {
    #[inline]
    #[target_feature(enable = "neon")]
    fn new(tables: &Tables) -> Self {
        let levels = load(&tables.levels);
        let mut thresholds = [levels; 4];
        for (register, table) in thresholds.iter_mut().zip(&tables.thresholds) {
            *register = load(table);
        }
        // At first every code is 0.
        thresholds[0] = vdupq_n_u8(tables.thresholds[0][0]);
        Self { thresholds, levels }
    }

    #[inline]
    #[target_feature(enable = "neon")]
    fn snap(self, codes: &mut [u8; BLOCK]) {
        let [first, rest @ ..] = self.thresholds;
        let [first_step, rest_steps @ ..] = STEPS;
        let (registers, _) = codes.as_chunks_mut::<16>();
        let mut fine = [first; REGISTERS];
        let mut code = [first; REGISTERS];
        for r in 0..REGISTERS {
            fine[r] = load(&registers[r]);
            code[r] = vandq_u8(vcgtq_u8(fine[r], first), vdupq_n_u8(first_step));
        }
        for (table, step) in rest.into_iter().zip(rest_steps) {
            for r in 0..REGISTERS {
                let above = vcgtq_u8(fine[r], vqtbl1q_u8(table, code[r]));
                code[r] = vorrq_u8(code[r], vandq_u8(above, vdupq_n_u8(step)));
            }
        }
        for r in 0..REGISTERS {
            store(&mut registers[r], vqtbl1q_u8(self.levels, code[r]));
        }
    }
}

/// [`crate::reference::snap`].
#[target_feature(enable = "neon")]
pub(super) fn snap(book: &ActCodebook, codes: &mut [u8]) {
    let search = Search::new(&Tables::new(book));
    let (blocks, rest) = codes.as_chunks_mut::<BLOCK>();
    for block in blocks {
        search.snap(block);
    }
    if !rest.is_empty() {
        let mut block = [0; BLOCK];
        block[..rest.len()].copy_from_slice(rest);
        search.snap(&mut block);
        rest.copy_from_slice(&block[..rest.len()]);
    }
}
