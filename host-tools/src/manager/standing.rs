//! Where a move stands, by the service's record alone.

use crate::store::Record;

/// What the record says of a move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// It can still commit.
    Open,
    /// It has not committed and never will.
    Closed,
    /// The destination owns the service.
    Committed,
    /// The source owns it again.
    TakenBack,
}

pub(super) fn standing(record: Option<&Record>, id: &str, began: u64) -> Standing {
    let Some(record) = record.filter(|record| record.migration.as_deref() == Some(id)) else {
        return Standing::Closed;
    };
    match record.epoch.checked_sub(began) {
        Some(0) => Standing::Open,
        Some(1) => Standing::Committed,
        // Nobody else can advance the record while it names this move.
        _ => Standing::TakenBack,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::descriptor::tests::spec;
    use crate::store::Ownership;

    #[test]
    fn the_record_says_where_a_move_stands() {
        let record = |epoch, migration: Option<&str>| Record {
            spec: spec("p"),
            owner: Ownership::Node { name: "a".into() },
            epoch,
            migration: migration.map(str::to_owned),
            created_us: 1,
        };
        for (found, expected) in [
            (Some(record(5, Some("m1"))), Standing::Open),
            (Some(record(6, Some("m1"))), Standing::Committed),
            (Some(record(7, Some("m1"))), Standing::TakenBack),
            (Some(record(5, None)), Standing::Closed),
            (Some(record(6, None)), Standing::Closed),
            (Some(record(6, Some("m2"))), Standing::Closed),
            (None, Standing::Closed),
        ] {
            assert_eq!(standing(found.as_ref(), "m1", 5), expected, "{found:?}");
        }
    }
}
