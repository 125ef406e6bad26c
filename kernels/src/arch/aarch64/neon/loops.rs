//! The loops of whole tiles, instruction by instruction.
//!
//! A Cortex-A53 issues in order: an instruction that waits for the one before it
//! stops all that follow, and a load in the wrong place costs as much as a product.
//! A compiler sees neither the core nor, with 31 of 32 registers in use, room to
//! move. So the order is written here:
//!
//! - instructions that depend on each other are at least six apart;
//! - an operand of the next group is loaded as soon as its register is free, one load
//!   after two or more products, so that both are issued together;
//! - the last group, after which nothing may be read, is a copy without loads.
//!
//! An out-of-order core (Cortex-A72) loses nothing by it. Edges of a matrix, with
//! fewer rows, are left to the compiler ([`super::tile`]).
//!
//! Registers, for row r and output c:
//!
//! ```text
//!          w of a group     of the second    a of a group   of the second   products   sums
//! Two      v0-v3            -                v4-v7          -               v8-v15     v16 + 4 r + c
//! Words    v0-v3            -                v4-v7          -               -          v16 + 4 r + c
//! Fours    v0-v3            v4-v7            v8-v10         v11-v13         v14-v19    v20 + 4 r + c
//! Pairs    v0-v3            v4-v7            v8-v10         v11-v13         v14-v19    v20 + 4 r + c
//! Eights   v0-v3            -                three of v4-v7, in turn        v8 + 4 r + c   v20 + 4 r + c
//! ```
//!
//! In a loop `a` and `w` point to the groups that are loaded, the next ones; in that of
//! Eights, seven eighths of whose loads are of the same step, to those multiplied.

use core::arch::{
    aarch64::{int16x8_t, int32x4_t},
    asm,
};

use super::tile::{Activations, Sums, Weights};

/// Lines of an instruction with three registers: of sum, activations and weights.
macro_rules! each {
    ($op:literal, $sum:literal, $operand:literal: $($d:literal $a:literal $w:literal),+) => {
        concat!($($op, " v", $d, $sum, ", v", $a, $operand, ", v", $w, $operand, "\n"),+)
    };
}

/// Lines of `SADALP`.
macro_rules! widen {
    ($sum:literal, $half:literal: $($d:literal $x:literal),+) => {
        concat!($("sadalp v", $d, $sum, ", v", $x, $half, "\n"),+)
    };
}

/// Lines of loads of registers from offsets; `$ldr` is the instruction, or begins a comment.
macro_rules! loads {
    ($ldr:literal, $from:literal: $($q:literal $offset:literal),+) => {
        concat!($($ldr, " q", $q, ", [{", $from, "}, ", $offset, "]\n"),+)
    };
}

/// Lines that clear registers.
macro_rules! clear {
    ($($d:literal)+) => {
        concat!($("movi v", $d, ".16b, 0\n"),+)
    };
}

/// One group of [`two`].
macro_rules! two {
    ($ldr:literal) => {
        concat!(
            each!("smull", ".8h", ".8b": 8 4 0, 9 5 0, 10 4 1, 11 5 1, 12 4 2, 13 5 2, 14 4 3, 15 5 3),
            each!("smlal2", ".8h", ".16b": 8 4 0, 9 5 0, 10 4 1, 11 5 1, 12 4 2, 13 5 2, 14 4 3, 15 5 3),
            widen!(".4s", ".8h": 16 8, 20 9),
            loads!($ldr, "a": 4 0),
            widen!(".4s", ".8h": 17 10, 21 11),
            loads!($ldr, "a": 5 16),
            widen!(".4s", ".8h": 18 12, 22 13, 19 14, 23 15),
            each!("smull", ".8h", ".8b": 8 6 0, 9 7 0, 10 6 1, 11 7 1, 12 6 2, 13 7 2, 14 6 3, 15 7 3),
            each!("smlal2", ".8h", ".16b": 8 6 0, 9 7 0),
            loads!($ldr, "w": 0 0),
            each!("smlal2", ".8h", ".16b": 10 6 1, 11 7 1),
            loads!($ldr, "w": 1 16),
            each!("smlal2", ".8h", ".16b": 12 6 2, 13 7 2),
            loads!($ldr, "w": 2 32),
            each!("smlal2", ".8h", ".16b": 14 6 3, 15 7 3),
            loads!($ldr, "w": 3 48),
            widen!(".4s", ".8h": 24 8, 28 9),
            loads!($ldr, "a": 6 32),
            widen!(".4s", ".8h": 25 10, 29 11),
            loads!($ldr, "a": 7 48),
            widen!(".4s", ".8h": 26 12, 30 13, 27 14, 31 15),
        )
    };
}

