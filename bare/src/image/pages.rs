//! Addresses are what they are: an identity map, so that caches work and
//! unaligned accesses are allowed.
//!
//! ```text
//! level 1 (boot.s)   2 entries of 1 GiB, each a table of
//! level 2 (here)     512 blocks of 2 MiB
//! ```
//!
//! Arm Architecture Reference Manual, DDI 0487, D8.3.

use super::board::Board;

/// Bytes of a block.
const BLOCK: u64 = 2 << 20;

/// Both tables of level 2, one after the other.
#[repr(align(4096))]
pub(crate) struct Pages(#[expect(dead_code, reason = "read by the processor")] [u64; 1024]);

impl Pages {
    pub(crate) const fn of(board: &Board) -> Pages {
        const VALID_BLOCK: u64 = 0b01;
        const NORMAL: u64 = 1 << 2; // index into MAIR_EL1; devices have 0
        const INNER_SHAREABLE: u64 = 0b11 << 8;
        const ACCESSED: u64 = 1 << 10;
        const NEVER_EXECUTED: u64 = 0b11 << 53;
        let mut blocks = [0; 1024];
        let mut index = 0;
        while index < blocks.len() {
            let address = index as u64 * BLOCK;
            let ram = board.ram.start <= address && address < board.ram.end;
            let kind = match ram {
                true => NORMAL | INNER_SHAREABLE,
                false => NEVER_EXECUTED,
            };
            blocks[index] = address | ACCESSED | VALID_BLOCK | kind;
            index += 1;
        }
        Pages(blocks)
    }
}
