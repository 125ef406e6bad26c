//! A model that several sessions share: what a binding needs before its
//! language's own part begins.
//!
//! ```text
//! path  ─ SharedModel::open       ─┐                      ┌─▶ Session ─ run ▶ logits    thread 1
//! bytes ─ SharedModel::from_bytes ─┴▶ SharedModel ─ session ─▶ Session ─ run ▶ logits    thread 2
//! ```
//!
//! A [`SharedModel`] never changes; any thread may ask it for a session. A
//! session has its own copy of the weights, in the order of its instruction
//! set, and needs the model no more. So a model costs the open file, or the
//! bytes it was given, and a session costs `Session::memory_plan`.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{self, Cursor, Read, Seek};
use std::iter::successors;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tpvit_models::{FileHead, ModelInfo, ParseError, Preprocess, ReadError, TensorReader};
use tpvit_runtime::{Isa, LoadError, Options, Session};

/// The most threads of a session: far beyond any number that helps, and small
/// enough for every sum of sizes.
pub const MAX_THREADS: usize = 1024;

/// What went wrong, in the words of the crate that found it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The system does not give the file's bytes.
    #[error("cannot read {name}")]
    Io {
        /// Path of the file.
        name: String,
        /// Why.
        source: io::Error,
    },
    /// The bytes before the tensors are no model that can be run.
    #[error("cannot use {name}")]
    Model {
        /// Path of the file.
        name: String,
        /// Why.
        source: ParseError,
    },
    /// A session cannot be made: here, or of these tensors.
    #[error("cannot use {name}")]
    Session {
        /// Path of the file.
        name: String,
        /// Why.
        source: LoadError,
    },
    /// No instruction set has this name.
    #[error("no instruction set is called {found:?}, but {}", isa_names().join(", "))]
    IsaName {
        /// The name.
        found: String,
    },
    /// A number of threads that no session has.
    #[error("a session has 1 to {MAX_THREADS} threads, not {found}")]
    Threads {
        /// The number.
        found: usize,
    },
}

/// Whose fault an [`Error`] is; each language has its own code or exception
/// for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The caller's: an argument no call can have.
    Argument,
    /// The system's: it does not give the file's bytes.
    Io,
    /// The file's: it holds no model that can be run.
    Model,
    /// This machine's: the instruction set or the threads are not to be had,
    /// or an operation has no kernel.
    Machine,
}

impl Error {
    /// Whose fault it is.
    pub fn fault(&self) -> Fault {
        match self {
            Error::Io { .. } => Fault::Io,
            Error::Model { .. } => Fault::Model,
            Error::IsaName { .. } | Error::Threads { .. } => Fault::Argument,
            Error::Session { source, .. } => match source {
                LoadError::Read(ReadError::Io(_)) => Fault::Io,
                LoadError::Read(_) => Fault::Model,
                _ => Fault::Machine, // foreign and open to new variants
            },
        }
    }
}

/// `error` and all its causes in one line, from the outermost to the innermost.
pub fn chain(error: &dyn std::error::Error) -> String {
    let causes = successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |line, cause| format!("{line}: {cause}"))
}

/// The instruction set called `name`.
///
/// # Errors
/// [`Error::IsaName`] if there is none; whether this CPU has it, only a session tells.
pub fn isa(name: &str) -> Result<Isa, Error> {
    Isa::from_name(name).ok_or_else(|| Error::IsaName {
        found: name.to_owned(),
    })
}

fn isa_names() -> Vec<&'static str> {
    Isa::ALL.iter().map(|isa| isa.name()).collect()
}

/// Where the tensors are.
enum Source {
    /// Read one tensor at a time; sessions that are made at once take turns.
    File(Mutex<File>),
    Bytes(Vec<u8>),
}

/// A `.tpv` file: all but its tensors read and checked.
pub struct SharedModel {
    name: String,
    source: Source,
    head: FileHead,
    image: [usize; 2],
    output: [usize; 2],
    classifies: bool,
    labels: Vec<String>,
    preprocess: Preprocess,
}

impl SharedModel {
    /// Opens the file at `path`, and keeps it open: a file that another one
    /// replaces later is still read.
    ///
    /// # Errors
    /// [`Error::Io`] and [`Error::Model`].
    pub fn open(path: &Path) -> Result<SharedModel, Error> {
        let name = path.display().to_string();
        match File::open(path) {
            Ok(file) => SharedModel::read(name, Source::File(Mutex::new(file))),
            Err(source) => Err(Error::Io { name, source }),
        }
    }

    /// Takes the bytes of a file.
    ///
    /// # Errors
    /// [`Error::Model`].
    pub fn from_bytes(bytes: Vec<u8>) -> Result<SharedModel, Error> {
        SharedModel::read("the model in memory".to_owned(), Source::Bytes(bytes))
    }

    fn read(name: String, source: Source) -> Result<SharedModel, Error> {
        let head = match &source {
            Source::File(file) => FileHead::read(&mut *lock(file)),
            Source::Bytes(bytes) => FileHead::read(&mut Cursor::new(bytes)),
        };
        let head = match head {
            Ok(head) => head,
            Err(source) => return Err(Error::Io { name, source }),
        };
        let info = match head.parse() {
            Ok(info) => info,
            Err(source) => return Err(Error::Model { name, source }),
        };
        let program = info.program();
        Ok(SharedModel {
            image: program.image,
            output: program.output_shape(),
            classifies: program.classifies(),
            labels: info.labels().iter().map(|&label| label.into()).collect(),
            preprocess: *info.preprocess(),
            name,
            source,
            head,
        })
    }

    /// Height and width of the picture, in pixels.
    pub fn image_size(&self) -> [usize; 2] {
        self.image
    }

    /// Rows and columns of the result: `[1, classes]` of a classifier.
    pub fn output_shape(&self) -> [usize; 2] {
        self.output
    }

    /// The number of classes; `None` of a model whose result is features.
    pub fn classes(&self) -> Option<usize> {
        self.classifies.then_some(self.output[1])
    }

    /// What the classes are called: one name for each, or none at all.
    pub fn labels(&self) -> &[String] {
        &self.labels
    }

    /// How a picture becomes the model's pixels; mean and deviation are in the
    /// weights already.
    pub fn preprocess(&self) -> Preprocess {
        self.preprocess
    }

    /// Reads the tensors, checks them and makes the model ready to run.
    ///
    /// # Errors
    /// [`Error::Threads`] if `threads` is 0 or above [`MAX_THREADS`],
    /// [`Error::Session`] if a tensor is not what the file promised or the
    /// model cannot run here.
    pub fn session(&self, options: &Options) -> Result<Session<'static>, Error> {
        if !(1..=MAX_THREADS).contains(&options.threads) {
            return Err(Error::Threads {
                found: options.threads,
            });
        }
        let session = match self.head.parse() {
            Ok(info) => match &self.source {
                Source::File(file) => load(&info, &mut *lock(file), options),
                Source::Bytes(bytes) => load(&info, Cursor::new(bytes), options),
            },
            Err(error) => Err(ReadError::from(error).into()),
        };
        session.map_err(|source| Error::Session {
            name: self.name.clone(),
            source,
        })
    }
}

fn load(
    info: &ModelInfo<'_>,
    file: impl Read + Seek,
    options: &Options,
) -> Result<Session<'static>, LoadError> {
    Session::load(TensorReader::open(info, file)?, options)
}

/// Whoever panicked with the file left it anywhere, and every read seeks first.
fn lock(file: &Mutex<File>) -> MutexGuard<'_, File> {
    file.lock().unwrap_or_else(PoisonError::into_inner)
}
