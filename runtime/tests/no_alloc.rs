//! A run allocates nothing, and a session in a block nothing at all: a counting allocator
//! watches them.
//!
//! Alone in its file, so that no other test allocates meanwhile.

use std::alloc::System;

use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use tpvit_models::synthetic::{self, VitConfig};
use tpvit_models::{BitWidth, Model, ModelData, write, write_for};
use tpvit_runtime::{AttentionMethod, Isa, MemoryPlan, Options, Session, SessionError};

#[global_allocator]
static COUNTED: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Of every architecture, and with everything that is special.
fn models() -> impl Iterator<Item = ModelData> {
    // Small enough for an emulator: after a minute the harness says so, and allocates.
    let config = VitConfig {
        classes: 100,
        depth: 2,
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
        .map(move |(_, program)| {
            synthetic::model(program, BitWidth::B4, BitWidth::B8, &softmax, 5)
        });
    [plain, special].into_iter().chain(others)
}

#[test]
fn a_run_allocates_nothing_and_a_session_what_it_planned() {
    for data in models() {
        let bytes = write(&data).expect("a valid model");
        let in_panels = write_for(&data, Isa::best()).expect("a valid model");
        drop(data);
        let model = Model::parse(&bytes).expect("a valid file");
        for threads in [1, 3] {
            let options = Options {
                threads,
                ..Options::default()
            };
            check(&model, &options);
        }
        // Of the large one as little as shows it: emulated, a run takes seconds.
        let small = model.program().macs() < 10_000_000;
        let isas = Isa::ALL.into_iter().filter(|isa| isa.is_available());
        for isa in isas.filter(|&isa| small || isa == Isa::best()) {
            let methods = [AttentionMethod::Decode, AttentionMethod::Shift];
            for attention in methods.into_iter().take(if small { 2 } else { 1 }) {
                let options = Options {
                    isa: Some(isa),
                    attention,
                    ..Options::default()
                };
                check_block(&model, &options);
            }
        }
        let model = Model::parse(&in_panels).expect("a valid file");
        check(&model, &Options::default());
        if small {
            check_block(&model, &Options::default());
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

fn check_block(model: &Model<'_>, options: &Options) {
    let plan = match (MemoryPlan::new(model, options), options.attention) {
        (Err(SessionError::Unsupported { .. }), AttentionMethod::Shift) => return,
        (plan, _) => plan.expect("runs here"),
    };
    let [height, width] = model.program().image;
    let pixels = vec![77; height * width * 3];
    let mut ordinary = Session::new(model, options).expect("runs here");
    let expected = ordinary.run(&pixels).expect("the right size").to_vec();
    assert_eq!(ordinary.memory_plan(), plan);

    let (bytes, align) = (plan.total_bytes(), MemoryPlan::BLOCK_ALIGN);
    let mut block = vec![0; bytes + 4 * align];
    let aligned = block.as_ptr().align_offset(align);
    // Anywhere, whatever is there, with some more than is needed.
    for (skipped, more, fill) in [(0, 0, 0), (1, 0, 0xff), (63, 100, 0x7f), (17, 40, 0xa5)] {
        let start = aligned + align - skipped;
        let end = start + skipped + bytes + more;
        block.fill(fill);
        let watched = Region::new(COUNTED);
        let memory = &mut block[start..end];
        let mut session = Session::new_in(model, options, memory).expect("the block is enough");
        for _ in 0..2 {
            let result = session.run(&pixels).expect("the right size");
            assert_eq!(result, expected, "{options:?}, filled with {fill:#x}");
        }
        assert_eq!(session.memory_plan(), plan);
        drop(session);
        let change = watched.change();
        assert_eq!(
            (change.allocations, change.reallocations),
            (0, 0),
            "{change:?}"
        );
    }

    // One byte less is refused, and so is anything smaller, with the bytes it takes.
    for len in [bytes - 1, bytes / 2, 4096, 1, 0] {
        let memory = &mut block[aligned..][..len.min(bytes - 1)];
        let found = memory.len();
        let error = Session::new_in(model, options, memory).err();
        let needed = bytes;
        assert_eq!(error, Some(SessionError::Memory { needed, found }));
    }
}
