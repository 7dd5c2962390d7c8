//! The store of a single manager: one redb file.
//!
//! A transaction is on the disk before its caller is told; a file that was cut off by a crash opens
//! in the state after the last transaction that was told.

use std::path::Path;
use std::sync::Arc;

use redb::{Database, ReadableDatabase, ReadableTable, Table, TableDefinition, WriteTransaction};
use tokio::sync::broadcast;

use super::{Answer, Change, Ownership, Record, Renewal, Store, StoreError, change};

/// Name → record as JSON.
const SERVICES: TableDefinition<&str, &[u8]> = TableDefinition::new("services");
/// Id of a service → highest epoch it ever had. Never removed: a lower epoch never runs.
const EPOCHS: TableDefinition<&str, u64> = TableDefinition::new("epochs");
/// (kind, id) → JSON.
const DOCUMENTS: TableDefinition<(&str, &str), &[u8]> = TableDefinition::new("documents");

/// Changes that a slow watcher may fall behind.
const WATCH_LEN: usize = 256;

/// See the module's documentation.
#[derive(Clone, Debug)]
pub struct EmbeddedStore {
    database: Arc<Database>,
    changes: broadcast::Sender<Change>,
}

fn failed(error: impl std::fmt::Display) -> StoreError {
    StoreError::Failed { reason: error.to_string() }
}

type Services<'t> = Table<'t, &'static str, &'static [u8]>;

fn find_at(services: &Services<'_>, name: &str, epoch: u64) -> Result<Record, StoreError> {
    let found = services.get(name).map_err(failed)?;
    let found = found.map(|found| serde_json::from_slice(found.value()).map_err(failed));
    change::at_epoch(name, found.transpose()?, epoch)
}

fn put(services: &mut Services<'_>, record: &Record) -> Result<(), StoreError> {
    let json = serde_json::to_vec(record).map_err(failed)?;
    services.insert(record.spec.name.as_str(), json.as_slice()).map_err(failed)?;
    Ok(())
}

fn all(
    services: &impl ReadableTable<&'static str, &'static [u8]>,
) -> Result<Vec<Record>, StoreError> {
    let entries = services.iter().map_err(failed)?;
    entries
        .map(|entry| {
            let (_, value) = entry.map_err(failed)?;
            serde_json::from_slice(value.value()).map_err(failed)
        })
        .collect()
}

impl EmbeddedStore {
    /// Opens the file, or makes it.
    ///
    /// # Errors
    /// It cannot be opened, is damaged, or is in use by another manager.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let database = Database::create(path)
            .map_err(|error| failed(format!("{}: {error}", path.display())))?;
        let write = database.begin_write().map_err(failed)?;
        write.open_table(SERVICES).map_err(failed)?;
        write.open_table(EPOCHS).map_err(failed)?;
        write.open_table(DOCUMENTS).map_err(failed)?;
        write.commit().map_err(failed)?;
        Ok(Self { database: Arc::new(database), changes: broadcast::channel(WATCH_LEN).0 })
    }

    /// One write transaction on a thread that may block. Nothing of it is kept if `change` fails.
    fn write<T: Send + 'static>(
        &self,
        change: impl FnOnce(&WriteTransaction) -> Result<T, StoreError> + Send + 'static,
    ) -> Answer<'static, T> {
        let database = Arc::clone(&self.database);
        Box::pin(blocking(move || {
            let write = database.begin_write().map_err(failed)?;
            let result = change(&write)?;
            write.commit().map_err(failed)?;
            Ok(result)
        }))
    }

    /// A write transaction on one record, told to the watchers.
    fn change_record(
        &self,
        change: impl FnOnce(&mut Services<'_>, &WriteTransaction) -> Result<Record, StoreError>
        + Send
        + 'static,
    ) -> Answer<'static, Record> {
        let changes = self.changes.clone();
        let transaction = self.write(move |write| {
            let mut services = write.open_table(SERVICES).map_err(failed)?;
            let record = change(&mut services, write)?;
            put(&mut services, &record)?;
            Ok(record)
        });
        Box::pin(async move {
            let record = transaction.await?;
            let name = record.spec.name.clone();
            // Nobody watching is not an error.
            let _ = changes.send(Change { name, record: Some(record.clone()) });
            Ok(record)
        })
    }

    fn read<T: Send + 'static>(
        &self,
        look: impl FnOnce(&redb::ReadTransaction) -> Result<T, StoreError> + Send + 'static,
    ) -> Answer<'static, T> {
        let database = Arc::clone(&self.database);
        Box::pin(blocking(move || look(&database.begin_read().map_err(failed)?)))
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(failed(error)))
}

