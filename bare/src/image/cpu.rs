//! What the processor says of itself, and its counters.

use core::arch::asm;
use core::sync::atomic::{AtomicBool, Ordering};

use tpvit_runtime::{Isa, Kernels};

/// Reads a system register that level 1 may read.
macro_rules! system_register {
    ($name:literal) => {{
        let value: u64;
        // SAFETY: reading this register has no effect but the value.
        unsafe {
            asm!(concat!("mrs {}, ", $name), out(reg) value, options(nomem, nostack, preserves_flags))
        };
        value
    }};
}

/// The kernels of the fastest instruction set that this processor has.
///
/// Fields are those of DDI 0487: dot products (DP) and 8-bit matrix products (I8MM).
pub(crate) fn kernels() -> Option<&'static Kernels> {
    let dot_products = system_register!("ID_AA64ISAR0_EL1") >> 44 & 0xf != 0;
    let matrix_products = system_register!("ID_AA64ISAR1_EL1") >> 52 & 0xf != 0;
    let isa = match (dot_products, matrix_products) {
        (true, true) => Isa::I8mm,
        (true, false) => Isa::Dotprod,
        (false, _) => Isa::Neon,
    };
    // SAFETY: the processor says that it has them; every 64-bit Arm has NEON, which
    // boot.s has switched on. There is no system to save registers.
    unsafe { Kernels::assume(isa) }
}

/// Part number and revision, MIDR_EL1.
pub(crate) fn identity() -> u64 {
    system_register!("MIDR_EL1")
}

/// Two clocks that run beside each other.
#[derive(Clone, Copy)]
pub(crate) struct Counters {
    /// Ticks of the generic timer, CNTVCT_EL0.
    pub(crate) ticks: u64,
    /// Cycles of the processor, PMCCNTR_EL0, where it has a performance monitor.
    pub(crate) cycles: Option<u64>,
}

impl Counters {
    /// Starts the cycle counter; true if there is one.
    pub(crate) fn start() -> bool {
        // PMUVer: 0 is none, 15 one of another kind.
        if matches!(system_register!("ID_AA64DFR0_EL1") >> 8 & 0xf, 0 | 0xf) {
            return false;
        }
        // SAFETY: these registers exist, and control nothing but counters. The cycle
        // counter is set to 0, to 64 bits (LC), unfiltered, and enabled.
        unsafe {
            asm!(
                "msr PMCCFILTR_EL0, xzr",
                "msr PMCR_EL0, {control}",
                "msr PMCNTENSET_EL0, {cycles}",
                "isb",
                control = in(reg) 0b100_0101_u64,
                cycles = in(reg) 1_u64 << 31,
                options(nomem, nostack, preserves_flags)
            );
        }
        true
    }

    pub(crate) fn read(has_cycles: bool) -> Counters {
        // SAFETY: a barrier changes nothing: the counters are read when all before is done.
        unsafe { asm!("isb", options(nostack, preserves_flags)) };
        Counters {
            ticks: system_register!("CNTVCT_EL0"),
            cycles: has_cycles.then(|| system_register!("PMCCNTR_EL0")),
        }
    }

    /// Ticks of a second.
    pub(crate) fn frequency() -> u64 {
        system_register!("CNTFRQ_EL0")
    }
}

/// Set by [`exit`]. Without an emulator or a debugger that listens, its instruction is
/// undefined, and the exception that follows is not an error.
pub(crate) static EXITING: AtomicBool = AtomicBool::new(false);

/// Ends the emulation with `code`, by semihosting's SYS_EXIT.
pub(crate) fn exit(code: u64) -> ! {
    const SYS_EXIT: u64 = 0x18;
    const APPLICATION_EXIT: u64 = 0x2_0026;
    let block = [APPLICATION_EXIT, code];
    EXITING.store(true, Ordering::Relaxed);
    // SAFETY: the call reads `block`, which lives, and does not return.
    unsafe {
        asm!("hlt #0xf000", in("x0") SYS_EXIT, in("x1") &block, options(nostack));
    }
    stop()
}

/// Sleeps for ever.
pub(crate) fn stop() -> ! {
    loop {
        // SAFETY: waits for an interrupt, and there is none.
        unsafe { asm!("wfi", options(nomem, nostack, preserves_flags)) };
    }
}
