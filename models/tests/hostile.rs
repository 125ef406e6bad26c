//! No bytes make the reader panic, and no byte can change unnoticed.
#![forbid(unsafe_code)]

mod common;

use std::io::Cursor;

use common::hand::{golden, operations, with_codebook, with_codebook_per_head};
use common::raw::{self, RawSection, entry_at, fix_checksums, put, u32_at};
use proptest::prelude::*;
use tpvit_kernels::{Isa, PanelFault, PanelLayout};
use tpvit_models::file::{
    FEATURE_CODEBOOK, FEATURE_OPERATIONS, FEATURE_PANELS, FEATURE_SOFTMAX_PER_HEAD, SectionKind,
};
use tpvit_models::synthetic::{self, VitConfig};
use tpvit_models::{
    Activation, ActivationQuant, BitWidth, Buffer, BufferId, Codebook, FileHead, Model, ModelData,
    Op, ParseError, ProgramError, ReadError, Resize, SoftmaxCodebook, SoftmaxQuant, Tensor,
    TensorData, TensorId, TensorInfo, TensorReader, TensorRole, WeightQuant, Window, WriteError,
    write, write_for, write_in_panels,
};

const GOLDEN: &[u8] = include_bytes!("golden/v1.tpv");
const CODEBOOK: &[u8] = include_bytes!("golden/v1_codebook.tpv");
const PER_HEAD: &[u8] = include_bytes!("golden/v1_per_head.tpv");
const OPERATIONS: &[u8] = include_bytes!("golden/v1_operations.tpv");
const PANELS: &[u8] = include_bytes!("golden/v1_panels.tpv");
const HEADER_AND_TABLE: usize = 32 + 7 * 32;
const MINOR_VERSION: core::ops::Range<usize> = 10..12;
const FEATURES: usize = 12;

/// Calls every accessor. If the bytes are accepted, they are the one way to
/// write what was read.
fn read(bytes: &[u8]) -> Result<(), ParseError> {
    let streamed = stream(bytes);
    let model = match Model::parse(bytes) {
        Ok(model) => model,
        Err(error) => {
            let other = streamed.expect_err("one reader is as strict as the other");
            // The checksum of DATA comes first here, after the rest there.
            let data_checksum = matches!(
                error,
                ParseError::SectionChecksum {
                    section: SectionKind::Data,
                    ..
                }
            );
            assert!(data_checksum || other.to_string() == error.to_string());
            return Err(error);
        }
    };
    assert_eq!(streamed, Ok(()));
    for index in 0..model.program().tensors.len() {
        match model.tensor(TensorId(index as u16)) {
            Tensor::Float(float) => assert!(float.iter().all(f32::is_finite)),
            Tensor::Weight(weight) => {
                let mut codes = vec![0; weight.cols()];
                for row in 0..weight.rows() {
                    weight.unpack_row(row, &mut codes);
                }
            }
        }
    }
    for class in 0..=model.program().classes() {
        assert!(model.label(class).is_some() || class >= model.labels().len());
    }
    let _ = (model.program().macs(), model.sections(), model.provenance());
    let again = write_in_panels(&model.to_data(), |id| model.panel_layout(id));
    let mut again = again.expect("what is read can be written");
    put(&mut again, MINOR_VERSION.start, &bytes[MINOR_VERSION]);
    fix_checksums(&mut again);
    assert!(
        again == bytes,
        "the file is not the one way to write its model"
    );
    Ok(())
}

/// Reads as a file, one tensor at a time.
fn stream(bytes: &[u8]) -> Result<(), ParseError> {
    let parsed = |error| match error {
        ReadError::Parse(error) => error,
        error => panic!("all bytes are there: {error}"),
    };
    let mut file = Cursor::new(bytes);
    let head = FileHead::read(&mut file).expect("bytes can be read");
    let info = head.parse()?;
    let mut tensors = TensorReader::open(&info, file).map_err(parsed)?;
    for index in 0..info.program().tensors.len() {
        tensors.tensor(TensorId(index as u16)).map_err(parsed)?;
    }
    Ok(())
}

fn refused(bytes: &[u8]) -> ParseError {
    let error = read(bytes).expect_err("the file is invalid");
    let text = error.to_string();
    assert!(!text.is_empty() && !text.ends_with('.'), "{text}");
    assert!(text.starts_with(|c: char| !c.is_uppercase()), "{text}");
    error
}

// --- Accidents: the checksums must notice ---

#[test]
fn every_truncation_is_refused() {
    for golden in [GOLDEN, CODEBOOK, PER_HEAD, OPERATIONS, PANELS] {
        for len in 0..golden.len() {
            refused(&golden[..len]);
        }
    }
}

#[test]
fn every_extension_is_refused() {
    for extra in [1, 63, 64, 4096] {
        let mut bytes = GOLDEN.to_vec();
        bytes.resize(GOLDEN.len() + extra, 0);
        assert!(matches!(refused(&bytes), ParseError::FileLength { .. }));
    }
}

#[test]
fn every_value_of_every_byte_of_header_and_table_is_refused() {
    let mut bytes = GOLDEN.to_vec();
    for at in 0..HEADER_AND_TABLE {
        for value in (0..=255).filter(|&value| value != GOLDEN[at]) {
            bytes[at] = value;
            refused(&bytes);
        }
        bytes[at] = GOLDEN[at];
    }
}

#[test]
fn every_flipped_bit_is_refused() {
    for golden in [GOLDEN, CODEBOOK, PER_HEAD, OPERATIONS, PANELS] {
        let mut bytes = golden.to_vec();
        for at in 0..golden.len() {
            for bit in 0..8 {
                bytes[at] = golden[at] ^ (1 << bit);
                refused(&bytes);
            }
            bytes[at] = golden[at];
        }
    }
}

#[test]
fn text_mode_is_told_from_other_files() {
    let text = |from: &[u8], to: &[u8]| {
        let (mut out, mut at) = (Vec::new(), 0);
        while at < GOLDEN.len() {
            if GOLDEN[at..].starts_with(from) {
                out.extend(to);
                at += from.len();
            } else {
                out.push(GOLDEN[at]);
                at += 1;
            }
        }
        out
    };
    assert_eq!(refused(&text(b"\r\n", b"\n")), ParseError::TextMode);
    assert_eq!(refused(&text(b"\n", b"\r\n")), ParseError::TextMode);
    let seven_bits: Vec<u8> = GOLDEN.iter().map(|byte| byte & 0x7f).collect();
    assert_eq!(refused(&seven_bits), ParseError::TextMode);
    assert_eq!(refused(b"GGUF\x03\0\0\0"), ParseError::NotTpv);
    assert_eq!(refused(b""), ParseError::NotTpv);
}

#[test]
fn without_the_checksum_of_data_only_data_goes_unchecked() {
    let sections = Model::parse(GOLDEN).unwrap().sections().to_vec();
    let mut bytes = GOLDEN.to_vec();
    for section in sections {
        let last = section.offset + section.len - 1;
        bytes[last] ^= 1;
        let checksum = ParseError::SectionChecksum {
            section: section.kind,
            stored: section.crc32,
            computed: crc32fast::hash(&bytes[section.offset..][..section.len]),
        };
        assert_eq!(Model::parse(&bytes).err(), Some(checksum.clone()));
        match section.kind {
            SectionKind::Data => assert!(Model::parse_unverified(&bytes).is_ok()),
            _ => assert_eq!(Model::parse_unverified(&bytes).err(), Some(checksum)),
        }
        bytes[last] ^= 1;
    }
}

// --- Intent: the checksums are true, validation must notice ---

