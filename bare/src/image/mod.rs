//! Boots, classifies every picture of every model in the image, and says what it
//! answered, how long it took and what memory it took.
//!
//! ```text
//! boot.s     down to exception level 1, MMU and caches on, stack painted
//! pages.rs   the memory map
//! memory.s   memcpy and its like
//! heap.rs    the heap, where a file is parsed
//! block.rs   the memory of a session, which has nothing on the heap
//! uart.rs    the serial line
//! cpu.rs     which kernels to take; counters; the exit
//! stack.rs   how deep the stack has been
//! ```
//!
//! It exits with 0 if everything was as planned, 1 if not, 2 after a panic and 3 after
//! an exception of the processor.

extern crate alloc;

mod block;
pub(crate) mod board;
mod cpu;
mod heap;
mod pages;
mod stack;
mod uart;

use core::arch::global_asm;
use core::fmt::{self, Write};
use core::panic::PanicInfo;
use core::sync::atomic::Ordering;

use tpvit_bare::{Embedded, MODELS, write_answer};
use tpvit_models::{Model, ParseError};
use tpvit_runtime::{Isa, Kernels, MemoryPlan, Options, RunError, Session, SessionError};

use crate::BOARD;
use cpu::Counters;
use heap::Usage;
use pages::Pages;
use uart::Uart;

global_asm!(
    include_str!("boot.s"),
    paint = const stack::PAINT,
    main = sym main,
    exception = sym exception,
    pages = sym PAGES,
);
global_asm!(include_str!("memory.s"));

static PAGES: Pages = Pages::of(&BOARD);

/// What was not as it should be.
enum Failure {
    /// The serial line never fails.
    Write,
    Kernels,
    Parse(ParseError),
    Session(SessionError),
    Run(RunError),
    /// A session copied weights that lie in the order of its kernels.
    Copied {
        order: Isa,
        bytes: usize,
    },
    /// Making a session or running it took something of the heap.
    Allocated {
        times: usize,
        doing: &'static str,
    },
    /// The stack went deeper than [`MemoryPlan::STACK_BYTES`].
    Stack(usize),
}

impl From<fmt::Error> for Failure {
    fn from(_: fmt::Error) -> Failure {
        Failure::Write
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Write => write!(f, "the serial line failed"),
            Failure::Kernels => write!(f, "this build has no kernels for the processor"),
            Failure::Parse(error) => error.fmt(f),
            Failure::Session(error) => error.fmt(f),
            Failure::Run(error) => error.fmt(f),
            Failure::Copied { order, bytes } => write!(
                f,
                "weights in the order of {} were copied, {bytes} bytes",
                order.name()
            ),
            Failure::Allocated { times, doing } => {
                write!(f, "{doing} a session allocated {times} times")
            }
            Failure::Stack(bytes) => write!(
                f,
                "the stack was {bytes} bytes deep, more than {}",
                MemoryPlan::STACK_BYTES
            ),
        }
    }
}

/// Where `boot.s` goes; `level` is the exception level it found.
extern "C" fn main(level: u64) -> ! {
    let mut out = Uart::start(&BOARD);
    let code = match run(&mut out, level) {
        Ok(()) => 0,
        Err(failure) => {
            // Nobody else could be told that this fails.
            let _ = writeln!(out, "error: {failure}");
            1
        }
    };
    out.flush();
    cpu::exit(code)
}

