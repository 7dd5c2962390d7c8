//! Leadership: a key in etcd that lives as long as its lease is renewed.
//!
//! A leader that cannot renew gives up before its lease can have ended. If it is stopped and goes on later, it
//! learns that it was deposed from the first change it tries: each is made on the condition that its key is
//! still there.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use etcd_client::{Compare, CompareOp, Error};

use super::client::{Etcd, pauses};
use super::{EtcdStore, StoreError, failed};
use crate::snapshot::file::write_atomically;

/// How long a leader may be silent before another takes over. Longer than etcd takes to elect a leader of its
/// own, so that the end of one of its members deposes nobody.
const LEASE: Duration = Duration::from_secs(8);
/// How often the lease is renewed.
const RENEWAL: Duration = Duration::from_millis(1500);
/// Pause after a renewal that failed.
const RETRY: Duration = Duration::from_millis(250);
/// Pause after a candidature that failed.
const CANDIDATURE_RETRY: Duration = Duration::from_secs(1);

/// What says that we lead: the key of our candidature, made at this revision.
#[derive(Clone, Debug)]
pub(super) struct Fence {
    key: Vec<u8>,
    revision: i64,
}

impl Fence {
    /// The condition that we still lead.
    pub(super) fn stands(&self) -> Compare {
        Compare::create_revision(self.key.as_slice(), CompareOp::Equal, self.revision)
    }
}

/// The time for which a manager leads.
#[derive(Debug)]
pub struct Term {
    renewing: tokio::task::JoinHandle<()>,
    etcd: Etcd,
    lease: i64,
}

impl Term {
    /// Waits until we lead no more.
    pub async fn over(&mut self) {
        // That it panicked is as good a reason to lead no more.
        let _ = (&mut self.renewing).await;
    }

    /// Lets another manager lead at once.
    pub async fn resign(self) {
        self.renewing.abort();
        let lease = self.lease;
        // It ends by itself soon.
        let _ = self.etcd.once(|mut client| async move { client.lease_revoke(lease).await }).await;
    }
}

impl EtcdStore {
    /// Where the leader says that it listens; `None` while nobody leads.
    ///
    /// # Errors
    /// etcd does not answer.
    pub async fn leader(&self) -> Result<Option<String>, StoreError> {
        let election = self.keys.election();
        let answer =
            self.etcd.once(|mut client| async move { client.leader(election).await }).await;
        match answer {
            Ok(found) => Ok(found.kv().map(|kv| String::from_utf8_lossy(kv.value()).into_owned())),
            // "election: no leader"
            Err(Error::GRpcStatus(status)) if status.message().contains("no leader") => Ok(None),
            Err(error) => Err(failed(format!("etcd does not answer: {error}"))),
        }
    }

    /// Waits until another than the manager that listens at `own` leads, while etcd is silent or elects too; where that
    /// one listens.
    pub async fn other_leader(&self, own: &str) -> String {
        let mut pause = pauses();
        loop {
            match self.leader().await {
                Ok(Some(leader)) if leader != own => return leader,
                _ => pause.wait().await,
            }
        }
    }

    /// Waits until this manager, which listens at `address`, leads. Once in the life of a store.
    ///
    /// Its lease is noted in the file `noted`: the next manager with this file, which is the same one started
    /// again, ends it rather than wait until it has ended by itself.
    pub async fn campaign(&self, address: &str, noted: &Path) -> Term {
        loop {
            match self.candidature(address, noted).await {
                Ok(term) => return term,
                Err(error) => {
                    tracing::warn!("no election without etcd: {error}");
                    tokio::time::sleep(CANDIDATURE_RETRY).await;
                }
            }
        }
    }

    /// Stands for election until elected.
    async fn candidature(&self, address: &str, noted: &Path) -> Result<Term, Error> {
        if let Ok(text) = std::fs::read_to_string(noted)
            && let Ok(former) = text.parse::<i64>()
        {
            // That it has ended already is no failure.
            let _ =
                self.etcd.once(|mut client| async move { client.lease_revoke(former).await }).await;
        }
        let seconds = LEASE.as_secs().cast_signed();
        let granted = Instant::now();
        let lease = self
            .etcd
            .once(|mut client| async move { client.lease_grant(seconds, None).await })
            .await?
            .id();
        write_atomically(noted, lease.to_string().as_bytes())?;
        let ends = granted + LEASE;
        let renewing =
            tokio::spawn(renew(self.etcd.clone(), lease, ends, self.leads_until.clone()));
        let mut term = Term { renewing, etcd: self.etcd.clone(), lease };
        let election = self.keys.election();
        // Waits as long as another leads: it has no deadline, the lease has.
        let elected = tokio::select! {
            elected = self.etcd.elected(&election, address, lease) => elected,
            () = term.over() => Err(Error::ElectError("the lease ended".into())),
        };
        let key = match elected {
            Ok(key) => key,
            Err(error) => {
                term.resign().await;
                return Err(error);
            }
        };
        let fence = Fence { key: key.0, revision: key.1 };
        if self.fence.set(fence).is_err() {
            term.resign().await;
            return Err(Error::ElectError("this store has led before".into()));
        }
        Ok(term)
    }
}

impl Etcd {
    async fn elected(
        &self,
        election: &str,
        address: &str,
        lease: i64,
    ) -> Result<(Vec<u8>, i64), Error> {
        let mut client = self.waiting_client();
        let answer = client.campaign(election, address, lease).await?;
        let key = answer.leader().ok_or_else(|| Error::ElectError("no key".into()))?;
        Ok((key.key().to_vec(), key.rev()))
    }
}

/// Renews a lease until it may have ended.
async fn renew(etcd: Etcd, lease: i64, mut ends: Instant, until: Arc<Mutex<Option<Instant>>>) {
    loop {
        *until.lock().unwrap_or_else(PoisonError::into_inner) = Some(ends);
        let asked = Instant::now();
        let renewed = etcd
            // Opening the stream renews it once.
            .once(|mut client| async move { client.lease_keep_alive(lease).await.map(drop) })
            .await;
        match renewed {
            Ok(()) => {
                ends = asked + LEASE;
                tokio::time::sleep(RENEWAL).await;
            }
            Err(Error::LeaseKeepAliveError(why)) if why == "lease not found" => return,
            Err(error) => {
                if Instant::now() + RENEWAL >= ends {
                    tracing::warn!("the lease cannot be renewed: {error}");
                    return;
                }
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}
