//! The command where the system gives too little: memory, room on the disk, a
//! reader, or time. It ends with a status, and no file is ever half written.
#![cfg(unix)]
#![forbid(unsafe_code)]

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tpvit_tests::{fixture, tpvit, write_pictures};

const VIT: &str = "vit.opset17.onnx";

/// What Ctrl-C sends.
const SIGINT: i32 = 2;
/// What `kill` sends.
const SIGTERM: i32 = 15;
/// What `abort` sends to itself, as Rust does when memory is refused.
const SIGABRT: i32 = 6;

/// A folder of one test: calibration pictures in `pictures/`, outputs in `out/`.
struct Folder(TempDir);

impl Folder {
    fn new(pictures: u64) -> Folder {
        let folder = Folder(tempfile::tempdir().expect("a temporary folder"));
        write_pictures(&folder.path("pictures"), pictures);
        fs::create_dir(folder.path("out")).expect("a folder");
        folder
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// `tpvit quantize` of a fixture into `output`.
    fn quantize(&self, output: &Path, flags: &[&str]) -> Command {
        let mut command = tpvit();
        command.arg("quantize").arg(fixture(VIT));
        command.arg("--calibration").arg(self.path("pictures"));
        command.args(["--preprocess", "vit-augreg", "--no-verify", "-o"]);
        command.arg(output).args(flags);
        command
    }

    /// A model in this folder.
    fn model(&self) -> PathBuf {
        let path = self.path("model.tpv");
        fs::write(&path, model_bytes()).expect("a file");
        path
    }

    /// What lies in `out/`, by name.
    fn left(&self) -> Vec<String> {
        let entries = fs::read_dir(self.path("out")).expect("readable").flatten();
        let mut names: Vec<String> = entries
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }
}

/// A small model, made once, for those who only run one.
fn model_bytes() -> &'static [u8] {
    static BYTES: OnceLock<Vec<u8>> = OnceLock::new();
    BYTES.get_or_init(|| {
        let folder = Folder::new(4);
        let path = folder.path("vit.tpv");
        let output = run(&mut folder.quantize(&path, &[]));
        assert!(output.status.success(), "{}", text(&output.stderr));
        fs::read(path).expect("the output")
    })
}

