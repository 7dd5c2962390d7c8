//! Network traces of a move, as the client saw it: reading them, and checking them against TCP's rules.
//!
//! - [`pcap`]: frames out of a file of tcpdump's.
//! - [`packet`]: TCP segments and ARP out of frames.
//! - [`check`]: what a move may look like on the wire, and nothing else.

pub mod check;
pub mod packet;
pub mod pcap;
