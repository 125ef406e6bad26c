//! What [`Model::parse`] accepts can be run: whatever bytes of a file are changed,
//! with true checksums, there is an error or a result.
#![forbid(unsafe_code)]

use std::ops::Range;

use tpvit_models::file::SectionKind;
use tpvit_models::{Model, write_for};
use tpvit_runtime::{Isa, Options, Session};

const GOLDEN: [&[u8]; 2] = [
    include_bytes!("../../models/tests/golden/v1.tpv"),
    include_bytes!("../../models/tests/golden/v1_operations.tpv"),
];

/// Far more than the golden files need, far less than a file may ask for.
const MOST: usize = 1 << 20;

fn section(file: &[u8], kind: SectionKind) -> Range<usize> {
    let model = Model::parse(file).expect("a good file");
    let mut sections = model.sections().iter();
    let section = sections.find(|s| s.kind == kind).expect("every section");
    section.offset..section.offset + section.len
}

/// Makes the checksums of a changed file of seven sections true again.
fn fix_checksums(file: &mut [u8]) {
    let entry = |index: usize| 32 + 32 * index;
    let number = |at: usize, file: &[u8]| {
        let bytes = file[at..at + 8].try_into().expect("8 bytes");
        u64::from_le_bytes(bytes) as usize
    };
    for at in (0..7).map(entry) {
        let (offset, len) = (number(at + 8, file), number(at + 16, file));
        let crc = crc32fast::hash(&file[offset..offset + len]);
        file[at + 24..at + 28].copy_from_slice(&crc.to_le_bytes());
    }
    let mut crc = crc32fast::Hasher::new();
    crc.update(&file[..28]);
    crc.update(&file[32..entry(7)]);
    file[28..32].copy_from_slice(&crc.finalize().to_le_bytes());
}

/// Whether the file is accepted; then it runs, on one thread and on two.
fn runs(file: &[u8]) -> bool {
    let Ok(model) = Model::parse(file) else {
        return false;
    };
    let program = model.program();
    let [height, width] = program.image;
    // A large picture is no other case, but takes its time.
    if height * width * 3 > MOST || program.buffers.iter().any(|b| b.rows * b.cols > MOST) {
        return true;
    }
    let pixels: Vec<u8> = (0..height * width * 3).map(|i| (i * 7) as u8).collect();
    let [rows, cols] = program.output_shape();
    let mut results = [1, 2].map(|threads| {
        let options = Options {
            threads,
            ..Options::default()
        };
        let mut session = Session::new(&model, &options).ok()?;
        let result = session.run(&pixels).expect("the picture has its size");
        assert_eq!(result.len(), rows * cols);
        Some(result.iter().map(|x| x.to_bits()).collect::<Vec<_>>())
    });
    let first = results[0].take();
    assert_eq!(first, results[1], "one thread is as good as two");
    true
}

/// The golden files, and one in the order of this machine's kernels.
fn files() -> Vec<Vec<u8>> {
    let mut files: Vec<_> = GOLDEN.map(<[u8]>::to_vec).into();
    let model = Model::parse(GOLDEN[0]).expect("a good file");
    files.push(write_for(&model.to_data(), Isa::best()).expect("a good model"));
    files
}

#[test]
fn what_is_accepted_runs() {
    for golden in &files() {
        let mut file = golden.to_vec();
        let mut accepted = 0;
        for kind in [
            SectionKind::Program,
            SectionKind::Tensors,
            SectionKind::Quant,
        ] {
            for at in section(golden, kind) {
                let was = golden[at];
                let near = [was.wrapping_add(1), was.wrapping_sub(1), was ^ 0x80];
                for value in near.into_iter().chain([0, 1, 2, 3, 4, 8, 0x7f, 0xff]) {
                    if value == was {
                        continue;
                    }
                    file[at] = value;
                    fix_checksums(&mut file);
                    accepted += usize::from(runs(&file));
                    file.copy_from_slice(golden);
                }
            }
        }
        assert!(accepted > 1000, "only {accepted} files were accepted");
    }
}
