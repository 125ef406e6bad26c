//! Boots, classifies every picture of every model in the image, and says what it
//! answered, how long it took and what memory it took.
//!
//! ```text
//! boot.s     down to exception level 1, MMU and caches on, stack painted
//! pages.rs   the memory map
//! memory.s   memcpy and its like
//! arena.rs   the heap: one block of memory
//! uart.rs    the serial line
//! cpu.rs     which kernels to take; counters; the exit
//! stack.rs   how deep the stack has been
//! ```
//!
//! It exits with 0 if everything was as planned, 1 if not, 2 after a panic and 3 after
//! an exception of the processor.

extern crate alloc;

mod arena;
pub(crate) mod board;
mod cpu;
mod pages;
mod stack;
mod uart;

use core::arch::global_asm;
use core::fmt::{self, Write};
use core::panic::PanicInfo;
use core::sync::atomic::Ordering;

use tpvit_bare::{Embedded, MODELS, write_answer};
use tpvit_models::{Model, ParseError};
use tpvit_runtime::{Kernels, MemoryPlan, Options, RunError, Session, SessionError};

use crate::BOARD;
use arena::Usage;
use cpu::Counters;
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
    /// The arena has not enough left for a session.
    Arena {
        planned: usize,
        left: usize,
    },
    /// A session took other memory than its plan says.
    Memory {
        planned: usize,
        bound: usize,
        kept: usize,
        peak: usize,
    },
    /// A run allocated.
    Allocated(usize),
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
            Failure::Arena { planned, left } => write!(
                f,
                "the session takes {planned} bytes, the arena has {left} left (TPVIT_BARE_ARENA)"
            ),
            Failure::Memory {
                planned,
                bound,
                kept,
                peak,
            } => write!(
                f,
                "from {planned} to {bound} bytes were planned, {kept} kept, {peak} at the peak"
            ),
            Failure::Allocated(times) => write!(f, "a run allocated {times} times"),
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
    for embedded in MODELS {
        writeln!(out, "model  {}", embedded.name)?;
        classify(out, embedded, kernels, has_cycles)?;
    }
    let Usage { extent, .. } = arena::usage();
    let deep = stack::high_water();
    writeln!(
        out,
        "heap   {extent} of {} bytes, stack {deep} of {} bytes",
        arena::len(),
        stack::len(),
    )?;
    match deep <= MemoryPlan::STACK_BYTES {
        true => Ok(()),
        false => Err(Failure::Stack(deep)),
    }
}

/// Runs one model on its pictures, and holds it to its plan.
fn classify(
    out: &mut Uart,
    embedded: &Embedded,
    kernels: &'static Kernels,
    has_cycles: bool,
) -> Result<(), Failure> {
    let empty = arena::usage();
    let model = Model::parse(embedded.file).map_err(Failure::Parse)?;
    let options = Options {
        kernels: Some(kernels),
        ..Options::default()
    };
    let plan = MemoryPlan::new(&model, &options).map_err(Failure::Session)?;
    let parsed = arena::usage();
    let (planned, left) = (plan.total_bytes(), arena::len() - parsed.live);
    if planned > left {
        return Err(Failure::Arena { planned, left });
    }
    arena::watch();
    let mut session = Session::new(&model, &options).map_err(Failure::Session)?;
    let made = arena::usage();
    let (kept, peak) = (made.live - parsed.live, made.peak - parsed.live);
    writeln!(
        out,
        "memory file {}, parsed {}; planned: arena {}, weights {}, constants {}, \
         in all {}, at most {}; kept {kept}, peak {peak}",
        embedded.file.len(),
        parsed.live - empty.live,
        plan.arena_bytes(),
        plan.weight_bytes,
        plan.constant_bytes,
        plan.total_bytes(),
        plan.heap_bytes(),
    )?;
    // These are planned to the byte.
    let planned = plan.arena_bytes() + plan.weight_bytes;
    if kept < planned || peak > plan.heap_bytes() {
        return Err(Failure::Memory {
            planned,
            bound: plan.heap_bytes(),
            kept,
            peak,
        });
    }
    for (index, pixels) in embedded.pictures_of(&model).enumerate() {
        let before = arena::usage().allocations;
        let start = Counters::read(has_cycles);
        let result = session.run(pixels).map_err(Failure::Run)?;
        let end = Counters::read(has_cycles);
        let allocations = arena::usage().allocations - before;
        if allocations > 0 {
            return Err(Failure::Allocated(allocations));
        }
        write_answer(out, embedded.name, index, &model, result)?;
        write!(out, "time   {} ticks", end.ticks - start.ticks)?;
        if let (Some(start), Some(end)) = (start.cycles, end.cycles) {
            write!(out, ", {} cycles", end - start)?;
        }
        writeln!(out)?;
    }
    Ok(())
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
