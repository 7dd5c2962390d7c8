//! Deadlines of many things in one heap.

use alloc::collections::BinaryHeap;
use core::cmp::Reverse;
use smoltcp::time::Instant;

use super::established::ConnId;

/// A heap of deadlines. Entries are not removed when a deadline moves: whoever takes one out looks at
/// the thing itself again. A thing is entered only for an earlier time than it is in for, so the heap
/// holds about one entry each.
#[derive(Debug, Default)]
pub(crate) struct Timers {
    heap: BinaryHeap<Reverse<(Instant, ConnId)>>,
}

impl Timers {
    /// Enters `id` for `at`. `armed` is the earliest time it is in for, kept by the thing itself.
    pub fn arm(&mut self, id: ConnId, at: Instant, armed: &mut Option<Instant>) {
        if armed.is_none_or(|armed| at < armed) {
            *armed = Some(at);
            self.heap.push(Reverse((at, id)));
        }
    }

    /// Takes out the earliest entry that is due.
    pub fn pop(&mut self, now: Instant) -> Option<(Instant, ConnId)> {
        if self.next()? > now {
            return None;
        }
        self.heap.pop().map(|Reverse(entry)| entry)
    }

    /// The earliest entry's time.
    pub fn next(&self) -> Option<Instant> {
        self.heap.peek().map(|Reverse((at, _))| *at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_deadline_adds_no_entry_and_an_earlier_one_does() {
        let mut timers = Timers::default();
        let (a, mut armed) = (ConnId::new(1, 0), None);
        timers.arm(a, Instant::from_millis(50), &mut armed);
        timers.arm(a, Instant::from_millis(60), &mut armed);
        timers.arm(a, Instant::from_millis(20), &mut armed);
        assert_eq!(armed, Some(Instant::from_millis(20)));
        assert_eq!(timers.pop(Instant::from_millis(19)), None);
        assert_eq!(timers.pop(Instant::from_millis(60)), Some((Instant::from_millis(20), a)));
        assert_eq!(timers.pop(Instant::from_millis(60)), Some((Instant::from_millis(50), a)));
        assert_eq!(timers.pop(Instant::from_millis(60)), None);
    }
}