fn raise_epoch(write: &WriteTransaction, id: &str, epoch: u64) -> Result<(), StoreError> {
    let mut epochs = write.open_table(EPOCHS).map_err(failed)?;
    epochs.insert(id, epoch).map_err(failed)?;
    Ok(())
}

impl Store for EmbeddedStore {
    fn claim(&self, record: Record) -> Answer<'_, Record> {
        self.change_record(move |services, write| {
            let last = {
                let epochs = write.open_table(EPOCHS).map_err(failed)?;
                let last = epochs.get(record.spec.id.as_str()).map_err(failed)?;
                last.map_or(0, |value| value.value())
            };
            let record = change::claimed(record, &all(services)?, last)?;
            raise_epoch(write, &record.spec.id, record.epoch)?;
            Ok(record)
        })
    }

    fn renew(&self, name: &str, epoch: u64, change: Renewal) -> Answer<'_, Record> {
        let name = name.to_owned();
        self.change_record(move |services, _| {
            change::renewed(find_at(services, &name, epoch)?, &change)
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
        self.change_record(move |services, write| {
            let record = find_at(services, &name, epoch)?;
            let record = change::advanced(record, migration.as_deref(), &owner)?;
            raise_epoch(write, &record.spec.id, record.epoch)?;
            Ok(record)
        })
    }

    fn release(&self, name: &str, epoch: u64) -> Answer<'_, ()> {
        let (key, changes, name) = (name.to_owned(), self.changes.clone(), name.to_owned());
        let transaction = self.write(move |write| {
            let mut services = write.open_table(SERVICES).map_err(failed)?;
            find_at(&services, &key, epoch)?;
            services.remove(key.as_str()).map_err(failed)?;
            Ok(())
        });
        Box::pin(async move {
            transaction.await?;
            let _ = changes.send(Change { name, record: None });
            Ok(())
        })
    }

    fn get(&self, name: &str) -> Answer<'_, Option<Record>> {
        let name = name.to_owned();
        self.read(move |read| {
            let services = read.open_table(SERVICES).map_err(failed)?;
            let found = services.get(name.as_str()).map_err(failed)?;
            found.map(|value| serde_json::from_slice(value.value()).map_err(failed)).transpose()
        })
    }

    fn last_epoch(&self, id: &str) -> Answer<'_, u64> {
        let id = id.to_owned();
        self.read(move |read| {
            let epochs = read.open_table(EPOCHS).map_err(failed)?;
            let last = epochs.get(id.as_str()).map_err(failed)?;
            Ok(last.map_or(0, |value| value.value()))
        })
    }

    fn list(&self) -> Answer<'_, Vec<Record>> {
        self.read(|read| all(&read.open_table(SERVICES).map_err(failed)?))
    }

    fn put_document(&self, kind: &str, id: &str, json: Vec<u8>) -> Answer<'_, ()> {
        let (kind, id) = (kind.to_owned(), id.to_owned());
        self.write(move |write| {
            let mut documents = write.open_table(DOCUMENTS).map_err(failed)?;
            documents.insert((kind.as_str(), id.as_str()), json.as_slice()).map_err(failed)?;
            Ok(())
        })
    }

    fn documents(&self, kind: &str) -> Answer<'_, Vec<Vec<u8>>> {
        let kind = kind.to_owned();
        self.read(move |read| {
            let documents = read.open_table(DOCUMENTS).map_err(failed)?;
            let range = documents.range((kind.as_str(), "")..).map_err(failed)?;
            let mut out = Vec::new();
            for entry in range {
                let (key, value) = entry.map_err(failed)?;
                if key.value().0 != kind {
                    break;
                }
                out.push(value.value().to_vec());
            }
            Ok(out)
        })
    }

    fn watch(&self) -> broadcast::Receiver<Change> {
        self.changes.subscribe()
    }
}
