//! What differs between machines.

use core::ops::Range;

/// One machine.
pub(crate) struct Board {
    pub(crate) name: &'static str,
    /// Addresses of memory; everything else is a device.
    pub(crate) ram: Range<u64>,
    /// Address of a PL011.
    pub(crate) uart: usize,
    pub(crate) uart_clock_hz: u32,
    /// Set where pins are not the UART's unless told so.
    pub(crate) uart_pins: Option<FunctionSelect>,
}

/// Gives pins to a device.
#[derive(Clone, Copy)]
pub(crate) struct FunctionSelect {
    /// Address of a 32-bit register.
    pub(crate) register: usize,
    /// The bits of these pins.
    pub(crate) mask: u32,
    pub(crate) function: u32,
}
