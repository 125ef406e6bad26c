// Answers CPUID as an older CPU would, in one process.
//
//     LD_PRELOAD=mask.so CPU_MASK=avx512|vnni PROGRAM
//
// A program learns what its CPU can do from the instruction CPUID, which user
// code may execute without asking anybody. mask.py makes copies of programs and
// libraries in which each CPUID is UD1, two bytes as well, an instruction that
// only ever traps. Here the trap is caught: the real CPUID is executed, the bits
// of the hidden instructions are cleared, and the program goes on. Every peer
// and we ourselves are deceived in the same way, whatever switches they have.
//
//     CPU_MASK=avx512   no AVX-512 and no AMX; AVX-VNNI stays
//     CPU_MASK=vnni     nor AVX-VNNI: an AVX2 machine
//
// The bits are those of Intel's manual, volume 2A, CPUID, leaf 7.
#define _GNU_SOURCE
#include <cpuid.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>
#include <unistd.h>

#define BIT(n) (UINT32_C(1) << (n))

struct registers {
    uint32_t eax, ebx, ecx, edx;
};

// Leaf 7, subleaf 0.
static const struct registers AVX512_0 = {
    .ebx = BIT(16)    // AVX512F
           | BIT(17)  // AVX512DQ
           | BIT(21)  // AVX512_IFMA
           | BIT(26)  // AVX512PF
           | BIT(27)  // AVX512ER
           | BIT(28)  // AVX512CD
           | BIT(30)  // AVX512BW
           | BIT(31), // AVX512VL
    .ecx = BIT(1)     // AVX512_VBMI
           | BIT(6)   // AVX512_VBMI2
           | BIT(11)  // AVX512_VNNI
           | BIT(12)  // AVX512_BITALG
           | BIT(14), // AVX512_VPOPCNTDQ
    .edx = BIT(2)     // AVX512_4VNNIW
           | BIT(3)   // AVX512_4FMAPS
           | BIT(8)   // AVX512_VP2INTERSECT
           | BIT(22)  // AMX-BF16
           | BIT(23)  // AVX512_FP16
           | BIT(24)  // AMX-TILE
           | BIT(25), // AMX-INT8
};

// Leaf 7, subleaf 1.
static const struct registers AVX512_1 = {
    .eax = BIT(5)     // AVX512_BF16
           | BIT(21), // AMX-FP16
    .edx = BIT(8)     // AMX-COMPLEX
           | BIT(19), // AVX10
};
static const struct registers VNNI_1 = {
    .eax = BIT(4)     // AVX-VNNI
           | BIT(23), // AVX-IFMA
    .edx = BIT(4)     // AVX-VNNI-INT8
           | BIT(5)   // AVX-NE-CONVERT
           | BIT(10), // AVX-VNNI-INT16
};

static int hide_vnni;
static volatile unsigned answers;

static void clear(struct registers *r, const struct registers *bits) {
    r->eax &= ~bits->eax;
    r->ebx &= ~bits->ebx;
    r->ecx &= ~bits->ecx;
    r->edx &= ~bits->edx;
}

static void on_illegal(int signal_number, siginfo_t *info, void *context) {
    (void)info;
    greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
    const unsigned char *instruction = (const unsigned char *)registers[REG_RIP];
    if (instruction[0] != 0x0f || instruction[1] != 0xb9) {
        // Not ours: the program trips over its own illegal instruction.
        signal(signal_number, SIG_DFL);
        return;
    }
    const uint32_t leaf = (uint32_t)registers[REG_RAX];
    const uint32_t subleaf = (uint32_t)registers[REG_RCX];
    struct registers r;
    __cpuid_count(leaf, subleaf, r.eax, r.ebx, r.ecx, r.edx);
    if (leaf == 7 && subleaf == 0) clear(&r, &AVX512_0);
    if (leaf == 7 && subleaf == 1) clear(&r, &AVX512_1);
    if (leaf == 7 && subleaf == 1 && hide_vnni) clear(&r, &VNNI_1);
    registers[REG_RAX] = r.eax;
    registers[REG_RBX] = r.ebx;
    registers[REG_RCX] = r.ecx;
    registers[REG_RDX] = r.edx;
    registers[REG_RIP] += 2;
    answers++;
}

__attribute__((constructor)) static void install(void) {
    const char *mask = getenv("CPU_MASK");
    if (mask == NULL || (strcmp(mask, "avx512") != 0 && strcmp(mask, "vnni") != 0)) {
        fputs("mask.so: CPU_MASK must be avx512 or vnni\n", stderr);
        _exit(2);
    }
    hide_vnni = strcmp(mask, "vnni") == 0;
    struct sigaction action = {.sa_sigaction = on_illegal, .sa_flags = SA_SIGINFO | SA_NODEFER};
    sigaction(SIGILL, &action, NULL);
}

// run.py looks for this line: without it, or with 0, nothing was hidden.
__attribute__((destructor)) static void report(void) {
    fprintf(stderr, "mask.so: %u CPUID answered\n", answers);
}
