//! How results reach people, files and machines.

use std::fmt::Write as _;
#[cfg(feature = "progress")]
use std::io::IsTerminal;
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context, Result};
#[cfg(feature = "progress")]
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::interrupt::Guard;
pub(crate) use tpvit_quantizer::report::bytes;

/// Writes `bytes` to `path` whole or not at all: beside it first, then renamed.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    write_all_whole(&[(path, bytes)])
}

/// The same of several files: none is renamed before all are written.
pub(crate) fn write_all_whole(files: &[(&Path, &[u8])]) -> Result<()> {
    let mut written = Vec::new();
    for (path, bytes) in files {
        let mut file = WholeFile::create(path)?;
        file.write(bytes)?;
        file.sync()?;
        written.push(file);
    }
    written.into_iter().try_for_each(WholeFile::rename)
}

/// A file that is there whole, or not at all: written beside its place, then
/// renamed.
pub(crate) struct WholeFile<'a> {
    path: &'a Path,
    file: tempfile::NamedTempFile,
    _guard: Guard, // after `file`: until that is gone
}

impl<'a> WholeFile<'a> {
    pub(crate) fn create(path: &'a Path) -> Result<Self> {
        let (file, _guard) = beside(path)?;
        Ok(WholeFile { path, file, _guard })
    }

    /// Appends `bytes`.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file
            .write_all(bytes)
            .with_context(|| cannot_write(self.path))
    }

    /// Puts the file in its place.
    pub(crate) fn finish(self) -> Result<()> {
        self.sync()?;
        self.rename()
    }

    fn sync(&self) -> Result<()> {
        let synced = self.file.as_file().sync_all();
        synced.with_context(|| cannot_write(self.path))
    }

    fn rename(self) -> Result<()> {
        let renamed = self.file.persist(self.path).map_err(|e| e.error);
        renamed.map(drop).with_context(|| cannot_write(self.path))
    }
}

fn cannot_write(path: &Path) -> String {
    format!("cannot write {}", path.display())
}

/// Finds out now whether `path` can be written later, before hours of work.
pub(crate) fn check_writable(path: &Path) -> Result<()> {
    beside(path).map(drop)
}

/// Finds out now whether files can be written into `folder` later, which need
/// not exist yet, nor the folders that it is in.
pub(crate) fn check_folder_writable(folder: &Path) -> Result<()> {
    // `symlink_metadata` also sees a link that leads nowhere.
    let there = |path: &&Path| path.symlink_metadata().is_ok();
    let existing = folder.ancestors().find(there);
    // What ends the ancestors of a relative path.
    let existing = existing.unwrap_or(Path::new("."));
    anyhow::ensure!(
        existing.is_dir(),
        "cannot write in {}: {} is not a folder",
        folder.display(),
        existing.display()
    );
    partial_in(existing).map(drop)
}

/// A file in the folder of `path` that vanishes unless it is renamed.
fn beside(path: &Path) -> Result<(tempfile::NamedTempFile, Guard)> {
    anyhow::ensure!(
        !path.is_dir(),
        "cannot write {}: it is a folder",
        path.display()
    );
    // The rename would put a file in the place of /dev/null.
    anyhow::ensure!(
        path.is_file() || !path.exists(),
        "cannot write {}: it is not a regular file",
        path.display()
    );
    anyhow::ensure!(
        !ends_as_folder(path),
        "cannot write {}: that names a folder",
        path.display()
    );
    let folder = match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    partial_in(folder)
}

/// A file in `folder` that vanishes unless it is renamed, at an interruption too.
fn partial_in(folder: &Path) -> Result<(tempfile::NamedTempFile, Guard)> {
    let make = || {
        tempfile::Builder::new()
            .prefix(".tpvit-")
            .suffix(".partial")
            .permissions_as_new_file()
            .tempfile_in(folder)
    };
    Guard::make(make, |file| file.path().to_owned())
        .with_context(|| format!("cannot write in folder {}", folder.display()))
}

/// Whether `path` ends in a separator, which [`Path`]'s methods ignore and the
/// system does not.
fn ends_as_folder(path: &Path) -> bool {
    let last = path.as_os_str().as_encoded_bytes().last();
    last.is_some_and(|&byte| std::path::is_separator(char::from(byte)))
}

/// Temporary files are private by default; an output is an ordinary file.
trait PermissionsAsNewFile {
    fn permissions_as_new_file(&mut self) -> &mut Self;
}

impl PermissionsAsNewFile for tempfile::Builder<'_, '_> {
    #[cfg(unix)]
    fn permissions_as_new_file(&mut self) -> &mut Self {
        use std::os::unix::fs::PermissionsExt;
        // The umask takes away from this what it takes from any new file.
        self.permissions(std::fs::Permissions::from_mode(0o666))
    }

