//! Codes of an 8-bit grid to the levels of a codebook: see [`ActCodebook`].

use crate::ActCodebook;

/// The level of one code of the grid.
#[inline(always)]
pub fn level(book: &ActCodebook, fine: u8) -> u8 {
    let code = book.thresholds.iter().filter(|&&t| fine > t).count();
    book.levels[code]
}

/// Moves each code to its level.
pub fn snap(book: &ActCodebook, codes: &mut [u8]) {
    for code in codes {
        *code = level(book, *code);
    }
}

#[cfg(test)]
mod tests {
    use super::snap;
    use crate::ActCodebook;

    #[test]
    fn a_threshold_belongs_to_the_level_below_it() {
        let book = ActCodebook {
            thresholds: &[4, 10, 200],
            levels: &[2, 7, 50, 255],
        };
        let mut codes = [0, 4, 5, 10, 11, 200, 201, 255];
        snap(&book, &mut codes);
        assert_eq!(codes, [2, 2, 7, 7, 50, 50, 255, 255]);
    }
}
