//! Memory promised to services on their way.
//!
//! A record names a node only once the service is there. Until then its memory is promised, and promises are made one
//! at a time, so that moves that run side by side do not all go to the node that was the emptiest for each of them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::placement::{self, Room};
use super::state::Manager;
use crate::agent::host::QEMU_OVERHEAD_MIB;
use crate::api::ApiError;
use crate::store::Record;

/// All promises.
#[derive(Debug, Default)]
pub struct Promises {
    /// Who holds it makes the next promise.
    turn: tokio::sync::Mutex<()>,
    given: Arc<Mutex<Given>>,
}

#[derive(Debug, Default)]
struct Given {
    next: u64,
    promised: BTreeMap<u64, Promised>,
}

#[derive(Clone, Debug)]
struct Promised {
    service: String,
    node: String,
    need_mib: u64,
}

fn lock(given: &Mutex<Given>) -> MutexGuard<'_, Given> {
    given.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Promises {
    /// Reads what is given out. Nobody else does until the ledger is dropped.
    ///
    /// # Errors
    /// As `list`.
    pub async fn read<E>(
        &self,
        list: impl Future<Output = Result<Vec<Record>, E>>,
    ) -> Result<Ledger<'_>, E> {
        let turn = self.turn.lock().await;
        // Before the records: a promise that ends meanwhile would else be in neither.
        let promised = lock(&self.given).promised.values().cloned().collect();
        Ok(Ledger { given: &self.given, promised, records: list.await?, _turn: turn })
    }
}

/// What is given out.
#[derive(Debug)]
pub struct Ledger<'p> {
    given: &'p Arc<Mutex<Given>>,
    promised: Vec<Promised>,
    /// The services.
    pub records: Vec<Record>,
    _turn: tokio::sync::MutexGuard<'p, ()>,
}

impl Ledger<'_> {
    /// Memory given out on a node, in MiB.
    #[must_use]
    pub fn used_mib(&self, node: &str) -> u64 {
        let is_there = |record: &Record| record.owner.node() == Some(node);
        let owned = self.records.iter().filter(|record| is_there(record)).map(need_mib);
        let promised = self.promised.iter().filter(|promised| {
            promised.node == node && !self.record(&promised.service).is_some_and(is_there)
        });
        owned.chain(promised.map(|promised| promised.need_mib)).sum()
    }

    /// The record of a service.
    #[must_use]
    pub fn record(&self, service: &str) -> Option<&Record> {
        self.records.iter().find(|record| record.spec.name == service)
    }

    /// Promises memory on a node to a service.
    #[must_use]
    pub fn promise(self, service: &str, node: &str, need_mib: u64) -> Promise {
        let mut given = lock(self.given);
        let id = given.next;
        given.next += 1;
        let promised = Promised { service: service.into(), node: node.into(), need_mib };
        given.promised.insert(id, promised);
        Promise { given: Arc::clone(self.given), id }
    }
}

/// A promise, kept until it is dropped.
#[derive(Debug)]
pub struct Promise {
    given: Arc<Mutex<Given>>,
    id: u64,
}

impl Drop for Promise {
    fn drop(&mut self) {
        lock(&self.given).promised.remove(&self.id);
    }
}

impl Manager {
    /// Reads what is given out; see [`Promises::read`].
    ///
    /// # Errors
    /// The store does not answer.
    pub(super) async fn ledger(&self) -> Result<Ledger<'_>, ApiError> {
        self.promises.read(async { Ok(self.store.list().await?) }).await
    }

    /// The nodes that services can be placed on.
    pub(super) fn rooms(&self, ledger: &Ledger<'_>) -> Vec<Room> {
        self.nodes.rooms(|node| ledger.used_mib(node))
    }

    /// A node for a service that is to start there. Its memory is promised until the record says so.
    ///
    /// # Errors
    /// None has so much memory, or the store does not answer.
    pub(super) async fn place(
        &self,
        service: &str,
        need_mib: u64,
    ) -> Result<(String, Promise), ApiError> {
        let ledger = self.ledger().await?;
        let rooms = self.rooms(&ledger);
        let node = placement::choose(&rooms, need_mib, &[]).ok_or_else(|| {
            ApiError::conflict(format!("no node has {need_mib} MiB of memory to give"))
                .hint("`host-tools node ls` shows what each has, and which are silent or drained")
        })?;
        Ok((node.to_owned(), ledger.promise(service, node, need_mib)))
    }

    /// A node other than `from`, to answer for a service that sleeps.
    ///
    /// # Errors
    /// There is none that is ready and not drained, or the store does not answer.
    pub(super) async fn place_holder(&self, from: &str) -> Result<String, ApiError> {
        let rooms = self.rooms(&self.ledger().await?);
        let chosen = placement::choose(&rooms, 0, &[from.to_owned()]);
        chosen.map(str::to_owned).ok_or_else(|| ApiError::conflict(no_room(0)))
    }
}

