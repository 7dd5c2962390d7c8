//! Ending a move on a user's word, and giving up a host that does not come back.
//!
//! Before the commit a move is cancelled by one transaction: the record lets go of it, and a commit that is
//! on its way is refused. Everything else follows from that by itself: the source goes on, the standby ends.
//! After the commit the destination owns the service, and only its own end, or a user who says that it is
//! gone, gives it back.
//!
//! To give up a host is to decide without it, by epochs alone:
//!
//! | the record | the source is gone | the destination is gone |
//! |---|---|---|
//! | can still commit | it is closed; the service is lost until the source returns | it is closed; the source goes on |
//! | committed | the destination resolves it | the source takes it back under the next epoch |
//! | taken back | the service is lost until the source returns | the source goes on |
//!
//! A host that was given up and comes back all the same asks whose its instances are, as every agent does
//! after a silence, and ends those that now belong to a higher epoch
//! ([`recheck`](crate::agent::recovery::recheck)). Until then nothing runs on it, because its
//! [`lease`](crate::agent::lease) has ended before it could be given up; only where its agent is dead does nobody
//! watch that, so the user has to say that the host is gone.

use std::collections::BTreeSet;
use std::sync::Arc;

use hyper::Method;

use super::recovery::LOOK_LIMIT;
use super::standing::{Standing, standing};
use super::state::Manager;
use crate::api::{ApiError, CancelRequest, Migration, move_number};
use crate::store::{Renewal, StoreError};

impl Manager {
    /// Cancels a move, or gives up a host of it. Its end is to be followed.
    ///
    /// # Errors
    /// It is over, it has committed, or the host is there; nothing was changed then.
    pub async fn cancel(
        self: &Arc<Self>,
        id: &str,
        request: CancelRequest,
    ) -> Result<(), ApiError> {
        let (migration, began) = self.moves.get(id)?;
        if migration.result.is_some() {
            return Err(ApiError::conflict(format!("the move {id} is over"))
                .hint(format!("`host-tools migration show {id}` tells how it ended")));
        }
        if let Some(node) = &request.host_is_gone {
            if *node != migration.source && *node != migration.destination {
                let Migration { source, destination, .. } = &migration;
                return Err(ApiError::invalid(format!(
                    "node {node} has no part in the move {id} from {source} to {destination}"
                )));
            }
            self.must_be_silent(node)?;
        }
        let name = &migration.service;
        let mut stands = standing(self.store.get(name).await?.as_ref(), id, began);
        if stands == Standing::Open {
            let end = Renewal::EndMove { migration: id.to_owned() };
            match self.store.renew(name, began, end).await {
                Ok(_) | Err(StoreError::Epoch { .. } | StoreError::NotFound { .. }) => {}
                Err(error) => return Err(error.into()),
            }
            // It may have committed a moment ago.
            stands = standing(self.store.get(name).await?.as_ref(), id, began);
        }
        if let Some(node) = request.host_is_gone {
            tracing::warn!(
                "move {id}: a user says that node {node} is gone; it is decided without it"
            );
            self.moves.give_up(id, node);
            return Ok(());
        }
        if stands != Standing::Closed {
            return Err(too_late(&migration, stands, began));
        }
        let this = Arc::clone(self);
        let (id, source) = (id.to_owned(), migration.source);
        // The source learns it at its commit at the latest.
        tokio::spawn(async move {
            let path = format!("/v1/moves/{id}");
            if let Ok(agent) = this.nodes.client(&source)
                && let Err(error) = agent.json::<()>(Method::DELETE, &path, &(), LOOK_LIMIT).await
            {
                tracing::warn!(
                    "move {id}: its source cannot be told that it is cancelled: {error}"
                );
            }
        });
        Ok(())
    }