    #[cfg(not(unix))]
    fn permissions_as_new_file(&mut self) -> &mut Self {
        self
    }
}

/// A bar on standard error, or nothing where that is not a terminal.
#[cfg(feature = "progress")]
pub(crate) fn progress(len: usize, what: &'static str) -> ProgressBar {
    let target = match std::io::stderr().is_terminal() {
        true => ProgressDrawTarget::stderr(),
        false => ProgressDrawTarget::hidden(),
    };
    let bar = ProgressBar::with_draw_target(Some(len as u64), target).with_message(what);
    let style = ProgressStyle::with_template("{msg:>12} [{bar:32}] {pos}/{len}  {eta} left");
    bar.set_style(style.expect("the template is a constant"));
    bar
}

/// Text columns under headings; numbers to the right.
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new<const N: usize>(headings: [&str; N]) -> Table {
        Table {
            rows: vec![headings.map(String::from).to_vec()],
        }
    }

    pub(crate) fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.to_vec());
    }

    /// One line per row, columns two spaces apart.
    pub(crate) fn render(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let cell = |row: &[String], c: usize| row.get(c).cloned().unwrap_or_default();
        let width: Vec<usize> = (0..columns)
            .map(|c| {
                self.rows
                    .iter()
                    .map(|r| cell(r, c).chars().count())
                    .max()
                    .unwrap_or(0)
            })
            .collect();
        let numeric: Vec<bool> = (0..columns)
            .map(|c| {
                let starts_with_digit = |s: &str| s.starts_with(|c: char| c.is_ascii_digit());
                self.rows
                    .iter()
                    .skip(1)
                    .all(|r| starts_with_digit(&cell(r, c)))
            })
            .collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for c in 0..columns {
                let (w, s) = (width[c], cell(row, c));
                let gap = if c == 0 { "" } else { "  " };
                // Writing to a String cannot fail.
                let _ = match numeric[c] {
                    true => write!(line, "{gap}{s:>w$}"),
                    false => write!(line, "{gap}{s:<w$}"),
                };
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// Prints to standard output; a reader that has gone away is no error.
pub(crate) fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        done => done.context("cannot write to standard output"),
    }
}

/// Tells people on standard error; a reader that has gone away is no error.
pub(crate) fn tell(message: impl std::fmt::Display) {
    let _ = writeln!(std::io::stderr(), "tpvit: {message}");
}

/// Prints a JSON value and a line end.
pub(crate) fn print_json(value: &serde_json::Value) -> Result<()> {
    print(&format!("{value:#}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_aligns_numbers_right() {
        let mut table = Table::new(["layer", "error"]);
        table.row(["head".into(), "0.5".into()]);
        table.row(["blocks.0.attn".into(), "10.25".into()]);
        assert_eq!(
            table.render(),
            "layer          error\nhead             0.5\nblocks.0.attn  10.25\n"
        );
    }

    #[test]
    fn of_several_files_all_are_written_or_none() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let [first, second] = ["first", "second"].map(|name| folder.path().join(name));
        std::fs::create_dir(&second).expect("a folder");
        let files = |bytes: &'static [u8]| [(first.as_path(), bytes), (second.as_path(), bytes)];
        assert!(write_all_whole(&files(b"x")).is_err());
        assert!(!first.exists(), "the second cannot be written");
        std::fs::remove_dir(&second).expect("it is empty");
        for bytes in [&b"x"[..], b"y"] {
            write_all_whole(&files(bytes)).expect("both can be written");
            assert_eq!(std::fs::read(&first).expect("the first"), bytes);
            assert_eq!(std::fs::read(&second).expect("the second"), bytes);
        }
    }

    #[test]
    fn a_folder_that_does_not_exist_is_looked_for_above() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join("file");
        std::fs::write(&file, "").expect("a file");
        assert!(check_folder_writable(&folder.path().join("a/b")).is_ok());
        assert!(check_folder_writable(&file).is_err());
        assert!(check_folder_writable(&file.join("a/b")).is_err());
        let left: Vec<_> = std::fs::read_dir(folder.path())
            .expect("readable")
            .collect();
        assert_eq!(left.len(), 1, "only the file: {left:?}");
    }

    #[test]
    fn a_failed_write_leaves_nothing_behind() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let target = folder.path().join("folder-in-the-way");
        std::fs::create_dir(&target).expect("a folder");
        assert!(write_whole(&target, b"x").is_err());
        let left: Vec<_> = std::fs::read_dir(folder.path())
            .expect("readable")
            .collect();
        assert_eq!(left.len(), 1, "only the folder itself: {left:?}");
    }
}
