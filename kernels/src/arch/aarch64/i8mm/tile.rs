//! The innermost product: 8 rows x 8 outputs x 8 k by `USMMLA`, twice for 16 outputs.
//!
//! ```text
//!                        strip [k / 8][8][8] s8
//!
//!                        w0[8]   w1[8]                       2 outputs a register, 4 registers
//!   a row 0 [8] u8      sum 00  sum 01   one register:       2 rows a register, 4 registers
//!   a row 1 [8] u8      sum 10  sum 11   32 products         16 registers of sums
//! ```
//!
//! Eight loads feed sixteen instructions. 16 sums + 4 activations + 4 weights = 24 of
//! 32 registers. A matrix product packs its rows in pairs, in groups of 8 k, so that
//! no register is put together in the loop; the rows of attention, which meet few
//! panels, are paired by the tile (ZIP1, ZIP2).
//!
//! **Signs.** `USMMLA` is unsigned x signed: codes as they are, nothing is owed.
//!
//! **Overflow.** It wraps at 32 bits; `255 * 128 * MAX_K < 2^31`, so it never does.
//!
//! `core::arch` has no stable name for the instruction, so it is written out.

use core::{
    arch::{
        aarch64::{
            int8x16_t, int32x4_t, uint8x16_t, vdupq_n_s32, vdupq_n_u8, vld1q_s8, vld1q_u8,
            vreinterpretq_s32_s64, vreinterpretq_s64_s32, vreinterpretq_u8_u64,
            vreinterpretq_u64_u8, vst1q_s32, vzip1q_s64, vzip1q_u64, vzip2q_s64, vzip2q_u64,
        },
        asm,
    },
    iter::zip,
};

use crate::arch::common::{gemm::Tile, panels::Layout, rows::Rows};

/// Rows of a tile.
pub(super) const MR: usize = 8;

/// Order of the panels.
pub(super) const PANELS: Layout = Layout {
    nr: 16,
    sub: 8,
    kr: 8,
    sums: false,
};

/// One group of a strip: 8 k of four pairs of outputs.
type Group = [[u8; 16]; 4];

#[inline]
#[target_feature(enable = "neon,dotprod,i8mm")]
fn load_a(bytes: &[u8; 16]) -> uint8x16_t {
    // SAFETY: `bytes` is 16 readable bytes; `ld1` of bytes needs no alignment.
    unsafe { vld1q_u8(bytes.as_ptr()) }
}

