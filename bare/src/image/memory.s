// What compiled code expects of a C library: memcpy, memmove, memset, memcmp, bcmp.
// In assembly, since a compiler may turn a loop in Rust into a call of the very
// function that it is in.

    .section .text.memory, "ax"
    .global memcpy, memmove, memset, memcmp, bcmp

memmove:
    sub     x3, x0, x1
    cmp     x3, x2
    b.lo    backward                // the target begins within the source

memcpy:
    mov     x3, x0
1:  subs    x2, x2, #16
    b.lo    2f
    ldp     x4, x5, [x1], #16
    stp     x4, x5, [x3], #16
    b       1b
2:  ands    x2, x2, #15
    b.eq    4f
3:  ldrb    w4, [x1], #1
    strb    w4, [x3], #1
    subs    x2, x2, #1
    b.ne    3b
4:  ret

backward:
    add     x1, x1, x2
    add     x3, x0, x2
1:  subs    x2, x2, #16
    b.lo    2f
    ldp     x4, x5, [x1, #-16]!
    stp     x4, x5, [x3, #-16]!
    b       1b
2:  ands    x2, x2, #15
    b.eq    4f
3:  ldrb    w4, [x1, #-1]!
    strb    w4, [x3, #-1]!
    subs    x2, x2, #1
    b.ne    3b
4:  ret

memset:
    mov     x3, x0
    dup     v0.16b, w1
1:  subs    x2, x2, #16
    b.lo    2f
    str     q0, [x3], #16
    b       1b
2:  ands    x2, x2, #15
    b.eq    4f
3:  strb    w1, [x3], #1
    subs    x2, x2, #1
    b.ne    3b
4:  ret

memcmp:
bcmp:
    mov     x3, x0
    mov     w0, #0
1:  cbz     x2, 2f
    ldrb    w4, [x3], #1
    ldrb    w5, [x1], #1
    sub     x2, x2, #1
    subs    w0, w4, w5
    b.eq    1b
2:  ret