/// One group of [`words`].
macro_rules! words {
    ($ldr:literal) => {
        concat!(
            each!("smlal", ".8h", ".8b": 16 4 0, 20 5 0, 17 4 1, 21 5 1, 18 4 2, 22 5 2, 19 4 3, 23 5 3),
            each!("smlal2", ".8h", ".16b": 16 4 0, 20 5 0, 17 4 1, 21 5 1, 18 4 2, 22 5 2, 19 4 3, 23 5 3),
            each!("smlal", ".8h", ".8b": 24 6 0, 28 7 0),
            loads!($ldr, "a": 4 0),
            each!("smlal", ".8h", ".8b": 25 6 1, 29 7 1),
            loads!($ldr, "a": 5 16),
            each!("smlal", ".8h", ".8b": 26 6 2, 30 7 2, 27 6 3, 31 7 3),
            each!("smlal2", ".8h", ".16b": 24 6 0, 28 7 0),
            loads!($ldr, "w": 0 0),
            each!("smlal2", ".8h", ".16b": 25 6 1, 29 7 1),
            loads!($ldr, "w": 1 16),
            each!("smlal2", ".8h", ".16b": 26 6 2, 30 7 2),
            loads!($ldr, "w": 2 32),
            each!("smlal2", ".8h", ".16b": 27 6 3, 31 7 3),
            loads!($ldr, "w": 3 48),
            loads!($ldr, "a": 6 32, 7 48),
        )
    };
}

/// Two groups of [`fours`].
macro_rules! fours {
    ($ldr:literal) => {
        concat!(
            each!("smull", ".8h", ".8b": 14 8 0, 15 9 0, 16 10 0, 17 8 1, 18 9 1, 19 10 1),
            each!("smlal2", ".8h", ".16b": 14 8 0, 15 9 0, 16 10 0, 17 8 1, 18 9 1, 19 10 1),
            each!("smlal", ".8h", ".8b": 14 11 4, 15 12 4),
            loads!($ldr, "w": 0 0),
            each!("smlal", ".8h", ".8b": 16 13 4, 17 11 5),
            loads!($ldr, "w": 1 16),
            each!("smlal", ".8h", ".8b": 18 12 5, 19 13 5),
            each!("smlal2", ".8h", ".16b": 14 11 4, 15 12 4, 16 13 4, 17 11 5, 18 12 5, 19 13 5),
            widen!(".4s", ".8h": 20 14, 24 15),
            loads!($ldr, "w": 4 64),
            widen!(".4s", ".8h": 28 16, 21 17),
            loads!($ldr, "w": 5 80),
            widen!(".4s", ".8h": 25 18, 29 19),
            each!("smull", ".8h", ".8b": 14 8 2, 15 9 2, 16 10 2, 17 8 3, 18 9 3, 19 10 3),
            each!("smlal2", ".8h", ".16b": 14 8 2, 15 9 2, 16 10 2, 17 8 3, 18 9 3, 19 10 3),
            each!("smlal", ".8h", ".8b": 14 11 6, 15 12 6),
            loads!($ldr, "w": 2 32),
            each!("smlal", ".8h", ".8b": 16 13 6, 17 11 7),
            loads!($ldr, "w": 3 48),
            each!("smlal", ".8h", ".8b": 18 12 7, 19 13 7),
            loads!($ldr, "a": 8 0),
            each!("smlal2", ".8h", ".16b": 14 11 6, 15 12 6),
            loads!($ldr, "a": 9 16),
            each!("smlal2", ".8h", ".16b": 16 13 6, 17 11 7),
            loads!($ldr, "a": 10 32),
            each!("smlal2", ".8h", ".16b": 18 12 7, 19 13 7),
            widen!(".4s", ".8h": 22 14, 26 15),
            loads!($ldr, "w": 6 96, 7 112),
            widen!(".4s", ".8h": 30 16, 23 17),
            loads!($ldr, "a": 11 48, 12 64),
            widen!(".4s", ".8h": 27 18, 31 19),
            loads!($ldr, "a": 13 80),
        )
    };
}

