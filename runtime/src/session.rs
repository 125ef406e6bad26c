//! A model made ready for one CPU, and the memory it runs in.

use alloc::borrow::Cow;
use alloc::vec;
use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;
#[cfg(feature = "std")]
use std::io::{Read, Seek};

use tpvit_kernels::reference::exp_log::exp2_nonpositive;
use tpvit_kernels::{Isa, Kernels};
use tpvit_models::{BufferId, Model, ModelInfo, Program};
#[cfg(feature = "std")]
use tpvit_models::{ReadError, TensorReader};

use crate::block::{self, Block};
use crate::compile::{Layout, TensorSource};
use crate::exec::{Lane, Memory, Network};
use crate::image::Writer;
use crate::lanes::{Exchange, Team};
use crate::plan;

/// How attention codes meet values; both give the same integers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttentionMethod {
    /// Each code becomes a multiplier by table; then an ordinary dot product.
    Decode,
    /// Each code shifts a value; for codes that are powers of two but for a
    /// constant.
    Shift,
}

/// How a session runs.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The instruction set; `None` takes the best one of this CPU.
    pub isa: Option<Isa>,
    /// These kernels instead of those of `isa`: where a build without `std` cannot ask
    /// the CPU, [`Kernels::assume`] has them.
    pub kernels: Option<&'static Kernels>,
    /// Threads, at least 1; only 1 without `std`.
    pub threads: usize,
    /// How attention codes meet values.
    pub attention: AttentionMethod,
    /// Computes every row of the last block too, though the class token alone
    /// is looked at. The logits are the same; only tests want it.
    pub all_rows: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            isa: None,
            kernels: None,
            threads: 1,
            attention: AttentionMethod::Decode,
            all_rows: false,
        }
    }
}

/// Why a model cannot run here.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SessionError {
    /// This CPU, or this build, lacks the instruction set that was asked for.
    IsaUnavailable {
        /// The instruction set.
        isa: Isa,
    },
    /// The system refused to start the threads.
    Threads {
        /// How many.
        threads: usize,
    },
    /// The block that was handed in is too small.
    Memory {
        /// Bytes that this block needs to have, those before its first line among them.
        needed: usize,
        /// Bytes that it has.
        found: usize,
    },
    /// An operation combines things that no kernel does.
    Unsupported {
        /// Index of the operation.
        op: usize,
        /// What it combines.
        what: &'static str,
    },
    /// The system does not give the memory. Found before anything is allocated, and
    /// only with `std`: an allocator of a device need not have one block of this size.
    OutOfMemory {
        /// Bytes: [`MemoryPlan::heap_bytes`].
        bytes: usize,
    },
}

impl fmt::Display for SessionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SessionError::IsaUnavailable { isa } => {
                write!(f, "this CPU or build has no {}", isa.name())
            }
            SessionError::Threads { threads } => {
                write!(f, "cannot start {threads} threads here")
            }
            SessionError::Memory { needed, found } => {
                write!(
                    f,
                    "the session needs {needed} bytes of memory, it was given {found}"
                )
            }
            SessionError::Unsupported { op, what } => {
                write!(f, "operation {op} has {what}, which no kernel does")
            }
            SessionError::OutOfMemory { bytes } => {
                write!(
                    f,
                    "a session takes {bytes} bytes of memory, which are not to be had here"
                )
            }
        }
    }
}

impl core::error::Error for SessionError {}

/// Why a session cannot be made of a file.
#[cfg(feature = "std")]
#[derive(Debug)]
#[non_exhaustive]
pub enum LoadError {
    /// The model cannot run here.
    Session(SessionError),
    /// A tensor cannot be read.
    Read(ReadError),
}

#[cfg(feature = "std")]
impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LoadError::Session(error) => error.fmt(f),
            LoadError::Read(error) => error.fmt(f),
        }
    }
}

#[cfg(feature = "std")]
impl core::error::Error for LoadError {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        match self {
            LoadError::Session(error) => error.source(),
            LoadError::Read(error) => error.source(),
        }
    }
}

#[cfg(feature = "std")]
impl From<ReadError> for LoadError {
    fn from(error: ReadError) -> LoadError {
        LoadError::Read(error)
    }
}

/// Why a session cannot be made of tensors that fail with `E`.
enum BuildError<E> {
    Session(SessionError),
    Tensor(E),
}

