//! Reads the tensors of a file one at a time, so that a model need not be in
//! memory as a whole.
//!
//! ```text
//! file ─ FileHead::read ▶ FileHead ─ parse ▶ ModelInfo          all before DATA
//!      ─ TensorReader::open ▶ TensorReader ─ tensor ▶ Tensor    DATA, twice: its checksum, then each tensor
//! ```
//!
//! What [`Model::parse`](crate::Model::parse) checks is checked here too, but
//! for the values of a tensor that nobody asks for.
#![deny(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    clippy::unwrap_used
)]

use core::fmt;
use std::io::{self, Read, Seek, SeekFrom};
use std::vec;
use std::vec::Vec;

use super::container::{Container, Entry, SectionKind};
use super::error::ParseError;
use super::layout::{self, ENTRY_LEN, HEADER_LEN, MAGIC, SECTIONS_AT};
use super::model::{ModelInfo, Tensor};
use super::parse;
use crate::program::TensorId;

/// Bytes of a piece of DATA whose checksum is computed at a time.
const PIECE: usize = 1 << 16;

/// Why a file cannot be read.
#[derive(Debug)]
#[non_exhaustive]
pub enum ReadError {
    /// The system gave no bytes.
    Io(io::Error),
    /// The bytes are not a model that can be run.
    Parse(ParseError),
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ReadError::Io(_) => write!(f, "cannot read the file"),
            ReadError::Parse(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for ReadError {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        match self {
            ReadError::Io(error) => Some(error),
            ReadError::Parse(_) => None, // it is shown as this error
        }
    }
}

impl From<io::Error> for ReadError {
    fn from(error: io::Error) -> ReadError {
        ReadError::Io(error)
    }
}

impl From<ParseError> for ReadError {
    fn from(error: ParseError) -> ReadError {
        ReadError::Parse(error)
    }
}

/// The bytes of a file that come before DATA, not yet checked.
#[derive(Clone, Debug)]
pub struct FileHead {
    bytes: Vec<u8>,
    file_len: usize,
}

impl FileHead {
    /// Reads them from the start of `file`.
    ///
    /// Takes the file's word for where DATA begins; [`FileHead::parse`] finds
    /// out. A file with a section after DATA is read whole; of one that is no
    /// `.tpv` file, a few bytes are.
    ///
    /// # Errors
    /// Those of the system.
    pub fn read(file: &mut (impl Read + Seek)) -> io::Result<FileHead> {
        let file_len = file.seek(SeekFrom::End(0))?;
        file.rewind()?;
        let file_len = usize::try_from(file_len).map_err(io::Error::other)?;
        let mut head = FileHead {
            bytes: Vec::new(),
            file_len,
        };
        head.read_to(file, HEADER_LEN)?;
        if head.bytes.starts_with(&MAGIC) {
            head.read_to(file, head.table_end())?;
            head.read_to(file, head.data_start())?;
        }
        Ok(head)
    }

    /// Reads and checks them.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn parse(&self) -> Result<ModelInfo<'_>, ParseError> {
        parse::info(Container::parse(&self.bytes, self.file_len)?)
    }

    /// Reads on up to `end`, or the end of the file.
    fn read_to(&mut self, file: &mut impl Read, end: usize) -> io::Result<()> {
        let read = self.bytes.len();
        let end = end.min(self.file_len).max(read);
        // A file may be as long as a disk, or longer where it has holes.
        self.bytes.try_reserve_exact(end.saturating_sub(read))?;
        self.bytes.resize(end, 0);
        match self.bytes.get_mut(read..) {
            Some(rest) => file.read_exact(rest),
            None => Ok(()),
        }
    }

    /// Where the section table ends, if the header is one.
    fn table_end(&self) -> usize {
        let count = self.bytes.get(SECTIONS_AT..).and_then(<[u8]>::first_chunk);
        let count = count.map_or(0, |&count| u32::from_le_bytes(count));
        usize::try_from(count)
            .unwrap_or(usize::MAX)
            .saturating_mul(ENTRY_LEN)
            .saturating_add(HEADER_LEN)
    }

