//! Reads numbers and text from one section, never past its end.
#![deny(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    clippy::unwrap_used
)]

use super::container::SectionKind;
use super::error::ParseError;
use crate::quant::BitWidth;

/// A place in a section. `rest` only ever shrinks, from the front.
pub(super) struct Cursor<'a> {
    section: SectionKind,
    end: u64, // offset in the file at which the section ends
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    /// The start of `bytes`, which begin at `offset` of the file.
    pub(super) fn new(section: SectionKind, offset: u64, bytes: &'a [u8]) -> Self {
        Cursor {
            section,
            end: offset.saturating_add(bytes.len() as u64),
            rest: bytes,
        }
    }

    /// Where in the file the cursor stands.
    pub(super) fn offset(&self) -> u64 {
        self.end.saturating_sub(self.rest.len() as u64)
    }

    pub(super) fn bytes(&mut self, len: usize) -> Result<&'a [u8], ParseError> {
        let Some((taken, rest)) = self.rest.split_at_checked(len) else {
            return Err(ParseError::SectionEnd {
                section: self.section,
                offset: self.offset(),
            });
        };
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], ParseError> {
        let Some((taken, rest)) = self.rest.split_first_chunk::<N>() else {
            return Err(ParseError::SectionEnd {
                section: self.section,
                offset: self.offset(),
            });
        };
        self.rest = rest;
        Ok(*taken)
    }

    pub(super) fn u8(&mut self) -> Result<u8, ParseError> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub(super) fn u16(&mut self) -> Result<u16, ParseError> {
        self.array().map(u16::from_le_bytes)
    }

    pub(super) fn i16(&mut self) -> Result<i16, ParseError> {
        self.array().map(i16::from_le_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, ParseError> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, ParseError> {
        self.array().map(u64::from_le_bytes)
    }

    pub(super) fn f32(&mut self) -> Result<f32, ParseError> {
        self.array().map(f32::from_le_bytes)
    }

    /// A `u32` that counts pixels, rows, columns.
    pub(super) fn size(&mut self, what: &'static str) -> Result<usize, ParseError> {
        let offset = self.offset();
        let found = self.u32()?;
        usize::try_from(found).map_err(|_| self.value_at(what, offset))
    }

    /// A `u32` count of entries of at least `least` bytes each, so that room
    /// for them may be reserved: no more of them than the section can hold,
    /// nor more than the 16-bit numbering of buffers and tensors allows.
    pub(super) fn count(&mut self, what: &'static str, least: usize) -> Result<usize, ParseError> {
        const MOST: usize = 65535;
        let found = self.u32()?;
        let most = self.rest.len().checked_div(least).unwrap_or(0).min(MOST);
        usize::try_from(found)
            .ok()
            .filter(|&count| count <= most)
            .ok_or(ParseError::Count {
                section: self.section,
                what,
                found: u64::from(found),
                most: most as u64,
            })
    }

    /// A width of codes, as one byte.
    pub(super) fn bits(&mut self) -> Result<BitWidth, ParseError> {
        let offset = self.offset();
        BitWidth::from_bits(self.u8()?.into())
            .ok_or_else(|| self.value_at("width of codes", offset))
    }

    /// Bytes that must be zero.
    pub(super) fn reserved<const N: usize>(&mut self) -> Result<(), ParseError> {
        let offset = self.offset();
        if self.array::<N>()? != [0; N] {
            return Err(self.value_at("reserved field", offset));
        }
        Ok(())
    }

    /// A name: a `u16` length in bytes, then UTF-8; not empty, no control
    /// characters.
    pub(super) fn name(&mut self) -> Result<&'a str, ParseError> {
        let offset = self.offset();
        let len = usize::from(self.u16()?);
        let error = ParseError::Text {
            section: self.section,
            offset,
        };
        let Ok(text) = core::str::from_utf8(self.bytes(len)?) else {
            return Err(error);
        };
        if text.is_empty() || text.chars().any(char::is_control) {
            return Err(error);
        }
        Ok(text)
    }

    /// All that is left, as UTF-8.
    pub(super) fn rest_as_text(&mut self) -> Result<&'a str, ParseError> {
        let offset = self.offset();
        let section = self.section;
        let bytes = self.bytes(self.rest.len())?;
        core::str::from_utf8(bytes).map_err(|_| ParseError::Text { section, offset })
    }

    /// The section must end here.
    pub(super) fn finish(self) -> Result<(), ParseError> {
        if self.rest.is_empty() {
            return Ok(());
        }
        Err(ParseError::SectionRest {
            section: self.section,
            offset: self.offset(),
        })
    }

    pub(super) fn value_at(&self, what: &'static str, offset: u64) -> ParseError {
        ParseError::Value {
            section: self.section,
            what,
            offset,
        }
    }
}
