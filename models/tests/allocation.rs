//! Reading allocates at most [`FACTOR`] times the length of the file and
//! [`CONSTANT`] bytes, whatever the file says.
//!
//! Counted is the sum of all allocations, which is more than what is ever
//! held at once.

mod common;

use common::raw::{self, fix_checksums, put};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use std::alloc::System;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tpvit_models::file::FEATURE_OPERATIONS;
use tpvit_models::synthetic::{self, VitConfig};
use tpvit_models::{BitWidth, Model, ParseError, write};

const GOLDEN: &[u8] = include_bytes!("golden/v1.tpv");
const OPERATIONS: &[u8] = include_bytes!("golden/v1_operations.tpv");
const PANELS: &[u8] = include_bytes!("golden/v1_panels.tpv");

/// Promised by [`Model::parse`].
const FACTOR: usize = 24;

/// Promised by [`Model::parse`].
const CONSTANT: usize = 4096;

#[global_allocator]
static COUNTED: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// The counter is everybody's: one test at a time.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Bytes that [`Model::parse`] allocates.
fn allocated(file: &[u8]) -> (usize, Result<(), ParseError>) {
    let region = Region::new(COUNTED);
    let result = Model::parse(file).map(drop);
    (region.change().bytes_allocated, result)
}

fn check(file: &[u8]) -> Result<(), ParseError> {
    let (allocated, result) = allocated(file);
    let most = FACTOR * file.len() + CONSTANT;
    assert!(
        allocated <= most,
        "{allocated} bytes for a file of {}: {result:?}",
        file.len()
    );
    result
}

#[test]
fn allocations_are_counted() {
    let _alone = alone();
    let (allocated, result) = allocated(GOLDEN);
    assert_eq!(result, Ok(()));
    assert!(allocated > 1000, "{allocated}");
}

#[test]
fn real_models_allocate_little() {
    let _alone = alone();
    let softmax = synthetic::row_max_softmax(BitWidth::B4);
    let (bits, config) = (BitWidth::B4, VitConfig::DEIT_TINY);
    let file = write(&synthetic::vit(config, bits, bits, &softmax, 1)).unwrap();
    let (allocated, result) = allocated(&file);
    assert_eq!(result, Ok(()));
    assert!(allocated < file.len() / 10, "{allocated} of {}", file.len());
}

#[test]
fn mutated_files_stay_within_the_bound() {
    let _alone = alone();
    for golden in [GOLDEN, OPERATIONS, PANELS] {
        for at in 0..golden.len() - 8 {
            for value in [u64::MAX, 1 << 63, 0xffff_ffff, 0xffff, 0x0101_0101, 0] {
                for len in [1, 2, 4, 8] {
                    let mut bytes = golden.to_vec();
                    put(&mut bytes, at, &value.to_le_bytes()[..len]);
                    fix_checksums(&mut bytes);
                    let _ = check(&bytes);
                }
            }
        }
    }
}

/// A section of as many of the smallest entries as possible, with all other
/// sections as they are: what costs the reader most for each byte.
fn crowded(index: usize, at: usize, entry: impl Fn(usize) -> Vec<u8>) {
    for count in [1000usize, 65535, 70000] {
        let mut sections = raw::split(GOLDEN);
        let mut bytes = sections[index].bytes[..at].to_vec();
        bytes.extend((count as u32).to_le_bytes());
        for number in 0..count {
            bytes.extend(entry(number));
        }
        sections[index].bytes = bytes.clone();
        let _ = check(&raw::join(&sections));
        // Once more with what follows, so that the reader goes further.
        bytes.extend(&raw::split(GOLDEN)[index].bytes[at + 4..]);
        sections[index].bytes = bytes;
        let _ = check(&raw::join(&sections));
    }
}

fn name(number: usize) -> Vec<u8> {
    let text = format!("{number:x}");
    [&(text.len() as u16).to_le_bytes()[..], text.as_bytes()].concat()
}

