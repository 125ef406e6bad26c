//! Orthogonal matrices that spread one large entry over many small ones.
//!
//! A Hadamard matrix `H` of order `n` has entries of -1 and 1 and orthogonal
//! rows, `H H^T = n I`. Two constructions and their products give nearly every
//! width a Vision Transformer has:
//!
//! ```text
//! Sylvester   H(2n) = [ H(n)  H(n) ]        1, 2, 4, 8, ...
//!                     [ H(n) -H(n) ]
//! Paley I     order q + 1,    q prime, q = 3 mod 4      12, 20, 24, 44, ...
//! Paley II    order 2(q + 1), q prime, q = 1 mod 4      12, 28, 36, 60, ...
//! Kronecker   H(m) (x) H(n)                             192 = 12 x 16, 768 = 12 x 64
//! ```
//!
//! Sylvester 1867; Paley 1933, "On orthogonal matrices". Any other order takes
//! the discrete Hartley transform (Bracewell 1983), whose entries are at most
//! `sqrt(2)` times as large as those of a Hadamard matrix would be:
//!
//! ```text
//! H[i, j] = cos(2 pi i j / n) + sin(2 pi i j / n)
//! ```
//!
//! In all of them the first column is constant (rows are negated where it is
//! not), which is what [`Orthogonal::fixing_ones`] is made of.

use rayon::prelude::*;

/// A square orthogonal matrix, in f64: what it rotates is rounded once.
#[derive(Clone, Debug, PartialEq)]
pub struct Orthogonal {
    order: usize,
    /// Column after column.
    columns: Vec<f64>, // [order, order]
}

/// Random signs, the same for a seed everywhere: SplitMix64 (Steele, Lea,
/// Flood 2014).
#[derive(Clone, Debug)]
pub struct Signs(u64);

impl Signs {
    /// Starts a sequence.
    pub fn new(seed: u64) -> Self {
        Signs(seed)
    }

    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        if (z ^ (z >> 31)) >> 63 == 0 {
            1.0
        } else {
            -1.0
        }
    }
}

impl Orthogonal {
    /// `H D / sqrt(n)` with random signs `D`: as even as entries can be.
    ///
    /// # Panics
    /// If `order` is 0.
    pub fn randomised(order: usize, signs: &mut Signs) -> Self {
        let mut columns = transposed(&spreading(order), order);
        let unit = 1.0 / (order as f64).sqrt();
        for column in columns.chunks_exact_mut(order) {
            let factor = unit * signs.next();
            column.iter_mut().for_each(|x| *x *= factor);
        }
        Orthogonal { order, columns }
    }

    /// `R = H D H^T / n` with random signs `D`, the first of them 1: a symmetric
    /// rotation that leaves the vector of ones where it is,
    /// `R 1 = H D (n e_1) / n = H e_1 = 1`.
    ///
    /// # Panics
    /// If `order` is 0.
    pub fn fixing_ones(order: usize, signs: &mut Signs) -> Self {
        let rows = spreading(order);
        let mut diagonal: Vec<f64> = (0..order).map(|_| signs.next()).collect();
        diagonal[0] = 1.0;
        let signed: Vec<f64> = rows
            .iter()
            .zip(diagonal.iter().cycle())
            .map(|(x, d)| x * d / order as f64)
            .collect();
        let column = |j: usize| {
            let other = &rows[j * order..][..order];
            signed
                .chunks_exact(order)
                .map(move |row| row.iter().zip(other).map(|(a, b)| a * b).sum::<f64>())
                .collect::<Vec<f64>>()
        };
        Orthogonal {
            order,
            columns: (0..order).into_par_iter().flat_map_iter(column).collect(),
        }
    }

    /// Rows and columns.
    pub fn order(&self) -> usize {
        self.order
    }

    /// Row `i`, column `j`.
    pub fn at(&self, i: usize, j: usize) -> f64 {
        self.columns[j * self.order + i]
    }

    /// `x <- R x`.
    ///
    /// # Panics
    /// If `x` does not have [`Orthogonal::order`] elements.
    pub fn rotate(&self, x: &mut [f32]) {
        assert_eq!(x.len(), self.order, "a vector of the matrix's order");
        let mut sum = vec![0.0f64; self.order];
        for (&x, column) in x.iter().zip(self.columns.chunks_exact(self.order)) {
            let x = f64::from(x);
            sum.iter_mut().zip(column).for_each(|(s, r)| *s += r * x);
        }
        for (x, s) in x.iter_mut().zip(sum) {
            *x = s as f32;
        }
    }

