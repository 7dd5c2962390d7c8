//! The paper's two tables, and what keeps them O(1) per frame.
//!
//! * `bind`: port → listener. A SYN for a bound port makes a connection that inherits the port;
//!   there is no pool of waiting sockets.
//! * `established`: four-tuple → connection. Each connection is a smoltcp socket in a set of its
//!   own, so a frame matched by hash is processed with that one socket only.
//! * `time_wait`: connections of which nothing is left but the duty to answer a late FIN.
//! * `timers`: a heap of the moments at which a connection has something to do.

pub(crate) mod bind;
pub(crate) mod connection;
pub(crate) mod established;
pub(crate) mod time_wait;
pub(crate) mod timers;
