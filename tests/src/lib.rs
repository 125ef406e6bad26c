//! What the cross-crate tests in `tests/` share: the command, models, pictures.
//!
//! - [`tpvit`] is the command of this build.
//! - [`fixture`] and [`zoo`] are models that ship; [`data`] is the folder of
//!   those that do not, where `TPVIT_DATA` names it.
//! - [`noise`] and [`gradient`] are pictures that depend on a seed alone, and
//!   [`write_pictures`] fills a folder with them.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::SystemTime;

use image::{Rgb, RgbImage};

/// The `tpvit` command of this build, with nothing of the caller's environment
/// that would change what it does.
///
/// It belongs to another package, so cargo does not say where it is. It lies
/// beside this test, two folders up, and `cargo test --workspace` has built it;
/// otherwise, or where a source is newer, it is built now.
///
/// # Panics
/// If it cannot be built.
pub fn tpvit() -> Command {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    let mut command = Command::new(PATH.get_or_init(built));
    command.env_remove("TPVIT_ISA").env("COLUMNS", "100");
    command
}

fn built() -> PathBuf {
    let test = std::env::current_exe().expect("a test knows its own path");
    let profile = test.ancestors().nth(2).expect("target/debug/deps/test");
    let binary = profile.join(format!("tpvit{}", std::env::consts::EXE_SUFFIX));
    let crates = ["kernels", "models", "runtime", "quantizer"];
    let sources = crates.map(|name| root().join(name).join("src"));
    let newest = sources.iter().map(|folder| newest_in(folder)).max();
    let made = fs::metadata(&binary).and_then(|m| m.modified()).ok();
    if made < newest {
        build(profile);
    }
    assert!(
        binary.is_file(),
        "no {}; make it with `cargo build -p tpvit-quantizer --bin tpvit`",
        binary.display()
    );
    binary
}

/// Builds the command into the target folder around `profile`, `target/debug`.
fn build(profile: &Path) {
    let name = match profile.file_name().and_then(|n| n.to_str()) {
        Some("debug") | None => "dev",
        Some(other) => other,
    };
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let status = Command::new(cargo)
        .current_dir(root())
        .args(["build", "-p", "tpvit-quantizer", "--bin", "tpvit"])
        .args(["--profile", name, "--target-dir"])
        .arg(profile.parent().expect("the target folder"))
        .status()
        .expect("cargo starts");
    assert!(status.success(), "cargo build of tpvit: {status}");
}

/// When the newest Rust file in `folder` was changed.
fn newest_in(folder: &Path) -> SystemTime {
    let entries = fs::read_dir(folder).expect("a source folder");
    let times = entries.flatten().map(|entry| match entry.path() {
        path if path.is_dir() => newest_in(&path),
        path if path.extension().is_some_and(|e| e == "rs") => entry
            .metadata()
            .and_then(|m| m.modified())
            .expect("the time of a change"),
        _ => SystemTime::UNIX_EPOCH,
    });
    times.max().unwrap_or(SystemTime::UNIX_EPOCH)
}

/// The workspace.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// A small ONNX export: see `quantizer/tests/fixtures/README.md`.
pub fn fixture(name: &str) -> PathBuf {
    root().join("quantizer/tests/fixtures").join(name)
}

/// A file of the model that ships: see `models/zoo/README.md`.
pub fn zoo(name: &str) -> PathBuf {
    root().join("models/zoo").join(name)
}

/// The folder of models and pictures that do not ship, as `TPVIT_DATA` names
/// it; says where there is none that the test is skipped.
pub fn data() -> Option<PathBuf> {
    let data = std::env::var_os("TPVIT_DATA").map(PathBuf::from);
    if data.is_none() {
        println!("skipped: TPVIT_DATA is not set");
    }
    data
}

/// Independent pixels, each value equally likely; the same for a seed everywhere.
pub fn noise(seed: u64, width: u32, height: u32) -> RgbImage {
    let mut random = Random(seed);
    RgbImage::from_fn(width, height, |_, _| Rgb([0; 3].map(|_: u8| random.byte())))
}

/// Colours that change evenly from one corner to the others, with a little
/// noise: nearer to photographs than [`noise`].
pub fn gradient(seed: u64, width: u32, height: u32) -> RgbImage {
    let mut random = Random(seed);
    let corners = [0; 3].map(|_| [0; 3].map(|_| i64::from(random.byte()))); // [corner][channel]
    let (across, down) = (i64::from(width.max(2)) - 1, i64::from(height.max(2)) - 1);
    RgbImage::from_fn(width, height, |x, y| {
        let (x, y) = (i64::from(x), i64::from(y));
        Rgb([0, 1, 2].map(|c| {
            let [start, right, below] = corners.map(|corner| corner[c]);
            let value = start + (right - start) * x / across + (below - start) * y / down;
            (value + i64::from(random.byte() % 16)).clamp(0, 255) as u8
        }))
    })
}

/// Writes `count` pictures, gradients and noise in turn, of 40 x 36 pixels, as
/// PNG files `0.png`, `1.png`, ...; returns their paths.
///
/// # Panics
/// If the folder cannot be written.
pub fn write_pictures(folder: &Path, count: u64) -> Vec<PathBuf> {
    fs::create_dir_all(folder).expect("a folder for pictures");
    let write = |seed| {
        let path = folder.join(format!("{seed}.png"));
        let picture = match seed % 2 {
            0 => gradient(seed, 40, 36),
            _ => noise(seed, 40, 36),
        };
        picture.save(&path).expect("a picture is written");
        path
    };
    (0..count).map(write).collect()
}

/// A linear congruential generator, its upper bits (Knuth's MMIX constants).
struct Random(u64);

impl Random {
    fn byte(&mut self) -> u8 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 56) as u8
    }
}
