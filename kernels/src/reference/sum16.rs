/// The sum of `terms`, in the one order that every ISA follows.
///
/// ```text
/// lane[i] = terms[i] + terms[i + 16] + terms[i + 32] ...      i in 0..16
/// lane[i] += lane[i + 8];   lane[i] += lane[i + 4];   += lane[i + 2];   += lane[i + 1]
/// ```
///
/// Sixteen lanes fill an AVX-512 register, two of AVX2, or four of NEON.
pub fn sum16(terms: impl Iterator<Item = f32>) -> f32 {
    let mut lanes = [0.0_f32; 16];
    for (i, term) in terms.enumerate() {
        lanes[i % 16] += term;
    }
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
    }
    lanes[0]
}

#[cfg(test)]
mod tests {
    use super::sum16;

    #[test]
    fn lanes_are_added_as_a_tree() {
        assert_eq!(sum16([].into_iter()), 0.0);
        assert_eq!(sum16((1..=100).map(|i| i as f32)), 5050.0);
        // Lane 0 holds 2^24 and loses a one; lane 1 and 2 hold ones and keep both.
        let mut terms = [0.0; 17];
        terms[0] = 16_777_216.0;
        terms[16] = 1.0;
        assert_eq!(sum16(terms.into_iter()), 16_777_216.0);
        let mut terms = [0.0; 17];
        terms[0] = 16_777_216.0;
        terms[1] = 1.0;
        terms[3] = 1.0;
        assert_eq!(sum16(terms.into_iter()), 16_777_218.0);
    }
}
