//! Every float kernel equals the reference, bit for bit, on every ISA.

mod common;

use common::{Rng, bits, for_each_isa};
use tpvit_kernels::{ActQuant, reference};

const LENGTHS: [usize; 14] = [0, 1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 192, 197];

/// Large, tiny and special values among ordinary ones.
fn spiced(rng: &mut Rng, len: usize) -> Vec<f32> {
    const SPECIAL: [f32; 8] = [
        0.0,
        -0.0,
        1e30,
        -1e30,
        f32::MIN_POSITIVE,
        1e-42,
        f32::INFINITY,
        f32::NAN,
    ];
    let mut x = rng.floats(len, -4.0, 4.0);
    for value in &mut x {
        if rng.up_to(15) == 0 {
            *value = SPECIAL[rng.up_to(7) as usize];
        }
    }
    x
}

#[test]
fn layer_norm_and_its_codes() {
    let mut rng = Rng(1);
    for d in LENGTHS {
        for m in [0, 1, 8, 11] {
            for x in [
                rng.floats(m * d, -4.0, 4.0),
                rng.floats(m * d, 1000.0, 1001.0),
                spiced(&mut rng, m * d),
            ] {
                let (gamma, beta) = (rng.floats(d, 0.2, 2.0), rng.floats(d, -1.0, 1.0));
                let (inv_scale, zero_point) = (rng.floats(d, 1.0, 60.0), rng.codes(d, 15));
                let mut expected = vec![0.0; m * d];
                reference::layer_norm::layer_norm(&x, m, d, &gamma, &beta, 1e-6, &mut expected);
                for max_code in [15, 255] {
                    let quant = ActQuant {
                        inv_scale: &inv_scale,
                        zero_point: &zero_point,
                        max_code,
                    };
                    let mut expected_codes = vec![0; m * d];
                    reference::layer_norm::layer_norm_codes(
                        &x,
                        m,
                        d,
                        &gamma,
                        &beta,
                        1e-6,
                        &quant,
                        &mut expected_codes,
                    );
                    for_each_isa(|kernels| {
                        let mut y = vec![0.0; m * d];
                        kernels.layer_norm(&x, m, d, &gamma, &beta, 1e-6, &mut y);
                        assert_eq!(bits(&y), bits(&expected), "{:?} {m} {d}", kernels.isa());
                        let mut codes = vec![0; m * d];
                        kernels.layer_norm_codes(&x, m, d, &gamma, &beta, 1e-6, quant, &mut codes);
                        assert_eq!(codes, expected_codes, "{:?} {m} {d}", kernels.isa());
                    });
                }
            }
        }
    }
}

#[test]
fn quantize_and_add() {
    let mut rng = Rng(2);
    for d in LENGTHS {
        for m in [0, 1, 8, 11] {
            let (x, y) = (spiced(&mut rng, m * d), spiced(&mut rng, m * d));
            let (inv_scale, zero_point) = (rng.floats(d, 0.5, 200.0), rng.codes(d, 63));
            for max_code in [63, 255] {
                let quant = ActQuant {
                    inv_scale: &inv_scale,
                    zero_point: &zero_point,
                    max_code,
                };
                let mut expected = vec![0; m * d];
                reference::quantize::quantize(&x, m, d, &quant, &mut expected);
                for_each_isa(|kernels| {
                    let mut codes = vec![0; m * d];
                    kernels.quantize(&x, m, d, quant, &mut codes);
                    assert_eq!(codes, expected, "{:?} {m} {d}", kernels.isa());
                });
            }
            let mut expected = vec![0.0; m * d];
            reference::quantize::add(&x, &y, &mut expected);
            for_each_isa(|kernels| {
                let mut sum = vec![0.0; m * d];
                kernels.add(&x, &y, &mut sum);
                assert_eq!(bits(&sum), bits(&expected), "{:?}", kernels.isa());
            });
            let gates: Vec<f32> = x.iter().map(|x| 20.0 * x).collect();
            let expected = gates
                .iter()
                .zip(&y)
                .map(|(&g, &v)| reference::gate::gate(g, v));
            let expected: Vec<f32> = expected.collect();
            for_each_isa(|kernels| {
                let mut gated = vec![0.0; m * d];
                kernels.gate(&gates, &y, &mut gated);
                assert_eq!(bits(&gated), bits(&expected), "{:?}", kernels.isa());
            });
        }
    }
}

/// Half-way values must go to the even code on every ISA.
#[test]
fn ties_are_rounded_to_even() {
    let x: Vec<f32> = (0..512).map(|i| i as f32 * 0.5 - 64.0).collect();
    let (inv_scale, zero_point) = (vec![1.0; 512], vec![64; 512]);
    let quant = ActQuant {
        inv_scale: &inv_scale,
        zero_point: &zero_point,
        max_code: 255,
    };
    for_each_isa(|kernels| {
        let mut codes = vec![0; 512];
        kernels.quantize(&x, 1, 512, quant, &mut codes);
        for (x, code) in x.iter().zip(codes) {
            assert_eq!(
                f32::from(code),
                (x.round_ties_even() + 64.0).clamp(0.0, 255.0),
                "{:?} {x}",
                kernels.isa()
            );
        }
    });
}
