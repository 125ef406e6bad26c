//! Header and section table: which bytes belong to which section.
//!
//! Nothing is left over: the header and the table are covered by their own
//! checksum, every section by one in the table, and each byte between them is
//! checked to be zero. SPEC.md, sections 2 and 3.
#![deny(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    clippy::unwrap_used
)]

use super::error::ParseError;
use super::layout::{
    self, DATA, ENTRY_LEN, HEADER_CRC_AT, HEADER_LEN, LABELS, MAGIC, PREPROCESS, PROGRAM,
    PROVENANCE, QUANT, REQUIRED, SUPPORTED_FEATURES, TENSORS, VERSION,
};
use alloc::vec::Vec;
use core::fmt;

/// What a section holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SectionKind {
    /// Image size, buffers, operations.
    Program,
    /// Name, role, shape, width and place of each tensor.
    Tensors,
    /// Quantizers of buffers and of attention.
    Quant,
    /// What happens to a picture first.
    Preprocess,
    /// Names of the classes.
    Labels,
    /// Where the model came from, as JSON.
    Provenance,
    /// The tensors themselves.
    Data,
    /// Something optional that this reader skips.
    Unknown(u32),
}

impl SectionKind {
    /// Those of every file, in its order.
    pub(super) const ALL: [SectionKind; 7] = [
        SectionKind::Program,
        SectionKind::Tensors,
        SectionKind::Quant,
        SectionKind::Preprocess,
        SectionKind::Labels,
        SectionKind::Provenance,
        SectionKind::Data,
    ];

    /// The number in the section table.
    pub fn number(self) -> u32 {
        match self {
            SectionKind::Program => PROGRAM,
            SectionKind::Tensors => TENSORS,
            SectionKind::Quant => QUANT,
            SectionKind::Preprocess => PREPROCESS,
            SectionKind::Labels => LABELS,
            SectionKind::Provenance => PROVENANCE,
            SectionKind::Data => DATA,
            SectionKind::Unknown(number) => number,
        }
    }

    /// The name used in `SPEC.md`, `UNKNOWN` for a kind it does not list.
    pub fn name(self) -> &'static str {
        match self {
            SectionKind::Program => "PROGRAM",
            SectionKind::Tensors => "TENSORS",
            SectionKind::Quant => "QUANT",
            SectionKind::Preprocess => "PREPROCESS",
            SectionKind::Labels => "LABELS",
            SectionKind::Provenance => "PROVENANCE",
            SectionKind::Data => "DATA",
            SectionKind::Unknown(_) => "UNKNOWN",
        }
    }

    /// The flags this kind always has; any for an unknown one.
    pub(super) fn flags(self) -> u32 {
        match self {
            SectionKind::Program
            | SectionKind::Tensors
            | SectionKind::Quant
            | SectionKind::Preprocess
            | SectionKind::Data => REQUIRED,
            // A reader may do without the names of classes and the history.
            SectionKind::Labels | SectionKind::Provenance | SectionKind::Unknown(_) => 0,
        }
    }

    fn from_number(number: u32) -> Self {
        SectionKind::ALL
            .into_iter()
            .find(|kind| kind.number() == number)
            .unwrap_or(SectionKind::Unknown(number))
    }
}

impl fmt::Display for SectionKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SectionKind::Unknown(number) => write!(f, "UNKNOWN ({number})"),
            _ => f.write_str(self.name()),
        }
    }
}

/// A line of the section table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Section {
    /// What it holds.
    pub kind: SectionKind,
    /// Bytes from the start of the file; a multiple of [`ALIGN`](super::ALIGN).
    pub offset: usize,
    /// Length in bytes, without the filling after it.
    pub len: usize,
    /// CRC-32 (that of zlib and PNG) of its bytes.
    pub crc32: u32,
}

/// A checked header and section table.
#[derive(Clone, Debug)]
pub(super) struct Container<'a> {
    bytes: &'a [u8], // the file, or at least all that comes before DATA
    pub(super) file_len: usize,
    pub(super) version: (u16, u16),
    pub(super) features: u32,          // all of them known
    pub(super) sections: Vec<Section>, // by offset and by kind; none overlap
}

impl<'a> Container<'a> {
    /// `bytes` is a file of `file_len` bytes, or at least all that comes before
    /// DATA, whose checksum is not compared here.
    pub(super) fn parse(bytes: &'a [u8], file_len: usize) -> Result<Self, ParseError> {
        check_magic(bytes)?;
        let too_short = ParseError::FileLength {
            expected: HEADER_LEN as u64,
            found: bytes.len() as u64,
        };
        let Some((header, rest)) = bytes.split_first_chunk::<HEADER_LEN>() else {
            return Err(too_short);
        };
        let header = Header::read(header);
        header.check(file_len)?;
        let table = usize::try_from(header.sections)
            .ok()
            .and_then(|count| count.checked_mul(ENTRY_LEN))
            .and_then(|len| rest.get(..len))
            .ok_or(ParseError::SectionCount {
                found: header.sections,
            })?;
        header.check_crc(bytes, table)?;
        let container = Container {
            bytes,
            file_len,
            version: header.version,
            features: header.features,
            sections: read_table(bytes, file_len, table)?,
        };
        container.check_complete()?;
        container.check_crcs()?;
        Ok(container)
    }

