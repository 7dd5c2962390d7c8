//! The log of changes and refusals: one line of JSON each, only ever appended to.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::access::Who;

/// How something went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Result {
    /// It was done, or has been begun.
    Done,
    /// It was not allowed.
    Refused,
    /// It was allowed, and did not work.
    Failed,
}

/// A line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// When, as RFC 3339 has it, in UTC.
    pub time: String,
    /// Who.
    pub who: String,
    /// What they may do.
    pub role: String,
    /// From where.
    pub from: String,
    /// What they asked for.
    pub what: String,
    /// How it went.
    pub result: Result,
    /// Why it did not go well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl Entry {
    /// A line about something done at `now`.
    #[must_use]
    pub fn new(now: OffsetDateTime, who: &Who, from: &str, what: impl Into<String>) -> Self {
        let (name, role) = match who {
            Who::Local => ("-".into(), "local".into()),
            Who::Nobody => ("-".into(), "-".into()),
            Who::Member(member) => (member.identity.name.clone(), member.identity.role.to_string()),
        };
        let time = now.format(&Rfc3339).unwrap_or_default();
        let (from, what) = (from.to_owned(), what.into());
        Self { time, who: name, role, from, what, result: Result::Done, reason: None }
    }

    /// The same with a bad end.
    #[must_use]
    pub fn ended(self, result: Result, reason: impl Into<String>) -> Self {
        Self { result, reason: Some(reason.into()), ..self }
    }
}

/// The log.
#[derive(Debug)]
pub struct Audit {
    path: PathBuf,
    file: Mutex<File>,
}

impl Audit {
    /// Opens the log, or begins it.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn open(path: &Path) -> std::io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
        Ok(Self { path: path.to_owned(), file: Mutex::new(file) })
    }

    /// Writes a line. That it could not be written is said on standard error; what it is about goes on.
    pub fn write(&self, entry: &Entry) {
        let Ok(mut line) = serde_json::to_vec(entry) else { return };
        line.push(b'\n');
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = file.write_all(&line) {
            let line = String::from_utf8_lossy(&line);
            tracing::warn!(
                "{}: {error}; not in the audit log: {}",
                self.path.display(),
                line.trim()
            );
        }
    }

    /// The last `count` lines, the oldest first. Lines that are none, as after a crash, are left out.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn last(&self, count: usize) -> std::io::Result<Vec<Entry>> {
        let mut last = VecDeque::new();
        for line in BufReader::new(File::open(&self.path)?).split(b'\n') {
            if last.len() == count {
                last.pop_front();
            }
            last.push_back(line?);
        }
        Ok(last.iter().filter_map(|line| serde_json::from_slice(line).ok()).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn appended_and_read_from_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.log");
        let now = OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap();
        let entry = |n: u32| Entry::new(now, &Who::Nobody, "10.0.0.9:1", format!("POST /{n}"));
        let log = Audit::open(&path).unwrap();
        log.write(&entry(1));
        log.write(&entry(2).ended(Result::Refused, "no"));
        drop(log);
        std::fs::OpenOptions::new()
            .append(true)
            .open(&path)
            .unwrap()
            .write_all(b"{\"cut\n")
            .unwrap();
        let log = Audit::open(&path).unwrap();
        log.write(&entry(3));
        let whole = [entry(1), entry(2).ended(Result::Refused, "no"), entry(3)];
        assert_eq!(log.last(10).unwrap(), whole);
        assert_eq!(log.last(1).unwrap(), whole[2..]);
        let text = std::fs::read_to_string(&path).unwrap();
        let first = r#"{"time":"2027-01-15T08:00:00Z","who":"-","role":"-","from":"10.0.0.9:1","what":"POST /1","result":"done"}"#;
        assert_eq!(text.lines().next(), Some(first));
    }
}