fn run(command: &mut Command) -> Output {
    command.output().expect("it starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// `command` as a shell starts it after `before`, such as `ulimit -v 1000`.
fn after(before: &str, command: &Command) -> Command {
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(format!("{before}; exec \"$0\" \"$@\""));
    shell.arg(command.get_program()).args(command.get_args());
    for (key, value) in command.get_envs() {
        match value {
            Some(value) => shell.env(key, value),
            None => shell.env_remove(key),
        };
    }
    shell
}

/// Where mounts of one's own are allowed: `command` in a world where `at` is a disk
/// of so many kilobytes.
fn on_small_disk(at: &Path, kilobytes: u32, then: &str, command: &Command) -> Option<Command> {
    let mount = |then: &str, command: &Command| {
        let mount = format!(
            "mount -t tmpfs -o size={kilobytes}k none '{}'",
            at.display()
        );
        let inner = after(&format!("{mount} || exit 99{then}"), command);
        let mut outer = Command::new("unshare");
        outer.arg("-rm").arg(inner.get_program());
        outer.args(inner.get_args());
        outer.env_remove("TPVIT_ISA").env("COLUMNS", "100");
        outer
    };
    let mut probe = mount("", &Command::new("true"));
    if probe.output().is_ok_and(|output| output.status.success()) {
        return Some(mount(then, command));
    }
    println!("skipped: no mounts of one's own here");
    None
}

/// The one message of a command that failed.
#[track_caller]
fn refusal(output: &Output, words: &[&str]) {
    let stderr = text(&output.stderr);
    assert_eq!(
        output.status.code(),
        Some(1),
        "{:?} {stderr}",
        output.status
    );
    let messages = stderr.lines().filter(|line| line.starts_with("tpvit: "));
    assert_eq!(messages.count(), 1, "{stderr}");
    assert!(!stderr.contains("panicked"), "{stderr}");
    for word in words {
        assert!(stderr.contains(word), "no {word:?} in: {stderr}");
    }
}

/// A network that takes over 100 MB, where the process may have that with its code.
#[test]
fn a_session_beyond_the_memory_is_an_error() {
    use tpvit_models::synthetic::{self, VitConfig};
    use tpvit_models::{BitWidth, write};

    let folder = Folder::new(1);
    let config = VitConfig {
        image: 16 * 100,
        mlp_ratio: 64,
        depth: 1,
        classes: 3,
        ..VitConfig::DEIT_TINY
    };
    let softmax = synthetic::row_max_softmax(BitWidth::B4);
    let data = synthetic::vit(config, BitWidth::B8, BitWidth::B8, &softmax, 1);
    let file = folder.path("large.tpv");
    fs::write(&file, write(&data).expect("a valid model")).expect("a file");
    let mut command = tpvit();
    command
        .arg("run")
        .arg(&file)
        .arg(folder.path("pictures/0.png"));
    let words = ["large.tpv", "bytes of memory", "not to be had"];
    refusal(&run(&mut after("ulimit -v 100000", &command)), &words);
}

/// A file with a hole, 1 TB long, that says to be read whole.
#[test]
fn a_file_beyond_the_memory_is_an_error() {
    let folder = Folder::new(1);
    let path = folder.path("hole.tpv");
    let mut bytes = model_bytes().to_vec();
    let data = 32 + 32 * 6; // its entry in the table: models/SPEC.md, section 3
    assert_eq!(bytes[data..data + 4], 256u32.to_le_bytes());
    bytes[data..data + 4].copy_from_slice(&77u32.to_le_bytes()); // where DATA begins, nobody says
    fs::write(&path, &bytes).expect("a file");
    let file = File::options().write(true).open(&path).expect("the file");
    if file.set_len(1 << 40).is_err() {
        println!("skipped: no file with a hole of 1 TB here");
        return;
    }
    for name in ["run", "bench"] {
        let mut command = tpvit();
        command.arg(name).arg(&path);
        if name == "run" {
            command.arg(folder.path("pictures/0.png"));
        }
        let output = run(&mut after("ulimit -v 1000000", &command));
        refusal(&output, &["hole.tpv", "memory"]);
    }
}

/// Whatever the limit, from what the program itself takes to enough: an answer, an
/// error, or Rust's end without memory, which is said too; and the old output or the
/// new one.
#[test]
fn too_little_memory_leaves_no_half_file() {
    let folder = Folder::new(16);
    let output = folder.path("out/vit.tpv");
    let quantize = folder.quantize(&output, &[]);
    let mut answer = tpvit();
    answer
        .arg("run")
        .arg(folder.model())
        .arg(folder.path("pictures/0.png"));
    let mut version = tpvit();
    version.arg("--version");
    let limited = |megabytes: u32, command: &Command| {
        let limit = format!("ulimit -c 0; ulimit -v {}", megabytes * 1000);
        run(&mut after(&limit, command))
    };
    let mut limits = (4..2000).step_by(4);
    let first = limits.find(|&limit| limited(limit, &version).status.success());
    assert!(first.is_some(), "the system cannot even load it");
    let mut too_little = 0;
    for megabytes in limits {
        fs::write(&output, "old").expect("a file");
        let mut enough = true;
        for command in [&quantize, &answer] {
            let ended = limited(megabytes, command);
            let stderr = text(&ended.stderr);
            match (ended.status.code(), ended.status.signal()) {
                (Some(0), _) => continue,
                // 101: the system refused a thread, which ends those that wait for it.
                (Some(1 | 101), _) | (_, Some(SIGABRT)) => {
                    enough = false;
                    too_little += 1;
                    assert!(!stderr.is_empty(), "{megabytes} MB: {:?}", ended.status);
                }
                _ => panic!("{megabytes} MB: {:?} {stderr}", ended.status),
            }
        }
        assert_eq!(folder.left(), ["vit.tpv"], "{megabytes} MB");
        let content = fs::read(&output).expect("old or new");
        let whole = tpvit_models::Model::parse(&content).is_ok();
        assert!(content == b"old" || whole, "{megabytes} MB");
        if enough {
            break;
        }
    }
    println!("{too_little} times too little");
    assert!(too_little > 0);
}

#[test]
fn a_full_disk_is_an_error_that_leaves_nothing() {
    let folder = Folder::new(4);
    let out = folder.path("out");
    let kept = folder.path("kept");
    fs::create_dir(&kept).expect("a folder");
    let command = folder.quantize(&out.join("vit.tpv"), &[]);
    let Some(mut shell) = on_small_disk(&out, 40, "", &command) else {
        return;
    };
    let output = run(&mut shell);
    refusal(&output, &["vit.tpv", "No space left on device"]);

    // Again, and what is left there, which is gone with the disk.
    let script = format!(
        "mount -t tmpfs -o size=40k none '{out}' && echo old > '{out}/vit.tpv' || exit 99; \
         \"$0\" \"$@\"; echo $? > '{kept}/status'; cp -a '{out}/.' '{kept}'",
        out = out.display(),
        kept = kept.display()
    );
    let mut shell = Command::new("unshare");
    shell.args(["-rm", "sh", "-c", &script]);
    shell.arg(command.get_program()).args(command.get_args());
    run(&mut shell);
    let mut left: Vec<_> = fs::read_dir(&kept).expect("readable").flatten().collect();
    left.sort_by_key(|entry| entry.file_name());
    let names: Vec<_> = left.iter().map(|entry| entry.file_name()).collect();
    assert_eq!(names, ["status", "vit.tpv"]);
    let read = |name: &str| fs::read_to_string(kept.join(name)).expect("a file");
    assert_eq!(
        (read("status").trim(), read("vit.tpv").trim()),
        ("1", "old")
    );
}

/// Where nobody may mount: a limit of the size of files, which the system tells as
/// an error if its signal is ignored.
#[test]
fn an_output_beyond_the_limit_of_files_leaves_nothing() {
    let folder = Folder::new(16);
    let output = folder.path("out/vit.tpv");
    fs::write(&output, "old").expect("a file");
    let trained = ["-w", "4", "-a", "4", "--effort", "balanced"];
    for flags in [&[][..], &trained] {
        let command = folder.quantize(&output, flags);
        let mut limited = after("trap '' XFSZ; ulimit -f 20", &command);
        // The first that is too large: the output, or the checkpoint of training.
        refusal(&run(&mut limited), &["vit.tpv", "File too large"]);
        assert_eq!(folder.left(), ["vit.tpv"], "{flags:?}");
        assert_eq!(fs::read(&output).expect("the old one"), b"old");
    }
}

/// Also for who may write everywhere, as in a container.
#[test]
fn a_read_only_disk_is_found_before_any_work() {
    let folder = Folder::new(1);
    let out = folder.path("out");
    let mut command = tpvit();
    // The model is none: who reads it first complains about that.
    command.arg("quantize").arg(folder.path("pictures/0.png"));
    command.arg("--calibration").arg(folder.path("pictures"));
    command
        .args(["--preprocess", "deit", "-o"])
        .arg(out.join("vit.tpv"));
    let read_only = format!("; mount -o remount,ro '{}' || exit 99", out.display());
    let Some(mut shell) = on_small_disk(&out, 40, &read_only, &command) else {
        return;
    };
    let output = run(&mut shell);
    refusal(&output, &["cannot write in folder", "out", "Read-only"]);
}

/// Standard output on a full disk: nobody takes the half for the whole.
#[test]
fn answers_that_cannot_be_written_are_an_error() {
    let Ok(full) = File::options().write(true).open("/dev/full") else {
        println!("skipped: no /dev/full");
        return;
    };
    let folder = Folder::new(1);
    let picture = folder.path("pictures/0.png");
    let picture = picture.to_str().expect("UTF-8");
    for (name, arguments) in [
        ("run", &[picture][..]),
        ("run", &[picture, "--json"]),
        ("inspect", &[]),
        ("bench", &["--runs", "1"]),
    ] {
        let mut command = tpvit();
        command.arg(name).arg(folder.model()).args(arguments);
        command.stdout(full.try_clone().expect("a copy"));
        let words = ["standard output", "No space left on device"];
        refusal(&run(&mut command), &words);
    }
}

/// The reader leaves in the middle, and the shell is not told of a failure.
#[test]
fn a_reader_that_leaves_ends_the_work_quietly() {
    let folder = Folder::new(1);
    let picture = folder.path("pictures/0.png");
    let mut command = tpvit();
    command
        .arg("run")
        .arg(folder.model())
        .args(vec![&picture; 3000]);
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut first = [0; 1];
    let mut stdout = child.stdout.take().expect("piped");
    stdout.read_exact(&mut first).expect("an answer");
    drop(stdout);
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(text(&output.stderr), "");
}

/// Sends a signal, with the command of that name.
fn send(signal: i32, child: &Child) {
    let pid = child.id().to_string();
    let sent = Command::new("kill")
        .arg(format!("-{signal}"))
        .arg(pid)
        .output();
    sent.expect("there is a command kill");
}

/// The same command with signals that end it, whoever started the tests: a shell has its
/// background jobs ignore Ctrl-C, and `tpvit` leaves it at that.
fn heeding_signals(command: &Command) -> Command {
    let mut heeding = Command::new("env");
    heeding.arg("--default-signal=INT,TERM,HUP");
    heeding.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => heeding.env(name, value),
            None => heeding.env_remove(name),
        };
    }
    heeding
}