/// Every value of every byte before DATA, every bit of DATA, each time with
/// true checksums.
#[test]
fn every_mutated_byte_is_refused_or_read_back() {
    for (golden, places) in [
        (GOLDEN, 0..GOLDEN.len()),
        (CODEBOOK, quant_section(CODEBOOK)),
        (PER_HEAD, quant_section(PER_HEAD)),
        (OPERATIONS, 0..OPERATIONS.len()),
        (PANELS, section(PANELS, SectionKind::Tensors)),
        (PANELS, section(PANELS, SectionKind::Data)),
    ] {
        let data = section(golden, SectionKind::Data).start;
        let mut bytes = golden.to_vec();
        let mut accepted = 0;
        for at in places {
            let was = golden[at];
            let values = (0..=255).filter(|&value| value != was);
            let in_data = at >= data;
            for value in values.filter(|value| !in_data || (value ^ was).is_power_of_two()) {
                bytes[at] = value;
                fix_checksums(&mut bytes);
                accepted += usize::from(read(&bytes).is_ok());
                bytes.copy_from_slice(golden);
            }
        }
        assert!(accepted > 1000, "only {accepted} files got past validation");
    }
}

fn quant_section(file: &[u8]) -> core::ops::Range<usize> {
    section(file, SectionKind::Quant)
}

/// The bytes of a section.
fn section(file: &[u8], kind: SectionKind) -> core::ops::Range<usize> {
    let sections = Model::parse(file).unwrap().sections().to_vec();
    let section = sections.iter().find(|s| s.kind == kind);
    let section = section.expect("every model has all sections");
    section.offset..section.offset + section.len
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn many_mutated_bytes_are_refused_or_read_back(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        small in any::<bool>(),
        golden in prop::sample::select(vec![GOLDEN, OPERATIONS, PANELS]),
    ) {
        let mut bytes = golden.to_vec();
        // Half of the time only in what describes, which is most of the format.
        let within = if small {
            section(golden, SectionKind::Data).start
        } else {
            bytes.len()
        };
        for (at, value) in changes {
            bytes[at.index(within)] = value;
        }
        fix_checksums(&mut bytes);
        let _ = read(&bytes);
    }

    /// A `u32` anywhere becomes a boundary value.
    #[test]
    fn boundary_numbers_are_refused_or_read_back(
        at in any::<prop::sample::Index>(),
        golden in prop::sample::select(vec![GOLDEN, OPERATIONS, PANELS]),
        value in prop::sample::select(vec![
            0, 1, 2, 0x7f, 0xff, 0xffff, 0x1_0000, 0x1_0001, i32::MAX as u64, 1 << 31,
            u32::MAX.into(), 1 << 32, i64::MAX as u64, 1 << 63, u64::MAX - 63, u64::MAX,
            0x7fc0_0000, 0x7f80_0000, 0xff80_0000, 0x8000_0000, 1, 0x3f80_0000,
        ]),
        wide in any::<bool>(),
    ) {
        let mut bytes = golden.to_vec();
        let value = value.to_le_bytes();
        put(&mut bytes, at.index(golden.len() - 8), &value[..if wide { 8 } else { 4 }]);
        fix_checksums(&mut bytes);
        let _ = read(&bytes);
    }

    #[test]
    fn sections_of_random_bytes_are_refused_or_read_back(
        index in 0..7usize,
        random in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let mut sections = raw::split(GOLDEN);
        sections[index].bytes = random;
        let _ = read(&raw::join(&sections));
    }

    #[test]
    fn random_bytes_are_refused(random in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(Model::parse(&random).is_err());
        let mut bytes = GOLDEN[..16].to_vec();
        bytes.extend(random);
        prop_assert!(Model::parse(&bytes).is_err());
    }
}

#[test]
fn taking_a_file_apart_and_together_gives_the_same_file() {
    assert_eq!(raw::join(&raw::split(GOLDEN)), GOLDEN);
}

#[test]
fn every_truncated_section_is_refused() {
    for index in (0..7).filter(|&index| index != 5) {
        let sections = raw::split(GOLDEN);
        for len in 0..sections[index].bytes.len() {
            let mut sections = sections.clone();
            sections[index].bytes.truncate(len);
            refused(&raw::join(&sections));
        }
    }
}

#[test]
fn every_section_that_goes_on_is_refused() {
    for index in (0..7).filter(|&index| index != 5) {
        let mut sections = raw::split(GOLDEN);
        sections[index].bytes.push(0);
        let error = refused(&raw::join(&sections));
        assert!(matches!(error, ParseError::SectionRest { .. }), "{error}");
    }
}

#[test]
fn versions_and_features() {
    let with = |at: usize, value: &[u8]| {
        let mut bytes = GOLDEN.to_vec();
        put(&mut bytes, at, value);
        fix_checksums(&mut bytes);
        bytes
    };
    let newer = ParseError::NewerVersion {
        found: (2, 0),
        supported: (1, 0),
    };
    assert_eq!(refused(&with(8, &[2, 0])), newer);
    let unknown = ParseError::UnknownVersion { found: (0, 0) };
    assert_eq!(refused(&with(8, &[0, 0])), unknown);
    assert_eq!(read(&with(10, &[7, 1])), Ok(()), "a newer minor version");
    let features = ParseError::RequiredFeatures { unknown: 0x100 };
    assert_eq!(refused(&with(13, &[1])), features);
    // Too short for a header, a newer version is still told.
    assert!(matches!(
        refused(&with(8, &[9, 0])[..32]),
        ParseError::NewerVersion { .. }
    ));
}

#[test]
fn sections_are_all_there_once_and_in_order() {
    let sections = raw::split(GOLDEN);
    for index in 0..7 {
        let mut missing = sections.clone();
        missing.remove(index);
        let error = refused(&raw::join(&missing));
        assert!(
            matches!(error, ParseError::MissingSection { .. }),
            "{error}"
        );
        let mut twice = sections.clone();
        twice.insert(index, sections[index].clone());
        let error = refused(&raw::join(&twice));
        assert!(matches!(error, ParseError::SectionOrder { .. }), "{error}");
    }
    for index in 1..7 {
        let mut swapped = sections.clone();
        swapped.swap(index - 1, index);
        let error = refused(&raw::join(&swapped));
        assert!(matches!(error, ParseError::SectionOrder { .. }), "{error}");
    }
}

#[test]
fn unknown_sections_are_skipped_if_optional_and_refused_if_required() {
    for (kind, index) in [(7, 6), (1000, 7)] {
        let with = |flags| {
            let mut sections = raw::split(GOLDEN);
            let bytes = b"from the future".to_vec();
            sections.insert(index, RawSection { kind, flags, bytes });
            raw::join(&sections)
        };
        let file = with(0);
        let model = Model::parse(&file).expect("an optional section is skipped");
        assert_eq!(model.to_data(), golden());
        assert_eq!(model.sections()[index].kind, SectionKind::Unknown(kind));
        assert_eq!(refused(&with(1)), ParseError::UnknownSection { kind });
        assert!(matches!(
            refused(&with(2)),
            ParseError::SectionEntry { what: "flags", .. }
        ));
        let mut damaged = file.clone();
        let offset = model.sections()[index].offset;
        damaged[offset] ^= 1;
        assert!(matches!(
            refused(&damaged),
            ParseError::SectionChecksum { .. }
        ));
    }
}

#[test]
fn the_section_table_has_one_place_for_each_section() {
    let with = |index: usize, field: usize, value: u64| {
        let mut bytes = GOLDEN.to_vec();
        put(&mut bytes, entry_at(index) + field, &value.to_le_bytes());
        fix_checksums(&mut bytes);
        refused(&bytes)
    };
    let ten_gigabytes = 10 << 30;
    for index in 0..7 {
        for offset in [
            0,
            32,
            256 + 1,
            1 << 32,
            ten_gigabytes,
            1 << 63,
            u64::MAX - 63,
            u64::MAX,
        ] {
            let error = with(index, 8, offset);
            assert!(
                matches!(error, ParseError::SectionEntry { what: "offset", .. }),
                "{error}"
            );
        }
        for len in [ten_gigabytes, 1 << 63, u64::MAX - 255, u64::MAX] {
            let error = with(index, 16, len);
            assert!(
                matches!(error, ParseError::SectionEntry { what: "length", .. }),
                "{error}"
            );
        }
    }
    let mut bytes = GOLDEN.to_vec();
    for count in [8, 1 << 27, u32::MAX] {
        put(&mut bytes, 24, &count.to_le_bytes());
        refused(&bytes);
    }
}