/// Two groups of [`pairs`].
macro_rules! pairs {
    ($ldr:literal) => {
        concat!(
            each!("mul", ".16b", ".16b": 14 8 0, 15 9 0, 16 10 0, 17 8 1, 18 9 1, 19 10 1),
            each!("mla", ".16b", ".16b": 14 11 4, 15 12 4),
            loads!($ldr, "w": 0 0),
            each!("mla", ".16b", ".16b": 16 13 4, 17 11 5),
            loads!($ldr, "w": 1 16),
            each!("mla", ".16b", ".16b": 18 12 5, 19 13 5),
            widen!(".8h", ".16b": 20 14, 24 15),
            loads!($ldr, "w": 4 64),
            widen!(".8h", ".16b": 28 16, 21 17),
            loads!($ldr, "w": 5 80),
            widen!(".8h", ".16b": 25 18, 29 19),
            each!("mul", ".16b", ".16b": 14 8 2, 15 9 2, 16 10 2, 17 8 3, 18 9 3, 19 10 3),
            each!("mla", ".16b", ".16b": 14 11 6, 15 12 6),
            loads!($ldr, "w": 2 32),
            each!("mla", ".16b", ".16b": 16 13 6, 17 11 7),
            loads!($ldr, "w": 3 48),
            each!("mla", ".16b", ".16b": 18 12 7, 19 13 7),
            loads!($ldr, "a": 8 0),
            widen!(".8h", ".16b": 22 14, 26 15),
            loads!($ldr, "w": 6 96),
            widen!(".8h", ".16b": 30 16, 23 17),
            loads!($ldr, "w": 7 112),
            widen!(".8h", ".16b": 27 18, 31 19),
            loads!($ldr, "a": 9 16, 10 32, 11 48, 12 64, 13 80),
        )
    };
}

/// One group of [`eights`]: `$op` all products of the rows `$a0 $a1 $a2`; the next
/// group's rows go to `$spare $a0 $a1`.
macro_rules! eighth {
    (
        $op:literal, $ldr:literal, $a0:literal $a1:literal $a2:literal $spare:literal,
        $a:literal $b:literal $c:literal, $w0:literal $w1:literal $w2:literal $w3:literal
    ) => {
        concat!(
            each!($op, ".16b", ".16b": 8 $a0 0, 12 $a1 0, 16 $a2 0),
            loads!($ldr, "w": 0 $w0),
            each!($op, ".16b", ".16b": 9 $a0 1, 13 $a1 1, 17 $a2 1),
            loads!($ldr, "w": 1 $w1),
            each!($op, ".16b", ".16b": 10 $a0 2, 14 $a1 2, 18 $a2 2),
            loads!($ldr, "w": 2 $w2),
            loads!($ldr, "a": $spare $a),
            each!($op, ".16b", ".16b": 11 $a0 3),
            loads!($ldr, "a": $a0 $b),
            each!($op, ".16b", ".16b": 15 $a1 3),
            loads!($ldr, "a": $a1 $c),
            each!($op, ".16b", ".16b": 19 $a2 3),
            loads!($ldr, "w": 3 $w3),
        )
    };
}

