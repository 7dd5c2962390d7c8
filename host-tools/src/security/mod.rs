//! Who may do what, and what was done.
//!
//! The manager is the certificate authority of its cluster. Whoever takes part (a user, an agent, the manager
//! itself) has a certificate of it that names cluster, role and name; all connections are TLS 1.3 with
//! certificates on both sides.
//!
//! 1. [`identity`]: what a certificate says.
//! 2. [`secret`]: files that only their owner reads.
//! 3. [`authority`]: the cluster's keys, and certificates from them.
//! 4. [`token`]: one-time tokens, with which a newcomer gets a certificate.
//! 5. [`credentials`]: what a member keeps.
//! 6. [`tls`] makes the connections.
//! 7. [`enrol`]: becoming a member.
//! 8. [`access`]: one table from route to role.
//! 9. [`audit`]: the log of changes and refusals.
//! 10. [`listener`] and [`gate`]: every connection and every request passes them.
//! 11. [`signature`]: which images the manager has taken, and what it has given to whom.
//! 12. [`seal`]: snapshots at rest.

pub mod access;
pub mod audit;
pub mod authority;
pub mod credentials;
pub mod enrol;
pub mod gate;
pub mod identity;
pub mod listener;
pub mod seal;
pub mod secret;
pub mod signature;
pub mod tls;
pub mod token;

pub use access::{Rule, Who};
pub use audit::{Audit, Entry};
pub use authority::Authority;
pub use credentials::Credentials;
pub use gate::{Gate, Peer, Reason};
pub use identity::{Identity, Member, Role};
pub use tls::{Party, Security, Tls};
