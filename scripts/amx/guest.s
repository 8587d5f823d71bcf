# What the emulated processor runs: from its reset into 64-bit mode with tiles enabled, then the
# copied functions over all cases, each result written to Bochs' debug port, then off. The image is
# the processor's ROM, 512 KiB below 4 GiB; amx_emulated.py fills in functions, setting and cases.
# No interrupt table: any fault ends the emulator, which tells of it.

.intel_syntax noprefix

# Where amx_emulated.py puts things, from the image's beginning.
.set ROM, 0xfff80000
.set SET_UP, 0x1000
.set DOTS_0, 0x1400
.set DOTS_1, 0x1800
.set GIVE_BACK, 0x1c00
.set SETTING, 0x2000
.set COUNT, 0x2040
.set CASES, 0x10000
.set CASE_BYTES, 1024
.set X_BYTES, 512
# The last 64 KiB, where a processor starts, is also below 1 MiB.
.set BOOT, 0x70000
.set LOW, 0xf0000 - BOOT
# In RAM.
.set DOTS, 0x200000
.set DOTS_BYTES, 1024
.set STACK, 0x180000

.section .rom, "ax"
image:
.code64
main:
    mov r15d, ROM + CASES
    mov r14d, dword ptr [rip + image + COUNT]
    mov edi, ROM + SETTING
    mov eax, ROM + SET_UP
    call rax
each:
    mov eax, ROM + DOTS_0
    call one
    mov eax, ROM + DOTS_1
    call one
    add r15, CASE_BYTES
    dec r14
    jnz each
    mov eax, ROM + GIVE_BACK
    call rax
    lea rsi, [rip + image + BOOT + (shutdown - boot)]
    mov ecx, 8
    mov edx, 0x8900
    rep outsb
    hlt

# Both sets of tiles see the dots of before: each must begin from zero.
one:
    mov rdi, r15
    lea rsi, [r15 + X_BYTES]
    mov edx, DOTS
    call rax
    mov esi, DOTS
    mov ecx, DOTS_BYTES
    mov edx, 0xe9
    rep outsb
    ret

.org BOOT
.code16
boot:
    cli
    lgdt cs:[segments_at - boot]
    # PAE, OSFXSR, OSXMMEXCPT, OSXSAVE.
    mov eax, 0x00040620
    mov cr4, eax
    mov eax, LOW + BOOT + (pages - boot)
    mov cr3, eax
    # EFER: long mode.
    mov ecx, 0xc0000080
    mov eax, 0x100
    xor edx, edx
    wrmsr
    # Protection, paging, no emulation of x87.
    mov eax, 0x80000033
    mov cr0, eax
    .byte 0x66, 0xea
    .long LOW + BOOT + (long_mode - boot)
    .word 8
.code64
long_mode:
    mov eax, 0x10
    mov ds, eax
    mov es, eax
    mov ss, eax
    mov esp, STACK
    # x87, SSE, AVX, AVX-512, tiles' setting and data.
    xor ecx, ecx
    xor edx, edx
    mov eax, 0x600e7
    xsetbv
    mov eax, ROM
    jmp rax

shutdown:
    .ascii "Shutdown"
.balign 8, 0
segments:
    .quad 0, 0x00af9b000000ffff, 0x00cf93000000ffff
segments_at:
    .word segments_at - segments - 1
    .long LOW + BOOT + (segments - boot)

# Addresses are physical addresses: 4 GiB in pages of 1 GiB.
.balign 4096, 0
pages:
    .quad LOW + BOOT + (pages_of_1g - boot) + 0x63
.balign 4096, 0
pages_of_1g:
    .quad 0x000000e3, 0x400000e3, 0x800000e3, 0xc00000e3

.org BOOT + 0xfff0
.code16
    .byte 0xea
    .word 0, 0xf000
.org BOOT + 0xffff
    .byte 0
