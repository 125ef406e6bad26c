//! One model, many sessions, and every way a file can be wrong.
#![forbid(unsafe_code)]

use std::fs;
use std::path::PathBuf;
use std::thread;

use tempfile::TempDir;
use tpvit_bindings::{Error, Fault, MAX_THREADS, SharedModel, chain, isa};
use tpvit_models::{Model, synthetic, write};
use tpvit_runtime::{Isa, Options, Session};

fn bytes() -> Vec<u8> {
    write(&synthetic::tiny()).expect("a valid model")
}

fn on_disk(bytes: &[u8]) -> (TempDir, PathBuf) {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("m.tpv");
    fs::write(&path, bytes).unwrap();
    (folder, path)
}

/// 8 x 8 pixels.
fn picture(seed: u8) -> Vec<u8> {
    let pixel = |i: u8| i.wrapping_mul(37).wrapping_add(seed);
    (0..192).map(pixel).collect()
}

fn run(session: &mut Session, seed: u8) -> Vec<u32> {
    let logits = session.run(&picture(seed)).expect("the right size");
    logits.iter().map(|x| x.to_bits()).collect()
}

fn expected(seed: u8) -> Vec<u32> {
    let bytes = bytes();
    let model = Model::parse(&bytes).unwrap();
    run(
        &mut Session::new(&model, &Options::default()).unwrap(),
        seed,
    )
}

fn failure<T>(result: Result<T, Error>) -> (Fault, String) {
    match result {
        Ok(_) => panic!("no error"),
        Err(error) => (error.fault(), chain(&error)),
    }
}

#[test]
fn a_file_and_its_bytes_are_the_same_model() {
    let (_folder, path) = on_disk(&bytes());
    for model in [SharedModel::open(&path), SharedModel::from_bytes(bytes())] {
        let model = model.expect("a valid file");
        assert_eq!(model.image_size(), [8, 8]);
        assert_eq!(model.output_shape(), [1, 10]);
        assert_eq!(model.classes(), Some(10));
        assert_eq!(model.labels().len(), 10);
        assert_eq!(model.labels()[3], "class 3");
        let mut session = model.session(&Options::default()).unwrap();
        assert_eq!(run(&mut session, 5), expected(5));
    }
}

#[test]
fn eight_threads_share_a_model() {
    let (_folder, path) = on_disk(&bytes());
    for model in [SharedModel::open(&path), SharedModel::from_bytes(bytes())] {
        let model = model.expect("a valid file");
        thread::scope(|scope| {
            for seed in 0..8 {
                let model = &model;
                scope.spawn(move || {
                    let mut session = model.session(&Options::default()).unwrap();
                    for _ in 0..50 {
                        assert_eq!(run(&mut session, seed), expected(seed), "picture {seed}");
                    }
                });
            }
        });
    }
}

#[test]
fn a_session_outlives_its_model_and_the_file() {
    let (folder, path) = on_disk(&bytes());
    let model = SharedModel::open(&path).unwrap();
    let mut session = model.session(&Options::default()).unwrap();
    drop(model);
    drop(folder);
    assert_eq!(run(&mut session, 1), expected(1));
}

#[test]
fn a_replaced_file_is_still_the_one_that_was_opened() {
    let (folder, path) = on_disk(&bytes());
    let model = SharedModel::open(&path).unwrap();
    let other = folder.path().join("other");
    fs::write(&other, b"something else").unwrap();
    fs::rename(other, &path).unwrap();
    let mut session = model.session(&Options::default()).unwrap();
    assert_eq!(run(&mut session, 1), expected(1));
}

#[test]
fn a_file_overwritten_in_place_is_noticed() {
    let (_folder, path) = on_disk(&bytes());
    let model = SharedModel::open(&path).unwrap();
    let mut changed = bytes();
    *changed.last_mut().unwrap() ^= 1;
    fs::write(&path, &changed).unwrap();
    let (fault, text) = failure(model.session(&Options::default()));
    assert_eq!(fault, Fault::Model);
    assert!(text.starts_with(&format!("cannot use {}: ", path.display())));
    fs::write(&path, &changed[..changed.len() - 1]).unwrap();
    let (fault, _) = failure(model.session(&Options::default()));
    assert_eq!(fault, Fault::Io);
}

#[test]
fn what_is_no_model_is_refused_with_its_name() {
    let folder = TempDir::new().unwrap();
    let missing = folder.path().join("missing.tpv");
    let (fault, text) = failure(SharedModel::open(&missing));
    assert_eq!(fault, Fault::Io);
    let start = format!("cannot read {}: ", missing.display());
    assert!(text.starts_with(&start), "{text}");
    assert_eq!(failure(SharedModel::open(folder.path())).0, Fault::Io);

    let whole = bytes();
    for len in [0, 1, 7, 100, whole.len() / 2] {
        let (fault, text) = failure(SharedModel::from_bytes(whole[..len].to_vec()));
        assert_eq!(fault, Fault::Model, "{len} bytes: {text}");
        assert!(text.starts_with("cannot use the model in memory: "));
    }
    // DATA comes last, and is looked at when a session is made.
    let mut changed = whole;
    *changed.last_mut().unwrap() ^= 1;
    let model = SharedModel::from_bytes(changed).expect("all before DATA is as it was");
    assert_eq!(failure(model.session(&Options::default())).0, Fault::Model);
}

#[test]
fn options_no_session_has_are_refused() {
    let model = SharedModel::from_bytes(bytes()).unwrap();
    for threads in [0, MAX_THREADS + 1, usize::MAX] {
        let options = Options {
            threads,
            ..Options::default()
        };
        let (fault, text) = failure(model.session(&options));
        assert_eq!(fault, Fault::Argument);
        assert!(text.ends_with(&format!("not {threads}")), "{text}");
    }
    assert_eq!(isa("portable").unwrap(), Isa::Portable);
    let (fault, text) = failure(isa("sse2"));
    assert_eq!(fault, Fault::Argument);
    assert!(text.contains("\"sse2\"") && text.contains("portable, avx2"));
    let absent = Isa::ALL.into_iter().find(|isa| !isa.is_available());
    let options = Options {
        isa: Some(absent.expect("no CPU is of two architectures")),
        ..Options::default()
    };
    assert_eq!(failure(model.session(&options)).0, Fault::Machine);
}

#[test]
fn many_threads_run_a_small_model() {
    let model = SharedModel::from_bytes(bytes()).unwrap();
    for threads in [2, 8, 64] {
        let options = Options {
            threads,
            ..Options::default()
        };
        let mut session = model.session(&options).unwrap();
        assert_eq!(session.threads(), threads);
        assert_eq!(run(&mut session, 9), expected(9));
    }
}