impl<E> From<SessionError> for BuildError<E> {
    fn from(error: SessionError) -> BuildError<E> {
        BuildError::Session(error)
    }
}

/// Why a run did not start.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RunError {
    /// The picture has the wrong size.
    Pixels {
        /// Bytes needed: height * width * 3.
        expected: usize,
        /// Bytes given.
        found: usize,
    },
}

impl fmt::Display for RunError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RunError::Pixels { expected, found } => {
                write!(
                    f,
                    "the picture has {found} bytes, the model takes {expected}"
                )
            }
        }
    }
}

impl core::error::Error for RunError {}

/// The bytes a session takes, known before it is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryPlan {
    /// Residual stream and result, f32; with several threads also rows that they
    /// exchange.
    pub float_bytes: usize,
    /// Activation codes, and one head's keys and values re-ordered; with several
    /// threads also what they exchange: a picture, all keys and values, and those of
    /// all heads re-ordered.
    pub code_bytes: usize,
    /// Unpacked weight panels, score blocks and row sums of all threads.
    pub scratch_bytes: usize,
    /// Weight codes in the order of this CPU.
    pub weight_bytes: usize,
    /// Weight codes that lie in that order in the file, and are read there: no part of
    /// the other numbers. Only a session on one thread, of a file in memory, leaves them
    /// there; for others they are weight bytes too.
    pub borrowed_bytes: usize,
    /// Scales, biases, LayerNorm gains, embeddings, thresholds, and where each operation
    /// reads and writes; 4 bytes are not used for each output of a layer whose zero
    /// points are all the centre, which only its values say.
    pub constant_bytes: usize,
    /// A bound of what a session on the heap takes beside these: the program and its
    /// names, what a thread takes, and what only exists while the session is made.
    pub description_bytes: usize,
}

impl MemoryPlan {
    /// A bound of the stack that parsing a file in memory, making a session and running
    /// it take on the caller's thread, whatever the model and the instruction set.
    ///
    /// Measured, not derived: `runtime/tests/stack.rs` does all of it in a thread that
    /// has no more, `bare/run.sh` without an operating system.
    pub const STACK_BYTES: usize = 64 * 1024;

    /// A block for [`Session::new_in`] loses nothing if its address is a multiple of
    /// this, and at most one less than this otherwise.
    pub const BLOCK_ALIGN: usize = block::LINE;

    /// What a session of `model` with `options` will take, made by [`Session::new`] or
    /// [`Session::new_in`]. One of `Session::load` takes
    /// [`borrowed_bytes`](Self::borrowed_bytes) more.
    ///
    /// # Errors
    /// As [`Session::new`].
    pub fn new(model: &ModelInfo<'_>, options: &Options) -> Result<MemoryPlan, SessionError> {
        let kernels = kernels(options)?;
        let mut planning = vec![0; plan::words(model.program())];
        let layout = Layout::new(model, kernels, options, &mut planning)?;
        let lasts = layout.sizes.lanes == 1;
        Ok(layout.memory(model, lasts, kernels))
    }

    /// The arena of a run: everything but weights and constants.
    pub fn arena_bytes(&self) -> usize {
        self.float_bytes + self.code_bytes + self.scratch_bytes
    }

    /// Arena, weights and constants: on one thread, the block that
    /// [`Session::new_in`] needs at a multiple of [`BLOCK_ALIGN`](Self::BLOCK_ALIGN).
    pub fn total_bytes(&self) -> usize {
        self.arena_bytes() + self.image_bytes()
    }

    /// A bound of the heap that a session takes, while it is made and afterwards.
    pub fn heap_bytes(&self) -> usize {
        self.total_bytes() + self.description_bytes
    }

    /// What is written when a session is made, and read by every run.
    fn image_bytes(&self) -> usize {
        self.weight_bytes + self.constant_bytes
    }
}

