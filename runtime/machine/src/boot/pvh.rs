//! The PVH entry (Xen's x86/HVM direct boot ABI): 32-bit protected mode, paging off, EBX = start info.

use core::arch::{global_asm, naked_asm};

use super::{RawBootInfo, boot_main, pages};

/// Size of the boot stack; Hermit goes on using it for its idle task.
const BOOT_STACK: usize = 0x8000;

#[repr(C, align(4096))]
struct Stack([u8; BOOT_STACK]);

static mut STACK: Stack = Stack([0; BOOT_STACK]);

global_asm!(
    // The note by which QEMU finds the 32-bit entry: XEN_ELFNOTE_PHYS32_ENTRY.
    ".pushsection .note.Xen, \"a\", @note",
    ".align 4",
    ".long 4, 8, 18",
    ".asciz \"Xen\"",
    ".quad ferry_pvh_start",
    ".popsection",
    ".pushsection .text.boot, \"ax\"",
    ".code32",
    ".global ferry_pvh_start",
    "ferry_pvh_start:",
    "cld",
    "cli",
    "mov esp, offset {stack} + {stack_size}",
    // Level 4 and 3: four page directories cover 4 GiB.
    "mov eax, offset {pdpt} + 3",
    "mov dword ptr [{pml4}], eax",
    "xor ecx, ecx",
    "mov eax, offset {directories} + 3",
    "2:",
    "mov dword ptr [{pdpt} + ecx * 8], eax",
    "add eax, 4096",
    "inc ecx",
    "cmp ecx, 4",
    "jb 2b",
    // Level 2: 2-MiB pages, write-back below 3 GiB, uncached above (BARs, APICs, virtio-mmio).
    "xor ecx, ecx",
    "3:",
    "mov eax, ecx",
    "shl eax, 21",
    "or eax, 0x83",
    "cmp ecx, 1536",
    "jb 4f",
    "or eax, 0x18",
    "4:",
    "mov dword ptr [{directories} + ecx * 8], eax",
    "inc ecx",
    "cmp ecx, 2048",
    "jb 3b",
    // PAE, SSE, NX, long mode, paging with write protection.
    "mov eax, cr4",
    "or eax, 0x620",
    "mov cr4, eax",
    "mov eax, offset {pml4}",
    "mov cr3, eax",
    "mov ecx, 0xC0000080",
    "rdmsr",
    "or eax, 0x900",
    "wrmsr",
    "mov eax, cr0",
    "and eax, 0xFFFFFFFB",
    "or eax, 0x80010023",
    "mov cr0, eax",
    "lgdt [ferry_gdt_pointer]",
    "push 8",
    "mov eax, offset ferry_long_mode",
    "push eax",
    "retf",
    ".code64",
    "ferry_long_mode:",
    "mov ax, 16",
    "mov ds, ax",
    "mov es, ax",
    "mov ss, ax",
    "xor eax, eax",
    "mov fs, ax",
    "mov gs, ax",
    "lea rsp, [{stack} + {stack_size}]",
    "xor ebp, ebp",
    "mov edi, ebx",
    "call {main}",
    "ud2",
    ".align 8",
    "ferry_gdt:",
    ".quad 0",
    ".quad 0x00AF9A000000FFFF",
    ".quad 0x00CF92000000FFFF",
    "ferry_gdt_pointer:",
    ".word 23",
    ".long ferry_gdt",
    ".popsection",
    stack = sym STACK,
    stack_size = const BOOT_STACK,
    pml4 = sym pages::PML4,
    pdpt = sym pages::PDPT,
    directories = sym pages::DIRECTORIES,
    main = sym boot_main,
);

/// Jumps to the kernel's entry with the whole boot stack below it.
///
/// # Safety
/// `boot_info` must live for ever, and nothing on the boot stack may be used again.
#[unsafe(naked)]
pub(super) unsafe extern "C" fn enter_kernel(
    boot_info: *const RawBootInfo,
    entry: unsafe extern "C" fn(*const RawBootInfo, u32) -> !,
) -> ! {
    naked_asm!(
        "mov rax, rsi",
        "xor esi, esi",
        "lea rsp, [{stack}]",
        "jmp rax",
        stack = sym STACK,
    )
}