/// At moments spread over a whole run, from the first instruction to the last.
#[test]
fn an_interruption_at_any_moment_leaves_the_old_file_or_the_new() {
    const MOMENTS: u32 = 12;
    let folder = Folder::new(40);
    let output = folder.path("out/vit.tpv");
    let start = Instant::now();
    assert!(run(&mut folder.quantize(&output, &[])).status.success());
    let whole = start.elapsed();
    let new = fs::read(&output).expect("the output");
    let mut interrupted = 0;
    for moment in 0..MOMENTS {
        fs::write(&output, "old").expect("a file");
        let signal = if moment % 4 == 3 { SIGTERM } else { SIGINT };
        let mut command = heeding_signals(&folder.quantize(&output, &[]));
        let mut child = command.stdout(Stdio::null()).spawn().expect("it starts");
        std::thread::sleep(whole * moment / (MOMENTS - 1));
        send(signal, &child);
        let status = child.wait().expect("it ends");
        let content = fs::read(&output).expect("old or new");
        match (status.code(), status.signal()) {
            (Some(0), _) => assert!(content == new, "{moment}"),
            (_, Some(number)) if number == signal => {
                interrupted += 1;
                assert!(content == b"old" || content == new, "{moment}");
            }
            _ => panic!("{moment}: {status:?}"),
        }
        assert_eq!(folder.left(), ["vit.tpv"], "{moment}");
    }
    assert!(interrupted > MOMENTS / 3, "only {interrupted} came in time");
}

