//! The store of several managers: etcd. One of them leads, and only the leader writes.
//!
//! 1. `keys`: what lies where.
//! 2. [`client`]: requests with deadlines, asked again while etcd elects.
//! 3. `term`: who leads, and for how long.
//! 4. `transaction`: one change after another, each made once whatever becomes of its answer.
//!
//! Every change is one etcd transaction on two conditions: the key of our term is still there, and no change has
//! been made since the one we know. A manager that was stopped and goes on as if it still led changes nothing;
//! neither does a request of ours that etcd gets late.

pub mod client;
mod keys;
mod term;
mod transaction;

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Instant;

use etcd_client::TxnOp;
use tokio::sync::broadcast;

pub use client::{Endpoints, EtcdConfig};
pub use term::Term;

use super::{Answer, Change, Ownership, Record, Renewal, Store, StoreError, change};
use client::Etcd;
use keys::Keys;
use term::Fence;
use transaction::Turn;

/// Changes that a slow watcher may fall behind.
const WATCH_LEN: usize = 256;

/// See the module's documentation.
pub struct EtcdStore {
    etcd: Etcd,
    keys: Keys,
    /// What says that we lead; empty until we do.
    fence: OnceLock<Fence>,
    /// Until when nobody else can lead.
    leads_until: Arc<Mutex<Option<Instant>>>,
    /// The last change we know of. One change at a time.
    turn: tokio::sync::Mutex<Turn>,
    changes: broadcast::Sender<Change>,
}

fn failed(error: impl std::fmt::Display) -> StoreError {
    StoreError::Failed { reason: error.to_string() }
}

fn decode(json: &[u8]) -> Result<Record, StoreError> {
    serde_json::from_slice(json).map_err(failed)
}

impl EtcdStore {
    /// A store in this etcd. Nothing is asked yet.
    ///
    /// # Errors
    /// The configuration makes no sense.
    pub async fn open(config: &EtcdConfig) -> Result<Arc<Self>, StoreError> {
        Ok(Arc::new(Self {
            etcd: Etcd::open(config).await?,
            keys: Keys::new(&config.prefix),
            fence: OnceLock::new(),
            leads_until: Arc::default(),
            turn: tokio::sync::Mutex::default(),
            changes: broadcast::channel(WATCH_LEN).0,
        }))
    }

    /// The fingerprint of the cluster whose store this is; `None` before its first manager has led.
    ///
    /// # Errors
    /// etcd does not answer.
    pub async fn cluster(&self) -> Result<Option<String>, StoreError> {
        let found = self.etcd.get(self.keys.cluster()).await?;
        Ok(found.map(|value| String::from_utf8_lossy(&value).into_owned()))
    }

    /// Says whose store this is.
    ///
    /// # Errors
    /// etcd does not answer, or we do not lead.
    pub async fn set_cluster(&self, fingerprint: &str) -> Result<(), StoreError> {
        let put = TxnOp::put(self.keys.cluster(), fingerprint, None);
        self.change(|| std::future::ready(Ok((vec![put.clone()], ())))).await
    }

    async fn record(&self, name: &str) -> Result<Option<Record>, StoreError> {
        let found = self.etcd.get(self.keys.service(name)).await?;
        found.map(|json| decode(&json)).transpose()
    }

    async fn records(&self) -> Result<Vec<Record>, StoreError> {
        let all = self.etcd.all(self.keys.services()).await?;
        all.iter().map(|json| decode(json)).collect()
    }

    async fn epoch_of(&self, id: &str) -> Result<u64, StoreError> {
        let found = self.etcd.get(self.keys.epoch(id)).await?;
        found.map_or(Ok(0), |value| String::from_utf8_lossy(&value).parse().map_err(failed))
    }

    fn put(&self, record: &Record) -> Result<TxnOp, StoreError> {
        let json = serde_json::to_vec(record).map_err(failed)?;
        Ok(TxnOp::put(self.keys.service(&record.spec.name), json, None))
    }

