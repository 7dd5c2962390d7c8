//! How much the service takes before it refuses, so that it stays inside a small guest's memory.

use std::time::Duration;

/// Bounds of one service. Every one of them is refused with a message that names it.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Documents at a time.
    pub documents: usize,
    /// One document with its editing history, encoded. A document of many small edits takes about
    /// ten times that in memory.
    pub document_bytes: usize,
    /// All documents together, encoded.
    pub total_bytes: usize,
    /// Characters that the page lets a person type into one document.
    pub page_characters: usize,
    /// Live connections to one document.
    pub people: usize,
    /// Live connections to all documents.
    pub total_people: usize,
    /// One message of a live connection.
    pub message_bytes: usize,
    /// What one person's page tells about its person: name, colour, caret.
    pub presence_bytes: usize,
    /// Time between two pings on a live connection.
    pub ping_every: Duration,
    /// A live connection is given up when nothing arrived for this long, or nothing could be sent.
    /// Well above the pause of a move.
    pub silence: Duration,
}

impl Default for Limits {
    /// For a guest of 64 MiB.
    fn default() -> Self {
        Self {
            documents: 64,
            document_bytes: 256 << 10,
            total_bytes: 1 << 20,
            page_characters: 100_000,
            people: 32,
            total_people: 128,
            message_bytes: 320 << 10,
            presence_bytes: 1 << 10,
            ping_every: Duration::from_secs(20),
            silence: Duration::from_secs(75),
        }
    }
}
