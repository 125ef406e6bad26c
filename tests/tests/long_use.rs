//! A program that lives long: it loads, runs and drops models a thousand times, and
//! many threads share one. Memory stays, and so do the bits.
#![forbid(unsafe_code)]

use std::alloc::System;
use std::io::Cursor;
use std::thread;

use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use tpvit_models::synthetic::{self, VitConfig};
use tpvit_models::{BitWidth, FileHead, Model, TensorReader, write};
use tpvit_quantizer::pictures::{self, Pixels};
use tpvit_runtime::{Options, Session};

#[global_allocator]
static COUNTED: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const GOLDEN: &[u8] = include_bytes!("../../models/tests/golden/v1.tpv");
const RUNS: usize = 1000;

/// One test: the harness allocates where one ends and another begins.
#[test]
fn memory_stays_and_so_do_the_bits() {
    a_thousand_lives_of_a_model_take_no_memory();
    a_thousand_pictures_take_no_memory();
    eight_threads_share_a_model_and_agree();
}

/// Bytes allocated since `region` began and not given back.
fn kept(region: &Region<'_, System>) -> isize {
    let change = region.change();
    change.bytes_allocated as isize - change.bytes_deallocated as isize
}

/// What the process has in memory, in bytes; only Linux tells.
fn resident() -> Option<usize> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"))?;
    let kilobytes: usize = line.trim().trim_end_matches("kB").trim().parse().ok()?;
    Some(1024 * kilobytes)
}

fn options(threads: usize) -> Options {
    Options {
        threads,
        ..Options::default()
    }
}

fn bits(logits: &[f32]) -> Vec<u32> {
    logits.iter().map(|x| x.to_bits()).collect()
}

/// A picture of the model's size for each seed.
fn pixels(model: &Model<'_>, seed: usize) -> Vec<u8> {
    let [height, width] = model.program().image;
    (0..height * width * 3)
        .map(|i| (((i + 1) * (2 * seed + 7)) >> 2) as u8)
        .collect()
}

/// Parse, session, run, drop; from bytes and from a file, with one thread and two.
fn a_thousand_lives_of_a_model_take_no_memory() {
    let model = Model::parse(GOLDEN).expect("a good file");
    let picture = pixels(&model, 1);
    drop(model);
    let life = |index: usize| {
        let options = options(1 + index % 2);
        let mut session = match index % 4 {
            0 | 1 => {
                let model = Model::parse(GOLDEN).expect("a good file");
                Session::new(&model, &options).expect("runs here")
            }
            _ => {
                let mut file = Cursor::new(GOLDEN);
                let head = FileHead::read(&mut file).expect("a good file");
                let info = head.parse().expect("a good file");
                let tensors = TensorReader::open(&info, file).expect("a good file");
                Session::load(tensors, &options).expect("runs here")
            }
        };
        bits(session.run(&picture).expect("the right size"))
    };
    let first = life(0);
    (0..50).for_each(|index| drop(life(index))); // the system's own tables
    let (region, before) = (Region::new(COUNTED), resident());
    for index in 0..RUNS {
        assert!(life(index) == first, "life {index} has other bits");
    }
    assert_eq!(kept(&region), 0, "bytes are kept");
    // Threads' stacks are not the allocator's.
    if let (Some(before), Some(after)) = (before, resident()) {
        assert!(
            after < before + (4 << 20),
            "{before} bytes before, {after} after"
        );
    }
}

/// What a service does: decode, resize, run, with one session.
fn a_thousand_pictures_take_no_memory() {
    let model = Model::parse(GOLDEN).expect("a good file");
    let mut session = Session::new(&model, &options(1)).expect("runs here");
    let mut photo = Cursor::new(Vec::new());
    tpvit_tests::gradient(3, 60, 50)
        .write_to(&mut photo, image::ImageFormat::Png)
        .expect("a picture is encoded");
    let photo = photo.into_inner();
    let mut answer = || {
        let decoded = pictures::decode_bytes(&photo).expect("a picture");
        let prepared: Pixels =
            pictures::prepare(&decoded, model.preprocess(), model.program().image)
                .expect("large enough");
        bits(session.run(&prepared.data).expect("the right size"))
    };
    let first = answer();
    (0..50).for_each(|_| drop(answer()));
    let (region, before) = (Region::new(COUNTED), resident());
    for run in 0..RUNS {
        assert!(answer() == first, "run {run} has other bits");
    }
    assert_eq!(kept(&region), 0, "bytes are kept");
    if let (Some(before), Some(after)) = (before, resident()) {
        assert!(
            after < before + (1 << 20),
            "{before} bytes before, {after} after"
        );
    }
}

/// One model for eight threads, a session for each; some of them have lanes.
fn eight_threads_share_a_model_and_agree() {
    const THREADS: usize = 8;
    const PICTURES: usize = 20;
    let config = VitConfig {
        image: 64,
        depth: 3,
        ..VitConfig::DEIT_TINY
    };
    let softmax = synthetic::row_max_softmax(BitWidth::B4);
    let data = synthetic::vit(config, BitWidth::B4, BitWidth::B4, &softmax, 1);
    let file = write(&data).expect("a valid model");
    let model = Model::parse(&file).expect("a good file");
    let mut alone = Session::new(&model, &options(1)).expect("runs here");
    let expected: Vec<Vec<u32>> = (0..PICTURES)
        .map(|seed| bits(alone.run(&pixels(&model, seed)).expect("the right size")))
        .collect();
    assert!(expected[0] != expected[1], "pictures matter");
    thread::scope(|scope| {
        for index in 0..THREADS {
            let (model, expected) = (&model, &expected);
            scope.spawn(move || {
                let options = options(1 + index % 3);
                let mut session = Session::new(model, &options).expect("runs here");
                // Each begins with another picture.
                for turn in 0..3 * PICTURES {
                    let seed = (turn + index) % PICTURES;
                    let found = bits(session.run(&pixels(model, seed)).expect("the right size"));
                    assert!(found == expected[seed], "thread {index}, picture {seed}");
                }
            });
        }
    });
}
