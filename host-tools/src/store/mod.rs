//! Who owns which service, under which epoch.
//!
//! 1. [`record`]: what is kept of a service.
//! 2. `change`: what each change makes of a record.
//! 3. [`embedded`]: the store of a single manager, one file, every change durable before it is told.
//! 4. [`etcd`]: the store of several managers, of which one leads.
//!
//! For those above there is only [`Store`]: every call is one atomic, durable transaction and may fail;
//! ownership changes only by comparing the epoch.

mod change;
pub mod embedded;
pub mod etcd;
pub mod record;

pub use embedded::EmbeddedStore;
pub use etcd::{EtcdConfig, EtcdStore};
pub use record::{Ownership, Record, Sleep};

use std::pin::Pin;

use tokio::sync::broadcast;

/// What a store call returns: a future, so that a store may live on other machines.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send + 'a>>;

/// Why a transaction was not made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what the fields are")]
pub enum StoreError {
    #[error("there is no service `{name}`")]
    NotFound { name: String },
    #[error("a service `{name}` exists already")]
    NameTaken { name: String },
    #[error("address {ip} belongs to the service `{owner}`")]
    AddressTaken { ip: std::net::Ipv4Addr, owner: String },
    #[error("`{name}` is at epoch {found}, not {expected}: somebody else has taken it over")]
    Epoch { name: String, expected: u64, found: u64 },
    #[error("the move {expected} of `{name}` is over: {found}")]
    Move { name: String, expected: String, found: String },
    #[error("the store did not make the change: {reason}")]
    Failed { reason: String },
    #[error("the store does not answer: {reason}")]
    Silent { reason: String },
}

impl StoreError {
    /// Whether the change may have been made all the same, or may still be: nothing may be done that only holds if
    /// it was not.
    #[must_use]
    pub fn leaves_open(&self) -> bool {
        match self {
            Self::Failed { .. } | Self::Silent { .. } => true,
            Self::NotFound { .. }
            | Self::NameTaken { .. }
            | Self::AddressTaken { .. }
            | Self::Epoch { .. }
            | Self::Move { .. } => false,
        }
    }
}

impl From<StoreError> for crate::api::ApiError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::NotFound { .. } => Self::not_found(error.to_string()),
            _ if error.leaves_open() => Self::failed(error),
            _ => Self::conflict(error.to_string()),
        }
    }
}

/// A record that has changed; `None` when it was removed.
#[derive(Clone, Debug)]
pub struct Change {
    /// Name of the service.
    pub name: String,
    /// What it is now.
    pub record: Option<Record>,
}

/// The manager's memory.
pub trait Store: Send + Sync {
    /// Makes a record for a name and an address that are both free. Its epoch begins above every
    /// epoch a service with this id ever had.
    fn claim(&self, record: Record) -> Answer<'_, Record>;

    /// Changes what is known of a service, not who owns it. Fails if the epoch is another.
    fn renew(&self, name: &str, epoch: u64, change: Renewal) -> Answer<'_, Record>;

    /// Gives a service to another owner under the next epoch: the commit of a move. Fails if the
    /// epoch is another, or if the record's move is not `migration`.
    fn advance(
        &self,
        name: &str,
        epoch: u64,
        migration: Option<&str>,
        owner: Ownership,
    ) -> Answer<'_, Record>;

    /// Removes the record. The service's last epoch stays known.
    fn release(&self, name: &str, epoch: u64) -> Answer<'_, ()>;

    /// One record.
    fn get(&self, name: &str) -> Answer<'_, Option<Record>>;

    /// The highest epoch a service with this id ever had; 0 if the store never had it.
    fn last_epoch(&self, id: &str) -> Answer<'_, u64>;

    /// All records, by name.
    fn list(&self) -> Answer<'_, Vec<Record>>;

    /// Keeps a document that is not about ownership, such as a finished move.
    fn put_document(&self, kind: &str, id: &str, json: Vec<u8>) -> Answer<'_, ()>;

    /// All documents of a kind, by id.
    fn documents(&self, kind: &str) -> Answer<'_, Vec<Vec<u8>>>;

    /// Whether nobody else can have begun to write it.
    fn leads(&self) -> bool {
        true
    }

    /// Every change from now on.
    fn watch(&self) -> broadcast::Receiver<Change>;
}

/// What [`Store::renew`] changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Renewal {
    /// A move begins; there must be none under way.
    BeginMove {
        /// Its id.
        migration: String,
    },
    /// The move is over without a commit, which can no longer happen.
    EndMove {
        /// Its id.
        migration: String,
    },
    /// A service that was waking runs: its snapshot is no longer what it is.
    Awake,
}

#[cfg(test)]
pub mod tests;
