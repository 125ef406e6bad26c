//! The serial line: a PL011 (Arm DDI 0183).

use core::fmt;
use core::ptr::{read_volatile, write_volatile};

use super::board::Board;

const DATA: usize = 0x00;
const FLAGS: usize = 0x18;
const TRANSMIT_FULL: u32 = 1 << 5;
const BUSY: u32 = 1 << 3;
const BAUD_INTEGER: usize = 0x24;
const BAUD_FRACTION: usize = 0x28;
const LINE_CONTROL: usize = 0x2c;
const EIGHT_BITS_FIFO: u32 = 0b111 << 4;
const CONTROL: usize = 0x30;
const ENABLE_BOTH_WAYS: u32 = 0b11 << 8 | 1;

const BAUD: u32 = 115_200;

/// Sends what is written to it, with CR before LF.
#[derive(Clone, Copy)]
pub(crate) struct Uart {
    base: usize,
}

impl Uart {
    /// Sets the line up: 115200 baud, 8 bits, no parity.
    pub(crate) fn start(board: &Board) -> Uart {
        let uart = Uart::running(board);
        if let Some(pins) = board.uart_pins {
            let others = read(pins.register) & !pins.mask;
            write(pins.register, others | pins.function);
        }
        // The divisor has six bits behind the point.
        let divisor = (board.uart_clock_hz * 4 + BAUD / 2) / BAUD;
        uart.set(CONTROL, 0);
        uart.set(BAUD_INTEGER, divisor >> 6);
        uart.set(BAUD_FRACTION, divisor & 0x3f);
        uart.set(LINE_CONTROL, EIGHT_BITS_FIFO);
        uart.set(CONTROL, ENABLE_BOTH_WAYS);
        uart
    }

    /// The line as it is.
    pub(crate) fn running(board: &Board) -> Uart {
        Uart { base: board.uart }
    }

    /// Waits until everything is sent.
    pub(crate) fn flush(self) {
        while self.flags() & BUSY != 0 {}
    }

    fn send(self, byte: u8) {
        while self.flags() & TRANSMIT_FULL != 0 {}
        self.set(DATA, byte.into());
    }

    fn flags(self) -> u32 {
        read(self.base + FLAGS)
    }

    fn set(self, register: usize, value: u32) {
        write(self.base + register, value);
    }
}

impl fmt::Write for Uart {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            if byte == b'\n' {
                self.send(b'\r');
            }
            self.send(byte);
        }
        Ok(())
    }
}

fn read(register: usize) -> u32 {
    // SAFETY: the board's registers are mapped as device memory, and 32 bits wide.
    unsafe { read_volatile(register as *const u32) }
}

fn write(register: usize, value: u32) {
    // SAFETY: as in `read`; no register used here lets a device write to memory.
    unsafe { write_volatile(register as *mut u32, value) }
}