#[test]
fn crowded_sections_stay_within_the_bound() {
    let _alone = alone();
    let entry = |parts: &[&[u8]]| parts.concat();
    let shape: &[u8] = &[1, 0, 0, 0, 1, 0, 0, 0];
    crowded(raw::PROGRAM, 8, |n| entry(&[&name(n), shape]));
    let float: &[u8] = &[0, 32];
    crowded(raw::TENSORS, 0, |n| {
        entry(&[&name(n), float, shape, &[0; 16]])
    });
    let scale = 1f32.to_le_bytes();
    crowded(raw::QUANT, 0, |n| {
        entry(&[
            &(n as u16).to_le_bytes(),
            &[2, 0],
            &[1, 0, 0, 0],
            &scale,
            &[0],
        ])
    });
    crowded(raw::LABELS, 0, |_| vec![1, 0, b'x']);
}

/// A valid program of one buffer and one operation more for every 20 bytes:
/// the patch embedding's output, of which a token is selected again and again.
#[test]
fn crowded_programs_stay_within_the_bound() {
    let _alone = alone();
    for count in [1000usize, 65000] {
        let mut sections = raw::split(GOLDEN);
        let golden = &raw::split(GOLDEN)[raw::PROGRAM].bytes;
        let (buffers, ops) = golden[12..].split_at(0x268 - 0x100 - 12);
        let ops = &ops[4..];
        let mut bytes = golden[..8].to_vec();
        bytes.extend((15 + count as u32).to_le_bytes());
        bytes.extend(buffers);
        for number in 0..count {
            bytes.extend(name(number));
            bytes.extend([1, 0, 0, 0, 2, 0, 0, 0]);
        }
        bytes.extend((15 + count as u32).to_le_bytes());
        let head = ops.len() - (1 + 2 + 2 + 2 + 1 + 2 + 2);
        bytes.extend(&ops[..head]);
        for number in 0..count {
            bytes.extend([5, 0, 0, 0, 0, 0, 0]);
            bytes.extend((15 + number as u16).to_le_bytes());
        }
        bytes.extend(&ops[head..]);
        sections[raw::PROGRAM].bytes = bytes;
        assert_eq!(check(&raw::join(&sections)), Ok(()));
    }
}

/// Nothing takes less of a file and more of memory than the shortest operation,
/// [`Op::Gate`](tpvit_models::Op::Gate): valid ones with a buffer each, and as
/// many as possible that all write the same one.
#[test]
fn crowds_of_the_shortest_operation_stay_within_the_bound() {
    let _alone = alone();
    let golden = &raw::split(GOLDEN)[raw::PROGRAM].bytes;
    let (buffers, ops) = golden[12..].split_at(0x268 - 0x100 - 12);
    let ops = &ops[4..];
    let head = ops.len() - (1 + 2 + 2 + 2 + 1 + 2 + 2);
    let gate = |output: u16| {
        let [low, high] = output.to_le_bytes();
        [8, 0, 0, low, high] // of buffer 0, 5 x 2
    };
    for (count, valid) in [(65000u16, true), (65000, false)] {
        let mut sections = raw::split(GOLDEN);
        let own = if valid { u32::from(count) } else { 0 };
        let mut bytes = golden[..8].to_vec();
        bytes.extend((15 + own).to_le_bytes());
        bytes.extend(buffers);
        for number in 0..own {
            bytes.extend(name(number as usize));
            bytes.extend([5, 0, 0, 0, 1, 0, 0, 0]);
        }
        bytes.extend((15 + u32::from(count)).to_le_bytes());
        bytes.extend(&ops[..head]);
        for number in 0..count {
            bytes.extend(gate(if valid { 15 + number } else { 1 }));
        }
        bytes.extend(&ops[head..]);
        sections[raw::PROGRAM].bytes = bytes;
        let mut file = raw::join(&sections);
        put(&mut file, 12, &FEATURE_OPERATIONS.to_le_bytes());
        fix_checksums(&mut file);
        assert_eq!(check(&file).is_ok(), valid);
    }
}
