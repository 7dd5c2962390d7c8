//! The information manager, its agents, and the commands users type: one binary, `host-tools`.
//!
//! The layers, from what has no I/O to what people see:
//!
//! 1. [`migration`]: a move as pure logic: the phase table and `step(state, event, now)`.
//! 2. [`holder`]: what answers for a sleeping service: a frame in, at most one out.
//! 3. [`snapshot`]: the snapshot file; everything in it is checked before anything is used.
//! 4. [`transfer`]: framing and digest of the page stream between two agents.
//! 5. [`qemu`]: a QEMU process: command line, QMP, console, memory file, death.
//! 6. [`repository`]: images and snapshots, addressed by content.
//! 7. [`store`]: who owns which service, under which epoch.
//! 8. [`wire`]: the one place where connections are opened and accepted.
//! 9. [`security`]: who may do what: certificates, roles, the audit log.
//! 10. [`api`]: what manager, agents and commands say to each other.
//! 11. [`agent`]: the daemon on each QEMU host.
//! 12. [`manager`]: the daemon that everything a user types goes through.
//! 13. [`timeline`]: a move as a picture.
//! 14. [`metrics`]: what a monitoring system is told.
//! 15. [`trace`]: what daemons say of what they do, and by whose command.
//! 16. [`cli`]: the commands.
//!
//! Beside them, what touches the machine's network: [`hostnet`] (a guest's tap, its bridge port, the wire between
//! them) and [`lab`] (QEMU hosts and a client on one machine, as network namespaces). [`process`] tells
//! processes apart from strangers with the same number.

pub mod agent;
pub mod api;
pub mod cli;
pub mod holder;
pub mod hostnet;
pub mod lab;
pub mod manager;
pub mod metrics;
pub mod migration;
pub mod priority;
pub mod process;
pub mod qemu;
pub mod repository;
pub mod security;
pub mod snapshot;
pub mod store;
pub mod timeline;
pub mod trace;
pub mod transfer;
pub mod wire;
