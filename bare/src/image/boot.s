// From reset to Rust.
//
// QEMU starts `virt` at exception level 1 or, with virtualization=on, 2, and
// `raspi3b` at 3 or 2; a real Raspberry Pi starts at 2. Everything runs at 1.

    .section .text.boot, "ax"
    .global _start
_start:
    // One core works. The others sleep, which takes no time from an emulator either.
    mrs     x0, mpidr_el1
    tst     x0, #0xffffff
    b.ne    park
    mrs     x19, CurrentEL
    lsr     x19, x19, #2            // main's argument
    adr     x1, level_1
    cmp     x19, #2
    b.lo    level_1
    b.eq    level_2

    // Level 3: the levels below are 64-bit and not secure, nothing of theirs traps.
    mov     x0, #0x5b1              // SCR_EL3: RW, HCE, SMD, RES1, NS
    msr     scr_el3, x0
    msr     cptr_el3, xzr
    msr     mdcr_el3, xzr
    mov     x0, #0x3c5              // level 1, stack of its own, interrupts masked
    msr     spsr_el3, x0
    msr     elr_el3, x1

level_2:
    mov     x0, #1 << 31            // HCR_EL2: level 1 is 64-bit
    msr     hcr_el2, x0
    mov     x0, #0x33ff             // CPTR_EL2: RES1; floating point does not trap
    msr     cptr_el2, x0
    mov     x0, #3                  // level 1 reads the counter
    msr     cnthctl_el2, x0
    msr     cntvoff_el2, xzr
    ldr     x0, =0x30d00800         // SCTLR_EL1: RES1; no MMU, no caches
    msr     sctlr_el1, x0
    cmp     x19, #2
    b.hi    leave_level_3
    mov     x0, #0x3c5
    msr     spsr_el2, x0
    msr     elr_el2, x1
    eret
leave_level_3:
    eret

level_1:
    msr     spsel, #1
    mov     x0, #3 << 20            // CPACR_EL1: floating point and NEON do not trap
    msr     cpacr_el1, x0
    adrp    x0, vectors
    add     x0, x0, :lo12:vectors
    msr     vbar_el1, x0

    // Without the MMU all memory is device memory, where an unaligned access traps and
    // nothing is cached: compiled code runs only behind this.
    mov     x0, #0xff00             // MAIR_EL1: 0 device (nGnRnE), 1 normal, write-back
    msr     mair_el1, x0
    ldr     x0, =0x803521           // TCR_EL1: 2 GiB of addresses, 4 KiB pages, walks
    msr     tcr_el1, x0             // cached, shareable; nothing above (EPD1)
    adrp    x0, pages_level_1
    add     x0, x0, :lo12:pages_level_1
    msr     ttbr0_el1, x0
    tlbi    vmalle1
    ic      iallu
    dsb     sy
    isb
    ldr     x0, =0x30d01805         // SCTLR_EL1: RES1, I, C, M
    msr     sctlr_el1, x0
    isb

    adrp    x0, __bss_start
    add     x0, x0, :lo12:__bss_start
    adrp    x1, __bss_end
    add     x1, x1, :lo12:__bss_end
1:  cmp     x0, x1
    b.hs    2f
    stp     xzr, xzr, [x0], #16
    b       1b

    // Whatever the stack touches is no longer this word.
2:  adrp    x0, __stack_bottom
    add     x0, x0, :lo12:__stack_bottom
    adrp    x1, __stack_top
    add     x1, x1, :lo12:__stack_top
    ldr     x2, ={paint}
3:  str     x2, [x0], #8
    cmp     x0, x1
    b.lo    3b
    mov     sp, x1
    mov     x29, xzr
    mov     x30, xzr
    mov     x0, x19
    b       {main}

park:
    wfi
    b       park

// Every exception is an error, and the handler does not return.
    .macro  fatal
    .balign 128
    b       trap
    .endm
    .balign 2048
vectors:
    .rept   16
    fatal
    .endr

trap:
    // The stack may be what is broken.
    adrp    x0, __stack_top
    add     x0, x0, :lo12:__stack_top
    mov     sp, x0
    mrs     x0, esr_el1
    mrs     x1, elr_el1
    mrs     x2, far_el1
    b       {exception}

// Two tables of 1 GiB each.
    .section .data.pages, "aw"
    .balign 4096
pages_level_1:
    .quad   {pages} + 3
    .quad   {pages} + 4096 + 3
    .ltorg