fn run(out: &mut Uart, level: u64) -> Result<(), Failure> {
    let kernels = cpu::kernels().ok_or(Failure::Kernels)?;
    let has_cycles = Counters::start();
    writeln!(
        out,
        "tpvit on {}, started at level {level}, processor {:#010x}, kernels {}, \
         timer of {} Hz{}",
        BOARD.name,
        cpu::identity(),
        kernels.isa().name(),
        Counters::frequency(),
        match has_cycles {
            true => "",
            false => ", no cycle counter",
        }
    )?;
    // SAFETY: nothing else does, and this function runs once.
    let block = unsafe { block::take() };
    let mut most = 0;
    for embedded in MODELS {
        writeln!(out, "model  {}", embedded.name)?;
        most = most.max(classify(out, embedded, kernels, has_cycles, block)?);
    }
    let Usage { extent, .. } = heap::usage();
    let deep = stack::high_water();
    writeln!(
        out,
        "heap   {extent} of {} bytes, block {most} of {} bytes, stack {deep} of {} bytes",
        heap::len(),
        block.len(),
        stack::len(),
    )?;
    match deep <= MemoryPlan::STACK_BYTES {
        true => Ok(()),
        false => Err(Failure::Stack(deep)),
    }
}

/// Runs one model on its pictures in `block`, and holds it to its plan, which is returned
/// in bytes.
fn classify(
    out: &mut Uart,
    embedded: &Embedded,
    kernels: &'static Kernels,
    has_cycles: bool,
    block: &mut [u8],
) -> Result<usize, Failure> {
    let empty = heap::usage();
    let model = Model::parse(embedded.file).map_err(Failure::Parse)?;
    let parsed = heap::usage();
    let options = Options {
        kernels: Some(kernels),
        ..Options::default()
    };
    let plan = MemoryPlan::new(&model, &options).map_err(Failure::Session)?;
    writeln!(
        out,
        "memory file {}, parsed {}; block {}: arena {}, weights {}, constants {}; \
         weights in place {}",
        embedded.file.len(),
        parsed.live - empty.live,
        plan.total_bytes(),
        plan.arena_bytes(),
        plan.weight_bytes,
        plan.constant_bytes,
        plan.borrowed_bytes,
    )?;
    let order = kernels.isa();
    let bytes = plan.weight_bytes;
    if embedded.order == Some(order) && bytes > 0 {
        return Err(Failure::Copied { order, bytes });
    }

    let allocated = |before: &Usage, doing| match heap::usage().allocations - before.allocations {
        0 => Ok(()),
        times => Err(Failure::Allocated { times, doing }),
    };
    // Not a byte more than is planned: writing elsewhere would be an index out of range.
    let len = block.len().min(plan.total_bytes());
    let before = heap::usage();
    let start = Counters::read(has_cycles);
    let session = Session::new_in(&model, &options, &mut block[..len]);
    let mut session = session.map_err(Failure::Session)?;
    let end = Counters::read(has_cycles);
    allocated(&before, "making")?;
    write_time(out, "made ", &start, &end)?;

    for (index, pixels) in embedded.pictures_of(&model).enumerate() {
        let before = heap::usage();
        let start = Counters::read(has_cycles);
        let result = session.run(pixels).map_err(Failure::Run)?;
        let end = Counters::read(has_cycles);
        allocated(&before, "running")?;
        write_answer(out, embedded.name, index, &model, result)?;
        write_time(out, "time ", &start, &end)?;
    }
    Ok(plan.total_bytes())
}

fn write_time(out: &mut Uart, what: &str, start: &Counters, end: &Counters) -> fmt::Result {
    write!(out, "{what}  {} ticks", end.ticks - start.ticks)?;
    if let (Some(start), Some(end)) = (start.cycles, end.cycles) {
        write!(out, ", {} cycles", end - start)?;
    }
    writeln!(out)
}

/// Where `boot.s` goes with an exception.
extern "C" fn exception(syndrome: u64, address: u64, fault: u64) -> ! {
    if cpu::EXITING.load(Ordering::Relaxed) {
        cpu::stop();
    }
    let mut out = Uart::running(&BOARD);
    // Nobody else could be told that this fails.
    let _ = writeln!(
        out,
        "error: exception at {address:#x}, syndrome {syndrome:#x}, address {fault:#x}"
    );
    out.flush();
    cpu::exit(3)
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    let mut out = Uart::running(&BOARD);
    // Nobody else could be told that this fails.
    let _ = writeln!(out, "error: {info}");
    out.flush();
    cpu::exit(2)
}
