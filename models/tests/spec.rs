//! The examples of `SPEC.md` are true.
#![forbid(unsafe_code)]

use tpvit_models::BitWidth;
use tpvit_models::dense::{pack_row, unpack_row};

const SPEC: &str = include_str!("../SPEC.md");
const GOLDEN: &[u8] = include_bytes!("golden/v1.tpv");
const CODEBOOK: &[u8] = include_bytes!("golden/v1_codebook.tpv");
const PER_HEAD: &[u8] = include_bytes!("golden/v1_per_head.tpv");
const OPERATIONS: &[u8] = include_bytes!("golden/v1_operations.tpv");
const PANELS: &[u8] = include_bytes!("golden/v1_panels.tpv");

fn hex(bytes: &str) -> Vec<u8> {
    let byte = |b| u8::from_str_radix(b, 16).unwrap_or_else(|_| panic!("hex in {bytes}"));
    bytes.split_whitespace().map(byte).collect()
}

/// The bytes after an offset, as in `0100: 04 00 00 00  meaning`, are those of
/// the file. `None` if the line shows no bytes.
fn compare(line: &str, file: &[u8]) -> Option<()> {
    let (offset, rest) = line.split_once(": ")?;
    let offset = usize::from_str_radix(offset, 16).ok()?;
    let (bytes, _meaning) = rest.split_once("  ").expect("a meaning after two spaces");
    let bytes = hex(bytes);
    assert_eq!(file[offset..][..bytes.len()], bytes, "{line}");
    Some(())
}

/// Compares the lines that begin with `prefix`; how many show bytes.
fn shown(prefix: &str, file: &[u8]) -> usize {
    let lines = SPEC.lines().filter_map(|line| line.strip_prefix(prefix));
    lines.filter_map(|line| compare(line, file)).count()
}

/// Lines such as `0100: 04 00 00 00  meaning`, and those of the other files.
#[test]
fn bytes_shown_are_those_of_the_golden_files() {
    assert!(shown("", GOLDEN) > 40, "lines are missing");
    let with_a_codebook = shown("with a codebook, ", CODEBOOK);
    assert_eq!(with_a_codebook, 5, "lines of the file with a codebook");
    let per_head = shown("per head ", PER_HEAD);
    assert_eq!(per_head, 10, "lines of the file with codebooks per head");
    let operations = shown("with operations, ", OPERATIONS);
    assert_eq!(operations, 15, "lines of the file with operations");
    let panels = shown("in panels, ", PANELS);
    assert_eq!(panels, 9, "lines of the file in panels");
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
