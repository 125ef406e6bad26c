//! Packed weights can be read, moved and checked on every CPU, whatever order they
//! lie in.
#![forbid(unsafe_code)]

mod common;

use common::for_each_isa;
use tpvit_kernels::reference::unpack::pack_codes;
use tpvit_kernels::{BitWidth, GemmShape, Isa, PanelFault, PanelLayout};

/// Codes that are like noise, the same each time.
fn codes(shape: &GemmShape, seed: usize) -> Vec<Vec<u8>> {
    let most = usize::from(shape.weight_bits.max_code()) + 1;
    let code = |n: usize, k: usize| ((seed + n * 7919 + k * 104_729) >> 3) % most;
    (0..shape.n)
        .map(|n| (0..shape.k).map(|k| code(n, k) as u8).collect())
        .collect()
}

fn dense(shape: &GemmShape, codes: &[Vec<u8>]) -> Vec<u8> {
    let mut dense = vec![0; shape.dense_len()];
    let rows = dense.chunks_exact_mut(shape.weight_bits.row_bytes(shape.k).max(1));
    for (row, codes) in rows.zip(codes) {
        pack_codes(shape.weight_bits, codes, row);
    }
    dense
}

fn shapes() -> impl Iterator<Item = GemmShape> {
    let sizes = [
        (1, 1),
        (16, 16),
        (17, 63),
        (48, 64),
        (50, 65),
        (100, 130),
        (3, 0),
    ];
    BitWidth::ALL.into_iter().flat_map(move |weight_bits| {
        sizes.into_iter().flat_map(move |(n, k)| {
            [15, 255].map(|act_max| GemmShape {
                n,
                k,
                weight_bits,
                act_max,
            })
        })
    })
}

/// The orders of all ISAs, and two that no ISA has.
fn layouts(shape: &GemmShape) -> Vec<PanelLayout> {
    let mut layouts: Vec<_> = Isa::ALL.map(|isa| PanelLayout::of(isa, shape)).into();
    let layout = |nr, sub, kr, sums| PanelLayout { nr, sub, kr, sums };
    layouts.extend([layout(240, 80, 8, true), layout(32, 2, 2, false)]);
    layouts
}

fn packed(layout: &PanelLayout, shape: &GemmShape, dense: &[u8]) -> Vec<u8> {
    let len = layout.checked_packed_len(shape).expect("no huge shape");
    let mut packed = vec![0xaa; len];
    layout.pack(shape, dense, &mut packed);
    packed
}

#[test]
fn the_order_of_an_isa_is_known_everywhere() {
    for_each_isa(|kernels| {
        for shape in shapes() {
            let layout = PanelLayout::of(kernels.isa(), &shape);
            assert_eq!(kernels.panel_layout(&shape), layout, "{shape:?}");
            assert!(layout.is_valid());
        }
    });
}

#[test]
fn weights_are_found_again_and_moved_from_any_order_to_any() {
    for shape in shapes() {
        let codes = codes(&shape, 5);
        let dense = dense(&shape, &codes);
        for from in layouts(&shape) {
            let panels = packed(&from, &shape, &dense);
            assert_eq!(from.check(&shape, &panels), Ok(()), "{from:?} {shape:?}");
            let mut row = vec![0; shape.k];
            for (n, codes) in codes.iter().enumerate() {
                from.unpack_row(&shape, &panels, n, &mut row);
                assert_eq!(row, *codes, "output {n}, {from:?} {shape:?}");
            }
            for to in layouts(&shape) {
                let expected = packed(&to, &shape, &dense);
                let mut moved = vec![0x55; expected.len()];
                to.repack(&shape, &from, &panels, &mut moved);
                assert_eq!(moved, expected, "{from:?} to {to:?}, {shape:?}");
            }
        }
    }
}