    /// Where DATA begins, if it is the last section and all before it are where
    /// they must be; otherwise the end of the file, which is to be looked at whole.
    fn data_start(&self) -> usize {
        let table = self.bytes.get(HEADER_LEN..).unwrap_or_default();
        let (entries, _) = table.as_chunks::<ENTRY_LEN>();
        let mut end = self.bytes.len();
        let mut start = None;
        for entry in entries.iter().map(Entry::read) {
            let aligned = layout::align(end).filter(|&at| at as u64 == entry.offset);
            let (Some(at), Ok(len)) = (aligned, usize::try_from(entry.len)) else {
                return self.file_len;
            };
            start = (entry.kind == SectionKind::Data.number()).then_some(at);
            end = at.saturating_add(len);
        }
        start.unwrap_or(self.file_len)
    }
}

/// Reads the tensors of a file, each when it is asked for.
///
/// ```
/// # use std::io::Cursor;
/// # use tpvit_models::{FileHead, TensorId, TensorReader, synthetic, write};
/// # let mut file = Cursor::new(write(&synthetic::tiny()).unwrap());
/// let head = FileHead::read(&mut file)?;
/// let info = head.parse()?;
/// let mut tensors = TensorReader::open(&info, file)?;
/// assert_eq!(tensors.tensor(TensorId(0))?.weight().rows(), 12);
/// # Ok::<(), tpvit_models::ReadError>(())
/// ```
#[derive(Debug)]
pub struct TensorReader<'i, R> {
    info: &'i ModelInfo<'i>,
    file: R,
    buffer: Vec<u8>, // of the last tensor, or longer
}

impl<'i, R: Read + Seek> TensorReader<'i, R> {
    /// Compares the checksum of DATA.
    ///
    /// # Errors
    /// Those of the system, and a checksum that differs.
    pub fn open(info: &'i ModelInfo<'i>, file: R) -> Result<Self, ReadError> {
        let mut reader = TensorReader {
            info,
            file,
            buffer: vec![0; PIECE],
        };
        let data = info.sections.iter().find(|s| s.kind == SectionKind::Data);
        if let Some(data) = data {
            data.check_crc(reader.checksum(data.offset, data.len)?)?;
        }
        Ok(reader)
    }

    /// What the tensors belong to.
    pub fn info(&self) -> &'i ModelInfo<'i> {
        self.info
    }

    /// Reads and checks a tensor.
    ///
    /// # Errors
    /// Those of the system, and a value that must not be.
    ///
    /// # Panics
    /// If `id` is not of [`ModelInfo::program`].
    pub fn tensor(&mut self, id: TensorId) -> Result<Tensor<'_>, ReadError> {
        let tensors = &self.info.program.tensors;
        let found = tensors
            .get(id.index())
            .zip(self.info.places.get(id.index()));
        let (tensor, place) = found.expect("the tensor is of this model's program");
        let len = place.end.saturating_sub(place.filling);
        self.file.seek(SeekFrom::Start(place.filling as u64))?;
        let bytes = buffer(&mut self.buffer, len)?;
        self.file.read_exact(bytes)?;
        Ok(parse::tensor(tensor, place, bytes)?)
    }

    fn checksum(&mut self, start: usize, len: usize) -> io::Result<u32> {
        self.file.seek(SeekFrom::Start(start as u64))?;
        let mut crc = crc32fast::Hasher::new();
        let mut left = len;
        while left > 0 {
            let piece = buffer(&mut self.buffer, left.min(PIECE))?;
            self.file.read_exact(piece)?;
            crc.update(piece);
            left = left.saturating_sub(piece.len());
        }
        Ok(crc.finalize())
    }
}

/// The first `len` bytes of a buffer, which grows to that.
fn buffer(buffer: &mut Vec<u8>, len: usize) -> io::Result<&mut [u8]> {
    if buffer.len() < len {
        buffer.try_reserve_exact(len.saturating_sub(buffer.len()))?;
        buffer.resize(len, 0);
    }
    Ok(buffer.split_at_mut(len).0)
}
