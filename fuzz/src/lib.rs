//! What the targets share: changing a `.tpv` file so that more than its checksums is
//! looked at, and a folder for readers that open files.
#![forbid(unsafe_code)]

use tpvit_models::Model;

const HEADER: usize = 32;
const ENTRY: usize = 32;

/// Changes a `.tpv` file of `size` bytes in `data`; returns its new size.
///
/// `mutate` is libFuzzer's own. Often it gets one section alone, whose length in the
/// table is then made true, and the checksums always are; now and then it gets the
/// whole file, checksums and all.
pub fn mutate_tpv(
    data: &mut [u8],
    size: usize,
    max_size: usize,
    seed: u32,
    mutate: impl Fn(&mut [u8], usize, usize) -> usize,
) -> usize {
    let choice = seed as usize;
    if choice.is_multiple_of(64) {
        return mutate(data, size, max_size);
    }
    let file = &data[..size];
    let count = sections(file).len();
    // The header and the table too, as one more place.
    let changed = match count.checked_add(1).map(|n| (choice / 64) % n) {
        Some(index) if index < count => mutate_section(file, index, max_size, mutate),
        _ => {
            let size = mutate(data, size, max_size);
            data[..size].to_vec()
        }
    };
    let mut changed = changed;
    fix_checksums(&mut changed);
    let size = changed.len().min(max_size);
    data[..size].copy_from_slice(&changed[..size]);
    size
}

/// The file with another content of section `index`, and all that lies behind it moved.
fn mutate_section(
    file: &[u8],
    index: usize,
    max_size: usize,
    mutate: impl Fn(&mut [u8], usize, usize) -> usize,
) -> Vec<u8> {
    let parts = sections(file);
    let (start, len) = parts[index];
    let room = max_size.saturating_sub(file.len()).saturating_sub(64);
    let mut content = file[start..start + len].to_vec();
    content.resize(len + room, 0);
    let new_len = mutate(&mut content, len, len + room);
    content.truncate(new_len);
    let mut changed = file.to_vec();
    changed.truncate(HEADER + ENTRY * parts.len());
    for (other, &(start, len)) in parts.iter().enumerate() {
        let bytes = if other == index {
            &content[..]
        } else {
            &file[start..start + len]
        };
        changed.resize(changed.len().next_multiple_of(64), 0);
        let at = HEADER + ENTRY * other;
        let offset = changed.len() as u64;
        changed[at + 8..at + 16].copy_from_slice(&offset.to_le_bytes());
        changed[at + 16..at + 24].copy_from_slice(&(bytes.len() as u64).to_le_bytes());
        changed.extend(bytes);
    }
    let len = changed.len() as u64;
    changed[16..24].copy_from_slice(&len.to_le_bytes());
    changed
}

/// Start and length of each section inside the file; none if the table is broken.
fn sections(file: &[u8]) -> Vec<(usize, usize)> {
    let Some(count) = file.get(24..).and_then(|rest| rest.first_chunk()) else {
        return Vec::new();
    };
    let count = u32::from_le_bytes(*count) as usize;
    let table = file
        .get(HEADER..)
        .and_then(|rest| rest.get(..count.checked_mul(ENTRY)?));
    let number = |entry: &[u8], at: usize| {
        let bytes = entry[at..].first_chunk().copied();
        usize::try_from(u64::from_le_bytes(bytes.unwrap_or_default())).unwrap_or(usize::MAX)
    };
    let section = |entry: &[u8]| {
        let (start, len) = (number(entry, 8), number(entry, 16));
        file.get(start..)?.get(..len)?;
        Some((start, len))
    };
    let parts = table.unwrap_or_default().chunks_exact(ENTRY).map(section);
    parts.collect::<Option<Vec<_>>>().unwrap_or_default()
}

/// Makes the checksums true.
fn fix_checksums(file: &mut [u8]) {
    let parts = sections(file);
    let table_end = HEADER + ENTRY * parts.len();
    if parts.is_empty() || file.len() < table_end {
        return;
    }
    for (index, &(start, len)) in parts.iter().enumerate() {
        let crc = crc32fast::hash(&file[start..start + len]);
        let at = HEADER + ENTRY * index + 24;
        file[at..at + 4].copy_from_slice(&crc.to_le_bytes());
    }
    let mut crc = crc32fast::Hasher::new();
    crc.update(&file[..28]);
    crc.update(&file[HEADER..table_end]);
    file[28..32].copy_from_slice(&crc.finalize().to_le_bytes());
}

/// All that a model tells, so that nothing of it stays unread.
pub fn look_at(model: &Model<'_>) {
    for index in 0..model.program().tensors.len() {
        let id = tpvit_models::TensorId(index as u16);
        std::hint::black_box(model.tensor(id));
    }
    std::hint::black_box((model.labels(), model.provenance(), model.quantization()));
}