/// In the moment that the output is there under its temporary name.
#[test]
fn an_interruption_while_writing_removes_the_half() {
    let folder = Folder::new(4);
    let output = folder.path("out/features.npy");
    let features = without_classifier(&folder);
    fs::write(&output, "old").expect("a file");
    for signal in [SIGINT, SIGTERM] {
        let mut command = tpvit();
        command
            .arg("run")
            .arg(&features)
            .arg("--features")
            .arg(&output);
        // So many that it writes for seconds.
        command.args(vec![folder.path("pictures/0.png"); 20_000]);
        let mut command = heeding_signals(&command);
        let mut child = command.stdout(Stdio::null()).spawn().expect("it starts");
        let partial = |name: &String| name.ends_with(".partial");
        let begun = Instant::now();
        while !folder.left().iter().any(partial) {
            assert!(
                begun.elapsed() < Duration::from_secs(60),
                "nothing is written"
            );
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_millis(50));
        send(signal, &child);
        let status = child.wait().expect("it ends");
        assert_eq!(status.signal(), Some(signal), "{status:?}");
        assert_eq!(folder.left(), ["features.npy"], "nothing partial");
        assert_eq!(fs::read(&output).expect("the old one"), b"old");
    }
}

/// A small model without a classifier.
fn without_classifier(folder: &Folder) -> PathBuf {
    use tpvit_models::synthetic;
    use tpvit_models::{BitWidth, write};
    let softmax = synthetic::row_max_softmax(BitWidth::B4);
    let all = synthetic::architectures().into_iter();
    let mut programs = all.map(|(_, program)| program).filter(|p| !p.classifies());
    let program = programs.next().expect("one without a classifier");
    let data = synthetic::model(program, BitWidth::B8, BitWidth::B8, &softmax, 1);
    let path = folder.path("features.tpv");
    fs::write(&path, write(&data).expect("a valid model")).expect("a file");
    path
}