/// The output of one operation, as an [`Observer`] sees it.
#[derive(Clone, Copy, Debug)]
pub enum View<'a> {
    /// Codes, `[rows, cols]`.
    Codes(&'a [u8]),
    /// Floats, `[rows, cols]`.
    Floats(&'a [f32]),
}

/// Sees a run as it happens: for profiles and for tests.
pub trait Observer {
    /// Operation `op` has written `rows` of buffer `output`, all of which
    /// `view` holds; other rows are not computed. A patch merge is done by the
    /// LayerNorm behind it, and not seen.
    fn after(&mut self, op: usize, output: BufferId, rows: Range<usize>, view: View<'_>);
}

/// Ignores everything.
impl Observer for () {
    fn after(&mut self, _: usize, _: BufferId, _: Range<usize>, _: View<'_>) {}
}

/// A model ready to run: weights in this CPU's order, memory in place.
///
/// On the heap, or in a block that the caller hands in. Weights that the file has in this
/// CPU's order ([`tpvit_models::write_for`]) are read from the file, where it is in memory
/// and one thread runs; so a session lives no longer than the file's bytes, but for one
/// of `Session::load`. With several threads, all but the caller's wait between pictures
/// and end with the session.
pub struct Session<'m> {
    lanes: Lanes<'m>,
    /// Lane 0's.
    arena: Block<'m>,
    /// The rows of all lanes of a result that has more than lane 0's.
    result: Vec<f32>,
    plan: MemoryPlan,
}

/// What a session reads, and who runs it.
#[allow(
    clippy::large_enum_variant,
    reason = "a session in a block has no heap to put it on"
)]
enum Lanes<'m> {
    /// The caller alone.
    One(Network<'m>),
    /// The caller and others.
    Several(Team),
}

impl<'m> Lanes<'m> {
    fn network(&self) -> &Network<'m> {
        match self {
            Lanes::One(network) => network,
            Lanes::Several(team) => team.network(),
        }
    }
}

impl<'m> Session<'m> {
    /// Re-orders the weights for this CPU and allocates all that runs need.
    ///
    /// # Errors
    /// [`SessionError`] if the instruction set, the threads or the memory are not
    /// to be had, or an operation has no kernel.
    pub fn new(model: &Model<'m>, options: &Options) -> Result<Session<'m>, SessionError> {
        match Session::build(model, model, Some(model.bytes()), options) {
            Ok(session) => Ok(session),
            Err(BuildError::Session(error)) => Err(error),
            Err(BuildError::Tensor(never)) => match never {},
        }
    }

    /// As [`Session::new`], in `memory`, whatever it holds: nothing is allocated from the
    /// heap, neither here nor by a run. The same results, to the bit.
    ///
    /// `memory` is [`MemoryPlan::total_bytes`] bytes at a multiple of
    /// [`MemoryPlan::BLOCK_ALIGN`], or up to 63 more elsewhere. Runs on one thread.
    ///
    /// ```
    /// # use tpvit_models::{Model, synthetic, write};
    /// # use tpvit_runtime::{MemoryPlan, Options, Session};
    /// # let file = write(&synthetic::tiny()).unwrap();
    /// let model = Model::parse(&file).unwrap();
    /// let plan = MemoryPlan::new(&model, &Options::default())?;
    /// let mut block = vec![0; plan.total_bytes() + MemoryPlan::BLOCK_ALIGN];
    /// let mut session = Session::new_in(&model, &Options::default(), &mut block)?;
    /// # let [height, width] = session.program().image;
    /// # let pixels = vec![128; height * width * 3];
    /// assert_eq!(session.run(&pixels).unwrap().len(), 10);
    /// # Ok::<(), tpvit_runtime::SessionError>(())
    /// ```
    ///
    /// # Errors
    /// As [`Session::new`]; [`SessionError::Memory`] if the block is too small, which
    /// says how many bytes it needs, and [`SessionError::Threads`] for more than one.
    pub fn new_in(
        model: &'m Model<'_>,
        options: &Options,
        memory: &'m mut [u8],
    ) -> Result<Session<'m>, SessionError> {
        let threads = options.threads;
        if threads > 1 {
            return Err(SessionError::Threads { threads });
        }
        let (found, kernels) = (memory.len(), kernels(options)?);
        let skipped = block::before_line(memory);
        let program = model.program();
        let too_small = || match MemoryPlan::new(model, options) {
            Ok(plan) => SessionError::Memory {
                needed: skipped.saturating_add(plan.total_bytes()),
                found,
            },
            Err(error) => error,
        };
        let memory = memory.get_mut(skipped..).ok_or_else(too_small)?;
        // What is planned lies where runs will write, behind the image.
        let planning = plan::words(program) * size_of::<usize>();
        let end = memory.len() / block::LINE * block::LINE;
        let start = end.checked_sub(planning.next_multiple_of(block::LINE));
        let start = start.ok_or_else(too_small)?;
        let (image, planned) = memory[..end].split_at_mut(start);
        let words = bytemuck::cast_slice_mut(planned);
        let layout = Layout::new(model, kernels, options, words)?;
        let (plan, sizes) = (layout.memory(model, true, kernels), layout.sizes);
        if plan.total_bytes() > end {
            return Err(too_small());
        }
        let out = Writer::to(&mut image[..plan.image_bytes()]);
        let Ok(_) = layout.image(model, true, Some(model), kernels, out);
        let (image, rest) = memory[..end].split_at_mut(plan.image_bytes());
        Ok(Session {
            lanes: Lanes::One(Network {
                kernels,
                program: Cow::Borrowed(program),
                sizes,
                image: Block::Lent(image),
                file: model.bytes(),
            }),
            arena: Block::Lent(&mut rest[..sizes.arena_bytes()]),
            result: Vec::new(),
            plan,
        })
    }