/// Eight groups of [`eights`]; `$ldr` loads the first of the next eight.
macro_rules! eights {
    ($ldr:literal) => {
        concat!(
            eighth!("mul", "ldr", 4 5 6 7, 48 64 80, 64 80 96 112),
            eighth!("mla", "ldr", 7 4 5 6, 96 112 128, 128 144 160 176),
            eighth!("mla", "ldr", 6 7 4 5, 144 160 176, 192 208 224 240),
            eighth!("mla", "ldr", 5 6 7 4, 192 208 224, 256 272 288 304),
            eighth!("mla", "ldr", 4 5 6 7, 240 256 272, 320 336 352 368),
            eighth!("mla", "ldr", 7 4 5 6, 288 304 320, 384 400 416 432),
            eighth!("mla", "ldr", 6 7 4 5, 336 352 368, 448 464 480 496),
            eighth!("mla", $ldr, 5 6 7 4, 384 400 416, 512 528 544 560),
            widen!(".8h", ".16b": 20 8, 21 9, 22 10, 23 11, 24 12, 25 13, 26 14, 27 15, 28 16, 29 17, 30 18, 31 19),
        )
    };
}

/// Declares the loop of a form, `$rows` rows by four outputs.
///
/// `$first` loads the operands of the first step; `$body!` multiplies those of one
/// step and loads those of the next, unless its loads are comments. The pointers are
/// `$lead` steps ahead of the products.
macro_rules! looped {
    (
        $(#[$doc:meta])*
        fn $name:ident(a: &[$a:ty], w: &[$w:ty]) -> Sums<$sum:ty, $rows:literal>;
        first: $($first:expr),+;
        lead: $lead:literal;
        body: $body:ident;
        a_bytes: $a_bytes:literal;
        w_bytes: $w_bytes:literal;
        sums: $([$($s:ident $v:literal $register:tt),+]),+;
        others: [$($other:tt)+];
    ) => {
        $(#[$doc])*
        ///
        /// # Panics
        /// If there is no group, or not one of `w` for each of `a`.
        #[inline]
        #[target_feature(enable = "neon")]
        pub(super) fn $name(a: &[$a], w: &[$w]) -> Sums<$sum, $rows> {
            const { assert!(size_of::<$a>() == $a_bytes && size_of::<$w>() == $w_bytes) };
            assert!(!a.is_empty() && a.len() == w.len());
            $($(let $s;)+)+
            // SAFETY: NEON, which the function requires. Step i reads element i of `a`
            // and of `w`, for as many steps as they have elements.
            unsafe {
                asm!(
                    clear!($($($v)+)+),
                    $($first,)+
                    "subs {steps}, {steps}, 1",
                    "b.eq 3f",
                    concat!("add {a}, {a}, ", $lead, " * ", $a_bytes),
                    concat!("add {w}, {w}, ", $lead, " * ", $w_bytes),
                    "2:",
                    $body!("ldr"),
                    "subs {steps}, {steps}, 1",
                    concat!("add {a}, {a}, ", $a_bytes),
                    concat!("add {w}, {w}, ", $w_bytes),
                    "b.ne 2b",
                    "3:",
                    $body!("//"),
                    a = inout(reg) a.as_ptr() => _,
                    w = inout(reg) w.as_ptr() => _,
                    steps = inout(reg) a.len() => _,
                    $($(out($register) $s,)+)+
                    $(out($other) _,)+
                    options(readonly, nostack),
                );
            }
            [$([$($s),+]),+]
        }
    };
}

looped! {
    /// Sums of four rows in 32 bits: SMULL, SMLAL2, SADALP.
    fn two(a: &[Activations<4>], w: &[Weights]) -> Sums<int32x4_t, 4>;
    first: loads!("ldr", "w": 0 0, 1 16, 2 32, 3 48),
        loads!("ldr", "a": 4 0, 5 16, 6 32, 7 48);
    lead: 1;
    body: two;
    a_bytes: 64;
    w_bytes: 64;
    sums: [s00 16 "v16", s01 17 "v17", s02 18 "v18", s03 19 "v19"],
        [s10 20 "v20", s11 21 "v21", s12 22 "v22", s13 23 "v23"],
        [s20 24 "v24", s21 25 "v25", s22 26 "v26", s23 27 "v27"],
        [s30 28 "v28", s31 29 "v29", s32 30 "v30", s33 31 "v31"];
    others: ["v0" "v1" "v2" "v3" "v4" "v5" "v6" "v7"
        "v8" "v9" "v10" "v11" "v12" "v13" "v14" "v15"];
}

looped! {
    /// Sums of four rows in 16 bits: SMLAL, SMLAL2.
    fn words(a: &[Activations<4>], w: &[Weights]) -> Sums<int16x8_t, 4>;
    first: loads!("ldr", "w": 0 0, 1 16, 2 32, 3 48),
        loads!("ldr", "a": 4 0, 5 16, 6 32, 7 48);
    lead: 1;
    body: words;
    a_bytes: 64;
    w_bytes: 64;
    sums: [s00 16 "v16", s01 17 "v17", s02 18 "v18", s03 19 "v19"],
        [s10 20 "v20", s11 21 "v21", s12 22 "v22", s13 23 "v23"],
        [s20 24 "v24", s21 25 "v25", s22 26 "v26", s23 27 "v27"],
        [s30 28 "v28", s31 29 "v29", s32 30 "v30", s33 31 "v31"];
    others: ["v0" "v1" "v2" "v3" "v4" "v5" "v6" "v7"];
}

looped! {
    /// Sums of three rows in 32 bits, four products each in 16 bits first.
    fn fours(a: &[[Activations<3>; 2]], w: &[[Weights; 2]]) -> Sums<int32x4_t, 3>;
    first: loads!("ldr", "w": 0 0, 1 16, 2 32, 3 48, 4 64, 5 80, 6 96, 7 112),
        loads!("ldr", "a": 8 0, 9 16, 10 32, 11 48, 12 64, 13 80);
    lead: 1;
    body: fours;
    a_bytes: 96;
    w_bytes: 128;
    sums: [s00 20 "v20", s01 21 "v21", s02 22 "v22", s03 23 "v23"],
        [s10 24 "v24", s11 25 "v25", s12 26 "v26", s13 27 "v27"],
        [s20 28 "v28", s21 29 "v29", s22 30 "v30", s23 31 "v31"];
    others: ["v0" "v1" "v2" "v3" "v4" "v5" "v6" "v7"
        "v8" "v9" "v10" "v11" "v12" "v13" "v14" "v15"
        "v16" "v17" "v18" "v19"];
}

looped! {
    /// Sums of three rows in 16 bits, two products each in 8 bits first.
    fn pairs(a: &[[Activations<3>; 2]], w: &[[Weights; 2]]) -> Sums<int16x8_t, 3>;
    first: loads!("ldr", "w": 0 0, 1 16, 2 32, 3 48, 4 64, 5 80, 6 96, 7 112),
        loads!("ldr", "a": 8 0, 9 16, 10 32, 11 48, 12 64, 13 80);
    lead: 1;
    body: pairs;
    a_bytes: 96;
    w_bytes: 128;
    sums: [s00 20 "v20", s01 21 "v21", s02 22 "v22", s03 23 "v23"],
        [s10 24 "v24", s11 25 "v25", s12 26 "v26", s13 27 "v27"],
        [s20 28 "v28", s21 29 "v29", s22 30 "v30", s23 31 "v31"];
    others: ["v0" "v1" "v2" "v3" "v4" "v5" "v6" "v7"
        "v8" "v9" "v10" "v11" "v12" "v13" "v14" "v15"
        "v16" "v17" "v18" "v19"];
}

looped! {
    /// Sums of three rows in 16 bits, eight products each in 8 bits first.
    fn eights(a: &[[Activations<3>; 8]], w: &[[Weights; 8]]) -> Sums<int16x8_t, 3>;
    first: loads!("ldr", "w": 0 0, 1 16, 2 32, 3 48),
        loads!("ldr", "a": 4 0, 5 16, 6 32);
    lead: 0;
    body: eights;
    a_bytes: 384;
    w_bytes: 512;
    sums: [s00 20 "v20", s01 21 "v21", s02 22 "v22", s03 23 "v23"],
        [s10 24 "v24", s11 25 "v25", s12 26 "v26", s13 27 "v27"],
        [s20 28 "v28", s21 29 "v29", s22 30 "v30", s23 31 "v31"];
    others: ["v0" "v1" "v2" "v3" "v4" "v5" "v6" "v7"
        "v8" "v9" "v10" "v11" "v12" "v13" "v14" "v15"
        "v16" "v17" "v18" "v19"];
}