#[inline]
#[target_feature(enable = "neon,dotprod,i8mm")]
fn load_w(bytes: &[u8; 16]) -> int8x16_t {
    // SAFETY: `bytes` is 16 readable bytes; `ld1` of bytes needs no alignment.
    unsafe { vld1q_s8(bytes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "neon,dotprod,i8mm")]
fn store(sums: &mut [i32; 4], value: int32x4_t) {
    // SAFETY: `sums` is 16 writable, aligned bytes.
    unsafe { vst1q_s32(sums.as_mut_ptr(), value) }
}

/// `sum[2i + j] += a[8i ..] . w[8j ..]`, eight products each.
#[inline]
#[target_feature(enable = "neon,dotprod,i8mm")]
fn usmmla(mut sum: int32x4_t, a: uint8x16_t, w: int8x16_t) -> int32x4_t {
    // SAFETY: the function requires the matrix product; registers only.
    unsafe {
        asm!(
            "usmmla {sum:v}.4s, {a:v}.16b, {w:v}.16b",
            sum = inout(vreg) sum,
            a = in(vreg) a,
            w = in(vreg) w,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sum
}

/// Sums of a block of `rows` rows, made by `pack_block` of groups of 8, with a panel.
#[inline]
#[target_feature(enable = "neon,dotprod,i8mm")]
pub(super) fn tile(a: &[u8], rows: usize, panel: &[u8], acc: &mut Tile<MR, 1>) {
    match rows.div_ceil(2) {
        1 => packed::<1>(a, panel, acc),
        2 => packed::<2>(a, panel, acc),
        3 => packed::<3>(a, panel, acc),
        _ => packed::<4>(a, panel, acc),
    }
}

/// Sums of `rows` rows of `k` codes, `stride` apart, with a panel: for rows that
/// meet few panels, so that nobody packed them.
#[inline]
#[target_feature(enable = "neon,dotprod,i8mm")]
pub(super) fn tile_of_rows(
    a: &[u8],
    stride: usize,
    rows: usize,
    k: usize,
    panel: &[u8],
    acc: &mut Tile<MR, 1>,
) {
    match rows {
        1 => loose::<1, 1>(a, stride, k, panel, acc),
        2 => loose::<2, 1>(a, stride, k, panel, acc),
        3 => loose::<3, 2>(a, stride, k, panel, acc),
        4 => loose::<4, 2>(a, stride, k, panel, acc),
        5 => loose::<5, 3>(a, stride, k, panel, acc),
        6 => loose::<6, 3>(a, stride, k, panel, acc),
        7 => loose::<7, 4>(a, stride, k, panel, acc),
        _ => loose::<MR, 4>(a, stride, k, panel, acc),
    }
}

/// Not inlined, so that its loop has a name in the binary (`bench/mca.sh`).
#[inline(never)]
#[target_feature(enable = "neon,dotprod,i8mm")]
fn packed<const PAIRS: usize>(a: &[u8], panel: &[u8], acc: &mut Tile<MR, 1>) {
    let (vectors, _) = a.as_chunks::<16>();
    let (groups, _) = vectors.as_chunks::<PAIRS>();
    let (blocks, _) = groups.as_chunks::<2>();
    strips(panel, acc, |i| {
        let mut a = [[vdupq_n_u8(0); PAIRS]; 2];
        for (a, bytes) in zip(a.as_flattened_mut(), blocks[i].as_flattened()) {
            *a = load_a(bytes);
        }
        a
    });
}

#[inline]
#[target_feature(enable = "neon,dotprod,i8mm")]
fn loose<const R: usize, const PAIRS: usize>(
    a: &[u8],
    stride: usize,
    k: usize,
    panel: &[u8],
    acc: &mut Tile<MR, 1>,
) {
    let sixteens = k / 16;
    let all = Rows::<R, 16>::new(a, stride, k);
    let (rows, rest) = (all.groups(0, sixteens), all.rest());
    strips(panel, acc, |i| {
        let mut a = [[vdupq_n_u8(0); PAIRS]; 2];
        for pair in 0..PAIRS {
            let load = |r: usize| load_a(rows[r].get(i).unwrap_or(&rest[r][0]));
            // An odd row is its own neighbour; nobody asks for that one's sums.
            let even = vreinterpretq_u64_u8(load(2 * pair));
            let odd = vreinterpretq_u64_u8(load(usize::min(2 * pair + 1, R - 1)));
            a[0][pair] = vreinterpretq_u8_u64(vzip1q_u64(even, odd));
            a[1][pair] = vreinterpretq_u8_u64(vzip2q_u64(even, odd));
        }
        a
    });
}

/// `sums[p][q] += ` the products of the rows of pair `p` and the outputs of pair `q`.
#[inline]
#[target_feature(enable = "neon,dotprod,i8mm")]
fn step<const PAIRS: usize>(
    sums: &mut [[int32x4_t; 4]; PAIRS],
    a: &[uint8x16_t; PAIRS],
    group: &Group,
) {
    let w = [
        load_w(&group[0]),
        load_w(&group[1]),
        load_w(&group[2]),
        load_w(&group[3]),
    ];
    for (sums, &a) in zip(sums, a) {
        for (sum, w) in zip(sums, w) {
            *sum = usmmla(*sum, a, w);
        }
    }
}

/// `activations(i)` are codes `16 i .. 16 i + 8` of each pair of rows, and the next 8.
#[inline]
#[target_feature(enable = "neon,dotprod,i8mm")]
fn strips<const PAIRS: usize>(
    panel: &[u8],
    acc: &mut Tile<MR, 1>,
    activations: impl Fn(usize) -> [[uint8x16_t; PAIRS]; 2],
) {
    let (vectors, _) = panel.as_chunks::<16>();
    let (panel, _): (&[Group], _) = vectors.as_chunks();
    let strip_len = panel.len() / 2;
    for strip in 0..2 {
        let (twos, last) = panel[strip * strip_len..][..strip_len].as_chunks::<2>();
        let mut sums = [[vdupq_n_s32(0); 4]; PAIRS];
        for (i, [first, second]) in twos.iter().enumerate() {
            let a = activations(i);
            step(&mut sums, &a[0], first);
            step(&mut sums, &a[1], second);
        }
        for group in last {
            step(&mut sums, &activations(twos.len())[0], group);
        }
        let (row_pairs, _) = acc.as_chunks_mut::<2>();
        for (sums, [[even], [odd]]) in zip(&sums, row_pairs) {
            let (even, _) = even.as_chunks_mut::<4>();
            let (odd, _) = odd.as_chunks_mut::<4>();
            let (outputs, _) = sums.as_chunks::<2>();
            for (quarter, &[left, right]) in outputs.iter().enumerate() {
                let (left, right) = (vreinterpretq_s64_s32(left), vreinterpretq_s64_s32(right));
                let first = vreinterpretq_s32_s64(vzip1q_s64(left, right));
                let second = vreinterpretq_s32_s64(vzip2q_s64(left, right));
                store(&mut even[2 * strip + quarter], first);
                store(&mut odd[2 * strip + quarter], second);
            }
        }
    }
}