    /// Where a section is that every file has.
    pub(super) fn place(&self, kind: SectionKind) -> Result<Section, ParseError> {
        let found = self.sections.iter().find(|section| section.kind == kind);
        found
            .copied()
            .ok_or(ParseError::MissingSection { section: kind })
    }

    /// The bytes of a section that every file has, and their offset.
    pub(super) fn section(&self, kind: SectionKind) -> Result<(u64, &'a [u8]), ParseError> {
        let section = self.place(kind)?;
        let bytes = self.bytes_of(&section);
        let bytes = bytes.ok_or(ParseError::MissingSection { section: kind })?;
        Ok((section.offset as u64, bytes))
    }

    fn bytes_of(&self, section: &Section) -> Option<&'a [u8]> {
        self.bytes.get(section.offset..)?.get(..section.len)
    }

    fn check_complete(&self) -> Result<(), ParseError> {
        for kind in SectionKind::ALL {
            self.place(kind)?;
        }
        Ok(())
    }

    fn check_crcs(&self) -> Result<(), ParseError> {
        let known = |section: &&Section| section.kind != SectionKind::Data;
        for section in self.sections.iter().filter(known) {
            let bytes = self.bytes_of(section).unwrap_or_default();
            section.check_crc(crc32fast::hash(bytes))?;
        }
        Ok(())
    }
}

impl Section {
    /// Compares the checksum of the section's bytes with the stored one.
    pub(super) fn check_crc(&self, computed: u32) -> Result<(), ParseError> {
        if computed != self.crc32 {
            return Err(ParseError::SectionChecksum {
                section: self.kind,
                stored: self.crc32,
                computed,
            });
        }
        Ok(())
    }
}

/// The magic as a text-mode transfer leaves it: `\r\n` became `\n`, `\n`
/// became `\r\n`, or the high bit was cleared.
fn check_magic(bytes: &[u8]) -> Result<(), ParseError> {
    if bytes.starts_with(&MAGIC) {
        return Ok(());
    }
    let damaged: [&[u8]; 4] = [
        b"\x89TPV\n\x1a\n",
        b"\x89TPV\r\r\n\x1a\r\n",
        b"\x89TPV\r\n\x1a\r\n",
        b"\x09TPV\r\n\x1a\n",
    ];
    if damaged.iter().any(|magic| bytes.starts_with(magic)) {
        return Err(ParseError::TextMode);
    }
    // A prefix of the magic is a file cut short.
    if !bytes.is_empty() && MAGIC.starts_with(bytes) {
        return Err(ParseError::FileLength {
            expected: HEADER_LEN as u64,
            found: bytes.len() as u64,
        });
    }
    Err(ParseError::NotTpv)
}

/// The fields of the header after the magic.
struct Header {
    version: (u16, u16),
    features: u32,
    file_len: u64,
    sections: u32,
    crc32: u32,
}

impl Header {
    #[rustfmt::skip]
    fn read(bytes: &[u8; HEADER_LEN]) -> Self {
        let [
            _, _, _, _, _, _, _, _, // the magic, already checked
            major0, major1, minor0, minor1,
            f0, f1, f2, f3,
            l0, l1, l2, l3, l4, l5, l6, l7,
            n0, n1, n2, n3,
            c0, c1, c2, c3,
        ] = *bytes;
        Header {
            version: (
                u16::from_le_bytes([major0, major1]),
                u16::from_le_bytes([minor0, minor1]),
            ),
            features: u32::from_le_bytes([f0, f1, f2, f3]),
            file_len: u64::from_le_bytes([l0, l1, l2, l3, l4, l5, l6, l7]),
            sections: u32::from_le_bytes([n0, n1, n2, n3]),
            crc32: u32::from_le_bytes([c0, c1, c2, c3]),
        }
    }

    /// What can be said before the checksum: an unknown version may compute
    /// it differently, a wrong length says more than a wrong checksum.
    fn check(&self, file_len: usize) -> Result<(), ParseError> {
        let found = self.version;
        if found.0 > VERSION.0 {
            return Err(ParseError::NewerVersion {
                found,
                supported: VERSION,
            });
        }
        if found.0 == 0 {
            return Err(ParseError::UnknownVersion { found });
        }
        let unknown = self.features & !SUPPORTED_FEATURES;
        if unknown != 0 {
            return Err(ParseError::RequiredFeatures { unknown });
        }
        if self.file_len != file_len as u64 {
            return Err(ParseError::FileLength {
                expected: self.file_len,
                found: file_len as u64,
            });
        }
        Ok(())
    }

