//! How the rows of a run are divided among lanes.
//!
//! A lane is a thread that owns a block of rows of every buffer and takes it
//! through all operations. Nearly every operation computes row r of its output
//! from row r of its inputs, so a lane needs nothing from the others, keeps its
//! rows in its own caches, and the division cannot change a result. Some
//! operations read rows of other lanes:
//!
//! ```text
//! Attention     every row reads every key and value (of its cell)
//! SelectToken   row 0 of the output is row `token` of the input
//! Pool          row 0 of the output is made of several rows
//! PatchMerge    a row of the output is four of the input
//! ```
//!
//! There, and only there, all lanes meet ([`Exchange::meet`]).

use core::ops::Range;

#[cfg(feature = "std")]
pub(crate) use crate::team::{Exchange, Shared, Team};

/// The rows of a buffer of `rows` that `lane` of `lanes` owns: nearly equal
/// blocks, none longer than the first. Row 0 is lane 0's.
pub(crate) fn share(rows: usize, lane: usize, lanes: usize) -> Range<usize> {
    let start = |lane: usize| (rows * lane).div_ceil(lanes);
    start(lane)..start(lane + 1)
}

/// The lane that owns `row` of a buffer of `rows`.
pub(crate) fn owner(rows: usize, row: usize, lanes: usize) -> usize {
    row * lanes / rows
}

/// What lanes give each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ExchangeSize {
    /// Bytes of a picture.
    pub(crate) pixels: usize,
    /// The most heads of an attention.
    pub(crate) heads: usize,
    /// Bytes of the keys and values of a head.
    pub(crate) head_len: usize,
    /// Bytes of a packed head.
    pub(crate) pack_len: usize,
    /// The most elements of f32 rows that lanes give each other.
    pub(crate) floats: usize,
}

/// One lane's part of an output, and where it begins in the whole.
#[cfg_attr(not(feature = "std"), expect(dead_code, reason = "there is one lane"))]
pub(crate) enum Part<'a> {
    Codes { start: usize, codes: &'a [u8] },
    Floats { start: usize, floats: &'a [f32] },
}

/// Without threads there is one lane, and nobody to exchange anything with:
/// these have no values.
#[cfg(not(feature = "std"))]
mod alone {
    use super::Part;
    use crate::exec::Network;

    pub(crate) enum Exchange {}

    pub(crate) struct Shared {
        pub(crate) codes: [u8; 0],
        pub(crate) floats: [f32; 0],
    }

    impl Exchange {
        pub(crate) fn meet(&self) {
            match *self {}
        }

        pub(crate) fn put_head(&self, _: usize, _: impl FnOnce(&mut [u8])) {
            match *self {}
        }

        pub(crate) fn pack_head(&self, _: usize, _: impl FnOnce(&[u8], &mut [u8])) {
            match *self {}
        }

        pub(crate) fn packed_head(&self, _: usize, _: impl FnOnce(&[u8])) {
            match *self {}
        }

        pub(crate) fn head(&self, _: usize, _: impl FnOnce(&[u8])) {
            match *self {}
        }

        pub(crate) fn put_floats(&self, _: usize, _: &[f32]) {
            match *self {}
        }

        pub(crate) fn floats(&self, _: impl FnOnce(&[f32])) {
            match *self {}
        }

        pub(crate) fn observe(&self, _: usize, _: Part<'_>, _: Option<impl FnOnce(&Shared)>) {
            match *self {}
        }
    }

    pub(crate) enum Team {}

    impl Team {
        pub(crate) fn start(_: Network<'static>) -> Option<Team> {
            None
        }

        pub(crate) fn run(&self, _: &[u8], _: bool, _: impl FnOnce(&Exchange)) {
            match *self {}
        }

        pub(crate) fn network(&self) -> &Network<'static> {
            match *self {}
        }

        pub(crate) fn exchange(&self) -> &Exchange {
            match *self {}
        }
    }
}

#[cfg(not(feature = "std"))]
pub(crate) use alone::{Exchange, Shared, Team};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_has_one_owner_and_no_share_exceeds_the_first() {
        for rows in 1..70 {
            for lanes in 1..70 {
                let mut next = 0;
                for lane in 0..lanes {
                    let own = share(rows, lane, lanes);
                    assert_eq!(own.start, next, "{rows} rows, lane {lane} of {lanes}");
                    assert!(own.len() <= share(rows, 0, lanes).len());
                    assert!(own.len() + 1 >= rows / lanes);
                    for row in own.clone() {
                        assert_eq!(owner(rows, row, lanes), lane, "row {row} of {rows}");
                    }
                    next = own.end;
                }
                assert_eq!(next, rows);
            }
        }
    }
}