    /// `file` stays where it is as long as the session lives.
    fn build<S: TensorSource>(
        info: &ModelInfo<'_>,
        tensors: S,
        file: Option<&'m [u8]>,
        options: &Options,
    ) -> Result<Session<'m>, BuildError<S::Error>> {
        let kernels = kernels(options)?;
        let mut planning = vec![0; plan::words(info.program())];
        let layout = Layout::new(info, kernels, options, &mut planning)?;
        let sizes = layout.sizes;
        // Other threads may live longer than any borrow.
        let file = file.filter(|_| sizes.lanes == 1);
        let plan = layout.memory(info, file.is_some(), kernels);
        #[cfg(feature = "std")]
        check_memory(&plan)?;
        let mut image = Block::owned(plan.image_bytes());
        let out = Writer::to(&mut image);
        let written = layout.image(info, file.is_some(), Some(tensors), kernels, out);
        written.map_err(BuildError::Tensor)?;
        let network = Network {
            kernels,
            program: Cow::Owned(info.program().clone()),
            sizes,
            image,
            file: &[],
        };
        Ok(Session {
            lanes: match sizes.lanes {
                1 => Lanes::One(Network {
                    file: file.unwrap_or_default(),
                    ..network
                }),
                threads => {
                    let team = Team::start(network);
                    Lanes::Several(team.ok_or(SessionError::Threads { threads })?)
                }
            },
            arena: Block::owned(sizes.arena_bytes()),
            result: vec![0.0; sizes.shared_result],
            plan,
        })
    }

    /// The logits `[classes]` of one picture; features of a model without a
    /// classifier, [`Program::output_shape`].
    ///
    /// `pixels` is `[height, width, 3]`, RGB, u8, as preprocessing leaves it:
    /// mean and deviation are in the weights. Allocates nothing.
    ///
    /// # Errors
    /// [`RunError::Pixels`] if the length is wrong.
    pub fn run(&mut self, pixels: &[u8]) -> Result<&[f32], RunError> {
        self.check_pixels(pixels)?;
        self.in_lane_0(pixels, false, |lane| lane.forward(pixels));
        Ok(self.result())
    }

    /// As [`run`](Session::run), telling `observer` after each operation.
    ///
    /// With several threads this is slower than `run`: after each operation
    /// all meet, and its output is gathered for the observer, in memory that
    /// the first such run allocates.
    ///
    /// # Errors
    /// As [`run`](Session::run).
    pub fn run_observed(
        &mut self,
        pixels: &[u8],
        observer: &mut dyn Observer,
    ) -> Result<&[f32], RunError> {
        self.check_pixels(pixels)?;
        self.in_lane_0(pixels, true, |lane| {
            lane.forward_observed(pixels, Some(observer));
        });
        Ok(self.result())
    }

    fn check_pixels(&self, pixels: &[u8]) -> Result<(), RunError> {
        let [height, width] = self.program().image;
        let expected = height * width * 3;
        if pixels.len() != expected {
            return Err(RunError::Pixels {
                expected,
                found: pixels.len(),
            });
        }
        Ok(())
    }

    /// What the last operation wrote.
    fn result(&mut self) -> &[f32] {
        let sizes = self.lanes.network().sizes;
        if let (false, Lanes::Several(team)) = (self.result.is_empty(), &self.lanes) {
            let result = &mut self.result;
            team.exchange()
                .floats(|rows| result.copy_from_slice(&rows[..sizes.shared_result]));
            return &self.result;
        }
        let [start, end] = sizes.result;
        &Memory::of(&mut self.arena, &sizes).floats[start..end]
    }

    /// The program that runs.
    pub fn program(&self) -> &Program {
        &self.lanes.network().program
    }

    /// Multiply-accumulate operations that operation `op` really does for one
    /// picture: those of rows that nothing reads are left out.
    ///
    /// # Panics
    /// If there is no such operation.
    pub fn op_macs(&self, op: usize) -> u64 {
        self.all_macs().nth(op).expect("there is such an operation")
    }

    /// The sum of [`op_macs`](Session::op_macs) over all operations.
    pub fn macs(&self) -> u64 {
        self.all_macs().sum()
    }

    fn all_macs(&self) -> impl Iterator<Item = u64> {
        let program = self.program();
        let heads = self.lanes.network().steps().heads();
        heads
            .zip(&program.ops)
            .map(|(head, op)| program.op_macs(op) * head.rows.len() as u64 / head.shape[0] as u64)
    }

    /// What this session takes.
    pub fn memory_plan(&self) -> MemoryPlan {
        self.plan
    }

    /// The instruction set in use.
    pub fn isa(&self) -> Isa {
        self.lanes.network().kernels.isa()
    }

    /// The number of threads in use.
    pub fn threads(&self) -> usize {
        self.lanes.network().sizes.lanes
    }

    /// Does `work` as lane 0, while the others do theirs.
    fn in_lane_0(&mut self, pixels: &[u8], observed: bool, work: impl FnOnce(&mut Lane<'_>)) {
        let network = self.lanes.network();
        let memory = Memory::of(&mut self.arena, &network.sizes);
        let lane = |exchange: Option<&Exchange>| {
            work(&mut Lane {
                network,
                index: 0,
                memory,
                exchange,
            });
        };
        match &self.lanes {
            Lanes::One(_) => lane(None),
            Lanes::Several(team) => team.run(pixels, observed, |exchange| lane(Some(exchange))),
        }
    }
}