/// Finds what stands behind `needle` in a section.
fn after(section: &RawSection, needle: &[u8]) -> usize {
    let found = section
        .bytes
        .windows(needle.len())
        .position(|window| window == needle);
    found.expect("the needle is in the section") + needle.len()
}

fn with_bytes(index: usize, at: usize, value: &[u8]) -> Vec<u8> {
    let mut sections = raw::split(GOLDEN);
    put(&mut sections[index].bytes, at, value);
    raw::join(&sections)
}

#[test]
fn counts_beyond_the_file_are_refused() {
    let ops_at = after(
        &raw::split(GOLDEN)[raw::PROGRAM],
        b"head\x01\0\0\0\x02\0\0\0",
    );
    let counts = [
        (raw::PROGRAM, 8, "buffers"),
        (raw::PROGRAM, ops_at, "operations"),
        (raw::TENSORS, 0, "tensors"),
        (raw::QUANT, 0, "activation quantizers"),
        (raw::QUANT, 8, "scales"),
        (raw::QUANT, 0x92, "softmax quantizers"),
        (raw::LABELS, 0, "labels"),
    ];
    for (index, at, what) in counts {
        assert!(
            u32_at(&raw::split(GOLDEN)[index].bytes, at) < 100,
            "{what} are there"
        );
        for count in [1000, 65536, 1 << 27, 1 << 31, u32::MAX] {
            let error = refused(&with_bytes(index, at, &count.to_le_bytes()));
            let named = matches!(error, ParseError::Count { what: w, .. } if w == what);
            assert!(named, "{what}: {error}");
        }
    }
}

/// The first tensor, with other shapes, places and sizes.
#[test]
fn tensors_that_do_not_fit_are_refused() {
    let shape_at = after(
        &raw::split(GOLDEN)[raw::TENSORS],
        b"patch_embed.proj.weight\x01\x03",
    );
    let shape = |rows: u32, cols: u32| {
        let value = [rows.to_le_bytes(), cols.to_le_bytes()].concat();
        refused(&with_bytes(raw::TENSORS, shape_at, &value))
    };
    for (rows, cols) in [
        (0, 12),
        (2, 0),
        (2, 13),
        (u32::MAX, u32::MAX),
        (1 << 16, 1 << 16),
    ] {
        assert!(
            matches!(shape(rows, cols), ParseError::Program(_)),
            "{rows} x {cols}"
        );
    }
    for offset in [1u64, 64, 10 << 30, 1 << 63, u64::MAX - 63] {
        let error = refused(&with_bytes(
            raw::TENSORS,
            shape_at + 8,
            &offset.to_le_bytes(),
        ));
        assert!(
            matches!(error, ParseError::TensorPlace { what: "offset", .. }),
            "{error}"
        );
    }
    for len in [0u64, 73, 75, 10 << 30, 1 << 63, u64::MAX] {
        let error = refused(&with_bytes(raw::TENSORS, shape_at + 16, &len.to_le_bytes()));
        assert!(
            matches!(error, ParseError::TensorPlace { what: "length", .. }),
            "{error}"
        );
    }
    for bits in [0u8, 1, 5, 7, 9, 32, 255] {
        let error = refused(&with_bytes(raw::TENSORS, shape_at - 1, &[bits]));
        assert!(matches!(error, ParseError::TensorBits { .. }), "{error}");
    }
}

/// Every tensor but the first on the place of the one before it: whole, or its last
/// 64 bytes.
#[test]
fn tensors_cannot_overlap() {
    let sections = raw::split(GOLDEN);
    let bytes = &sections[raw::TENSORS].bytes;
    let count = u32_at(bytes, 0) as usize;
    let mut at = 4;
    let mut places = Vec::new();
    for _ in 0..count {
        let name_len = usize::from(u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap()));
        at += 2 + name_len + 2 + 8; // name, role and bits, shape
        places.push((at, raw::u64_at(bytes, at), raw::u64_at(bytes, at + 8)));
        at += 16;
    }
    assert!(count > 10 && at == bytes.len(), "the table is understood");
    for pair in places.windows(2) {
        let ((_, before, _), (at, own, _)) = (pair[0], pair[1]);
        for offset in [before, own - 64] {
            let error = refused(&with_bytes(raw::TENSORS, at, &offset.to_le_bytes()));
            let placed = matches!(error, ParseError::TensorPlace { what: "offset", .. });
            assert!(placed, "{error}");
        }
    }
}

/// A consistent program that wants 4 GiB of weights from a file of 5 KB.
#[test]
fn a_small_file_cannot_claim_large_tensors() {
    let mut sections = raw::split(GOLDEN);
    let n: u32 = 1 << 16;
    let program = &mut sections[raw::PROGRAM];
    // The logits become 65536 wide: the buffer, then the head's weight and bias.
    let at = after(program, b"head\x01\0\0\0");
    put(&mut program.bytes, at, &n.to_le_bytes());
    let tensors = &mut sections[raw::TENSORS];
    let at = after(tensors, b"head.weight\x01\x03");
    put(&mut tensors.bytes, at, &n.to_le_bytes());
    let offset_len = (4 * u64::from(n) + u64::from(n)) + u64::from(n);
    put(&mut tensors.bytes, at + 16, &offset_len.to_le_bytes());
    let at = after(tensors, b"head.bias\x00\x20\x01\0\0\0");
    put(&mut tensors.bytes, at, &n.to_le_bytes());
    let error = refused(&raw::join(&sections));
    assert!(
        matches!(error, ParseError::TensorPlace { what: "length", .. }),
        "{error}"
    );
}

#[test]
fn names_are_text_without_control_characters_and_differ() {
    let at = after(&raw::split(GOLDEN)[raw::LABELS], b"\x02\0\0\0\x03\0");
    for label in [b"\x1b[2", b"a\nb", b"\xff\xfe\xfd", b"\0\0\0"] {
        let error = refused(&with_bytes(raw::LABELS, at, label));
        assert!(matches!(error, ParseError::Text { .. }), "{error}");
    }
    let mut sections = raw::split(GOLDEN);
    sections[5].bytes = vec![b'{', 0xc3, b'}'];
    assert!(matches!(
        refused(&raw::join(&sections)),
        ParseError::Text { .. }
    ));
    let mut data = golden();
    data.program.tensors[3].name = data.program.tensors[5].name.clone();
    assert!(matches!(invalid(&data), ParseError::DuplicateName { .. }));
    let mut data = golden();
    data.program.buffers[3].name.clear();
    assert!(matches!(invalid(&data), ParseError::Text { .. }));
}

#[test]
fn unused_bits_and_filling_must_be_zero() {
    let mut sections = raw::split(GOLDEN);
    let data = &mut sections[raw::DATA].bytes;
    data[0x44] |= 0x10; // bit 36 of a row of twelve 3-bit codes
    let error = refused(&raw::join(&sections));
    assert!(
        matches!(error, ParseError::RowPadding { row: 0, .. }),
        "{error}"
    );
    // Between zero points and codes, between tensors, between sections.
    for at in [0xa0a, 0xa3f, 0xa4a, 0xa7f] {
        let mut bytes = GOLDEN.to_vec();
        bytes[at] = 1;
        fix_checksums(&mut bytes);
        assert_eq!(refused(&bytes), ParseError::Padding { offset: at as u64 });
    }
    let mut bytes = GOLDEN.to_vec();
    bytes[0x332] = 1;
    assert_eq!(refused(&bytes), ParseError::Padding { offset: 0x332 });
}

// --- Models that cannot be run: the writer refuses them for the same reasons ---

fn invalid(data: &ModelData) -> ParseError {
    match write(data) {
        Err(WriteError::Invalid(error)) => error,
        other => panic!("must be invalid, is {:?}", other.map(|bytes| bytes.len())),
    }
}

