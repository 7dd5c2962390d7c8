//! Who may read while memory is nearly used up.
//!
//! What a service reads makes it need memory: for a request, for its answer, until the peer has taken that. So with
//! little left, input is let in one connection at a time, the next when the memory of the last has come back, and the
//! peers wait, whose windows close. Nobody waits for ever: a read that frees nothing is followed by the next after a
//! while.

use std::collections::VecDeque;

/// The next may read after this, nanoseconds, although there is not more memory than before the last.
pub const PATIENCE_NS: u64 = 20_000_000;

/// The line before the gate; `W` is what wakes those who wait.
pub struct Gate<W> {
    waiting: VecDeque<W>,
    /// One may read, whoever asks first.
    open: bool,
    /// When the last was let in, and the memory that was free then.
    last: Option<(u64, usize)>,
}

impl<W> Gate<W> {
    /// Nobody waits.
    pub const fn new() -> Self {
        Self { waiting: VecDeque::new(), open: false, last: None }
    }

    /// Whether the one may read who asks now, although memory is short.
    pub fn admits(&mut self) -> bool {
        std::mem::take(&mut self.open)
    }

    /// Whoever was admitted last found nothing to read.
    pub fn unused(&mut self) {
        self.open = self.last.is_some();
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Puts somebody in the line who is not known to be in it.
    pub fn wait(&mut self, waker: W, same: impl Fn(&W) -> bool) {
        if !self.waiting.iter().any(same) {
            self.waiting.push_back(waker);
        }
    }

    /// Whom to wake at `now_ns` with `free` bytes free, of which `floor` are enough: all, one, or nobody.
    pub fn turn(
        &mut self,
        now_ns: u64,
        free: usize,
        floor: usize,
    ) -> impl Iterator<Item = W> + use<'_, W> {
        let woken = if free >= floor {
            (self.open, self.last) = (false, None);
            self.waiting.len()
        } else if self.waiting.is_empty()
            || self.last.is_some_and(|(at, before)| free < before && now_ns < at + PATIENCE_NS)
        {
            0
        } else {
            (self.open, self.last) = (true, Some((now_ns, free)));
            1
        };
        self.waiting.drain(..woken)
    }

    /// When [`turn`](Self::turn) may wake somebody though nothing happens; `None` if nobody waits.
    pub fn next_ns(&self) -> Option<u64> {
        let (at, _) = self.last.filter(|_| !self.waiting.is_empty())?;
        Some(at + PATIENCE_NS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLOOR: usize = 1000;

    fn line(count: u32) -> Gate<u32> {
        let mut gate = Gate::new();
        (0..count).for_each(|who| gate.wait(who, |known| *known == who));
        gate
    }

    fn turn(gate: &mut Gate<u32>, now_ns: u64, free: usize) -> Vec<u32> {
        gate.turn(now_ns, free, FLOOR).collect()
    }

    #[test]
    fn one_is_let_in_and_the_next_when_its_memory_has_come_back() {
        let mut gate = line(3);
        assert!(!gate.admits());
        assert_eq!(turn(&mut gate, 0, 500), [0]);
        assert!(gate.admits() && !gate.admits());
        assert_eq!(turn(&mut gate, 10, 400), []);
        assert_eq!(turn(&mut gate, 20, 500), [1]);
        assert_eq!(turn(&mut gate, 30, 600), [2]);
        assert_eq!((turn(&mut gate, 40, 700), gate.next_ns()), (vec![], None));
    }

    #[test]
    fn memory_that_does_not_come_back_holds_nobody_up_for_ever() {
        let mut gate = line(2);
        assert_eq!(turn(&mut gate, 5, 500), [0]);
        assert_eq!(gate.next_ns(), Some(5 + PATIENCE_NS));
        assert_eq!(turn(&mut gate, 4 + PATIENCE_NS, 499), []);
        assert_eq!(turn(&mut gate, 5 + PATIENCE_NS, 499), [1]);
    }

    #[test]
    fn with_memory_enough_all_are_woken_and_the_gate_is_forgotten() {
        let mut gate = line(3);
        assert_eq!(turn(&mut gate, 0, 500), [0]);
        assert_eq!(turn(&mut gate, 1, FLOOR), [1, 2]);
        assert!(!gate.admits());
        gate.wait(7, |known| *known == 7);
        assert_eq!(turn(&mut gate, 2, 10), [7]);
    }

    #[test]
    fn whoever_found_nothing_leaves_the_place_to_the_next_and_nobody_waits_twice() {
        let mut gate = line(1);
        gate.wait(0, |known| *known == 0);
        assert_eq!(turn(&mut gate, 0, 500), [0]);
        assert!(gate.admits());
        gate.unused();
        assert!(gate.admits());
        assert_eq!(turn(&mut gate, 1, 500), []);
        assert!(gate.is_empty());
    }

    #[test]
    fn nothing_is_left_open_where_memory_was_never_short() {
        let mut gate = line(0);
        gate.unused();
        assert!(!gate.admits());
    }
}