    fn put_epoch(&self, record: &Record) -> TxnOp {
        TxnOp::put(self.keys.epoch(&record.spec.id), record.epoch.to_string(), None)
    }

    fn tell(&self, name: &str, record: Option<&Record>) {
        // Nobody watching is not an error.
        let _ = self.changes.send(Change { name: name.to_owned(), record: record.cloned() });
    }
}

impl Store for EtcdStore {
    fn claim(&self, record: Record) -> Answer<'_, Record> {
        Box::pin(async move {
            let claimed = self.change(|| async {
                let (others, last) = (self.records().await?, self.epoch_of(&record.spec.id).await?);
                let made = change::claimed(record.clone(), &others, last)?;
                Ok((vec![self.put(&made)?, self.put_epoch(&made)], made))
            });
            let made = claimed.await?;
            self.tell(&made.spec.name, Some(&made));
            Ok(made)
        })
    }

    fn renew(&self, name: &str, epoch: u64, change: Renewal) -> Answer<'_, Record> {
        let name = name.to_owned();
        Box::pin(async move {
            let renewed = self.change(|| async {
                let record = change::at_epoch(&name, self.record(&name).await?, epoch)?;
                let made = change::renewed(record, &change)?;
                Ok((vec![self.put(&made)?], made))
            });
            let made = renewed.await?;
            self.tell(&name, Some(&made));
            Ok(made)
        })
    }

    fn advance(
        &self,
        name: &str,
        epoch: u64,
        migration: Option<&str>,
        owner: Ownership,
    ) -> Answer<'_, Record> {
        let (name, migration) = (name.to_owned(), migration.map(str::to_owned));
        Box::pin(async move {
            let advanced = self.change(|| async {
                let record = change::at_epoch(&name, self.record(&name).await?, epoch)?;
                let made = change::advanced(record, migration.as_deref(), &owner)?;
                Ok((vec![self.put(&made)?, self.put_epoch(&made)], made))
            });
            let made = advanced.await?;
            self.tell(&name, Some(&made));
            Ok(made)
        })
    }

    fn release(&self, name: &str, epoch: u64) -> Answer<'_, ()> {
        let name = name.to_owned();
        Box::pin(async move {
            let released = self.change(|| async {
                change::at_epoch(&name, self.record(&name).await?, epoch)?;
                Ok((vec![TxnOp::delete(self.keys.service(&name), None)], ()))
            });
            released.await?;
            self.tell(&name, None);
            Ok(())
        })
    }

    fn get(&self, name: &str) -> Answer<'_, Option<Record>> {
        let name = name.to_owned();
        Box::pin(async move { self.record(&name).await })
    }

    fn last_epoch(&self, id: &str) -> Answer<'_, u64> {
        let id = id.to_owned();
        Box::pin(async move { self.epoch_of(&id).await })
    }

    fn list(&self) -> Answer<'_, Vec<Record>> {
        Box::pin(self.records())
    }

    fn put_document(&self, kind: &str, id: &str, json: Vec<u8>) -> Answer<'_, ()> {
        let put = TxnOp::put(self.keys.document(kind, id), json, None);
        Box::pin(self.change(move || std::future::ready(Ok((vec![put.clone()], ())))))
    }

    fn documents(&self, kind: &str) -> Answer<'_, Vec<Vec<u8>>> {
        let prefix = self.keys.documents(kind);
        Box::pin(async move { self.etcd.all(prefix).await })
    }

    fn leads(&self) -> bool {
        if self.fence.get().is_none() {
            return false;
        }
        let until = self.leads_until.lock().unwrap_or_else(PoisonError::into_inner);
        until.is_some_and(|until| Instant::now() < until)
    }

    fn watch(&self) -> broadcast::Receiver<Change> {
        self.changes.subscribe()
    }
}
