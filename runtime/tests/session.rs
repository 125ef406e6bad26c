//! A session gives the same bits however it runs, and allocates nothing while
//! it does.

use std::io::{Cursor, Read, Seek, SeekFrom};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};

use tpvit_kernels::ShiftForm;
use tpvit_models::synthetic::{self, VitConfig};
use tpvit_models::{
    BitWidth, BufferId, FileHead, Model, Op, ReadError, Readout, SoftmaxQuant, TensorReader, swin,
    write,
};
use tpvit_runtime::{
    AttentionMethod, Isa, Kernels, LoadError, MemoryPlan, Observer, Options, RunError, Session,
    SessionError, View,
};

const CONFIG: VitConfig = VitConfig {
    image: 40,
    patch: 8,
    dim: 48,
    depth: 3,
    heads: 3,
    mlp_ratio: 4,
    classes: 11,
};

const WIDTHS: [(BitWidth, BitWidth); 6] = [
    (BitWidth::B8, BitWidth::B8),
    (BitWidth::B6, BitWidth::B6),
    (BitWidth::B4, BitWidth::B4),
    (BitWidth::B3, BitWidth::B3),
    (BitWidth::B3, BitWidth::B8),
    (BitWidth::B8, BitWidth::B4),
];

fn file(weights: BitWidth, activations: BitWidth, softmax: &SoftmaxQuant) -> Vec<u8> {
    write(&synthetic::vit(CONFIG, weights, activations, softmax, 3)).expect("a valid model")
}

/// Every input of a linear layer has one.
fn file_with_codebooks(weights: BitWidth, activations: BitWidth) -> Vec<u8> {
    let mut data = synthetic::vit(CONFIG, weights, activations, &softmaxes()[0], 3);
    synthetic::add_codebooks(&mut data);
    write(&data).expect("a valid model")
}

fn softmaxes() -> [SoftmaxQuant; 4] {
    [
        synthetic::row_max_softmax(BitWidth::B3),
        synthetic::row_max_softmax(BitWidth::B4),
        synthetic::log2_softmax(BitWidth::B4),
        synthetic::log2_softmax_per_head(BitWidth::B3, CONFIG.heads),
    ]
}

/// Half octaves are no powers of two: only a table executes them.
fn methods(softmax: &SoftmaxQuant) -> &'static [AttentionMethod] {
    let mut multipliers = softmax.codebooks.iter().map(|c| &c.multipliers);
    match multipliers.all(|m| ShiftForm::from_multipliers(m).is_some()) {
        true => &[AttentionMethod::Decode, AttentionMethod::Shift],
        false => &[AttentionMethod::Decode],
    }
}

fn pixels(seed: u32) -> Vec<u8> {
    picture([CONFIG.image; 2], seed)
}

fn picture([height, width]: [usize; 2], seed: u32) -> Vec<u8> {
    let mut state = seed;
    (0..height * width * 3)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        })
        .collect()
}

fn logits(bytes: &[u8], options: &Options, picture: &[u8]) -> Vec<u32> {
    let model = Model::parse(bytes).expect("a valid file");
    let mut session = Session::new(&model, options).expect("runs here");
    let logits = session.run(picture).expect("the right size");
    assert!(logits.iter().all(|x| x.is_finite()), "logits are numbers");
    logits.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn the_logits_depend_on_nothing_but_model_and_picture() {
    for (weights, activations) in WIDTHS {
        for softmax in softmaxes() {
            let bytes = file(weights, activations, &softmax);
            let name = format!("W{weights:?}A{activations:?} {:?}", softmax.method);
            same_everywhere(&bytes, methods(&softmax), &name);
        }
    }
}

#[test]
fn neither_do_those_of_codebooks() {
    for activations in [BitWidth::B2, BitWidth::B3, BitWidth::B4] {
        for weights in BitWidth::ALL {
            let bytes = file_with_codebooks(weights, activations);
            let name = format!("W{weights:?}A{activations:?} with codebooks");
            same_everywhere(&bytes, &[AttentionMethod::Decode], &name);
        }
    }
}

/// Windows, pooled heads, gates, features: of every architecture.
#[test]
fn neither_do_those_of_any_architecture() {
    for (name, program) in synthetic::architectures() {
        for (bits, softmax) in [
            (BitWidth::B8, synthetic::log2_softmax(BitWidth::B8)),
            (BitWidth::B6, synthetic::row_max_softmax(BitWidth::B4)),
            (BitWidth::B4, synthetic::log2_softmax(BitWidth::B4)),
            (BitWidth::B3, synthetic::row_max_softmax(BitWidth::B3)),
        ] {
            let data = synthetic::model(program.clone(), bits, bits, &softmax, 3);
            let bytes = write(&data).expect("a valid model");
            let name = format!("{name} W{bits:?}A{bits:?} {:?}", softmax.method);
            same_everywhere(&bytes, methods(&softmax), &name);
        }
    }
}

/// On every instruction set, by any number of threads, with any of `methods`.
fn same_everywhere(bytes: &[u8], methods: &[AttentionMethod], name: &str) {
    let model = Model::parse(bytes).expect("a valid file");
    let picture = picture(model.program().image, 1);
    let base = Options {
        isa: Some(Isa::Portable),
        ..Options::default()
    };
    let expected = logits(bytes, &base, &picture);
    for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
        for threads in [1, 2, 5] {
            for &attention in methods {
                let options = Options {
                    isa: Some(isa),
                    threads,
                    attention,
                    ..Options::default()
                };
                assert_eq!(
                    logits(bytes, &options, &picture),
                    expected,
                    "{name} on {isa:?}, {threads} threads, {attention:?}",
                );
            }
        }
    }
    let all = Options {
        all_rows: true,
        ..base
    };
    assert_eq!(
        logits(bytes, &all, &picture),
        expected,
        "{name}, all rows of the last block"
    );
}

