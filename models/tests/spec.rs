//! The examples of `SPEC.md` are true.
#![forbid(unsafe_code)]

use tpvit_models::BitWidth;
use tpvit_models::dense::{pack_row, unpack_row};

const SPEC: &str = include_str!("../SPEC.md");
const GOLDEN: &[u8] = include_bytes!("golden/v1.tpv");
const PER_HEAD: &[u8] = include_bytes!("golden/v1_per_head.tpv");

fn hex(bytes: &str) -> Vec<u8> {
    let byte = |b| u8::from_str_radix(b, 16).unwrap_or_else(|_| panic!("hex in {bytes}"));
    bytes.split_whitespace().map(byte).collect()
}

/// Lines such as `0100: 04 00 00 00  meaning`.
#[test]
fn bytes_shown_are_those_of_the_golden_file() {
    let shown = bytes_shown("", GOLDEN);
    assert!(shown > 40, "only {shown} lines were found");
}

/// Lines such as `per head 08fe: 02 00 00 00  meaning`.
#[test]
fn bytes_shown_of_codebooks_per_head_are_those_of_their_golden_file() {
    let shown = bytes_shown("per head ", PER_HEAD);
    assert!(shown > 3, "only {shown} lines were found");
}

/// Compares the lines that begin with `prefix` and an offset; how many there are.
fn bytes_shown(prefix: &str, golden: &[u8]) -> usize {
    let mut shown = 0;
    for line in SPEC.lines() {
        let Some((offset, rest)) = line.strip_prefix(prefix).and_then(|l| l.split_once(": "))
        else {
            continue;
        };
        let Ok(offset) = usize::from_str_radix(offset, 16) else {
            continue;
        };
        let (bytes, _meaning) = rest.split_once("  ").expect("a meaning after two spaces");
        let bytes = hex(bytes);
        assert_eq!(golden[offset..][..bytes.len()], bytes, "{line}");
        shown += 1;
    }
    shown
}

/// Lines such as `codes of 3 bits: 7 0 5 = 47 01`.
#[test]
fn codes_shown_are_packed_so() {
    let mut shown = Vec::new();
    for line in SPEC.lines() {
        let Some(rest) = line.strip_prefix("codes of ") else {
            continue;
        };
        let (bits, rest) = rest.split_once(" bits: ").expect("a width");
        let bits = BitWidth::from_bits(bits.parse().unwrap()).expect("a width");
        let (codes, bytes) = rest.split_once(" = ").expect("bytes");
        let codes: Vec<u8> = codes.split(' ').map(|code| code.parse().unwrap()).collect();
        let bytes = hex(bytes);
        let mut packed = vec![0; bits.row_bytes(codes.len())];
        pack_row(bits, &codes, &mut packed);
        assert_eq!(packed, bytes, "{line}");
        let mut unpacked = vec![0; codes.len()];
        unpack_row(bits, &bytes, &mut unpacked);
        assert_eq!(unpacked, codes, "{line}");
        shown.push(bits);
    }
    shown.dedup();
    assert_eq!(shown.len(), 5, "an example for each width");
}
