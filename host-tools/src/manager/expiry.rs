//! Old snapshots go, unless a service lies in them.
//!
//! What stays behind in the workspace repository is what was exported by `checkpoint`, was restored elsewhere,
//! or whose service was stopped. It holds keys and users' data, so it is not kept longer than the policy says.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::state::Manager;
use crate::api::{ApiError, Digest32};
use crate::repository::Stored;
use crate::store::{Ownership, Record};

/// How often it is looked for what has expired, of the time that snapshots are kept.
const LOOKS: u32 = 20;
/// The longest time between two looks.
const LOOK_INTERVAL: Duration = Duration::from_secs(3600);
/// The shortest time that can be kept: within it a snapshot that was written finds its service, also if the
/// store is away meanwhile.
const LEAST: Duration = Duration::from_secs(3600);

/// Refuses a time that is too short.
pub(super) fn check(keep: Duration) -> Result<(), ApiError> {
    if keep >= LEAST {
        return Ok(());
    }
    Err(ApiError::invalid(format!(
        "snapshots are kept for at least {}, not {}",
        humantime::format_duration(LEAST),
        humantime::format_duration(keep)
    )))
}

/// Which of `all` nobody lies in and are older than `keep`.
fn expired(all: &[Stored], records: &[Record], now: SystemTime, keep: Duration) -> Vec<Digest32> {
    let needed: BTreeSet<[u8; 32]> = records
        .iter()
        .filter_map(|record| match &record.owner {
            Ownership::Snapshot { digest } => Some(digest.0),
            owner => owner.sleep().map(|sleep| sleep.digest.0),
        })
        .collect();
    // A clock that was set back makes nothing old.
    let is_old = |stored: &Stored| now.duration_since(stored.modified).is_ok_and(|age| age > keep);
    all.iter()
        .filter(|stored| is_old(stored) && !needed.contains(&stored.digest.0))
        .map(|stored| stored.digest)
        .collect()
}

impl Manager {
    /// Removes what has expired, again and again.
    pub(super) async fn expire_forever(self: Arc<Self>, keep: Duration) {
        let mut looks = tokio::time::interval((keep / LOOKS).min(LOOK_INTERVAL));
        loop {
            looks.tick().await;
            if let Err(error) = self.expire(SystemTime::now(), keep).await {
                tracing::warn!("old snapshots are not removed: {error}");
            }
        }
    }

    /// Removes the snapshots that nobody lies in and that are older than `keep` at `now`. Returns how many.
    ///
    /// # Errors
    /// The store or the repository cannot be read.
    pub async fn expire(&self, now: SystemTime, keep: Duration) -> Result<usize, ApiError> {
        let all = self.workspace.list()?;
        let records = self.store.list().await?;
        let mut removed = 0;
        for digest in expired(&all, &records, now, keep) {
            // Unless it was put again meanwhile.
            if self.workspace.remove_older(&digest, now.checked_sub(keep).unwrap_or(now))? {
                tracing::info!("snapshot {} has expired and was removed", digest.short());
                removed += 1;
            }
        }
        Ok(removed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::holder::OnSyn;
    use crate::store::Sleep;
    use crate::store::tests::record;

    #[test]
    fn what_somebody_lies_in_is_kept_however_old_it_is() {
        let day = Duration::from_secs(86_400);
        let now = SystemTime::UNIX_EPOCH + 100 * day;
        let stored = |number: u8, days: u32| Stored {
            digest: Digest32([number; 32]),
            modified: now - days * day,
        };
        let all = [stored(1, 8), stored(2, 6), stored(3, 90), stored(4, 90), stored(5, 90)];
        let asleep = Sleep {
            digest: Digest32([4; 32]),
            holder: "a".into(),
            on_syn: OnSyn::Hold,
            connections: 1,
            since_us: 0,
        };
        let owned = |name: &str, last, owner| Record { owner, ..record(name, last) };
        let records = [
            owned("runs", 50, Ownership::Node { name: "a".into() }),
            owned("lies", 51, Ownership::Snapshot { digest: Digest32([3; 32]) }),
            owned("sleeps", 52, Ownership::Sleeping(asleep.clone())),
            owned("wakes", 53, Ownership::Waking { name: "a".into(), sleep: asleep }),
        ];
        let gone = expired(&all, &records, now, 7 * day);
        assert_eq!(gone, [Digest32([1; 32]), Digest32([5; 32])]);
        // The clock was set back by a year.
        assert_eq!(expired(&all, &records, now - 365 * day, 7 * day), []);
    }
}
