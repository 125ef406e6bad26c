//! Parsing a file, making a session and running it take no more stack than
//! [`MemoryPlan::STACK_BYTES`]: a thread that has no more does all of it. If it needs
//! more, it hits the page behind its stack, which ends this process with a message.
//!
//! Says nothing about instruction sets that this machine does not have. Alone in its
//! file, so that the message names it.

use std::thread;

use tpvit_models::synthetic;
use tpvit_models::{BitWidth, Model, write};
use tpvit_runtime::{Isa, MemoryPlan, Options, Session};

#[test]
fn parsing_making_and_running_fit_the_stack_that_is_promised() {
    // One for each way to find a code: a search, and cells.
    let softmaxes = [
        synthetic::row_max_softmax(BitWidth::B4),
        synthetic::log2_softmax(BitWidth::B8),
    ];
    for softmax in softmaxes {
        for (weights, activations) in [(BitWidth::B8, BitWidth::B8), (BitWidth::B3, BitWidth::B4)] {
            for (_, program) in synthetic::architectures() {
                let data = synthetic::model(program, weights, activations, &softmax, 7);
                let file = write(&data).expect("a valid model");
                for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
                    thread::scope(|scope| {
                        let little = thread::Builder::new().stack_size(MemoryPlan::STACK_BYTES);
                        little
                            .spawn_scoped(scope, || whole_life(&file, isa))
                            .expect("a thread starts");
                    });
                }
            }
        }
    }
}

fn whole_life(file: &[u8], isa: Isa) {
    let model = Model::parse(file).expect("a valid file");
    let options = Options {
        isa: Some(isa),
        ..Options::default()
    };
    let mut session = Session::new(&model, &options).expect("runs here");
    let [height, width] = session.program().image;
    let pixels = vec![77; height * width * 3];
    session.run(&pixels).expect("the right size");
}
