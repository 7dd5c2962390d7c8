//! The runtime a Ferry service is written against.
//!
//! ```no_run
//! # #[cfg(all(target_os = "hermit", feature = "http"))]
//! fn main() -> std::process::ExitCode {
//!     runtime::run(runtime::serve(80, axum::Router::new()))
//! }
//! # #[cfg(not(all(target_os = "hermit", feature = "http")))]
//! # fn main() {}
//! ```
//!
//! A service is ordinary `std` Rust on a current-thread tokio runtime; `tokio::spawn`, `tokio::time`,
//! channels, `std::time`, `HashMap`, `println!` and `log` are what they are everywhere. It knows
//! nothing of being moved: this crate is the *portable side* of the image, and moves with it. In the
//! order in which a service meets its layers:
//!
//! 1. `start`: the first code on the portable stack; `heap`: the allocator.
//! 2. `admission`, `buffers`, `gate`: whether a connection gets memory, how much, and who may read while there is
//!    little; `engine`: the network stack, the machine's tasks (drain, prepare, resume), the idle line; `card`:
//!    its calls to the machine; `rehearsal`: the same code run once by a standby while it waits.
//! 3. `syscalls`: the kernel calls that std makes and that must not see the machine change.
//! 4. `net` (public): `TcpListener` and `TcpStream`; `serve`: HTTP for an axum `Router`.
//!
//! What cannot move (threads, files, the kernel's sockets) is refused with a message that names it.
#![cfg(any(target_os = "hermit", test))]

#[cfg(target_os = "hermit")]
mod admission;
mod buffers;
#[cfg(target_os = "hermit")]
mod card;
#[cfg(target_os = "hermit")]
mod clock;
#[cfg(target_os = "hermit")]
mod engine;
mod gate;
#[cfg(target_os = "hermit")]
mod heap;
#[cfg(all(target_os = "hermit", feature = "http"))]
mod http;
#[cfg(target_os = "hermit")]
mod logger;
#[cfg(target_os = "hermit")]
pub mod net;
#[cfg(target_os = "hermit")]
mod rehearsal;
#[cfg(target_os = "hermit")]
mod single;
// The rest of `heap` is the image's allocator; its logic is tested on the host.
#[cfg(not(target_os = "hermit"))]
#[path = "heap/spans.rs"]
mod spans;
#[cfg(target_os = "hermit")]
mod start;
#[cfg(target_os = "hermit")]
mod syscalls;

#[cfg(target_os = "hermit")]
pub use engine::run;
#[cfg(all(target_os = "hermit", feature = "http"))]
pub use http::serve;
