//! The image for QEMU's `virt` machine.
#![no_std]
#![no_main]

#[path = "../image/mod.rs"]
mod image;

use image::board::Board;

/// Its `hw/arm/virt.c`.
const BOARD: Board = Board {
    name: "virt",
    ram: 0x4000_0000..0x8000_0000,
    uart: 0x0900_0000,
    uart_clock_hz: 24_000_000,
    uart_pins: None,
};
