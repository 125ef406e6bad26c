//! Running whatever a `.tpv` file says, if its plan is within a bound: every
//! instruction set and number of threads gives the same bits.
#![no_main]

use libfuzzer_sys::{Corpus, fuzz_mutator, fuzz_target, fuzzer_mutate};
use tpvit_fuzz::mutate_tpv;
use tpvit_models::Model;
use tpvit_runtime::{Isa, MemoryPlan, Options, Session};

/// Bytes and multiply-accumulates: far more than the seeds need.
const MOST_BYTES: usize = 64 << 20;
const MOST_MACS: u64 = 4 << 20;

fuzz_target!(|file: &[u8]| -> Corpus {
    let Ok(model) = Model::parse(file) else {
        return Corpus::Keep;
    };
    let program = model.program();
    let pixels: Vec<u8> = match program.image {
        [height, width] if height * width <= 1 << 16 && program.macs() <= MOST_MACS => {
            (0..height * width * 3).map(|i| (i * 7) as u8).collect()
        }
        _ => return Corpus::Reject,
    };
    let mut first: Option<Vec<u32>> = None;
    for (isa, threads) in [(None, 1), (Some(Isa::Portable), 1), (None, 2)] {
        let options = Options {
            isa,
            threads,
            ..Options::default()
        };
        let Ok(plan) = MemoryPlan::new(&model, &options) else {
            continue;
        };
        if plan.heap_bytes() > MOST_BYTES {
            continue;
        }
        let Ok(mut session) = Session::new(&model, &options) else {
            continue;
        };
        let result = session.run(&pixels).expect("the picture has its size");
        let bits: Vec<u32> = result.iter().map(canonical).collect();
        match &first {
            Some(first) => assert_eq!(*first, bits, "{isa:?}, {threads} threads"),
            None => first = Some(bits),
        }
    }
    Corpus::Keep
});

/// The bits; all NaNs are one, for their payload is not specified.
fn canonical(x: &f32) -> u32 {
    if x.is_nan() {
        f32::NAN.to_bits()
    } else {
        x.to_bits()
    }
}

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    mutate_tpv(data, size, max_size, seed, fuzzer_mutate)
});