/// Asks the system for all memory at once and gives it back untouched, so that what
/// is not to be had is an error here; a block refused later would end the process.
#[cfg(feature = "std")]
fn check_memory(plan: &MemoryPlan) -> Result<(), SessionError> {
    let bytes = plan.heap_bytes();
    let mut block = Vec::<u8>::new();
    let reserved = block.try_reserve_exact(bytes);
    core::hint::black_box(&mut block); // or the compiler does without
    reserved.map_err(|_| SessionError::OutOfMemory { bytes })
}

#[cfg(feature = "std")]
impl Session<'static> {
    /// As [`Session::new`], with the tensors of a file, of which one at a time
    /// is in memory.
    ///
    /// # Errors
    /// [`LoadError`]: as [`Session::new`], or if a tensor cannot be read.
    pub fn load<R: Read + Seek>(
        mut tensors: TensorReader<'_, R>,
        options: &Options,
    ) -> Result<Session<'static>, LoadError> {
        let info = tensors.info();
        match Session::build(info, &mut tensors, None, options) {
            Ok(session) => Ok(session),
            Err(BuildError::Session(error)) => Err(LoadError::Session(error)),
            Err(BuildError::Tensor(error)) => Err(LoadError::Read(error)),
        }
    }
}

fn kernels(options: &Options) -> Result<&'static Kernels, SessionError> {
    match (options.kernels, options.isa) {
        (Some(kernels), _) => Ok(kernels),
        (None, None) => Ok(Kernels::best()),
        (None, Some(isa)) => Kernels::for_isa(isa).ok_or(SessionError::IsaUnavailable { isa }),
    }
}

/// Turns `logits` into probabilities in place.
pub fn softmax(logits: &mut [f32]) {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0;
    for x in logits.iter_mut() {
        *x = exp2_nonpositive((*x - max) * core::f32::consts::LOG2_E);
        sum += *x;
    }
    for x in logits.iter_mut() {
        *x /= sum;
    }
}