    /// `M <- R M` for `rows`, `[order, cols]` row-major.
    ///
    /// # Panics
    /// If `rows` is of another size.
    pub fn mix_rows(&self, rows: &mut [f32], cols: usize) {
        assert_eq!(rows.len(), self.order * cols, "as many rows as the order");
        let old = rows.to_vec();
        rows.par_chunks_exact_mut(cols)
            .enumerate()
            .for_each(|(i, row)| {
                let mut sum = vec![0.0f64; cols];
                for (j, old) in old.chunks_exact(cols).enumerate() {
                    let r = self.at(i, j);
                    let terms = sum.iter_mut().zip(old);
                    terms.for_each(|(s, &x)| *s += r * f64::from(x));
                }
                for (x, s) in row.iter_mut().zip(sum) {
                    *x = s as f32;
                }
            });
    }
}

/// `[order, order]`, `H H^T = order * I`, and a first column of ones.
fn spreading(order: usize) -> Vec<f64> {
    assert!(order > 0, "a matrix has rows");
    hadamard(order).unwrap_or_else(|| hartley(order))
}

/// A Hadamard matrix with a first column of ones, where this module can make one.
fn hadamard(order: usize) -> Option<Vec<f64>> {
    let doublings = order.trailing_zeros();
    // The largest power of two that leaves something Paley can make.
    let (power, mut small) = (0..=doublings).rev().find_map(|d| {
        let power = 1 << d;
        Some((power, seed_matrix(order / power)?))
    })?;
    let small_order = order / power;
    for row in small.chunks_exact_mut(small_order) {
        let first = row[0];
        row.iter_mut().for_each(|x| *x *= first);
    }
    // Sylvester's matrix of order 2^d: (-1)^(number of ones in i and j).
    let sylvester = |i: usize, j: usize| match (i & j).count_ones() % 2 {
        0 => 1.0,
        _odd => -1.0,
    };
    let entry = |at: usize| {
        let (i, j) = (at / order, at % order);
        let inner = small[i / power * small_order + j / power];
        inner * sylvester(i % power, j % power)
    };
    Some((0..order * order).map(entry).collect())
}

/// A Hadamard matrix of order 1, or of an order that Paley's constructions give.
fn seed_matrix(order: usize) -> Option<Vec<f64>> {
    if order == 1 {
        return Some(vec![1.0]);
    }
    if order.is_multiple_of(4) && is_prime(order - 1) {
        return Some(paley_one(order - 1));
    }
    let q = (order / 2).checked_sub(1)?;
    (order.is_multiple_of(4) && q % 4 == 1 && is_prime(q)).then(|| paley_two(q))
}

/// `I + S` with `S = [0, 1; -1, Q]`, which is skew for `q = 3 mod 4`;
/// `Q[i, j] = chi(i - j)`.
fn paley_one(q: usize) -> Vec<f64> {
    let chi = residues(q);
    let n = q + 1;
    let entry = |at: usize| match (at / n, at % n) {
        (i, j) if i == j => 1.0,
        (0, _) => 1.0,
        (_, 0) => -1.0,
        (i, j) => chi[(q + i - j) % q],
    };
    (0..n * n).map(entry).collect()
}

/// From the symmetric `C = [0, 1; 1, Q]` for `q = 1 mod 4`: 0 becomes
/// `[1, -1; -1, -1]`, and each 1 or -1 that many times `[1, 1; 1, -1]`.
fn paley_two(q: usize) -> Vec<f64> {
    let chi = residues(q);
    let n = 2 * (q + 1);
    let entry = |at: usize| {
        let (i, j) = (at / n, at % n);
        let corner = [i % 2, j % 2];
        match (i / 2, j / 2) {
            (a, b) if a == b => [[1.0, -1.0], [-1.0, -1.0]][corner[0]][corner[1]],
            (a, b) => {
                let c = if a == 0 || b == 0 {
                    1.0
                } else {
                    chi[(q + a - b) % q]
                };
                c * [[1.0, 1.0], [1.0, -1.0]][corner[0]][corner[1]]
            }
        }
    };
    (0..n * n).map(entry).collect()
}

/// The quadratic character modulo the prime `q`: 0 at 0, 1 at squares, else -1.
fn residues(q: usize) -> Vec<f64> {
    let mut chi = vec![-1.0; q];
    chi[0] = 0.0;
    for x in 1..q {
        chi[x * x % q] = 1.0;
    }
    chi
}