fn invalid_with(change: impl FnOnce(&mut ModelData)) -> ParseError {
    let mut data = golden();
    change(&mut data);
    invalid(&data)
}

fn softmax(data: &mut ModelData, op: usize) -> &mut SoftmaxQuant {
    data.quantization.softmax[op].as_mut().expect("attention")
}

fn activation(data: &mut ModelData, buffer: usize) -> &mut ActivationQuant {
    data.quantization.activations[buffer]
        .as_mut()
        .expect("a coded buffer")
}

const BAD_SCALES: [f32; 7] = [
    0.0,
    -0.0,
    -1.0,
    f32::NAN,
    f32::INFINITY,
    f32::NEG_INFINITY,
    1e-40,
];

#[test]
fn scales_are_positive_finite_and_normal() {
    for bad in BAD_SCALES {
        let error = invalid_with(|data| {
            let TensorData::Weight(weight) = &mut data.tensors[0] else {
                panic!("the first tensor is a weight")
            };
            weight.scale[1] = bad;
        });
        let named = matches!(
            error,
            ParseError::TensorValue {
                what: "scale",
                index: 1,
                ..
            }
        );
        assert!(named, "{error}");
        let error = invalid_with(|data| activation(data, 1).scale[0] = bad);
        assert!(
            matches!(error, ParseError::Value { what: "scale", .. }),
            "{error}"
        );
        let error = invalid_with(|data| data.preprocess.std[2] = bad);
        assert!(
            matches!(error, ParseError::Value { what: "scale", .. }),
            "{error}"
        );
        let error = invalid_with(|data| {
            let softmax = data.quantization.softmax.iter_mut().flatten().nth(1);
            softmax.unwrap().codebooks[0].scale = bad;
        });
        assert!(
            matches!(error, ParseError::Value { what: "scale", .. }),
            "{error}"
        );
    }
    for bad in [f32::NAN, f32::INFINITY] {
        let error = invalid_with(|data| data.preprocess.mean[0] = bad);
        assert!(
            matches!(error, ParseError::Value { what: "mean", .. }),
            "{error}"
        );
        let error = invalid_with(|data| data.tensors[1] = TensorData::Float(vec![0.0, bad]));
        let named = matches!(
            error,
            ParseError::TensorValue {
                what: "value",
                index: 1,
                ..
            }
        );
        assert!(named, "{error}");
    }
}

