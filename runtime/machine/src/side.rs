//! The two stacks of a guest, and the switch between them.
//!
//! ```text
//!        start / resume                 park returns
//!  host ───────────────▶ portable ──▶ … ◀──────────── host
//!        ◀─────────────── park ───────────────────────
//! ```
//!
//! Each side's callee-saved registers lie on its own stack while the other runs. The thread pointer
//! (FS base) is switched along: TLS belongs to the portable side.

use core::arch::{asm, naked_asm};
use core::ptr::addr_of_mut;

/// Where the host-bound side stands while the portable side runs.
static mut HOST_SP: u64 = 0;
/// Where the portable side stands while the host-bound side runs.
static mut PORTABLE_SP: u64 = 0;
static mut PORTABLE_FS: u64 = 0;

/// Saves this side's callee-saved registers and stack pointer, and goes on where the other side
/// stood. System V ABI: rbx, rbp, r12-r15, MXCSR and the x87 control word survive a call.
#[unsafe(naked)]
unsafe extern "C" fn switch(save: *mut u64, to: *const u64) {
    naked_asm!(
        "push rbx",
        "push rbp",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "sub rsp, 16",
        "stmxcsr [rsp]",
        "fnstcw [rsp + 8]",
        "mov [rdi], rsp",
        "mov rsp, [rsi]",
        "ldmxcsr [rsp]",
        "fldcw [rsp + 8]",
        "add rsp, 16",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbp",
        "pop rbx",
        "ret",
    )
}

/// 64-bit words that [`switch`] keeps on a parked stack, return address included.
pub const SAVED_WORDS: u64 = 9;

fn fs_base() -> u64 {
    let base;
    // SAFETY: the kernel is built for, and has turned on, FSGSBASE.
    unsafe { asm!("rdfsbase {}", out(reg) base, options(nomem, nostack, preserves_flags)) };
    base
}

fn set_fs_base(base: u64) {
    // SAFETY: as above; the host-bound side uses no TLS, and the portable side gets its own base back.
    unsafe { asm!("wrfsbase {}", in(reg) base, options(nomem, nostack, preserves_flags)) };
}

/// From the host-bound side: runs the portable side until it parks.
pub fn run_portable() {
    // SAFETY: `prepare` or `adopt` has set a stack pointer at which a parked stack's registers lie, and
    // only this function and `park_portable` use the three statics, one CPU, never nested.
    unsafe {
        let host_fs = fs_base();
        set_fs_base(PORTABLE_FS);
        switch(addr_of_mut!(HOST_SP), addr_of_mut!(PORTABLE_SP));
        set_fs_base(host_fs);
    }
}

/// From the portable side: lets the host-bound side go on; returns when it runs the portable side again.
pub fn park_portable() {
    // SAFETY: the host-bound side stands in `run_portable`, which is the only way here.
    unsafe { switch(addr_of_mut!(PORTABLE_SP), addr_of_mut!(HOST_SP)) }
}

/// Sets up a stack that starts `entry` when the portable side is run for the first time.
///
/// # Safety
/// `stack_end` must be the 16-byte aligned end of unused memory of the portable region, `fs_base` the
/// thread pointer of an initialised TLS block.
pub unsafe fn prepare(stack_end: u64, fs_base: u64, entry: unsafe extern "C" fn() -> !) {
    // At a function's first instruction RSP is 8 below a multiple of 16 (System V ABI §3.2.2).
    let sp = stack_end - 8 - SAVED_WORDS * 8;
    let words = sp as *mut u64;
    // SAFETY: by this function's contract the words are ours.
    unsafe {
        for word in 0..=SAVED_WORDS as usize {
            words.add(word).write(0);
        }
        words.write(0x1f80);
        words.add(1).write(0x037f);
        words.add(SAVED_WORDS as usize - 1).write(entry as *const () as u64);
        PORTABLE_SP = sp;
        PORTABLE_FS = fs_base;
    }
}

/// Where the parked portable side stands: stack pointer and thread pointer.
pub fn parked() -> (u64, u64) {
    // SAFETY: called on the host-bound side, where nobody writes them.
    unsafe { (PORTABLE_SP, PORTABLE_FS) }
}

/// Takes over a portable side that was parked on another machine.
///
/// # Safety
/// The portable region must hold that side's memory, and `sp`, `fs_base` must come from its header and
/// have been checked to lie in the region.
pub unsafe fn adopt(sp: u64, fs_base: u64) {
    // SAFETY: by this function's contract.
    unsafe {
        PORTABLE_SP = sp;
        PORTABLE_FS = fs_base;
    }
}