fn threads(threads: usize) -> Options {
    Options {
        threads,
        ..Options::default()
    }
}

#[test]
fn more_threads_than_rows_or_processors_do_no_harm() {
    let config = VitConfig::SMALLEST;
    let softmax = synthetic::row_max_softmax(BitWidth::B3);
    let data = synthetic::vit(config, BitWidth::B4, BitWidth::B8, &softmax, 0);
    let bytes = write(&data).expect("a valid model");
    let picture = vec![99; config.image * config.image * 3];
    let expected = logits(&bytes, &threads(1), &picture);
    for n in [3, config.tokens(), config.tokens() + 1, 64] {
        for all_rows in [false, true] {
            let options = Options {
                all_rows,
                ..threads(n)
            };
            assert_eq!(logits(&bytes, &options, &picture), expected, "{n} threads");
        }
    }
}

/// What the first attention writes, `[tokens, dim]`.
fn first_attention(softmax: &SoftmaxQuant, options: &Options) -> Vec<u8> {
    struct First(Option<Vec<u8>>, BufferId);
    impl Observer for First {
        fn after(&mut self, _: usize, buffer: BufferId, _: Range<usize>, view: View<'_>) {
            if let (true, View::Codes(codes)) = (buffer == self.1, view) {
                self.0 = Some(codes.to_vec());
            }
        }
    }
    let bytes = file(BitWidth::B4, BitWidth::B8, softmax);
    let model = Model::parse(&bytes).expect("a valid file");
    let mut ops = model.program().ops.iter();
    let attention = ops.find(|op| matches!(op, Op::Attention { .. }));
    let mut first = First(None, attention.expect("a transformer").output());
    let mut session = Session::new(&model, options).expect("runs here");
    let run = session.run_observed(&pixels(1), &mut first);
    run.expect("the right size");
    first.0.expect("attention writes codes")
}

/// A head's columns are those of a model in which all heads have its codebook.
#[test]
fn every_head_has_its_own_codebook() {
    let per_head = synthetic::log2_softmax_per_head(BitWidth::B3, CONFIG.heads);
    let head_dim = CONFIG.dim / CONFIG.heads;
    for attention in [AttentionMethod::Decode, AttentionMethod::Shift] {
        let options = Options {
            attention,
            ..threads(2)
        };
        let found = first_attention(&per_head, &options);
        let mut alike = Vec::new();
        for (head, codebook) in per_head.codebooks.iter().enumerate() {
            let shared = SoftmaxQuant {
                codebooks: vec![codebook.clone()],
                ..per_head.clone()
            };
            let expected = first_attention(&shared, &options);
            for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
                if i % CONFIG.dim / head_dim == head {
                    assert_eq!(found, expected, "head {head}, {attention:?}");
                }
            }
            alike.push(expected);
        }
        alike.dedup();
        assert_eq!(alike.len(), CONFIG.heads, "the codebook matters");
    }
}