#[test]
fn zero_points_are_codes() {
    let error = invalid_with(|data| {
        let TensorData::Weight(weight) = &mut data.tensors[0] else {
            panic!("the first tensor is a weight")
        };
        weight.zero_point[1] = 8; // of 3 bits
    });
    assert!(
        matches!(
            error,
            ParseError::TensorZeroPoint {
                found: 8,
                most: 7,
                ..
            }
        ),
        "{error}"
    );
    let error = invalid_with(|data| activation(data, 1).zero_point[0] = 8);
    assert!(
        matches!(
            error,
            ParseError::Value {
                what: "zero point",
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn quantizers_are_where_codes_are() {
    let error = invalid_with(|data| data.quantization.activations[1] = None);
    assert!(
        matches!(error, ParseError::NoActivationQuant { .. }),
        "{error}"
    );
    let error = invalid_with(|data| {
        data.quantization.activations[0] = data.quantization.activations[1].clone();
    });
    assert!(
        matches!(error, ParseError::NeedlessActivationQuant { .. }),
        "{error}"
    );
    let error = invalid_with(|data| data.quantization.softmax[3] = None);
    assert!(
        matches!(error, ParseError::NoSoftmaxQuant { op: 3 }),
        "{error}"
    );
    let error = invalid_with(|data| data.quantization.softmax.swap(2, 3));
    assert!(
        matches!(error, ParseError::NeedlessSoftmaxQuant { op: 2 }),
        "{error}"
    );
    let error = invalid_with(|data| {
        let quant = activation(data, 2);
        quant.scale.truncate(5);
        quant.zero_point.truncate(5);
    });
    let named = matches!(
        error,
        ParseError::ScaleCount {
            expected: 6,
            found: 5,
            ..
        }
    );
    assert!(named, "{error}");
}

/// The rule that `change` breaks in the codebook of a 2-bit buffer.
fn codebook_rule(change: impl FnOnce(&mut ActivationQuant)) -> &'static str {
    let mut data = with_codebook();
    let quants = data.quantization.activations.iter_mut().flatten();
    let quant = quants.into_iter().find(|quant| quant.codebook.is_some());
    change(quant.expect("a codebook"));
    match invalid(&data) {
        ParseError::Codebook { buffer, rule } if buffer == "blocks.1.norm1" => rule,
        other => panic!("{other}"),
    }
}

#[test]
fn codebooks_do_not_contradict_themselves() {
    fn codebook(quant: &mut ActivationQuant) -> &mut Codebook {
        quant.codebook.as_mut().expect("a codebook")
    }
    assert_eq!(
        codebook_rule(|quant| codebook(quant).thresholds.swap(0, 1)),
        "thresholds must ascend"
    );
    assert_eq!(
        codebook_rule(|quant| codebook(quant).levels[3] = 119),
        "levels must ascend"
    );
    for bits in [BitWidth::B6, BitWidth::B8] {
        let wide = codebook_rule(|quant| {
            quant.bits = bits;
            codebook(quant).thresholds = vec![0; usize::from(bits.max_code())];
            codebook(quant).levels = vec![0; usize::from(bits.max_code()) + 1];
        });
        assert_eq!(wide, "it must have at most 4 bits");
    }
    // Of each list, one too many or too few.
    for (thresholds, levels) in [(2, 4), (4, 4), (3, 3), (3, 5)] {
        let mut data = with_codebook();
        let quants = data.quantization.activations.iter_mut().flatten();
        let book = quants.filter_map(|quant| quant.codebook.as_mut()).next();
        *book.expect("a codebook") = Codebook {
            thresholds: vec![9; thresholds],
            levels: vec![9; levels],
        };
        let error = write(&data).unwrap_err();
        assert!(matches!(error, WriteError::Length { .. }), "{error}");
    }
    // The zero point is of 8 bits, and so are the sums.
    let mut data = with_codebook();
    let quants = data.quantization.activations.iter_mut().flatten();
    let quant = quants.into_iter().find(|quant| quant.codebook.is_some());
    quant.expect("a codebook").zero_point[0] = 255;
    assert!(write(&data).is_ok());
}

/// Attention multiplies codes of its width, so its input has no codebook.
#[test]
fn the_input_of_attention_has_no_codebook() {
    let error = invalid_with(|data| {
        let quant = activation(data, 2);
        quant.codebook = Some(Codebook {
            thresholds: (0..15).collect(),
            levels: (0..16).collect(),
        });
    });
    let named = matches!(
        &error,
        ParseError::Codebook { buffer, .. } if buffer == "blocks.0.attn.qkv"
    );
    assert!(named, "{error}");
}

/// The file with other features in its header.
fn requiring(file: &[u8], features: u32) -> Vec<u8> {
    let mut bytes = file.to_vec();
    put(&mut bytes, FEATURES, &features.to_le_bytes());
    fix_checksums(&mut bytes);
    bytes
}

/// The header requires a feature exactly where the file uses it.
#[test]
fn a_codebook_is_required_exactly_if_it_is_used() {
    assert_eq!(u32_at(GOLDEN, FEATURES), 0);
    assert_eq!(u32_at(CODEBOOK, FEATURES), FEATURE_CODEBOOK);
    let needless = ParseError::Features {
        required: FEATURE_CODEBOOK,
        used: 0,
    };
    assert_eq!(refused(&requiring(GOLDEN, FEATURE_CODEBOOK)), needless);
    let missing = ParseError::Features {
        required: 0,
        used: FEATURE_CODEBOOK,
    };
    assert_eq!(refused(&requiring(CODEBOOK, 0)), missing);
    for value in [2, 255] {
        let mut bytes = CODEBOOK.to_vec();
        bytes[0x8a1] = value;
        fix_checksums(&mut bytes);
        let error = refused(&bytes);
        let named = matches!(
            error,
            ParseError::Value {
                what: "kind of levels",
                ..
            }
        );
        assert!(named, "{error}");
    }
}

/// One integer sum has one scale: over a head of q or of k, but not over v,
/// nor over the input of a linear layer, whose weight may contain the scales.
#[test]
fn scales_are_the_same_within_a_sum() {
    // Two heads of 6: columns 0..6 and 6..12 are q, then k, then v.
    let base = synthetic::tiny();
    assert!(write(&base).is_ok());
    let change = |col: usize, zero: bool| {
        let mut data = base.clone();
        let quant = data.quantization.activations.iter_mut().flatten();
        let quant = quant.into_iter().find(|q| q.scale.len() == 36).unwrap();
        if zero {
            quant.zero_point[col] ^= 1;
        } else {
            quant.scale[col] *= 2.0;
        }
        write(&data)
    };
    for zero in [false, true] {
        for col in [1, 5, 7, 11, 13, 23] {
            let error = change(col, zero).unwrap_err();
            let named = matches!(
                error,
                WriteError::Invalid(ParseError::MixedScale { col: c, .. }) if c == col
            );
            assert!(named, "{error}");
        }
        for col in [24, 29, 35] {
            assert!(change(col, zero).is_ok(), "v may differ in column {col}");
        }
    }
    let mut folded = base.clone();
    let cols = folded.program.buffers.iter().map(|b| b.cols);
    for (quant, cols) in folded.quantization.activations.iter_mut().zip(cols) {
        if let Some(quant) = quant.as_mut().filter(|q| q.scale.len() == 1) {
            quant.scale = (1..=cols).map(|c| 1.0 / c as f32).collect();
            quant.zero_point = vec![quant.zero_point[0]; cols];
        }
    }
    let written = write(&folded);
    assert!(
        written.is_ok(),
        "a scale per column of linear inputs: {written:?}"
    );
}

#[test]
fn softmax_quantizers_do_not_contradict_themselves() {
    let row_max = |change: &dyn Fn(&mut SoftmaxCodebook)| {
        let error = invalid_with(|data| change(&mut softmax(data, 3).codebooks[0]));
        match error {
            ParseError::Softmax { op: 3, rule } => rule,
            other => panic!("{other}"),
        }
    };
    assert_eq!(
        row_max(&|s| s.thresholds[1] = f32::NAN),
        "thresholds must be finite or +inf"
    );
    let infinite = |s: &mut SoftmaxCodebook| s.thresholds[0] = f32::NEG_INFINITY;
    assert_eq!(row_max(&infinite), "thresholds must be finite or +inf");
    assert_eq!(
        row_max(&|s| s.thresholds[1] = 0.25),
        "thresholds must ascend"
    );
    let too_large = "multipliers must be -16384 to 16384";
    assert_eq!(row_max(&|s| s.multipliers[1] = 16385), too_large);
    assert_eq!(row_max(&|s| s.multipliers[1] = i16::MIN), too_large);
    let negative = "multipliers of a renormalised row must not be negative";
    assert_eq!(row_max(&|s| s.multipliers[1] = -1), negative);
    assert_eq!(
        row_max(&|s| s.multipliers.fill(0)),
        "one multiplier must be positive"
    );
    let first = "the first multiplier of row-maximum codes must be positive";
    assert_eq!(row_max(&|s| s.multipliers[0] = 0), first);
    let negative = "the first threshold of row-maximum codes must not be negative";
    assert_eq!(row_max(&|s| s.thresholds[0] = -0.5), negative);
    let error = invalid_with(|data| softmax(data, 3).renormalise = false);
    let rule = "row-maximum codes must be renormalised";
    assert_eq!(error, ParseError::Softmax { op: 3, rule });
}

/// Three scales can be good and their product zero or infinite.
#[test]
fn the_unit_of_scores_is_a_scale() {
    let with = |q_and_k: f32, scale: f32| {
        let mut data = golden();
        let attention = data.program.ops.iter_mut().find_map(|op| match op {
            Op::Attention { scale, .. } => Some(scale),
            Op::PatchEmbed { .. }
            | Op::LayerNorm { .. }
            | Op::Linear { .. }
            | Op::HeadNorm { .. }
            | Op::Gate { .. }
            | Op::SelectToken { .. }
            | Op::Pool { .. }
            | Op::PatchMerge { .. } => None,
        });
        *attention.expect("an attention") = scale;
        let quant = activation(&mut data, 2); // two heads of 1: q, q, k, k, v, v
        quant.scale[1] = q_and_k;
        quant.scale[3] = q_and_k;
        write(&data).map(drop)
    };
    assert_eq!(with(1e-19, 1.0), Ok(()));
    assert_eq!(with(1e19, 1.0), Ok(()));
    let rule = "the unit of its scores must be positive, finite and not subnormal";
    let refused = Err(WriteError::Invalid(ParseError::Softmax { op: 3, rule }));
    assert_eq!(with(1e-20, 1.0), refused);
    assert_eq!(with(1e-30, 1.0), refused);
    assert_eq!(with(1e-19, 1e-30), refused);
    assert_eq!(with(1e19, 1024.0), refused);
    assert_eq!(with(1e30, 1.0), refused);
}

#[test]
fn buffers_are_written_before_they_are_read() {
    // A LayerNorm that reads what it writes, and one that reads what comes later.
    for input in [BufferId(1), BufferId(4)] {
        let error = invalid_with(|data| {
            let Op::LayerNorm { input: slot, .. } = &mut data.program.ops[1] else {
                panic!("the second operation is a LayerNorm")
            };
            *slot = input;
        });
        let order = ProgramError::Order {
            op: 1,
            buffer: input.0,
        };
        assert_eq!(error, ParseError::Program(order));
    }
    // And as a file, past the writer: its input id is after its tag.
    let bytes = with_bytes(raw::PROGRAM, 0x27f - 0x100 + 1, &[1, 0]);
    let order = ProgramError::Order { op: 1, buffer: 1 };
    assert_eq!(refused(&bytes), ParseError::Program(order));
}

#[test]
fn labels_are_none_or_one_for_each_class() {
    let error = invalid_with(|data| data.labels.truncate(1));
    assert_eq!(
        error,
        ParseError::LabelCount {
            found: 1,
            classes: 2
        }
    );
    let mut data = golden();
    data.labels.clear();
    assert!(write(&data).is_ok());
}

#[test]
fn the_crop_is_within_the_picture() {
    let error = invalid_with(|data| data.preprocess.resize = Resize::ShorterSide(3));
    assert_eq!(
        error,
        ParseError::Crop {
            shorter_side: 3,
            image: 4
        }
    );
    for side in [0, 65537, u32::MAX] {
        let error = invalid_with(|data| data.preprocess.resize = Resize::ShorterSide(side));
        assert!(
            matches!(
                error,
                ParseError::Value {
                    what: "shorter side",
                    ..
                }
            ),
            "{error}"
        );
    }
}

/// `K = 16448` is the most for 8-bit activations and weights: 4 K 255 128 < 2^31.
#[test]
fn linear_sums_that_could_overflow_are_refused() {
    let head = |dim, weight_bits, act_bits| {
        let softmax = synthetic::log2_softmax(BitWidth::B2);
        let config = VitConfig {
            image: 1,
            patch: 1,
            dim,
            depth: 0,
            heads: 1,
            mlp_ratio: 1,
            classes: 1,
        };
        write(&synthetic::vit(config, weight_bits, act_bits, &softmax, 1))
    };
    assert!(head(16448, BitWidth::B8, BitWidth::B8).is_ok());
    let overflow = head(16449, BitWidth::B8, BitWidth::B8).unwrap_err();
    let named = matches!(
        overflow,
        WriteError::Invalid(ParseError::Overflow { op: 3, .. })
    );
    assert!(named, "{overflow}");
    assert!(head(16449, BitWidth::B6, BitWidth::B8).is_ok());
    assert!(head(16449, BitWidth::B8, BitWidth::B6).is_ok());
}

#[test]
fn attention_sums_that_could_overflow_are_refused() {
    // Multipliers up to 16384 and 8-bit values: 514 tokens are the most.
    let attend = |side, act_bits| {
        let softmax = synthetic::log2_softmax(BitWidth::B4);
        let config = VitConfig {
            image: side,
            patch: 1,
            dim: 1,
            depth: 1,
            heads: 1,
            mlp_ratio: 1,
            classes: 1,
        };
        write(&synthetic::vit(config, BitWidth::B4, act_bits, &softmax, 1))
    };
    assert!(attend(22, BitWidth::B8).is_ok()); // 485 tokens
    let overflow = attend(23, BitWidth::B8).unwrap_err(); // 530 tokens
    let what = "the sum of attention times values";
    let named = |error: &WriteError, expected: &str| matches!(error, WriteError::Invalid(ParseError::Overflow { what, .. }) if *what == expected);
    assert!(named(&overflow, what), "{overflow}");
    assert!(attend(23, BitWidth::B6).is_ok());
    // 8256 channels of 8-bit q and k are the most.
    assert!(write(&one_wide_head(8256)).is_ok());
    let overflow = write(&one_wide_head(8257)).unwrap_err();
    assert!(
        named(&overflow, "the sum of an attention score"),
        "{overflow}"
    );
}

/// The sum of a row goes over the tokens of a cell: with multipliers up to 16384
/// and 8-bit values, over 514 at most, however many tokens there are.
#[test]
fn sums_over_windows_that_could_overflow_are_refused() {
    let attend = |size: [usize; 2], shift: [usize; 2]| {
        let config = VitConfig {
            image: 32,
            patch: 1,
            dim: 1,
            depth: 1,
            heads: 1,
            mlp_ratio: 1,
            classes: 1,
        };
        let softmax = synthetic::log2_softmax(BitWidth::B4);
        let mut data = synthetic::vit(config, BitWidth::B4, BitWidth::B8, &softmax, 1);
        // Without the class token, 32 x 32 tokens.
        for buffer in data.program.buffers.iter_mut().filter(|b| b.rows > 1) {
            buffer.rows = 32 * 32;
        }
        for op in &mut data.program.ops {
            if let Op::PatchEmbed { prefix, .. } = op {
                *prefix = None;
            }
            if let Op::Attention { window, .. } = op {
                *window = Some(Window {
                    grid: [32, 32],
                    size,
                    shift,
                });
            }
        }
        write(&data).map(drop)
    };
    assert_eq!(attend([16, 32], [0, 0]), Ok(()), "512 of 1024 tokens");
    assert_eq!(attend([16, 32], [3, 0]), Ok(()), "512 and less");
    // A shift cuts all windows of the grid's width in two.
    assert_eq!(attend([32, 32], [16, 0]), Ok(()), "two halves");
    for (size, shift, tokens) in [
        ([32, 32], [0, 0], 1024),
        ([32, 32], [17, 0], 17 * 32),
        ([32, 32], [3, 3], 29 * 29),
    ] {
        let overflow = ParseError::Overflow {
            op: 3,
            what: "the sum of attention times values",
            bound: tokens * 16384 * 255,
        };
        let refused = attend(size, shift);
        assert_eq!(refused, Err(WriteError::Invalid(overflow)), "{size:?}");
    }
}

/// A pixel, one channel, one head of `head_dim` channels, one class.
fn one_wide_head(head_dim: usize) -> ModelData {
    let config = VitConfig {
        image: 1,
        patch: 1,
        dim: 1,
        depth: 0,
        heads: 1,
        mlp_ratio: 1,
        classes: 1,
    };
    let softmax = synthetic::log2_softmax(BitWidth::B2);
    let mut data = synthetic::vit(config, BitWidth::B2, BitWidth::B8, &softmax, 1);
    let weight = |data: &mut ModelData, name: &str, rows: usize, cols: usize| {
        let info = |name, role, rows, cols| TensorInfo {
            name,
            role,
            rows,
            cols,
        };
        let tensors = &mut data.program.tensors;
        let id = tensors.len() as u16;
        tensors.push(info(
            format!("{name}.weight"),
            TensorRole::Weight,
            rows,
            cols,
        ));
        tensors.push(info(format!("{name}.bias"), TensorRole::Float, 1, rows));
        data.tensors.push(TensorData::Weight(WeightQuant {
            bits: BitWidth::B2,
            scale: vec![1.0; rows],
            zero_point: vec![2; rows],
            codes: vec![1; rows * cols],
        }));
        data.tensors.push(TensorData::Float(vec![0.0; rows]));
        (TensorId(id), TensorId(id + 1))
    };
    let (qkv_weight, qkv_bias) = weight(&mut data, "wide.qkv", 3 * head_dim, 1);
    let (head_weight, head_bias) = weight(&mut data, "wide.head", 1, head_dim);
    let quant = data.quantization.activations[2].clone();
    let (norm, logits) = (BufferId(2), BufferId(3));
    let (qkv, attention) = (BufferId(4), BufferId(5));
    data.program.ops.truncate(3); // without the head
    data.quantization.softmax.truncate(3);
    for (name, cols) in [("wide.qkv", 3 * head_dim), ("wide.attention", head_dim)] {
        data.program.buffers.push(Buffer {
            name: name.into(),
            rows: 1,
            cols,
        });
        data.quantization.activations.push(quant.clone());
    }
    let linear = |input, weight, bias, output| Op::Linear {
        input,
        weight,
        bias,
        activation: Activation::Identity,
        residual: None,
        output,
    };
    data.program.ops.extend([
        linear(norm, qkv_weight, qkv_bias, qkv),
        Op::Attention {
            qkv,
            heads: 1,
            head_dim,
            scale: 1.0,
            window: None,
            bias: None,
            output: attention,
        },
        linear(attention, head_weight, head_bias, logits),
    ]);
    data.quantization
        .softmax
        .extend([None, Some(softmax), None]);
    data
}

/// The sums of a head are as large as its own multipliers let them be.
#[test]
fn sums_of_every_head_are_bounded() {
    let with_largest = |head: usize, largest: i16| {
        let config = VitConfig {
            image: 23, // 530 tokens
            patch: 1,
            dim: 2,
            depth: 1,
            heads: 2,
            mlp_ratio: 1,
            classes: 1,
        };
        let mut softmax = synthetic::log2_softmax_per_head(BitWidth::B2, 2);
        softmax.codebooks[head].multipliers[0] = largest;
        write(&synthetic::vit(
            config,
            BitWidth::B4,
            BitWidth::B8,
            &softmax,
            1,
        ))
    };
    for head in [0, 1] {
        assert!(with_largest(head, 15_000).is_ok());
        let overflow = with_largest(head, 16_000).unwrap_err();
        let named = matches!(
            overflow,
            WriteError::Invalid(ParseError::Overflow { what, .. })
                if what == "the sum of attention times values"
        );
        assert!(named, "{overflow}");
    }
}

/// Operation 10 of the golden files: the attention with a codebook per head.
const SECOND_ATTENTION: usize = 10;

#[test]
fn an_attention_has_one_codebook_or_one_for_each_head() {
    let with_count = |count: usize| {
        let mut data = golden();
        let quant = softmax(&mut data, SECOND_ATTENTION);
        quant.codebooks = vec![quant.codebooks[0].clone(); count];
        data
    };
    assert!(write(&with_count(1)).is_ok());
    assert!(write(&with_count(2)).is_ok());
    assert!(matches!(invalid(&with_count(0)), ParseError::Count { .. }));
    for count in [3, 100] {
        let rule = "there must be one codebook, or one for each head";
        let expected = ParseError::Softmax {
            op: SECOND_ATTENTION,
            rule,
        };
        assert_eq!(invalid(&with_count(count)), expected);
    }
}

#[test]
fn every_codebook_is_checked() {
    for head in [0, 1] {
        let broken = |change: &dyn Fn(&mut SoftmaxCodebook)| {
            let mut data = with_codebook_per_head();
            change(&mut softmax(&mut data, SECOND_ATTENTION).codebooks[head]);
            invalid(&data)
        };
        let rule = |error: ParseError| match error {
            ParseError::Softmax { op, rule } if op == SECOND_ATTENTION => rule,
            other => panic!("{other}"),
        };
        let nan = broken(&|codebook| codebook.thresholds[6] = f32::NAN);
        assert_eq!(rule(nan), "thresholds must be finite or +inf");
        let falling = broken(&|codebook| codebook.thresholds[1] = 0.25);
        assert_eq!(rule(falling), "thresholds must ascend");
        let large = broken(&|codebook| codebook.multipliers[7] = 16385);
        assert_eq!(rule(large), "multipliers must be -16384 to 16384");
        for bad in BAD_SCALES {
            let error = broken(&|codebook| codebook.scale = bad);
            let named = matches!(error, ParseError::Value { what: "scale", .. });
            assert!(named, "{error}");
        }
        let mut data = with_codebook_per_head();
        softmax(&mut data, SECOND_ATTENTION).codebooks[head].multipliers = vec![1; 7];
        let error = write(&data).expect_err("a multiplier is missing");
        assert!(
            matches!(
                error,
                WriteError::Length {
                    what: "multipliers",
                    ..
                }
            ),
            "{error}"
        );
    }
}

// Operation, bits, method, kind and renormalisation of the two attentions.
const ROW_MAX: &[u8] = b"\x03\0\0\0\x02\x04\0\x01";
const LOG2: &[u8] = b"\x0a\0\0\0\x03\0\x01\0";

/// A file can use both features: their bits do not disturb each other.
#[test]
fn both_features_can_be_required_at_once() {
    let mut data = with_codebook();
    data.quantization.softmax = with_codebook_per_head().quantization.softmax;
    let file = write(&data).expect("a valid model");
    let both = FEATURE_CODEBOOK | FEATURE_SOFTMAX_PER_HEAD;
    assert_eq!(u32_at(&file, FEATURES), both);
    assert_eq!(read(&file), Ok(()));
    let missing = ParseError::Features {
        required: FEATURE_SOFTMAX_PER_HEAD,
        used: both,
    };
    assert_eq!(
        refused(&requiring(&file, FEATURE_SOFTMAX_PER_HEAD)),
        missing
    );
}

#[test]
fn codebooks_per_head_are_required_exactly_if_they_are_used() {
    assert_eq!(u32_at(PER_HEAD, FEATURES), FEATURE_SOFTMAX_PER_HEAD);
    // Without the bit the count is read as a scale, with it a scale as the count.
    refused(&requiring(PER_HEAD, 0));
    refused(&requiring(GOLDEN, FEATURE_SOFTMAX_PER_HEAD));
    // A count of 1 everywhere is no codebook for each head.
    let mut sections = raw::split(GOLDEN);
    let quant = &mut sections[raw::QUANT];
    for softmax in [ROW_MAX, LOG2] {
        let at = after(quant, softmax);
        quant.bytes.splice(at..at, [1, 0, 0, 0]);
    }
    let needless = ParseError::Features {
        required: FEATURE_SOFTMAX_PER_HEAD,
        used: 0,
    };
    let file = requiring(&raw::join(&sections), FEATURE_SOFTMAX_PER_HEAD);
    assert_eq!(refused(&file), needless);
    // No codebook would have room for so many.
    for count in [1000, 1 << 27, u32::MAX] {
        let mut sections = raw::split(PER_HEAD);
        let quant = &mut sections[raw::QUANT];
        let at = after(quant, LOG2);
        put(&mut quant.bytes, at, &u32::to_le_bytes(count));
        let error = refused(&requiring(&raw::join(&sections), FEATURE_SOFTMAX_PER_HEAD));
        let named = matches!(
            error,
            ParseError::Count {
                what: "softmax codebooks",
                ..
            }
        );
        assert!(named, "{error}");
    }
}

/// As is an operation with a tag above 5: each of them alone makes it required.
/// To clamp a code is ReLU only where zero is the lowest; and only codes are clamped.
#[test]
fn a_relu_writes_codes_from_zero_on() {
    let softmax = synthetic::row_max_softmax(BitWidth::B4);
    let mut all = synthetic::architectures().into_iter();
    let (_, program) = all
        .find(|(name, _)| *name == "vit-relu")
        .expect("it is there");
    let relu = |op: &&mut Op| {
        matches!(
            op,
            Op::Linear {
                activation: Activation::Relu,
                ..
            }
        )
    };
    let mut data = synthetic::model(program, BitWidth::B4, BitWidth::B4, &softmax, 1);
    assert!(write(&data).is_ok());
    let op = data.program.ops.iter_mut().find(relu).expect("a ReLU");
    let hidden = op.output();
    let quant = data.quantization.activations[hidden.index()].as_mut();
    quant.expect("it is coded").zero_point = vec![1];
    let buffer = data.program.buffers[hidden.index()].name.clone();
    let error = write(&data).expect_err("negative codes");
    assert_eq!(
        error,
        WriteError::Invalid(ParseError::NegativeRelu { buffer })
    );

    let mut program = data.program;
    let last = program.ops.last_mut().expect("a classifier");
    let logits = last.output();
    if let Op::Linear { activation, .. } = last {
        *activation = Activation::Relu;
    }
    let mixed = ProgramError::MixedUse { buffer: logits.0 };
    assert_eq!(program.validate(), Err(mixed));
}

#[test]
fn operations_are_required_exactly_if_they_are_used() {
    assert_eq!(u32_at(OPERATIONS, FEATURES), FEATURE_OPERATIONS);
    let missing = ParseError::Features {
        required: 0,
        used: FEATURE_OPERATIONS,
    };
    assert_eq!(refused(&requiring(OPERATIONS, 0)), missing);
    let needless = ParseError::Features {
        required: FEATURE_OPERATIONS,
        used: 0,
    };
    assert_eq!(refused(&requiring(GOLDEN, FEATURE_OPERATIONS)), needless);
    let softmax = synthetic::row_max_softmax(BitWidth::B4);
    for (name, program) in synthetic::architectures() {
        let used = program.ops.iter().any(|op| match op {
            Op::Attention { window, .. } => window.is_some(),
            Op::HeadNorm { .. } | Op::Gate { .. } | Op::Pool { .. } | Op::PatchMerge { .. } => true,
            Op::PatchEmbed { .. }
            | Op::LayerNorm { .. }
            | Op::Linear { .. }
            | Op::SelectToken { .. } => false,
        });
        let model = synthetic::model(program, BitWidth::B4, BitWidth::B8, &softmax, 1);
        let file = write(&model).expect("a valid model");
        let expected = if used { FEATURE_OPERATIONS } else { 0 };
        assert_eq!(u32_at(&file, FEATURES), expected, "{name}");
    }
    // Beside another bit.
    let mut data = operations();
    let norm = data.program.buffers.iter().position(|b| b.name == "a.norm");
    let quants = &mut data.quantization.activations;
    quants[norm.expect("a buffer of that name")] = Some(ActivationQuant {
        bits: BitWidth::B2,
        scale: vec![0.125],
        zero_point: vec![100],
        codebook: Some(Codebook {
            thresholds: vec![40, 90, 160],
            levels: vec![20, 64, 120, 200],
        }),
    });
    let file = write(&data).expect("a valid model");
    assert_eq!(
        u32_at(&file, FEATURES),
        FEATURE_CODEBOOK | FEATURE_OPERATIONS
    );
    assert_eq!(read(&file), Ok(()));
}

/// So are panels.
#[test]
fn panels_are_required_exactly_if_they_are_used() {
    assert_eq!(u32_at(PANELS, FEATURES), FEATURE_PANELS);
    let missing = ParseError::Features {
        required: 0,
        used: FEATURE_PANELS,
    };
    assert_eq!(refused(&requiring(PANELS, 0)), missing);
    let needless = ParseError::Features {
        required: FEATURE_PANELS,
        used: 0,
    };
    assert_eq!(refused(&requiring(GOLDEN, FEATURE_PANELS)), needless);
}

/// Weights of any order, of every width, are read back; and written as they were.
#[test]
fn weights_in_panels_are_the_same_weights() {
    let softmax = synthetic::row_max_softmax(BitWidth::B4);
    for bits in BitWidth::ALL {
        let data = synthetic::vit(VitConfig::SMALLEST, bits, BitWidth::B4, &softmax, 3);
        let plain = write(&data).expect("a valid model");
        for isa in Isa::ALL {
            let file = write_for(&data, isa).expect("a valid model");
            assert_eq!(read(&file), Ok(()), "{bits:?} {}", isa.name());
            let model = Model::parse(&file).expect("a valid file");
            assert_eq!(model.to_data(), data);
            assert_eq!(write(&model.to_data()).as_deref(), Ok(&plain[..]));
            for op in &model.program().ops {
                let Some(id) = op.weight() else { continue };
                assert!(model.panel_layout(id).is_some());
                assert_eq!(&file[model.codes_range(id)], model.weight(id).codes());
                assert!(model.codes_range(id).start.is_multiple_of(64));
            }
        }
    }
}

/// What no code stands for would be a product that kernels have no room for.
#[test]
fn panels_that_hold_something_else_are_refused() {
    let softmax = synthetic::row_max_softmax(BitWidth::B4);
    for (bits, bad) in [
        (BitWidth::B2, 0x5),
        (BitWidth::B3, 0xc),
        (BitWidth::B6, 0x7f),
    ] {
        let data = synthetic::vit(VitConfig::SMALLEST, bits, BitWidth::B4, &softmax, 3);
        let mut file = write_for(&data, Isa::Portable).expect("a valid model");
        let model = Model::parse(&file).expect("a valid file");
        let id = model.program().ops[0].weight().expect("an embedding");
        let (name, at) = (
            model.program().tensors[id.index()].name.clone(),
            model.codes_range(id).start,
        );
        file[at] = bad;
        fix_checksums(&mut file);
        let expected = ParseError::Panels {
            tensor: name,
            fault: PanelFault::Range { panel: 0 },
        };
        assert_eq!(refused(&file), expected, "{bits:?}");
    }
}

#[test]
fn orders_that_do_not_exist_are_refused() {
    // Behind the name of the first tensor, its role and its width.
    let at = section(PANELS, SectionKind::Tensors).start + 4 + 2 + 23 + 2;
    assert_eq!(PANELS[at..at + 4], [16, 4, 16, 1]);
    for order in [
        [0, 4, 16, 1],
        [8, 4, 16, 1],
        [255, 4, 16, 1],
        [16, 0, 16, 1],
        [16, 3, 16, 1],
        [16, 4, 5, 1],
        [16, 4, 16, 2],
    ] {
        let mut file = PANELS.to_vec();
        put(&mut file, at, &order);
        fix_checksums(&mut file);
        let error = refused(&file);
        let what = "order of panels";
        assert!(
            matches!(error, ParseError::Value { what: found, .. } if found == what),
            "{error}"
        );
    }
    let panels = PanelLayout {
        nr: 24,
        sub: 24,
        kr: 4,
        sums: false,
    };
    let error = write_in_panels(&golden(), |_| Some(panels)).expect_err("no such order");
    assert!(matches!(error, WriteError::Order { .. }), "{error}");
}

/// Every tag but those of SPEC.md, section 5.
#[test]
fn an_operation_or_a_pooling_that_does_not_exist_is_refused() {
    let sections = raw::split(OPERATIONS);
    let with = |at: usize, value: u8| {
        let mut sections = sections.clone();
        sections[raw::PROGRAM].bytes[at] = value;
        read(&requiring(&raw::join(&sections), FEATURE_OPERATIONS))
    };
    // The operations end with a pooling into a buffer, and the head.
    let end = sections[raw::PROGRAM].bytes.len();
    let (head, pool) = (end - 12, end - 12 - 14);
    assert_eq!(sections[raw::PROGRAM].bytes[pool], 9);
    for value in 0..=255 {
        let pooling = with(pool + 11, value);
        assert_eq!(pooling.is_ok(), value == 0, "pooling {value}");
        let named = |what: &str| {
            matches!(
                pooling,
                Err(ParseError::Value { what: w, .. }) if w == what
            )
        };
        assert_eq!(named("tag of a pooling"), value > 1, "pooling {value}");
        let tag = with(head, value);
        let unknown = matches!(
            tag,
            Err(ParseError::Value {
                what: "tag of an operation",
                ..
            })
        );
        assert_eq!(unknown, !(1..=10).contains(&value), "tag {value}: {tag:?}");
    }
}

/// Features have no classes, so no labels.
#[test]
fn a_model_without_a_classifier_has_no_labels() {
    let softmax = synthetic::row_max_softmax(BitWidth::B4);
    let features = synthetic::architectures().into_iter();
    let features = features.filter(|(_, program)| !program.classifies());
    for (name, program) in features {
        let mut data = synthetic::model(program, BitWidth::B4, BitWidth::B8, &softmax, 1);
        assert!(write(&data).is_ok(), "{name}");
        let cols = data.program.output_shape()[1];
        data.labels = (0..cols).map(|c| format!("channel {c}")).collect();
        let refused = ParseError::LabelCount {
            found: cols,
            classes: 0,
        };
        assert_eq!(invalid(&data), refused, "{name}");
    }
}

#[test]
fn a_method_that_does_not_exist_is_refused() {
    let at = after(&raw::split(GOLDEN)[raw::QUANT], ROW_MAX) - 3;
    for method in 0..=255 {
        let found = read(&with_bytes(raw::QUANT, at, &[method]));
        assert_eq!(found.is_ok(), method <= 9, "method {method}");
    }
}

// --- Mistakes of the one who writes ---

#[test]
fn lists_of_the_wrong_length_are_not_written() {
    let refused = |change: &dyn Fn(&mut ModelData)| {
        let mut data = golden();
        change(&mut data);
        write(&data).expect_err("the model is invalid")
    };
    let length = |error: WriteError, list: &str| match error {
        WriteError::Length { what, .. } => assert_eq!(what, list),
        other => panic!("{other}"),
    };
    length(refused(&|data| drop(data.tensors.pop())), "tensors");
    length(
        refused(&|data| data.tensors[1] = TensorData::Float(vec![])),
        "values",
    );
    length(
        refused(&|data| drop(data.quantization.activations.pop())),
        "activation quantizers",
    );
    length(
        refused(&|data| drop(data.quantization.softmax.pop())),
        "softmax quantizers",
    );
    length(
        refused(&|data| activation(data, 1).zero_point.push(0)),
        "zero points",
    );
    let wider = |data: &mut ModelData| softmax(data, 3).bits = BitWidth::B3;
    length(refused(&wider), "thresholds");
    let error = refused(&|data| data.tensors[0] = TensorData::Float(vec![]));
    assert!(matches!(error, WriteError::Role { .. }), "{error}");
    let error = refused(&|data| {
        let TensorData::Weight(weight) = &mut data.tensors[0] else {
            panic!("the first tensor is a weight")
        };
        weight.codes[9] = 8; // of 3 bits
    });
    assert!(
        matches!(
            error,
            WriteError::Code {
                index: 9,
                found: 8,
                most: 7,
                ..
            }
        ),
        "{error}"
    );
}

/// Id 65535 would be read back as "none".
#[test]
fn an_id_that_stands_for_none_is_not_written() {
    let error = invalid_with(|data| {
        let Op::PatchEmbed { prefix, .. } = &mut data.program.ops[0] else {
            panic!("the first operation is the patch embedding")
        };
        *prefix = Some(TensorId(u16::MAX));
    });
    let missing = ProgramError::NoSuchTensor {
        op: 0,
        tensor: u16::MAX,
    };
    assert_eq!(error, ParseError::Program(missing));
}
