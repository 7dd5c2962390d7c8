//! The host-bound side of a guest: everything that belongs to the machine and never moves.
//!
//! In the order of a guest's life:
//!
//! 1. [`boot`]: PVH entry, page tables, device tree, then Hermit's own start.
//! 2. [`entry`]: the first code of ours on the running kernel; brings the devices up, then starts the
//!    service or stands by for one.
//! 3. [`side`]: the two stacks and the switch between them.
//! 4. [`park`]: where the portable side waits: orders, frames, deadlines, halt.
//! 5. [`control`], [`uart`]: the control port.
//! 6. [`capture`]: dirty pages, the header, what a resume checks.
//! 7. [`nic`]: the virtio-net driver. [`clock`], [`lapic`], [`random`]: time, timer, entropy.
//! 8. [`exports`]: the `host_*` functions of `ferry_abi`.
//!
//! One CPU, no threads of ours; interrupts only set flags or end a halt. The portable side's memory is
//! never touched outside [`capture`] and [`side`].
#![no_std]

mod boot;
mod capture;
mod cell;
mod clock;
mod control;
mod entry;
mod exports;
mod lapic;
mod nic;
mod park;
mod random;
mod side;
mod uart;

// The kernel brings the panic handler and the host-bound allocator.
use hermit as _;