/// The last row belongs to the last lane, and lane 0 answers.
#[test]
fn a_token_of_another_lane_is_found() {
    let mut all = Vec::new();
    for chosen in [0, 1, CONFIG.tokens() / 2, CONFIG.tokens() - 1] {
        let softmax = &softmaxes()[1];
        let mut data = synthetic::vit(CONFIG, BitWidth::B4, BitWidth::B4, softmax, 3);
        for op in &mut data.program.ops {
            if let Op::SelectToken { token, .. } = op {
                *token = chosen;
            }
        }
        let bytes = write(&data).expect("a valid model");
        let model = Model::parse(&bytes).expect("a valid file");
        let pictures = [pixels(1), pixels(2), pixels(1)];
        let run = |options: &Options| {
            let mut session = Session::new(&model, options).expect("runs here");
            pictures
                .each_ref()
                .map(|p| session.run(p).expect("the right size").to_vec())
        };
        let expected = run(&threads(1));
        for n in [2, 3, 7] {
            assert_eq!(run(&threads(n)), expected, "token {chosen}, {n} threads");
        }
        all.push(expected);
    }
    all.dedup();
    assert_eq!(all.len(), 4, "the token matters");
}

#[test]
fn a_session_of_a_file_is_that_of_its_bytes() {
    for (weights, activations) in WIDTHS {
        let bytes = file(weights, activations, &softmaxes()[1]);
        let expected = logits(&bytes, &threads(1), &pixels(1));
        let mut file = Cursor::new(&bytes);
        let head = FileHead::read(&mut file).expect("bytes can be read");
        let info = head.parse().expect("a valid file");
        let tensors = TensorReader::open(&info, file).expect("a valid file");
        let mut session = Session::load(tensors, &threads(2)).expect("runs here");
        let found = session.run(&pixels(1)).expect("the right size");
        assert!(found.iter().map(|x| x.to_bits()).eq(expected));
    }
}

/// Its head and the checksum of DATA can be read; then it ends.
struct Ends(Cursor<Vec<u8>>, bool);

impl Read for Ends {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        match self.1 {
            true => Ok(0),
            false => self.0.read(out),
        }
    }
}

impl Seek for Ends {
    fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
        // The reader goes to DATA twice: for the checksum, then for a tensor.
        self.1 = self.0.position() == self.0.get_ref().len() as u64;
        self.0.seek(to)
    }
}

#[test]
fn a_file_that_ends_while_it_is_read_is_an_error() {
    let bytes = file(BitWidth::B4, BitWidth::B4, &softmaxes()[0]);
    let head = FileHead::read(&mut Cursor::new(&bytes)).expect("bytes can be read");
    let info = head.parse().expect("a valid file");
    let tensors = TensorReader::open(&info, Ends(Cursor::new(bytes.clone()), false));
    let error = Session::load(tensors.expect("a valid file"), &threads(1)).err();
    assert!(
        matches!(error, Some(LoadError::Read(ReadError::Io(_)))),
        "{error:?}"
    );
}

#[test]
fn pictures_do_not_leak_into_each_other() {
    let bytes = file(BitWidth::B4, BitWidth::B4, &softmaxes()[0]);
    let model = Model::parse(&bytes).expect("a valid file");
    for n in [1, 2, 3] {
        let mut session = Session::new(&model, &threads(n)).expect("runs here");
        let first = session.run(&pixels(1)).expect("the right size").to_vec();
        let other = session.run(&pixels(2)).expect("the right size").to_vec();
        assert_ne!(first, other, "the picture matters");
        for _ in 0..20 {
            assert_eq!(session.run(&pixels(1)).expect("the right size"), first);
            assert_eq!(session.run(&pixels(2)).expect("the right size"), other);
        }
    }
}

/// Copies everything that it sees.
#[derive(Default, PartialEq, Debug)]
struct Everything(Vec<(Range<usize>, Vec<u32>)>);

impl Observer for Everything {
    fn after(&mut self, _: usize, _: BufferId, rows: Range<usize>, view: View<'_>) {
        let bits = match view {
            View::Codes(codes) => codes.iter().map(|&c| c.into()).collect(),
            View::Floats(floats) => floats.iter().map(|f| f.to_bits()).collect(),
        };
        self.0.push((rows, bits));
    }
}

