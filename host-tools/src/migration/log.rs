//! Times and bytes of each phase.

use serde::{Deserialize, Serialize};

use super::Phase;

/// What one phase took. Times are microseconds since the move began.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PhaseRecord {
    /// Which phase.
    pub phase: Phase,
    /// When it began.
    pub start_us: u64,
    /// When it ended.
    pub end_us: u64,
    /// Pages that were sent in it.
    #[serde(default)]
    pub pages: u64,
    /// Bytes that were put on the wire in it.
    #[serde(default)]
    pub bytes: u64,
    /// What else is worth knowing, one line.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub note: String,
    /// Named parts of the phase and their lengths, in microseconds.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<(String, u64)>,
}

impl PhaseRecord {
    /// Length in microseconds.
    #[must_use]
    pub fn elapsed_us(&self) -> u64 {
        self.end_us.saturating_sub(self.start_us)
    }
}

/// The phases of a move so far. One phase is open at a time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PhaseLog {
    open: Option<PhaseRecord>,
    done: Vec<PhaseRecord>,
}

impl PhaseLog {
    /// Ends the open phase, if it is another one, and begins `phase`. Returns the ended one.
    pub fn enter(&mut self, phase: Phase, now_us: u64) -> Option<PhaseRecord> {
        if self.open.as_ref().is_some_and(|open| open.phase == phase) {
            return None;
        }
        let ended = self.close(now_us);
        self.open = Some(PhaseRecord {
            phase,
            start_us: now_us,
            end_us: now_us,
            pages: 0,
            bytes: 0,
            note: String::new(),
            steps: Vec::new(),
        });
        ended
    }

    /// Ends the open phase and returns it.
    pub fn close(&mut self, now_us: u64) -> Option<PhaseRecord> {
        let mut record = self.open.take()?;
        record.end_us = now_us;
        self.done.push(record.clone());
        Some(record)
    }

    /// The open phase, to be filled in.
    pub fn open_mut(&mut self) -> Option<&mut PhaseRecord> {
        self.open.as_mut()
    }

    /// The phases that have ended.
    #[must_use]
    pub fn done(&self) -> &[PhaseRecord] {
        &self.done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_follow_each_other_without_a_hole() {
        let mut log = PhaseLog::default();
        assert_eq!(log.enter(Phase::Request, 0), None);
        assert_eq!(log.enter(Phase::Request, 5), None);
        let ended = log.enter(Phase::Prepare, 10).unwrap();
        assert_eq!((ended.phase, ended.start_us, ended.end_us), (Phase::Request, 0, 10));
        log.open_mut().unwrap().bytes += 7;
        assert_eq!(log.close(30).unwrap().bytes, 7);
        assert_eq!(log.close(40), None);
        assert_eq!(log.done().len(), 2);
        assert_eq!(log.done()[1].elapsed_us(), 20);
    }
}
