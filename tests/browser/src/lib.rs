//! A test of `notes` as people meet it: pages in headless Chromium, keys pressed one by one.
//!
//! - [`browser`]: Chromium, driven over a pipe with its DevTools protocol; nothing else to install.
//! - [`page`]: one page of it: press keys, ask for values, wait for conditions, take pictures.
//! - [`people`]: what each person types, and what the text must be in the end.
//! - [`scenario`]: two people type into one document while a hook moves the service.
//! - [`overlook`]: somebody looks at the manager's page while a service moves.

pub mod browser;
pub mod overlook;
pub mod page;
pub mod people;
pub mod scenario;

use std::time::Duration;

/// What can go wrong between this program and the browser.
#[derive(Debug, thiserror::Error)]
pub enum BrowserError {
    /// The browser cannot be started.
    #[error("cannot start {program}: {source}; on Debian: apt-get install chromium")]
    Start {
        /// What was to be started.
        program: String,
        /// What the system says.
        source: std::io::Error,
    },
    /// The browser ended, or closed its end of the pipe.
    #[error("the browser is gone; its last words:\n{last_words}")]
    Gone {
        /// The end of what it wrote to its log.
        last_words: String,
    },
    /// The browser did not answer.
    #[error("the browser did not answer {method} within {waited:?}")]
    Silent {
        /// The DevTools method that was called.
        method: String,
        /// How long was waited.
        waited: Duration,
    },
    /// The browser refused a call.
    #[error("the browser refused {method}: {reason}")]
    Refused {
        /// The DevTools method that was called.
        method: String,
        /// Its words.
        reason: String,
    },
    /// A script in the page failed.
    #[error("in the page, `{script}` failed: {reason}")]
    Script {
        /// What was run.
        script: String,
        /// The page's words.
        reason: String,
    },
    /// A file could not be written.
    #[error("cannot write {path}: {source}")]
    Write {
        /// The file.
        path: std::path::PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
}
