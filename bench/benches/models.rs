//! Whole models, one picture at a time: latency by width and threads, and the
//! time from bytes to a session that is ready.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tpvit_bench::Bytes;
use tpvit_models::synthetic::{self, VitConfig};
use tpvit_models::{BitWidth, Model, write};
use tpvit_runtime::{Isa, Options, Session};

const WIDTHS: [(&str, BitWidth); 4] = [
    ("W8A8", BitWidth::B8),
    ("W6A6", BitWidth::B6),
    ("W4A4", BitWidth::B4),
    ("W3A3", BitWidth::B3),
];

fn models() -> [(&'static str, VitConfig); 2] {
    [
        ("deit-t", VitConfig::DEIT_TINY),
        ("deit-s", VitConfig::DEIT_SMALL),
    ]
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

fn latency(c: &mut Criterion) {
    for (name, config) in models() {
        for (width, bits) in WIDTHS {
            let bytes = file(config, bits);
            let model = Model::parse(&bytes).expect("valid");
            let mut group = c.benchmark_group(format!("{name}/{width}"));
            group.sample_size(20);
            group.throughput(Throughput::Elements(model.program().macs()));
            let mut expected: Option<Vec<f32>> = None;
            for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
                if isa == Isa::Portable && name != "deit-t" {
                    continue;
                }
                for threads in [1, 2] {
                    let options = Options {
                        isa: Some(isa),
                        threads,
                        ..Options::default()
                    };
                    let mut session = Session::new(&model, &options).expect("runs here");
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
    }
}

fn load(c: &mut Criterion) {
    for (name, config) in models() {
        let mut group = c.benchmark_group(format!("load/{name}"));
        for (width, bits) in WIDTHS {
            let bytes = file(config, bits);
            group.bench_function(width, |b| {
                b.iter(|| {
                    let model = Model::parse(black_box(&bytes)).expect("valid");
                    Session::new(&model, &Options::default())
                        .expect("runs here")
                        .threads()
                });
            });
        }
        group.finish();
    }
}

criterion_group!(benches, latency, load);
criterion_main!(benches);