    /// Refuses to give up a node that has reported a moment ago.
    pub(super) fn must_be_silent(&self, node: &str) -> Result<(), ApiError> {
        self.nodes.client(node)?;
        let there = self.nodes.list().into_iter().find(|it| it.report.name == node && it.ready);
        let Some(there) = there else {
            let left = self.nodes.may_run_for(node).as_secs_f64().ceil();
            if left == 0.0 {
                return Ok(());
            }
            return Err(ApiError::conflict(format!(
                "node {node} is silent, and may run services until its lease has ended, in {left} s; nothing \
                 was changed"
            ))
            .hint("try again then"));
        };
        let seconds = there.seen_ms_ago.unwrap_or(0) as f64 / 1e3;
        Err(ApiError::conflict(format!(
            "node {node} is not gone: it has reported {seconds:.1} s ago; nothing was changed"
        ))
        .hint("`host-tools node ls` shows which nodes are silent"))
    }
}

/// Why nothing brings the service back, if so: its owner, by the record, is among the hosts that are gone.
pub(super) fn lost(
    migration: &Migration,
    gone: &BTreeSet<String>,
    stands: Standing,
) -> Option<&'static str> {
    if !gone.contains(&migration.source) {
        return None;
    }
    match stands {
        Standing::Closed | Standing::TakenBack => Some("what runs there goes on if it returns"),
        Standing::Committed if gone.contains(&migration.destination) => {
            Some("so is the destination, which owns the service")
        }
        Standing::Open | Standing::Committed => None,
    }
}

/// Something is in the way that comes to an end, or can be ended.
pub(super) fn under_way(name: &str, id: &str) -> ApiError {
    let error = ApiError::conflict(format!("a move or checkpoint of `{name}` is under way ({id})"));
    if move_number(id).is_none() {
        return error.hint("try again when that is over");
    }
    error.hint(format!(
        "`host-tools migration watch {id}` follows it, `host-tools migration cancel {id}` ends it"
    ))
}

fn too_late(migration: &Migration, stands: Standing, began: u64) -> ApiError {
    let Migration { id, service, source, destination, .. } = migration;
    if stands == Standing::TakenBack {
        return ApiError::conflict(format!(
            "the move {id} has failed already: node {source} is taking `{service}` back"
        ))
        .hint(format!("`host-tools migration watch {id}` follows it"));
    }
    let epoch = began + 1;
    ApiError::conflict(format!(
        "the move {id} has committed: node {destination} owns `{service}` under epoch {epoch}"
    ))
    .hint(format!(
        "`host-tools migrate {service} --to {source}` brings it back when the move is over; if node \
         {destination} never comes back, `host-tools migration cancel {id} --host-is-gone {destination}` gives \
         `{service}` to the copy on {source}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_lost_only_with_the_host_that_owns_it() {
        let migration = Migration {
            id: "m1".into(),
            service: "p".into(),
            source: "a".into(),
            destination: "b".into(),
            began_us: 0,
            phases: Vec::new(),
            phase: None,
            result: None,
            summary: None,
        };
        let lost_without = |gone: &[&str], stands| {
            let gone = gone.iter().map(|&node| node.to_owned()).collect();
            lost(&migration, &gone, stands).is_some()
        };
        for (stands, source, destination, both) in [
            (Standing::Open, false, false, false),
            (Standing::Closed, true, false, true),
            (Standing::Committed, false, false, true),
            (Standing::TakenBack, true, false, true),
        ] {
            assert_eq!(lost_without(&["a"], stands), source, "{stands:?}");
            assert_eq!(lost_without(&["b"], stands), destination, "{stands:?}");
            assert_eq!(lost_without(&["a", "b"], stands), both, "{stands:?}");
            assert!(!lost_without(&[], stands), "{stands:?}");
        }
    }

    #[test]
    fn what_is_too_late_says_what_to_do() {
        let error = under_way("p", "m7");
        assert!(error.hint.is_some_and(|hint| hint.contains("migration cancel m7")));
        let error = under_way("p", "checkpoint-1");
        assert!(error.hint.is_some_and(|hint| !hint.contains("cancel")));
    }
}
