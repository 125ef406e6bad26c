//! Moving codes to the levels of a codebook equals the reference on every ISA.

mod common;

use common::{Rng, for_each_isa};
use tpvit_kernels::{ActCodebook, reference};

/// More than two blocks of any ISA.
const LONGEST: usize = 2 * 64 + 1;

/// Codebooks of `levels` levels: extreme ones, then random ones.
fn books(rng: &mut Rng, levels: usize) -> Vec<[Vec<u8>; 2]> {
    let n = levels - 1;
    let rising = |step: usize| (0..levels).map(|i| (i * step) as u8).collect::<Vec<u8>>();
    let mut books = vec![
        [vec![0; n], rising(1)],
        [vec![255; n], rising(16)],
        [(0..n).map(|i| i as u8).collect(), rising(17)],
        [
            (0..n).map(|i| (256 - levels + i) as u8).collect(),
            vec![255; levels],
        ],
        [rising(256 / levels)[1..].to_vec(), rising(255 / n)],
    ];
    for _ in 0..10 {
        let (mut thresholds, mut levels) = (rng.codes(n, 255), rng.codes(levels, 255));
        thresholds.sort_unstable();
        levels.sort_unstable();
        books.push([thresholds, levels]);
    }
    books
}

#[test]
fn every_byte_and_every_length() {
    let mut rng = Rng(1);
    let all: Vec<u8> = (0..=255).collect();
    for count in [2, 4, 8, 16] {
        for [thresholds, levels] in &books(&mut rng, count) {
            let book = ActCodebook { thresholds, levels };
            let lengths = (0..=LONGEST).map(|len| rng.codes(len, 255));
            for codes in lengths.chain([all.clone()]) {
                let mut expected = codes.clone();
                reference::snap::snap(&book, &mut expected);
                for_each_isa(|kernels| {
                    // The bytes around must stay as they are.
                    let mut found = vec![7; codes.len() + 2];
                    found[1..=codes.len()].copy_from_slice(&codes);
                    kernels.snap(book, &mut found[1..=codes.len()]);
                    let isa = kernels.isa();
                    assert_eq!(found[1..=codes.len()], expected, "{isa:?} {book:?}");
                    assert_eq!([found[0], found[codes.len() + 1]], [7, 7], "{isa:?}");
                });
            }
        }
    }
}

/// Malformed codebooks end in a panic, not in a wrong look-up.
#[test]
fn malformed_codebooks_are_refused() {
    for (thresholds, levels) in [
        (vec![1, 2], vec![0, 1, 2]),
        (vec![1, 2], vec![0, 1, 2, 3]),
        (vec![3, 2, 1], vec![0, 1, 2, 3]),
        (vec![], vec![0]),
        ((0..31).collect(), (0..32).collect()),
    ] {
        let kernels = tpvit_kernels::Kernels::best();
        let refused = std::panic::catch_unwind(|| {
            let book = ActCodebook {
                thresholds: &thresholds,
                levels: &levels,
            };
            kernels.snap(book, &mut [0; 8]);
        });
        assert!(refused.is_err(), "{thresholds:?} {levels:?}");
    }
}
