//! What becomes of an instance, from what its guest, its descriptor and the store say. No I/O, no clock.
//!
//! At most one instance of a service runs. The argument:
//!
//! 1. The store's record has one owner and one epoch, which only grows. A guest is set running only when
//!    the record names this node as the owner, so never on two nodes under one epoch.
//! 2. The record changes hands twice in a move. At the commit the source's guest is frozen, its processor
//!    stopped and its port closed. When it is taken back the destination has said, after asking its
//!    guest, that it has no instance that could run ([`Host::resolve`](crate::agent::Host::resolve)).
//! 3. A frozen source whose move can still commit is kept; the same request that asks for the record ends
//!    that possibility ("settles"). So a thaw never meets a commit that comes later: the store refuses it.
//! 4. A standby runs only if the record names this node and still this standby's move: neither has it been
//!    taken back, nor has the move been closed. One that cannot run is ended, not kept for another day.
//! 5. The frozen copy is ended only when the record's move is closed after the commit, which is done when the
//!    destination is known to run; until then it is the only thing that could bring the service back.
//! 6. A standby that was filled from a snapshot is set running by the manager's order alone, which comes when
//!    the holder, who answers for the sleeping service, has ended. So one that runs although the store says
//!    "waking" was ordered to, and may; one that stands by waits: the manager orders again, or puts the
//!    service back to sleep, and then a snapshot is the service and it is ended.
//! 7. Whoever acts holds the instance's `busy` from asking the store to the deed, and everything else that
//!    could change the instance (move, checkpoint, stop, resolve) holds it too.

/// Where the guest stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guest {
    /// It waits for pages or for the order to take over.
    Standby,
    /// The service runs.
    Running,
    /// Draining, or frozen, or its processor is stopped.
    Quiet,
    /// It does not answer.
    Mute,
}

/// What the descriptor knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Noted {
    /// The epoch under which it was last known to run; 0 for a standby.
    pub epoch: u64,
    /// A standby whose pages are whole.
    pub verified: bool,
}

/// The move that the record names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Move {
    /// None.
    No,
    /// The one that the instance is part of.
    This,
    /// Another.
    Other,
}

/// What the store says of the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// The manager cannot be asked.
    Silent,
    /// It has never heard of the service: it is another manager's, or has lost its memory.
    Unknown,
    /// It had the service, and has let it go.
    Released,
    /// A snapshot is the service, whether somebody answers for it or not.
    Stored {
        /// Ownership number.
        epoch: u64,
    },
    /// This node is to run it from a snapshot, once nobody answers for it any more.
    Waking {
        /// Ownership number.
        epoch: u64,
    },
    /// A node owns it.
    Owned {
        /// This node.
        here: bool,
        /// Ownership number.
        epoch: u64,
        /// The move that is under way, after it was asked to be settled.
        open: Move,
    },
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It runs and may: from now on under this epoch.
    Adopt {
        /// Ownership number.
        epoch: u64,
    },
    /// It stands still and may run.
    Thaw {
        /// Ownership number.
        epoch: u64,
    },
    /// The standby takes over.
    Resume {
        /// Ownership number.
        epoch: u64,
    },
    /// Nothing changes; to be asked again.
    Keep,
    /// It must not run, and nobody needs it.
    End,
}

/// See the module's documentation.
#[must_use]
pub fn decide(guest: Guest, noted: Noted, word: Word) -> Decision {
    match word {
        Word::Silent | Word::Unknown => Decision::Keep,
        Word::Released => Decision::End,
        // A store that is older than what this guest was told has been put back from a copy: it may not know
        // of a move that was made since.
        Word::Stored { epoch } | Word::Waking { epoch } | Word::Owned { epoch, .. }
            if epoch < noted.epoch =>
        {
            Decision::Keep
        }
        Word::Stored { .. } => Decision::End,
        Word::Waking { epoch } => waking(guest, noted, epoch),
        Word::Owned { here: true, epoch, open } => here(guest, noted, epoch, open),
        Word::Owned { here: false, epoch, open } => elsewhere(guest, noted, epoch, open),
    }
}

fn here(guest: Guest, noted: Noted, epoch: u64, open: Move) -> Decision {
    match guest {
        // The move can still commit: it has not been settled.
        _ if open == Move::This && epoch == noted.epoch => Decision::Keep,
        Guest::Running => Decision::Adopt { epoch },
        Guest::Quiet => Decision::Thaw { epoch },
        Guest::Standby if noted.verified && open == Move::This => Decision::Resume { epoch },
        Guest::Standby => Decision::End,
        Guest::Mute => Decision::Keep,
    }
}

fn waking(guest: Guest, noted: Noted, epoch: u64) -> Decision {
    match guest {
        // It ran before the snapshot was made.
        _ if noted.epoch != 0 && noted.epoch < epoch => Decision::End,
        Guest::Running => Decision::Adopt { epoch },
        Guest::Quiet => Decision::Thaw { epoch },
        Guest::Standby | Guest::Mute => Decision::Keep,
    }
}