    fn check_crc(&self, bytes: &[u8], table: &[u8]) -> Result<(), ParseError> {
        let mut crc = crc32fast::Hasher::new();
        crc.update(bytes.get(..HEADER_CRC_AT).unwrap_or_default());
        crc.update(table);
        let computed = crc.finalize();
        if computed != self.crc32 {
            return Err(ParseError::HeaderChecksum {
                stored: self.crc32,
                computed,
            });
        }
        Ok(())
    }
}

/// Reads the table; each section must begin at the first aligned byte after
/// the one before it, and the last one must end the file. So there is one
/// place for each section, and none can overlap.
fn read_table(bytes: &[u8], file_len: usize, table: &[u8]) -> Result<Vec<Section>, ParseError> {
    let (entries, _) = table.as_chunks::<ENTRY_LEN>();
    let mut sections: Vec<Section> = Vec::with_capacity(entries.len());
    let mut end = HEADER_LEN.saturating_add(table.len());
    for entry in entries {
        let entry = Entry::read(entry);
        let kind = SectionKind::from_number(entry.kind);
        if sections
            .last()
            .is_some_and(|s| s.kind.number() >= entry.kind)
        {
            return Err(ParseError::SectionOrder { section: kind });
        }
        let section = entry.check(kind, bytes, file_len, end)?;
        end = section.offset.saturating_add(section.len);
        sections.push(section);
    }
    if end != file_len {
        return Err(ParseError::FileLength {
            expected: end as u64,
            found: file_len as u64,
        });
    }
    Ok(sections)
}

/// A line of the table as it is stored.
pub(super) struct Entry {
    pub(super) kind: u32,
    flags: u32,
    pub(super) offset: u64,
    pub(super) len: u64,
    crc32: u32,
    reserved: u32,
}

impl Entry {
    #[rustfmt::skip]
    pub(super) fn read(bytes: &[u8; ENTRY_LEN]) -> Self {
        let [
            k0, k1, k2, k3,
            f0, f1, f2, f3,
            o0, o1, o2, o3, o4, o5, o6, o7,
            l0, l1, l2, l3, l4, l5, l6, l7,
            c0, c1, c2, c3,
            r0, r1, r2, r3,
        ] = *bytes;
        Entry {
            kind: u32::from_le_bytes([k0, k1, k2, k3]),
            flags: u32::from_le_bytes([f0, f1, f2, f3]),
            offset: u64::from_le_bytes([o0, o1, o2, o3, o4, o5, o6, o7]),
            len: u64::from_le_bytes([l0, l1, l2, l3, l4, l5, l6, l7]),
            crc32: u32::from_le_bytes([c0, c1, c2, c3]),
            reserved: u32::from_le_bytes([r0, r1, r2, r3]),
        }
    }

    /// `end` is where the section before this one ends.
    fn check(
        &self,
        kind: SectionKind,
        bytes: &[u8],
        file_len: usize,
        end: usize,
    ) -> Result<Section, ParseError> {
        if matches!(kind, SectionKind::Unknown(_)) && self.flags & REQUIRED != 0 {
            return Err(ParseError::UnknownSection { kind: self.kind });
        }
        let field = |what, expected, found| {
            if expected == found {
                return Ok(());
            }
            Err(ParseError::SectionEntry {
                section: kind,
                what,
                expected,
                found,
            })
        };
        field("flags", kind.flags().into(), self.flags.into())?;
        field("reserved", 0, self.reserved.into())?;
        let offset = layout::align(end).unwrap_or(usize::MAX);
        field("offset", offset as u64, self.offset)?;
        let left = file_len.saturating_sub(offset);
        let too_long = ParseError::SectionEntry {
            section: kind,
            what: "length",
            expected: left as u64,
            found: self.len,
        };
        let (Some(gap), Ok(len)) = (bytes.get(end..offset), usize::try_from(self.len)) else {
            return Err(too_long);
        };
        if len > left {
            return Err(too_long);
        }
        check_zero(gap, end)?;
        Ok(Section {
            kind,
            offset,
            len,
            crc32: self.crc32,
        })
    }
}

/// Filling bytes, which begin at `offset` of the file, must be zero.
pub(super) fn check_zero(filling: &[u8], offset: usize) -> Result<(), ParseError> {
    match filling.iter().position(|&byte| byte != 0) {
        None => Ok(()),
        Some(at) => Err(ParseError::Padding {
            offset: offset.saturating_add(at) as u64,
        }),
    }
}