fn is_prime(n: usize) -> bool {
    n > 1
        && (2..)
            .take_while(|d| d * d <= n)
            .all(|d| !n.is_multiple_of(d))
}

fn hartley(order: usize) -> Vec<f64> {
    let entry = |at: usize| {
        let turns = (at / order) * (at % order) % order;
        let angle = std::f64::consts::TAU * turns as f64 / order as f64;
        angle.cos() + angle.sin()
    };
    (0..order * order).map(entry).collect()
}

fn transposed(rows: &[f64], order: usize) -> Vec<f64> {
    let entry = |at: usize| rows[at % order * order + at / order];
    (0..order * order).map(entry).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Widths of real and tiny models; 52 = 2 (25 + 1) needs a field that is no
    /// prime one, 6 and 9 are no multiples of 4.
    const ORDERS: [usize; 19] = [
        1, 2, 4, 6, 8, 9, 12, 16, 20, 28, 32, 36, 52, 60, 64, 96, 192, 320, 384,
    ];

    fn product(a: &Orthogonal, b: &Orthogonal, i: usize, j: usize) -> f64 {
        (0..a.order).map(|k| a.at(i, k) * b.at(j, k)).sum()
    }

    #[test]
    fn hadamard_matrices_are_signs_with_orthogonal_rows() {
        for order in ORDERS {
            let made = hadamard(order);
            let expected = matches!(order, 1 | 2) || order % 4 == 0 && order != 52;
            assert_eq!(made.is_some(), expected, "order {order}");
            let Some(h) = made else { continue };
            assert!(h.iter().all(|x| x.abs() == 1.0), "order {order}");
            assert!(h.iter().step_by(order).all(|x| *x == 1.0), "order {order}");
            for (i, a) in h.chunks(order).enumerate() {
                for (j, b) in h.chunks(order).enumerate() {
                    // Small integers: exact.
                    let dot: f64 = a.iter().zip(b).map(|(a, b)| a * b).sum();
                    assert_eq!(dot, if i == j { order as f64 } else { 0.0 });
                }
            }
        }
    }

    /// Sums of at most 384 terms, each below 1: 384 * 384 * 2^-53 < 2e-11.
    const TOLERANCE: f64 = 2e-11;

    #[test]
    fn both_kinds_are_orthogonal_and_one_fixes_ones() {
        for order in ORDERS {
            let mut signs = Signs::new(order as u64);
            let head = Orthogonal::randomised(order, &mut signs);
            let stream = Orthogonal::fixing_ones(order, &mut signs);
            for matrix in [&head, &stream] {
                for i in 0..order {
                    for j in 0..=i {
                        let expected = f64::from(u8::from(i == j));
                        let found = product(matrix, matrix, i, j);
                        assert!((found - expected).abs() < TOLERANCE, "order {order}");
                    }
                }
            }
            for i in 0..order {
                let sum: f64 = (0..order).map(|j| stream.at(i, j)).sum();
                assert!((sum - 1.0).abs() < TOLERANCE, "order {order}");
            }
        }
    }

    #[test]
    fn a_seed_decides_the_signs() {
        let make = |seed| {
            let mut signs = Signs::new(seed);
            let first = Orthogonal::fixing_ones(64, &mut signs);
            (first, Orthogonal::randomised(64, &mut signs))
        };
        assert_eq!(make(5), make(5));
        assert!(make(5).0 != make(6).0 && make(5).1 != make(6).1);
    }

    #[test]
    fn vectors_and_rows_are_rotated_as_the_matrix_says() {
        let matrix = Orthogonal::randomised(12, &mut Signs::new(3));
        let rows: Vec<f32> = (0..36).map(|i| (i * i % 17) as f32).collect(); // [12, 3]
        let mut mixed = rows.clone();
        matrix.mix_rows(&mut mixed, 3);
        for col in 0..3 {
            let mut x: Vec<f32> = rows.iter().skip(col).step_by(3).copied().collect();
            let expected: Vec<f32> = (0..12)
                .map(|i| {
                    (0..12)
                        .map(|j| matrix.at(i, j) * f64::from(x[j]))
                        .sum::<f64>() as f32
                })
                .collect();
            matrix.rotate(&mut x);
            assert_eq!(x, expected);
            assert!(mixed.iter().skip(col).step_by(3).eq(&expected));
        }
    }
}
