//! The two 16550 UARTs: COM1 for a line before the kernel has a console, COM2 as the control port.
//!
//! COM2's interrupt ends a halt; its handler only sets [`PENDING`], so that a busy portable side sees
//! with one load that an order waits.

use core::arch::{asm, global_asm};
use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, Ordering};

use crate::lapic;

/// I/O port of COM1.
pub const COM1: u16 = 0x3f8;
/// I/O port of COM2.
pub const COM2: u16 = 0x2f8;
/// Hermit routes IRQ n of the I/O APIC to vector 32 + n; COM2 has IRQ 3.
const COM2_VECTOR: usize = 32 + 3;

const LINE_STATUS: u16 = 5;
const DATA_READY: u8 = 1;
const TRANSMITTER_EMPTY: u8 = 1 << 5;

/// Bytes may be waiting on COM2.
pub static PENDING: AtomicBool = AtomicBool::new(false);

/// Reads one byte from an I/O port.
pub fn inb(port: u16) -> u8 {
    let value;
    // SAFETY: the ports used in this crate are UARTs, PCI configuration and power management, whose
    // reads touch no memory.
    unsafe { asm!("in al, dx", in("dx") port, out("al") value, options(nomem, nostack)) };
    value
}

/// Writes one byte to an I/O port.
pub fn outb(port: u16, value: u8) {
    // SAFETY: as for `inb`; no device is told to write memory by a byte port here.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack)) };
}

/// Reads a 32-bit word from an I/O port.
pub fn inl(port: u16) -> u32 {
    let value;
    // SAFETY: as for `inb`.
    unsafe { asm!("in eax, dx", in("dx") port, out("eax") value, options(nomem, nostack)) };
    value
}

/// Writes a 32-bit word to an I/O port.
pub fn outl(port: u16, value: u32) {
    // SAFETY: as for `outb`.
    unsafe { asm!("out dx, eax", in("dx") port, in("eax") value, options(nomem, nostack)) };
}

/// Writes a 16-bit word to an I/O port.
pub fn outw(port: u16, value: u16) {
    // SAFETY: as for `outb`.
    unsafe { asm!("out dx, ax", in("dx") port, in("ax") value, options(nomem, nostack)) };
}

struct Early;

impl Write for Early {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            send(COM1, byte);
        }
        Ok(())
    }
}

/// Prints on COM1 without the kernel's console.
pub fn early_print(text: fmt::Arguments<'_>) {
    // `Early` never fails.
    let _ = Early.write_fmt(text);
}

fn send(port: u16, byte: u8) {
    // A UART that is not there reads as 0xff: ready for ever, and the byte goes nowhere.
    while inb(port + LINE_STATUS) & TRANSMITTER_EMPTY == 0 {
        core::hint::spin_loop();
    }
    outb(port, byte);
}

/// FIFO on and emptied, interrupt at 14 received bytes or, with fewer, four characters' time after the last.
const FIFO: u8 = 0xc7;
const _: () = assert!(ferry_protocol::frame::BURST == 14);

/// Sets COM2 up: 115200 8N1 (QEMU ignores the speed but for the FIFO's timeout), interrupt on received data.
pub fn open_control_port() {
    outb(COM2 + 1, 0);
    outb(COM2 + 3, 0x80);
    outb(COM2, 1);
    outb(COM2 + 1, 0);
    outb(COM2 + 3, 0x03);
    outb(COM2 + 2, FIFO);
    outb(COM2 + 4, 0x0b);
    install_handler();
    outb(COM2 + 1, 0x01);
}

/// The next byte from the agent, if one is there.
pub fn receive() -> Option<u8> {
    // Cleared before the look, so that a byte that arrives after it sets the flag again.
    PENDING.store(false, Ordering::SeqCst);
    let status = inb(COM2 + LINE_STATUS);
    (status != 0xff && status & DATA_READY != 0).then(|| inb(COM2))
}

/// Writes to the agent.
pub fn send_all(bytes: &[u8]) {
    for &byte in bytes {
        send(COM2, byte);
    }
}

global_asm!(
    ".pushsection .text.ferry_com2, \"ax\"",
    ".global ferry_com2_interrupt",
    "ferry_com2_interrupt:",
    "push rax",
    "push rcx",
    "push rdx",
    "push rsi",
    "push rdi",
    "push r8",
    "push r9",
    "push r10",
    "push r11",
    "cld",
    "mov rax, rsp",
    "and rsp, -16",
    "push rax",
    "push rax",
    "call {handler}",
    "pop rax",
    "pop rax",
    "mov rsp, rax",
    "pop r11",
    "pop r10",
    "pop r9",
    "pop r8",
    "pop rdi",
    "pop rsi",
    "pop rdx",
    "pop rcx",
    "pop rax",
    "iretq",
    ".popsection",
    handler = sym on_interrupt,
);

unsafe extern "C" {
    fn ferry_com2_interrupt();
}

/// Touches no vector register: the entry above saves none.
extern "C" fn on_interrupt() {
    PENDING.store(true, Ordering::SeqCst);
    lapic::end_of_interrupt();
}

#[repr(C, packed)]
struct IdtPointer {
    limit: u16,
    base: u64,
}

/// Points COM2's gate at our handler, with the interrupt stack the kernel uses for all its gates.
fn install_handler() {
    let mut idt = IdtPointer { limit: 0, base: 0 };
    // SAFETY: SIDT writes ten bytes to the place it is given.
    unsafe { asm!("sidt [{}]", in(reg) &raw mut idt, options(nostack, preserves_flags)) };
    assert!(usize::from(idt.limit) >= COM2_VECTOR * 16 + 15, "the IDT has a gate for COM2");
    let handler = ferry_com2_interrupt as *const () as u64;
    let low = (handler & 0xffff)
        | (8 << 16)
        | (1 << 32)
        | (0x8e << 40)
        | ((handler >> 16 & 0xffff) << 48);
    let gate = (idt.base + (COM2_VECTOR * 16) as u64) as *mut u64;
    // SAFETY: the gate lies in the kernel's IDT, whose entries it writes only while it starts; COM2's
    // interrupt is still off at the device, so no CPU uses the gate while it is half written.
    unsafe {
        gate.write_volatile(low);
        gate.add(1).write_volatile(handler >> 32);
    }
}
