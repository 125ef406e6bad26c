//! A run allocates nothing: a counting allocator watches one.
//!
//! Alone in its file, so that no other test allocates meanwhile.

use std::alloc::System;

use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use tpvit_models::synthetic::{self, VitConfig};
use tpvit_models::{BitWidth, Model, write};
use tpvit_runtime::{MemoryPlan, Options, Session};

#[global_allocator]
static COUNTED: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

#[test]
fn a_run_allocates_nothing_and_a_session_what_it_planned() {
    let config = VitConfig {
        classes: 100,
        ..VitConfig::DEIT_TINY
    };
    let softmax = synthetic::row_max_softmax(BitWidth::B4);
    let plain = synthetic::vit(config, BitWidth::B4, BitWidth::B8, &softmax, 5);
    let small = VitConfig::SMALLEST;
    let softmax = synthetic::log2_softmax_per_head(BitWidth::B3, small.heads);
    let mut special = synthetic::vit(small, BitWidth::B4, BitWidth::B4, &softmax, 5);
    synthetic::add_codebooks(&mut special);
    let softmax = synthetic::row_max_softmax(BitWidth::B3);
    let others = synthetic::architectures()
        .into_iter()
        .map(|(_, program)| synthetic::model(program, BitWidth::B4, BitWidth::B8, &softmax, 5));
    for data in [plain, special].into_iter().chain(others) {
        let bytes = write(&data).expect("a valid model");
        drop(data);
        let model = Model::parse(&bytes).expect("a valid file");
        for threads in [1, 3] {
            let options = Options {
                threads,
                ..Options::default()
            };
            check(&model, &options);
        }
    }
}

fn check(model: &Model<'_>, options: &Options) {
    let plan = MemoryPlan::new(model, options).expect("runs here");
    let making = Region::new(COUNTED);
    let mut session = Session::new(model, options).expect("runs here");
    let made = making.change();
    let kept = made.bytes_allocated - made.bytes_deallocated;
    assert!(
        kept >= plan.total_bytes(),
        "kept {kept} bytes, planned {}",
        plan.total_bytes()
    );
    assert!(
        kept <= plan.heap_bytes(),
        "kept {kept}, planned at most {}",
        plan.heap_bytes()
    );

    let [height, width] = session.program().image;
    let pixels = vec![77; height * width * 3];
    // A thread that starts allocates a name and the like; all take part in a run.
    session.run(&pixels).expect("the right size");
    let running = Region::new(COUNTED);
    for _ in 0..3 {
        session.run(&pixels).expect("the right size");
    }
    let ran = running.change();
    assert_eq!((ran.allocations, ran.reallocations), (0, 0), "{ran:?}");
}
