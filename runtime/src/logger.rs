//! `log` on the console.

use log::{LevelFilter, Log, Metadata, Record};

struct Console;

impl Log for Console {
    fn enabled(&self, _metadata: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let now = crate::clock::monotonic_ns() / 1_000;
        println!(
            "[{:>6}.{:06}] {:5} {}: {}",
            now / 1_000_000,
            now % 1_000_000,
            record.level(),
            record.target(),
            record.args()
        );
    }

    fn flush(&self) {}
}

/// Turns logging on up to `level` (0 = off … 5 = trace).
pub fn init(level: u8) {
    let level = match level {
        0 => LevelFilter::Off,
        1 => LevelFilter::Error,
        2 => LevelFilter::Warn,
        3 => LevelFilter::Info,
        4 => LevelFilter::Debug,
        _ => LevelFilter::Trace,
    };
    // A service that sets a logger of its own finds this one set and gets the error itself.
    let _ = log::set_logger(&Console);
    log::set_max_level(level);
}