#[test]
fn an_observer_sees_whole_outputs_whatever_the_threads() {
    for (name, program) in synthetic::architectures() {
        let softmax = &softmaxes()[0];
        let data = synthetic::model(program, BitWidth::B6, BitWidth::B6, softmax, 3);
        let bytes = write(&data).expect("a valid model");
        let model = Model::parse(&bytes).expect("a valid file");
        let picture = picture(model.program().image, 1);
        let seen = |n| {
            let mut session = Session::new(&model, &threads(n)).expect("runs here");
            let expected = session.run(&picture).expect("the right size").to_vec();
            let mut everything = Everything::default();
            let logits = session
                .run_observed(&picture, &mut everything)
                .expect("the right size");
            assert_eq!(logits, expected);
            // And back: what the observer's gathering leaves behind does not matter.
            assert_eq!(session.run(&picture).expect("the right size"), expected);
            everything
        };
        let one = seen(1);
        let merges = |op: &&Op| matches!(op, Op::PatchMerge { .. });
        let ops = &model.program().ops;
        let merges = ops.iter().filter(merges).count();
        assert_eq!(one.0.len(), ops.len() - merges, "{name}");
        for n in [2, 3, 40] {
            assert!(seen(n) == one, "{name}, {n} threads");
        }
    }
}

/// Checks the codes of buffers that have a codebook.
struct Levels<'a>(&'a Model<'a>, usize);

impl Observer for Levels<'_> {
    fn after(&mut self, _: usize, output: BufferId, _: Range<usize>, view: View<'_>) {
        let quant = self.0.quantization().activations[output.index()].as_ref();
        let Some(codebook) = quant.and_then(|quant| quant.codebook.as_ref()) else {
            return;
        };
        let View::Codes(codes) = view else {
            panic!("a codebook is for codes");
        };
        let used = |level: &&u8| codes.contains(level);
        assert!(codes.iter().all(|code| codebook.levels.contains(code)));
        assert!(codebook.levels.iter().filter(used).count() > 4);
        self.1 += 1;
    }
}

/// LayerNorms, attentions, GELUs and the classifier's input hold levels, of
/// which most are used.
#[test]
fn buffers_with_a_codebook_hold_its_levels() {
    let bytes = file_with_codebooks(BitWidth::B4, BitWidth::B4);
    let model = Model::parse(&bytes).expect("a valid file");
    for n in [1, 2] {
        let mut levels = Levels(&model, 0);
        let mut session = Session::new(&model, &threads(n)).expect("runs here");
        let run = session.run_observed(&pixels(1), &mut levels);
        assert!(run.is_ok());
        assert_eq!(levels.1, 4 * CONFIG.depth + 1);
    }
}

/// Panics at one operation.
struct Panics(usize);

impl Observer for Panics {
    fn after(&mut self, op: usize, _: BufferId, _: Range<usize>, _: View<'_>) {
        assert_ne!(op, self.0, "on purpose");
    }
}

#[test]
fn a_panic_ends_the_session_not_the_process() {
    let bytes = file(BitWidth::B8, BitWidth::B8, &softmaxes()[0]);
    let model = Model::parse(&bytes).expect("a valid file");
    for n in [2, 5] {
        for op in [0, 7] {
            let mut session = Session::new(&model, &threads(n)).expect("runs here");
            let mut run = |observer: &mut dyn Observer| {
                catch_unwind(AssertUnwindSafe(|| {
                    session.run_observed(&pixels(1), observer).map(drop)
                }))
            };
            assert!(run(&mut Panics(usize::MAX)).is_ok());
            assert!(run(&mut Panics(op)).is_err());
            // The other lanes are gone; nothing waits for them.
            assert!(run(&mut Panics(usize::MAX)).is_err());
        }
    }
}

/// Counts the rows that each operation computes.
#[derive(Default)]
struct Rows(Vec<usize>);

impl Observer for Rows {
    fn after(&mut self, _: usize, _: BufferId, rows: Range<usize>, view: View<'_>) {
        let len = match view {
            View::Codes(codes) => codes.len(),
            View::Floats(floats) => floats.len(),
        };
        assert!(len > 0 && len % rows.len() == 0);
        self.0.push(rows.len());
    }
}

#[test]
fn after_its_keys_and_values_the_last_block_is_one_row() {
    let bytes = file(BitWidth::B8, BitWidth::B8, &softmaxes()[0]);
    let model = Model::parse(&bytes).expect("a valid file");
    let mut session = Session::new(&model, &Options::default()).expect("runs here");
    let mut rows = Rows::default();
    session
        .run_observed(&pixels(1), &mut rows)
        .expect("the right size");
    let tokens = CONFIG.tokens();
    // Embedding; 3 blocks of norm, qkv, attention, proj, norm, fc1, fc2; then token, norm, head.
    let full = 1 + 2 * 7 + 2;
    assert!(rows.0[..full].iter().all(|&r| r == tokens), "{:?}", rows.0);
    assert!(rows.0[full..].iter().all(|&r| r == 1), "{:?}", rows.0);
}