fn elsewhere(guest: Guest, noted: Noted, epoch: u64, open: Move) -> Decision {
    match guest {
        // Two owners under one epoch: nonsense is no reason to end anything.
        _ if epoch == noted.epoch => Decision::Keep,
        // It should not be; what is left to do is to make it true that one runs at most.
        Guest::Running => Decision::End,
        // A standby whose move can still commit, or a copy that is needed until the new owner runs.
        _ if open == Move::This => Decision::Keep,
        Guest::Standby | Guest::Quiet | Guest::Mute => Decision::End,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GUESTS: [Guest; 4] = [Guest::Standby, Guest::Running, Guest::Quiet, Guest::Mute];
    const MOVES: [Move; 3] = [Move::No, Move::This, Move::Other];

    fn words() -> Vec<Word> {
        let mut words = vec![Word::Silent, Word::Unknown, Word::Released];
        for epoch in 0..6 {
            words.extend([Word::Stored { epoch }, Word::Waking { epoch }]);
            for open in MOVES {
                words.extend([true, false].map(|here| Word::Owned { here, epoch, open }));
            }
        }
        words
    }

    fn all() -> Vec<(Guest, Noted, Word, Decision)> {
        let mut all = Vec::new();
        for guest in GUESTS {
            for epoch in 0..6 {
                for verified in [false, true] {
                    for word in words() {
                        let noted = Noted { epoch, verified };
                        all.push((guest, noted, word, decide(guest, noted, word)));
                    }
                }
            }
        }
        all
    }

    #[test]
    fn a_guest_runs_only_where_the_store_says_so() {
        for (guest, noted, word, decision) in all() {
            let running = match decision {
                Decision::Adopt { epoch }
                | Decision::Thaw { epoch }
                | Decision::Resume { epoch } => Some(epoch),
                Decision::Keep | Decision::End => None,
            };
            let Some(running) = running else { continue };
            let (epoch, open) = match word {
                Word::Owned { here: true, epoch, open } => (epoch, open),
                Word::Waking { epoch } => (epoch, Move::No),
                _ => panic!("{guest:?} {noted:?} {word:?}: {decision:?}"),
            };
            assert_eq!(running, epoch);
            assert!(epoch >= noted.epoch, "no epoch is taken back");
            let undecided = open == Move::This && epoch == noted.epoch;
            assert!(!undecided, "{guest:?} {noted:?} {word:?}: {decision:?}");
        }
    }

    #[test]
    fn a_standby_resumes_only_whole_and_in_its_own_move() {
        for (guest, noted, word, decision) in all() {
            let Decision::Resume { .. } = decision else { continue };
            assert_eq!(guest, Guest::Standby);
            assert!(noted.verified);
            assert!(matches!(word, Word::Owned { here: true, open: Move::This, .. }));
        }
    }

    #[test]
    fn without_a_word_of_the_store_nothing_changes() {
        for (_, _, word, decision) in all() {
            if matches!(word, Word::Silent | Word::Unknown) {
                assert_eq!(decision, Decision::Keep);
            }
        }
    }

    #[test]
    fn what_may_be_needed_is_not_ended() {
        for (guest, noted, word, decision) in all() {
            if decision != Decision::End {
                continue;
            }
            match word {
                Word::Released => {}
                Word::Stored { epoch } => assert!(epoch >= noted.epoch),
                Word::Waking { epoch } => assert!((1..epoch).contains(&noted.epoch)),
                Word::Owned { here: true, .. } => assert_eq!(guest, Guest::Standby),
                Word::Owned { here: false, epoch, open } => {
                    assert!(epoch > noted.epoch);
                    assert!(open != Move::This || guest == Guest::Running);
                }
                Word::Silent | Word::Unknown => panic!("{guest:?} {noted:?}"),
            }
        }
    }

    /// What ran under epoch 1, and what was filled from its snapshot, on the node that it wakes on.
    #[test]
    fn the_states_of_a_sleep() {
        let old = Noted { epoch: 1, verified: false };
        let filled = Noted { epoch: 0, verified: false };
        let woken = Noted { epoch: 3, verified: false };
        let asleep = Word::Stored { epoch: 2 };
        let waking = Word::Waking { epoch: 3 };
        let asleep_again = Word::Stored { epoch: 4 };
        for (guest, noted, word, expected) in [
            (Guest::Quiet, old, asleep, Decision::End),
            (Guest::Standby, filled, asleep, Decision::End),
            (Guest::Quiet, old, waking, Decision::End),
            (Guest::Standby, filled, waking, Decision::Keep),
            (Guest::Running, filled, waking, Decision::Adopt { epoch: 3 }),
            (Guest::Running, woken, waking, Decision::Adopt { epoch: 3 }),
            (Guest::Standby, filled, asleep_again, Decision::End),
            (Guest::Running, woken, asleep, Decision::Keep),
        ] {
            assert_eq!(decide(guest, noted, word), expected, "{guest:?} {noted:?} {word:?}");
        }
    }

    /// Source and destination of a move from epoch 1, in each state that the record can be in.
    #[test]
    fn the_states_of_a_move() {
        let source = |guest, word| decide(guest, Noted { epoch: 1, verified: false }, word);
        let standby = |verified, word| decide(Guest::Standby, Noted { epoch: 0, verified }, word);
        let owned = |here, epoch, open| Word::Owned { here, epoch, open };
        for (what, at_source, at_destination, expected) in [
            (
                "undecided",
                owned(true, 1, Move::This),
                owned(false, 1, Move::This),
                (Decision::Keep, Decision::Keep),
            ),
            (
                "settled",
                owned(true, 1, Move::No),
                owned(false, 1, Move::No),
                (Decision::Thaw { epoch: 1 }, Decision::End),
            ),
            (
                "committed",
                owned(false, 2, Move::This),
                owned(true, 2, Move::This),
                (Decision::Keep, Decision::Resume { epoch: 2 }),
            ),
            (
                "over",
                owned(false, 2, Move::No),
                owned(true, 2, Move::No),
                (Decision::End, Decision::End),
            ),
            (
                "taken back",
                owned(true, 3, Move::This),
                owned(false, 3, Move::No),
                (Decision::Thaw { epoch: 3 }, Decision::End),
            ),
        ] {
            let decided = (source(Guest::Quiet, at_source), standby(true, at_destination));
            assert_eq!(decided, expected, "{what}");
        }
        assert_eq!(standby(false, owned(true, 2, Move::This)), Decision::End);
    }
}
