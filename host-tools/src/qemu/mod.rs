//! A QEMU process, owned by an agent.
//!
//! 1. [`image`]: what an image says of itself: its build id, its size in memory.
//! 2. [`accel`]: KVM where it really runs guests, else TCG.
//! 3. [`firmware`]: what a machine with PCI runs before the kernel.
//! 4. [`command`]: the command line, as a pure function.
//! 5. [`ram`]: the guest's memory as a file; every range a guest names is checked here.
//! 6. [`qmp`]: QEMU's control protocol.
//! 7. [`user`]: whom it runs as.
//! 8. [`vm`]: the process itself: start, stop, end, death.

pub mod accel;
pub mod command;
pub mod firmware;
pub mod image;
pub mod qmp;
pub mod ram;
pub mod user;
pub mod vm;

pub use accel::Accel;
pub use command::Machine;
pub use image::ImageInfo;
pub use ram::RamFile;
pub use user::GuestUsers;
pub use vm::Vm;
