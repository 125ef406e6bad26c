//! Whole models, one picture at a time: latency by width, threads and
//! instruction set, the time from a file's bytes to a session that is ready,
//! and what that session holds.
//!
//! The models are seeded-random in the shapes of real ones. DeiT-T is timed on
//! every instruction set of this machine, the others on the best one. Memory is
//! printed as planned, which `runtime/tests/no_alloc.rs` holds sessions to; the
//! peak of a whole process, file included, is what `tpvit bench` prints.

use std::hint::black_box;
use std::io::Cursor;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tpvit_bench::Bytes;
use tpvit_models::synthetic::{self, VitConfig};
use tpvit_models::{BitWidth, FileHead, Model, TensorReader, write};
use tpvit_runtime::{Isa, MemoryPlan, Options, Session};

const WIDTHS: [(&str, BitWidth); 4] = [
    ("W8A8", BitWidth::B8),
    ("W6A6", BitWidth::B6),
    ("W4A4", BitWidth::B4),
    ("W3A3", BitWidth::B3),
];

const MODELS: [(&str, VitConfig); 3] = [
    ("deit-t", VitConfig::DEIT_TINY),
    ("deit-s", VitConfig::DEIT_SMALL),
    ("vit-b", VitConfig::VIT_BASE),
];

const THREADS: [usize; 2] = [1, 2];

/// The instruction sets that a model is timed on.
fn isas(model: &str) -> Vec<Isa> {
    match model {
        "deit-t" => Isa::ALL
            .into_iter()
            .filter(|isa| isa.is_available())
            .collect(),
        _ => vec![Isa::best()],
    }
}

fn options(isa: Isa, threads: usize) -> Options {
    Options {
        isa: Some(isa),
        threads,
        ..Options::default()
    }
}

/// A seeded-random model in the shape of `config`.
fn file(config: VitConfig, bits: BitWidth) -> Vec<u8> {
    let data = synthetic::vit(
        config,
        bits,
        bits,
        &synthetic::row_max_softmax(bits.min(BitWidth::B4)),
        1,
    );
    write(&data).expect("a synthetic model is valid")
}

fn pixels(session: &Session) -> Vec<u8> {
    let [height, width] = session.program().image;
    Bytes::new(9).vec(height * width * 3, 255)
}

fn models(c: &mut Criterion) {
    for (name, config) in MODELS {
        for (width, bits) in WIDTHS {
            let bytes = file(config, bits);
            print_memory(&format!("{name}/{width}"), &bytes);
            latency(c, name, width, &bytes);
            load(c, name, width, &bytes);
        }
    }
}

fn latency(c: &mut Criterion, name: &str, width: &str, bytes: &[u8]) {
    let model = Model::parse(bytes).expect("valid");
    let mut group = c.benchmark_group(format!("{name}/{width}"));
    group.sample_size(10);
    group.throughput(Throughput::Elements(model.program().macs()));
    let mut expected: Option<Vec<f32>> = None;
    for isa in isas(name) {
        for threads in THREADS {
            let mut session = Session::new(&model, &options(isa, threads)).expect("runs here");
            let pixels = pixels(&session);
            let logits = session.run(&pixels).expect("right size").to_vec();
            let first = expected.get_or_insert_with(|| logits.clone());
            assert_eq!(*first, logits, "{} with {threads} threads", isa.name());
            group.bench_function(format!("{}/{threads} thread", isa.name()), |b| {
                b.iter(|| black_box(session.run(&pixels).expect("right size"))[0]);
            });
        }
    }
    group.finish();
}

fn load(c: &mut Criterion, name: &str, width: &str, bytes: &[u8]) {
    let mut group = c.benchmark_group(format!("load/{name}"));
    group.sample_size(10);
    group.throughput(Throughput::Bytes(bytes.len() as u64));
    group.bench_function(width, |b| {
        b.iter(|| {
            let mut file = Cursor::new(black_box(bytes));
            let head = FileHead::read(&mut file).expect("bytes can be read");
            let info = head.parse().expect("valid");
            let tensors = TensorReader::open(&info, file).expect("valid");
            let session = Session::load(tensors, &Options::default());
            session.expect("runs here").threads()
        });
    });
    group.finish();
}

fn print_memory(name: &str, bytes: &[u8]) {
    let model = Model::parse(bytes).expect("valid");
    let mb = |bytes: usize| bytes as f64 / 1e6;
    for threads in THREADS {
        let plan = MemoryPlan::new(&model, &options(Isa::best(), threads)).expect("runs here");
        println!(
            "memory/{name}/{threads} thread: file {:.2} MB, planned {:.2} MB = weights {:.2} + constants {:.2} + arena {:.2}",
            mb(bytes.len()),
            mb(plan.total_bytes()),
            mb(plan.weight_bytes),
            mb(plan.constant_bytes),
            mb(plan.arena_bytes()),
        );
    }
}

criterion_group!(benches, models);
criterion_main!(benches);