/// Ctrl-C on a terminal, where the bar says what is being done. `script` is the
/// terminal, and ends with the status that a shell shows.
#[test]
fn ctrl_c_in_each_phase_is_130_and_training_can_be_resumed() {
    let folder = Folder::new(100);
    let output = folder.path("out/vit.tpv");
    let flags = ["-w", "3", "-a", "3", "--effort", "balanced"];
    assert!(run(&mut folder.quantize(&output, &flags)).status.success());
    let whole = fs::read(&output).expect("the output");
    for phase in ["calibrating", "compensating", "training"] {
        fs::write(&output, "old").expect("a file");
        let command = heeding_signals(&folder.quantize(&output, &flags));
        let words = [command.get_program()]
            .into_iter()
            .chain(command.get_args());
        let words: Vec<String> = words.map(|word| format!("'{}'", word.display())).collect();
        let mut terminal = Command::new("script");
        terminal.args(["-qefc", &format!("exec {}", words.join(" ")), "/dev/null"]);
        terminal.env("TERM", "xterm").env_remove("TPVIT_ISA");
        let spawned = terminal
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        let Ok(mut child) = spawned else {
            println!("skipped: no command script here");
            return;
        };
        let mut seen = Vec::new();
        let mut shown = child.stdout.take().expect("piped");
        let mut piece = [0; 4096];
        while !text(&seen).contains(phase) {
            let len = shown.read(&mut piece).expect("its output");
            assert!(len > 0, "it never says {phase}: {}", text(&seen));
            seen.extend(&piece[..len]);
        }
        if phase == "training" {
            wait_for(&folder.path("out/vit.tpv.checkpoint"), &mut child);
        }
        let keyboard = child.stdin.as_mut().expect("piped");
        keyboard.write_all(b"\x03").expect("a key");
        std::io::copy(&mut shown, &mut seen).expect("the rest");
        let status = child.wait().expect("it ends");
        assert_eq!(status.code(), Some(130), "{phase}: {}", text(&seen));
        assert_eq!(fs::read(&output).expect("the old one"), b"old", "{phase}");
        let left = folder.left();
        match phase {
            "training" => assert_eq!(left, ["vit.tpv", "vit.tpv.checkpoint"]),
            _ => assert_eq!(left, ["vit.tpv"], "{phase}"),
        }
    }
    let resumed = [&flags[..], &["--resume"]].concat();
    let ended = run(&mut folder.quantize(&output, &resumed));
    assert!(ended.status.success(), "{}", text(&ended.stderr));
    assert!(
        fs::read(&output).expect("the output") == whole,
        "the same bytes"
    );
    assert_eq!(folder.left(), ["vit.tpv"]);
}

fn wait_for(path: &Path, child: &mut Child) {
    while !path.exists() && child.try_wait().expect("a status").is_none() {
        std::thread::sleep(Duration::from_millis(2));
    }
}
