//! Takes files apart and puts them together with true checksums and false
//! contents, so that what refuses them is validation.

/// A section of a file: kind, flags, bytes.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct RawSection {
    pub(crate) kind: u32,
    pub(crate) flags: u32,
    pub(crate) bytes: Vec<u8>,
}

pub(crate) const PROGRAM: usize = 0;
pub(crate) const TENSORS: usize = 1;
pub(crate) const QUANT: usize = 2;
pub(crate) const LABELS: usize = 4;
pub(crate) const DATA: usize = 6;

const HEADER: usize = 32;
const ENTRY: usize = 32;

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

pub(crate) fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

/// Where the entry of section `index` begins.
pub(crate) fn entry_at(index: usize) -> usize {
    HEADER + ENTRY * index
}

/// The sections of a valid file.
pub(crate) fn split(file: &[u8]) -> Vec<RawSection> {
    let section = |index| {
        let entry = &file[entry_at(index)..];
        let offset = u64_at(entry, 8) as usize;
        RawSection {
            kind: u32_at(entry, 0),
            flags: u32_at(entry, 4),
            bytes: file[offset..][..u64_at(entry, 16) as usize].to_vec(),
        }
    };
    (0..u32_at(file, 24) as usize).map(section).collect()
}

/// A file of these sections, right in all but their contents.
pub(crate) fn join(sections: &[RawSection]) -> Vec<u8> {
    let mut table = Vec::new();
    let mut body = Vec::new();
    let table_end = HEADER + ENTRY * sections.len();
    for section in sections {
        let offset = (table_end + body.len()).next_multiple_of(64);
        body.resize(offset - table_end, 0);
        table.extend(section.kind.to_le_bytes());
        table.extend(section.flags.to_le_bytes());
        table.extend((offset as u64).to_le_bytes());
        table.extend((section.bytes.len() as u64).to_le_bytes());
        table.extend([0; 8]);
        body.extend(&section.bytes);
    }
    let mut file = b"\x89TPV\r\n\x1a\n\x01\0\0\0\0\0\0\0".to_vec();
    file.extend(((table_end + body.len()) as u64).to_le_bytes());
    file.extend((sections.len() as u32).to_le_bytes());
    file.extend([0; 4]);
    file.extend(table);
    file.extend(body);
    fix_checksums(&mut file);
    file
}

/// Makes the checksums true again, as far as the section table can be followed.
pub(crate) fn fix_checksums(file: &mut [u8]) {
    let count = u32_at(file, 24) as usize;
    let Some(table_end) = count
        .checked_mul(ENTRY)
        .and_then(|len| len.checked_add(HEADER))
    else {
        return;
    };
    if table_end > file.len() {
        return;
    }
    for index in 0..count {
        let at = entry_at(index);
        let offset = usize::try_from(u64_at(file, at + 8)).unwrap_or(usize::MAX);
        let len = usize::try_from(u64_at(file, at + 16)).unwrap_or(usize::MAX);
        let bytes = file.get(offset..).and_then(|rest| rest.get(..len));
        if let Some(crc) = bytes.map(crc32fast::hash) {
            put(file, at + 24, &crc.to_le_bytes());
        }
    }
    let mut crc = crc32fast::Hasher::new();
    crc.update(&file[..28]);
    crc.update(&file[HEADER..table_end]);
    put(file, 28, &crc.finalize().to_le_bytes());
}
