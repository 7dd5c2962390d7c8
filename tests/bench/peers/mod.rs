//! What Ferry is measured beside: the same service in a Linux guest under QEMU's own live migration, Ferry's own
//! image under it, and as a Linux process that CRIU moves. All on the hosts of a lab without daemons.

pub mod assets;
pub mod cpio;
pub mod criu;
pub mod hermit;
pub mod linux;
pub mod machine;
pub mod migration;
pub mod nginx;
pub mod qmp;

pub use assets::Assets;
pub use linux::{LinuxGuest, Program};
