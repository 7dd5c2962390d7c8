//! Deadlines of many things in one heap.

use alloc::collections::BinaryHeap;
use core::cmp::Reverse;
use smoltcp::time::Instant;

use super::established::ConnId;

/// The entries a thing has in the heap, earliest first, kept by the thing itself. Two, because a short
/// deadline (an acknowledgement) comes and goes again and again before a long one (a retransmission).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Armed([Option<Instant>; 2]);

impl Armed {
    /// An entry for `at` came out of the heap. `false` if it was forgotten: there is nothing to do.
    pub fn fires(&mut self, at: Instant) -> bool {
        let [first, second] = self.0;
        let known = first == Some(at);
        if known {
            self.0 = [second, None];
        }
        known
    }
}

/// A heap of deadlines. Entries are not removed when a deadline moves: whoever takes one out looks at
/// the thing itself and enters it again. A thing is entered only for an earlier time than it is in
/// for, so the heap holds about two entries each.
#[derive(Debug, Default)]
pub(crate) struct Timers {
    heap: BinaryHeap<Reverse<(Instant, ConnId)>>,
}

impl Timers {
    /// Sees to it that `id` comes out at `at`, or earlier.
    pub fn arm(&mut self, id: ConnId, at: Instant, armed: &mut Armed) {
        let [first, _] = armed.0;
        if first.is_none_or(|first| at < first) {
            armed.0 = [Some(at), first];
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

    fn at(millis: i64) -> Instant {
        Instant::from_millis(millis)
    }

    #[test]
    fn a_later_deadline_adds_no_entry_and_an_earlier_one_does() {
        let mut timers = Timers::default();
        let (a, mut armed) = (ConnId::new(1, 0), Armed::default());
        timers.arm(a, at(50), &mut armed);
        timers.arm(a, at(60), &mut armed);
        timers.arm(a, at(20), &mut armed);
        assert_eq!(timers.pop(at(19)), None);
        assert_eq!(timers.pop(at(60)), Some((at(20), a)));
        assert!(armed.fires(at(20)));
        assert_eq!(timers.pop(at(60)), Some((at(50), a)));
        assert!(armed.fires(at(50)));
        assert_eq!(timers.pop(at(60)), None);
        assert_eq!(armed, Armed::default());
    }

    #[test]
    fn short_deadlines_before_a_long_one_do_not_pile_up() {
        let mut timers = Timers::default();
        let (a, mut armed) = (ConnId::new(1, 0), Armed::default());
        timers.arm(a, at(1_000), &mut armed);
        for now in 0..99 {
            timers.arm(a, at(now * 10 + 5), &mut armed);
            let (due, _) = timers.pop(at(now * 10 + 5)).expect("due");
            assert!(armed.fires(due));
            // What it waits for has moved on, as after every segment.
            timers.arm(a, at(now * 10 + 1_005), &mut armed);
            assert_eq!(timers.heap.len(), 1);
        }
    }

    #[test]
    fn a_forgotten_entry_does_nothing() {
        let mut timers = Timers::default();
        let (a, mut armed) = (ConnId::new(1, 0), Armed::default());
        for millis in [30, 20, 10] {
            timers.arm(a, at(millis), &mut armed);
        }
        let fired: alloc::vec::Vec<_> =
            core::iter::from_fn(|| timers.pop(at(30))).map(|(due, _)| armed.fires(due)).collect();
        assert_eq!(fired, [true, true, false]);
    }
}
