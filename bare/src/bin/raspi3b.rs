//! The image for a Raspberry Pi 3 B.
#![no_std]
#![no_main]

#[path = "../image/mod.rs"]
mod image;

use image::board::{Board, FunctionSelect};

/// BCM2835 ARM Peripherals, chapters 6 (GPIO) and 13 (UART), moved to 0x3F00_0000.
const BOARD: Board = Board {
    name: "raspi3b",
    ram: 0..0x3F00_0000,
    uart: 0x3F20_1000,
    // What the firmware sets, unless config.txt says otherwise.
    uart_clock_hz: 48_000_000,
    // GPFSEL1: pins 14 and 15 get alternate function 0, 0b100.
    uart_pins: Some(FunctionSelect {
        register: 0x3F20_0004,
        mask: 0b111_111 << 12,
        function: 0b100_100 << 12,
    }),
};
