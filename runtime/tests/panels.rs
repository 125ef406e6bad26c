//! A file whose weights lie in the order of one instruction set runs on every one, to the
//! same bits; where they lie in a session's own order, it reads them from the file.
#![forbid(unsafe_code)]

use std::io::Cursor;

use tpvit_models::synthetic::{self, VitConfig};
use tpvit_models::{BitWidth, FileHead, Model, ModelData, TensorReader, write, write_for};
use tpvit_runtime::{Isa, MemoryPlan, Options, Session};

/// Each width of weights with wide and narrow activations, and each architecture.
fn models() -> Vec<ModelData> {
    let softmax = synthetic::row_max_softmax(BitWidth::B4);
    let widths = BitWidth::ALL.into_iter();
    let widths = widths.flat_map(|w| [BitWidth::B4, BitWidth::B8].map(|a| (w, a)));
    let vits = widths.map(|(w, a)| synthetic::vit(VitConfig::SMALLEST, w, a, &softmax, 5));
    let programs = synthetic::architectures().into_iter();
    let softmax = &softmax;
    let others = programs
        .map(|(_, program)| synthetic::model(program, BitWidth::B8, BitWidth::B8, softmax, 5));
    vits.chain(others).collect()
}

fn available() -> impl Iterator<Item = Isa> + Clone {
    Isa::ALL.into_iter().filter(|isa| isa.is_available())
}

fn options(isa: Isa, threads: usize) -> Options {
    Options {
        isa: Some(isa),
        threads,
        ..Options::default()
    }
}

fn bits(session: &mut Session<'_>) -> Vec<u32> {
    let [height, width] = session.program().image;
    let pixels: Vec<u8> = (0..height * width * 3)
        .map(|i| (i * 89 % 251) as u8)
        .collect();
    let result = session.run(&pixels).expect("the right size");
    result.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn weights_of_any_order_give_the_same_bits_everywhere() {
    for data in models() {
        let plain = write(&data).expect("a valid model");
        let plain = Model::parse(&plain).expect("a valid file");
        let expected = bits(&mut Session::new(&plain, &Options::default()).expect("runs here"));
        for of in Isa::ALL {
            let file = write_for(&data, of).expect("a valid model");
            let model = Model::parse(&file).expect("a valid file");
            for isa in available() {
                for threads in [1, 2] {
                    let options = options(isa, threads);
                    let mut session = Session::new(&model, &options).expect("runs here");
                    assert_eq!(bits(&mut session), expected, "{of:?} on {isa:?}, {threads}");
                }
                let mut cursor = Cursor::new(&file);
                let head = FileHead::read(&mut cursor).expect("bytes can be read");
                let info = head.parse().expect("a valid file");
                let tensors = TensorReader::open(&info, cursor).expect("a valid file");
                let loaded = Session::load(tensors, &options(isa, 1));
                assert_eq!(bits(&mut loaded.expect("runs here")), expected);
            }
        }
    }
}

#[test]
fn a_session_takes_no_copy_of_weights_in_its_own_order() {
    for data in models() {
        let plain = write(&data).expect("a valid model");
        let plain = Model::parse(&plain).expect("a valid file");
        for isa in available() {
            let file = write_for(&data, isa).expect("a valid model");
            let model = Model::parse(&file).expect("a valid file");
            let whole = MemoryPlan::new(&plain, &options(isa, 1)).expect("runs here");
            let plan = MemoryPlan::new(&model, &options(isa, 1)).expect("runs here");
            let weights = model.program().ops.iter().filter_map(|op| op.weight());
            let packed: usize = weights.map(|id| model.codes_range(id).len()).sum();
            assert_eq!((whole.borrowed_bytes, plan.weight_bytes), (0, 0));
            assert_eq!(plan.borrowed_bytes, packed);
            assert!(whole.weight_bytes >= packed);
            assert!(plan.total_bytes() <= whole.total_bytes() - packed);

            // Less than its weights is enough for it.
            let mut block = vec![0xa5; plan.total_bytes() + MemoryPlan::BLOCK_ALIGN];
            let options = options(isa, 1);
            let mut session = Session::new_in(&model, &options, &mut block).expect("runs here");
            let mut ordinary = Session::new(&plain, &options).expect("runs here");
            assert_eq!(bits(&mut session), bits(&mut ordinary), "{isa:?}");
        }
        // Threads have the weights in memory of their own.
        let isa = Isa::best();
        let file = write_for(&data, isa).expect("a valid model");
        let model = Model::parse(&file).expect("a valid file");
        let plan = MemoryPlan::new(&model, &options(isa, 2)).expect("runs here");
        let session = Session::new(&model, &options(isa, 2)).expect("runs here");
        assert_eq!(session.memory_plan(), plan);
        assert_eq!(plan.borrowed_bytes, 0);
        assert!(plan.weight_bytes > 0);
    }
}