/// What a service takes, its QEMU included.
pub(super) fn need_mib(record: &Record) -> u64 {
    u64::from(record.spec.memory_mib) + QEMU_OVERHEAD_MIB
}

pub(super) fn no_room(need_mib: u64) -> String {
    format!("no other node that is ready and not drained has {need_mib} MiB of memory to give")
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::task::Poll;

    use super::*;
    use crate::store::Ownership;
    use crate::store::tests::record;

    const ALL_MIB: u64 = 4096;

    type Store = Mutex<Vec<Record>>;

    /// A list that is `age` steps old when it arrives.
    async fn list(store: &Store, age: u64) -> Result<Vec<Record>, Infallible> {
        let records = store.lock().unwrap().clone();
        steps(age).await;
        Ok(records)
    }

    async fn steps(count: u64) {
        for _ in 0..count {
            let mut passed = false;
            std::future::poll_fn(|context| {
                context.waker().wake_by_ref();
                if std::mem::replace(&mut passed, true) { Poll::Ready(()) } else { Poll::Pending }
            })
            .await;
        }
    }

    fn room(ledger: &Ledger<'_>, node: &str) -> Room {
        let free_mib = ALL_MIB - ledger.used_mib(node);
        Room { node: node.into(), all_mib: ALL_MIB, free_mib }
    }

    /// Moves a service off node `a`, to where a ledger says; every wait takes its steps.
    async fn leave(promises: &Promises, store: &Store, service: usize, steps_each: [u64; 4]) {
        let [before, age, on_its_way, after] = steps_each;
        steps(before).await;
        let ledger = promises.read(list(store, age)).await.unwrap();
        let rooms = [room(&ledger, "b"), room(&ledger, "c")];
        let Record { spec, .. } = &ledger.records[service];
        let (name, need_mib) = (spec.name.clone(), need_mib(&ledger.records[service]));
        let to = placement::choose(&rooms, need_mib, &[]).unwrap().to_owned();
        let promise = ledger.promise(&name, &to, need_mib);
        steps(on_its_way).await;
        store.lock().unwrap()[service].owner = Ownership::Node { name: to };
        steps(after).await;
        drop(promise);
    }

    /// Eight services leave side by side, with every wait as long as a seed says.
    #[tokio::test]
    async fn moves_side_by_side_spread_evenly() {
        for seed in 0..2_000_u64 {
            let bytes = |service: usize| {
                *blake3::hash(&[seed, service as u64].map(u64::to_le_bytes).concat()).as_bytes()
            };
            let promises = Arc::new(Promises::default());
            let services = (0..8_u8).map(|index| record(&format!("s{index}"), index)).collect();
            let store: Arc<Store> = Arc::new(Mutex::new(services));
            let mut moves = tokio::task::JoinSet::new();
            for service in 0..8 {
                let (promises, store) = (Arc::clone(&promises), Arc::clone(&store));
                let steps_each = std::array::from_fn(|wait| u64::from(bytes(service)[wait] % 8));
                moves.spawn(async move { leave(&promises, &store, service, steps_each).await });
            }
            moves.join_all().await;
            let on = |node: &str| {
                let store = store.lock().unwrap();
                store.iter().filter(|record| record.owner.node() == Some(node)).count()
            };
            assert_eq!((on("a"), on("b"), on("c")), (0, 4, 4), "seed {seed}");
            assert!(lock(&promises.given).promised.is_empty());
        }
    }

    #[tokio::test]
    async fn memory_is_counted_once_by_promise_or_record() {
        let (promises, store) = (Promises::default(), Store::new(vec![record("s", 1)]));
        let need_mib = need_mib(&record("s", 1));
        let used = async |store: &Store| {
            let ledger = promises.read(list(store, 0)).await.unwrap();
            ["a", "b"].map(|node| ledger.used_mib(node))
        };
        assert_eq!(used(&store).await, [need_mib, 0]);
        let promise = promises.read(list(&store, 0)).await.unwrap().promise("s", "b", need_mib);
        assert_eq!(used(&store).await, [need_mib, need_mib]);
        store.lock().unwrap()[0].owner = Ownership::Node { name: "b".into() };
        assert_eq!(used(&store).await, [0, need_mib]);
        drop(promise);
        assert_eq!(used(&store).await, [0, need_mib]);
        // A service that is to start has no record yet.
        let promise = promises.read(list(&store, 0)).await.unwrap().promise("new", "a", 100);
        assert_eq!(used(&store).await, [100, need_mib]);
        drop(promise);
        assert_eq!(used(&store).await, [0, need_mib]);
    }
}