#[test]
fn work_that_is_left_out_is_not_counted() {
    let bytes = file(BitWidth::B8, BitWidth::B8, &softmaxes()[0]);
    let model = Model::parse(&bytes).expect("a valid file");
    let session = Session::new(&model, &Options::default()).expect("runs here");
    let (t, d) = (CONFIG.tokens() as u64, CONFIG.dim as u64);
    // Of the last block, attention, proj, fc1 and fc2 of all rows but one.
    let saved = (t - 1) * (2 * t * d + d * d + 2 * d * CONFIG.mlp_ratio as u64 * d);
    assert_eq!(session.macs(), session.program().macs() - saved);
    let all = Options {
        all_rows: true,
        ..Options::default()
    };
    let whole = Session::new(&model, &all).expect("runs here");
    assert_eq!(whole.macs(), whole.program().macs());
}

#[test]
fn the_memory_plan_is_known_before_and_kept() {
    let bytes = file(BitWidth::B4, BitWidth::B8, &softmaxes()[1]);
    let model = Model::parse(&bytes).expect("a valid file");
    for threads in [1, 4] {
        let options = Options {
            threads,
            ..Options::default()
        };
        let plan = MemoryPlan::new(&model, &options).expect("runs here");
        let session = Session::new(&model, &options).expect("runs here");
        assert_eq!(session.memory_plan(), plan);
        assert!(plan.arena_bytes() > 0 && plan.weight_bytes > 0);
    }
}

#[test]
fn a_picture_of_the_wrong_size_is_refused() {
    let bytes = file(BitWidth::B8, BitWidth::B8, &softmaxes()[0]);
    let model = Model::parse(&bytes).expect("a valid file");
    let mut session = Session::new(&model, &Options::default()).expect("runs here");
    let expected = CONFIG.image * CONFIG.image * 3;
    assert_eq!(
        session.run(&[0; 7]),
        Err(RunError::Pixels { expected, found: 7 })
    );
}

#[test]
fn codes_between_the_powers_of_two_do_not_shift() {
    let bytes = file(
        BitWidth::B4,
        BitWidth::B4,
        &synthetic::row_max_softmax(BitWidth::B4),
    );
    let model = Model::parse(&bytes).expect("a valid file");
    let options = Options {
        attention: AttentionMethod::Shift,
        ..Options::default()
    };
    let error = Session::new(&model, &options).err();
    assert!(
        matches!(error, Some(SessionError::Unsupported { op: 3, .. })),
        "{error:?}"
    );
}

/// 33 by 33 tokens have 4225 numbers in the file and 1.2 million in a session.
#[test]
fn a_position_bias_of_huge_windows_is_refused() {
    let side = 33;
    let mut config = swin::Config::tiny([4 * side; 2], 3);
    config.stages.truncate(1);
    config.stages[0].depth = 1;
    config.stages[0].window = [side; 2];
    config.readout = Readout::Tokens;
    config.classes = 0;
    for (window, refused) in [(side, true), (side / 3, false)] {
        config.stages[0].window = [window; 2];
        let softmax = synthetic::row_max_softmax(BitWidth::B3);
        let program = swin::program(&config);
        let data = synthetic::model(program, BitWidth::B3, BitWidth::B3, &softmax, 1);
        let bytes = write(&data).expect("a valid model");
        let model = Model::parse(&bytes).expect("a valid file");
        let plan = MemoryPlan::new(&model, &Options::default());
        assert_eq!(plan.is_err(), refused, "windows of {window}: {plan:?}");
    }
}

#[test]
fn an_instruction_set_that_is_not_here_is_refused() {
    let bytes = file(BitWidth::B8, BitWidth::B8, &softmaxes()[0]);
    let model = Model::parse(&bytes).expect("a valid file");
    for isa in Isa::ALL.into_iter().filter(|isa| !isa.is_available()) {
        let options = Options {
            isa: Some(isa),
            ..Options::default()
        };
        let error = Session::new(&model, &options).err();
        assert_eq!(error, Some(SessionError::IsaUnavailable { isa }));
    }
}

#[test]
fn kernels_that_are_given_win_over_an_instruction_set() {
    let bytes = file(BitWidth::B8, BitWidth::B8, &softmaxes()[0]);
    let model = Model::parse(&bytes).expect("a valid file");
    let options = Options {
        isa: Isa::ALL.into_iter().find(|isa| !isa.is_available()),
        kernels: Kernels::for_isa(Isa::Portable),
        ..Options::default()
    };
    let session = Session::new(&model, &options).expect("runs here");
    assert_eq!(session.isa(), Isa::Portable);
    assert!(MemoryPlan::new(&model, &options).is_ok());
}
