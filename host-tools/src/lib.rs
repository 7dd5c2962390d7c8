//! The information manager, its agents, and the commands users type: one binary, `host-tools`.
//!
//! The layers, from what has no I/O to what people see:
//!
//! 1. [`migration`]: a move as pure logic: the phase table and `step(state, event, now)`.
//! 2. [`snapshot`]: the snapshot file; everything in it is checked before anything is used.
//! 3. [`transfer`]: framing and digest of the page stream between two agents.
//! 4. [`qemu`]: a QEMU process: command line, QMP, console, memory file, death.
//! 5. [`repository`]: images and snapshots, addressed by content.
//! 6. [`store`]: who owns which service, under which epoch.
//! 7. [`wire`]: the one place where connections are opened and accepted.
//! 8. [`security`]: who may do what: certificates, roles, the audit log.
//! 9. [`api`]: what manager, agents and commands say to each other.
//! 10. [`agent`]: the daemon on each QEMU host.
//! 11. [`manager`]: the daemon that everything a user types goes through.
//! 12. [`timeline`]: a move as a picture.
//! 13. [`cli`]: the commands.
//!
//! Beside them, what touches the machine's network: [`hostnet`] (a guest's tap, its bridge port, the mirror
//! of a move) and [`lab`] (QEMU hosts and a client on one machine, as network namespaces). [`process`] tells
//! processes apart from strangers with the same number.

pub mod agent;
pub mod api;
pub mod cli;
pub mod hostnet;
pub mod lab;
pub mod manager;
pub mod migration;
pub mod process;
pub mod qemu;
pub mod repository;
pub mod security;
pub mod snapshot;
pub mod store;
pub mod timeline;
pub mod transfer;
pub mod wire;
