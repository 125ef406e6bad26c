//! A file that changes while it is read gives errors, not wrong answers.
#![forbid(unsafe_code)]

use std::cell::RefCell;
use std::io::{self, Cursor, Read, Seek, SeekFrom};

use tpvit_models::{
    BitWidth, FileHead, Model, ModelData, ParseError, ReadError, Tensor, TensorData, TensorId,
    TensorReader, synthetic, write,
};

/// A file that somebody else may write.
struct Shared<'a>(&'a RefCell<Cursor<Vec<u8>>>);

impl Read for Shared<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        self.0.borrow_mut().read(out)
    }
}

impl Seek for Shared<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.0.borrow_mut().seek(to)
    }
}

#[test]
fn tensors_are_those_that_were_written_in_any_order() {
    read_backwards(&synthetic::tiny());
    let softmax = synthetic::row_max_softmax(BitWidth::B4);
    for (_, program) in synthetic::architectures() {
        read_backwards(&synthetic::model(
            program,
            BitWidth::B3,
            BitWidth::B8,
            &softmax,
            1,
        ));
    }
}

fn read_backwards(data: &ModelData) {
    let mut file = Cursor::new(write(data).expect("a valid model"));
    let head = FileHead::read(&mut file).expect("bytes can be read");
    let info = head.parse().expect("a valid file");
    let mut reader = TensorReader::open(&info, file).expect("a valid file");
    for (index, expected) in data.tensors.iter().enumerate().rev() {
        match (reader.tensor(TensorId(index as u16)), expected) {
            (Ok(Tensor::Float(view)), TensorData::Float(values)) => {
                assert_eq!(view.to_vec(), *values);
            }
            (Ok(Tensor::Weight(view)), TensorData::Weight(weight)) => {
                assert_eq!(view.to_quant(), *weight);
            }
            (found, _) => panic!("{found:?}"),
        }
    }
}

#[test]
fn the_head_is_all_before_data() {
    let bytes = write(&synthetic::tiny()).expect("a valid model");
    let data = Model::parse(&bytes).expect("a valid file").sections()[6];
    // What follows is not needed to read the head.
    let mut damaged = bytes.clone();
    damaged[data.offset..].fill(0xff);
    let head = FileHead::read(&mut Cursor::new(damaged)).expect("bytes can be read");
    let info = head.parse().expect("nothing before DATA is damaged");
    assert_eq!(info.file_len(), bytes.len());
    let checksum = TensorReader::open(&info, Cursor::new(vec![0; bytes.len()])).err();
    assert!(matches!(
        checksum,
        Some(ReadError::Parse(ParseError::SectionChecksum { .. }))
    ));
}

#[test]
fn a_file_that_shrinks_or_changes_is_noticed() {
    let bytes = write(&synthetic::tiny()).expect("a valid model");
    let file = RefCell::new(Cursor::new(bytes.clone()));
    let head = FileHead::read(&mut Shared(&file)).expect("bytes can be read");
    let info = head.parse().expect("a valid file");
    let data = info.sections()[6].offset;
    let mut reader = TensorReader::open(&info, Shared(&file)).expect("a valid file");
    assert!(reader.tensor(TensorId(0)).is_ok());

    file.borrow_mut().get_mut()[data..].fill(0xff);
    assert!(matches!(
        reader.tensor(TensorId(0)),
        Err(ReadError::Parse(ParseError::TensorValue { .. }))
    ));
    file.borrow_mut().get_mut().truncate(data + 10);
    assert!(matches!(
        reader.tensor(TensorId(0)),
        Err(ReadError::Io(error)) if error.kind() == io::ErrorKind::UnexpectedEof
    ));
}
