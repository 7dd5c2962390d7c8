//! What each change makes of a record: pure, the same for every store.

use super::{Ownership, Record, Renewal, StoreError};

/// What [`Store::claim`](super::Store::claim) makes of a record, given all others and the highest epoch that
/// a service with its id ever had.
pub(super) fn claimed<'r>(
    mut record: Record,
    others: impl IntoIterator<Item = &'r Record>,
    last_epoch: u64,
) -> Result<Record, StoreError> {
    for other in others {
        if other.spec.name == record.spec.name {
            return Err(StoreError::NameTaken { name: other.spec.name.clone() });
        }
        if other.spec.ip == record.spec.ip {
            let (ip, owner) = (other.spec.ip, other.spec.name.clone());
            return Err(StoreError::AddressTaken { ip, owner });
        }
    }
    record.epoch = record.epoch.max(last_epoch + 1);
    Ok(record)
}

/// The record, if it is there and at this epoch.
pub(super) fn at_epoch(
    name: &str,
    found: Option<Record>,
    epoch: u64,
) -> Result<Record, StoreError> {
    let record = found.ok_or_else(|| StoreError::NotFound { name: name.to_owned() })?;
    if record.epoch == epoch {
        Ok(record)
    } else {
        let (name, found) = (name.to_owned(), record.epoch);
        Err(StoreError::Epoch { name, expected: epoch, found })
    }
}

/// What [`Store::renew`](super::Store::renew) makes of it.
pub(super) fn renewed(mut record: Record, change: &Renewal) -> Result<Record, StoreError> {
    record.migration = match (change, record.migration.take()) {
        (Renewal::Awake, migration) => {
            if let Ownership::Waking { name, .. } = record.owner {
                record.owner = Ownership::Node { name };
            }
            migration
        }
        (Renewal::BeginMove { migration }, None) => Some(migration.clone()),
        (Renewal::BeginMove { migration: expected }, Some(other)) => {
            let (name, expected) = (record.spec.name, expected.clone());
            let found = format!("move {other} is under way");
            return Err(StoreError::Move { name, expected, found });
        }
        (Renewal::EndMove { migration }, Some(other)) if *migration != other => Some(other),
        (Renewal::EndMove { .. }, _) => None,
    };
    Ok(record)
}

/// What [`Store::advance`](super::Store::advance) makes of it.
pub(super) fn advanced(
    mut record: Record,
    migration: Option<&str>,
    owner: &Ownership,
) -> Result<Record, StoreError> {
    if record.migration.as_deref() != migration {
        let found = record.migration.map_or_else(
            || "it was settled without a commit".into(),
            |other| format!("move {other} is under way"),
        );
        let expected = migration.unwrap_or_default().to_owned();
        return Err(StoreError::Move { name: record.spec.name, expected, found });
    }
    record.epoch += 1;
    record.owner = owner.clone();
    Ok(record)
}