#[test]
fn dots_are_exact() {
    for shape in shapes() {
        let codes = codes(&shape, 9);
        let dense = dense(&shape, &codes);
        let center = i32::from(shape.weight_bits.center());
        let each: Vec<u8> = (0..shape.k).map(|k| (k * 37 % 256) as u8).collect();
        for factors in [vec![0], vec![255], vec![3], each] {
            let factor = |k: usize| i32::from(*factors.get(k).unwrap_or(&factors[0]));
            if factors.len() != 1 && factors.len() != shape.k {
                continue;
            }
            let expected: Vec<i32> = codes
                .iter()
                .map(|row| {
                    let row = row.iter().enumerate();
                    row.map(|(k, c)| {
                        factor(if factors.len() == 1 { 0 } else { k }) * (i32::from(*c) - center)
                    })
                    .sum()
                })
                .collect();
            for layout in layouts(&shape) {
                let mut found = vec![7; shape.n];
                layout.dots(
                    &shape,
                    &packed(&layout, &shape, &dense),
                    &factors,
                    &mut found,
                );
                assert_eq!(found, expected, "{layout:?} {shape:?}");
            }
        }
    }
}

/// Any byte may be damaged: what is still accepted is another weight within its range,
/// stored as it would be packed.
#[test]
fn what_passes_the_check_is_what_packing_leaves() {
    for weight_bits in BitWidth::ALL {
        let shape = GemmShape {
            n: 19,
            k: 21,
            weight_bits,
            act_max: 255,
        };
        let dense_codes = dense(&shape, &codes(&shape, 2));
        for layout in layouts(&shape) {
            let good = packed(&layout, &shape, &dense_codes);
            let mut refused = 0;
            for at in 0..good.len() {
                for flip in [1, 0x80, 0xff] {
                    let mut panels = good.clone();
                    panels[at] ^= flip;
                    if layout.check(&shape, &panels).is_err() {
                        refused += 1;
                        continue;
                    }
                    let mut codes = vec![vec![0; shape.k]; shape.n];
                    for (n, row) in codes.iter_mut().enumerate() {
                        layout.unpack_row(&shape, &panels, n, row);
                        assert!(row.iter().all(|code| *code <= weight_bits.max_code()));
                    }
                    assert_eq!(packed(&layout, &shape, &dense(&shape, &codes)), panels);
                }
            }
            assert!(refused > 0, "the edges are checked: {layout:?}");
        }
    }
}

#[test]
fn each_fault_is_named() {
    let shape = GemmShape {
        n: 17,
        k: 15,
        weight_bits: BitWidth::B6,
        act_max: 255,
    };
    let layout = PanelLayout::of(Isa::Neon, &shape);
    let good = packed(&layout, &shape, &dense(&shape, &codes(&shape, 1)));
    let panel = good.len() / 2;
    let fault = |at: usize, byte: u8| {
        let mut panels = good.clone();
        panels[at] = byte;
        layout.check(&shape, &panels)
    };
    // Behind the sums of 16 outputs, 16 columns of each.
    assert_eq!(fault(64, 32), Err(PanelFault::Range { panel: 0 }));
    assert_eq!(fault(64 + 15, 1), Err(PanelFault::Edge { panel: 0 }));
    assert_eq!(
        fault(panel + 64 + 16, 1),
        Err(PanelFault::Edge { panel: 1 })
    );
    assert_eq!(fault(panel + 4, 1), Err(PanelFault::Edge { panel: 1 }));
    let wrong = good[4].wrapping_add(1);
    assert_eq!(fault(4, wrong), Err(PanelFault::Sum { output: 1 }));
}

#[test]
fn numbers_out_of_range_are_no_order() {
    let layout = |nr, sub, kr| PanelLayout {
        nr,
        sub,
        kr,
        sums: false,
    };
    for (nr, sub, kr) in [
        (0, 1, 4),
        (8, 8, 4),
        (256, 16, 4),
        (16, 0, 4),
        (16, 5, 4),
        (16, 16, 3),
        (16, 16, 32),
    ] {
        assert!(!layout(nr, sub, kr).is_valid(), "{nr} {sub} {kr}");
    }
    assert!(layout(240, 1, 16).is_valid());
}
