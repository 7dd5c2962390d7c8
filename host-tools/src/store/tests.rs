//! The promises of every store, and what only the embedded one or only etcd can show.

use std::sync::Arc;

use super::*;
use crate::api::{Digest32, ImageRef, ServiceSpec};
use crate::holder::OnSyn;
use crate::qemu::Machine;
use crate::store::Sleep;

fn node(name: &str) -> Ownership {
    Ownership::Node { name: name.into() }
}

/// A service on node `a`, with an address that ends in `last`.
pub fn record(name: &str, last: u8) -> Record {
    let digest = Digest32([1; 32]);
    Record {
        spec: ServiceSpec {
            name: name.into(),
            id: format!("id-{name}"),
            image: ImageRef { name: "i".into(), digest, build_id: digest },
            ip: [10, 77, 0, last].into(),
            prefix: 24,
            gateway: None,
            mac: "02:00:00:00:00:01".into(),
            memory_mib: 64,
            machine: Machine::Q35,
            args: vec![],
        },
        owner: node("a"),
        epoch: 0,
        migration: None,
        created_us: 1,
    }
}

async fn names_and_addresses_are_claimed_once(store: &dyn Store) {
    assert_eq!(store.claim(record("p", 50)).await.unwrap().epoch, 1);
    assert_eq!(store.claim(record("p", 51)).await, Err(StoreError::NameTaken { name: "p".into() }));
    assert_eq!(
        store.claim(record("q", 50)).await,
        Err(StoreError::AddressTaken { ip: [10, 77, 0, 50].into(), owner: "p".into() })
    );
    store.release("p", 1).await.unwrap();
    assert_eq!(store.claim(record("q", 50)).await.unwrap().epoch, 1);
}

async fn epochs_outlive_the_record(store: &dyn Store) {
    store.claim(record("p", 50)).await.unwrap();
    store.advance("p", 1, None, node("b")).await.unwrap();
    store.release("p", 2).await.unwrap();
    assert_eq!(store.claim(record("p", 50)).await.unwrap().epoch, 3);
    store.release("p", 3).await.unwrap();
    // A snapshot from elsewhere knows a higher epoch than this store.
    assert_eq!(store.claim(Record { epoch: 9, ..record("p", 50) }).await.unwrap().epoch, 9);
}

async fn a_commit_happens_once_and_only_for_its_move(store: &dyn Store) {
    store.claim(record("p", 50)).await.unwrap();
    let begin = |id: &str| Renewal::BeginMove { migration: id.into() };
    store.renew("p", 1, begin("m1")).await.unwrap();
    assert!(matches!(store.renew("p", 1, begin("m2")).await, Err(StoreError::Move { .. })));
    assert!(matches!(
        store.advance("p", 1, Some("m2"), node("b")).await,
        Err(StoreError::Move { .. })
    ));
    let committed = store.advance("p", 1, Some("m1"), node("b")).await.unwrap();
    assert_eq!((committed.epoch, committed.owner), (2, node("b")));
    assert_eq!(
        store.advance("p", 1, Some("m1"), node("b")).await,
        Err(StoreError::Epoch { name: "p".into(), expected: 1, found: 2 })
    );
}

async fn after_the_move_was_ended_a_late_commit_fails(store: &dyn Store) {
    store.claim(record("p", 50)).await.unwrap();
    store.renew("p", 1, Renewal::BeginMove { migration: "m1".into() }).await.unwrap();
    store.renew("p", 1, Renewal::EndMove { migration: "m1".into() }).await.unwrap();
    assert!(store.advance("p", 1, Some("m1"), node("b")).await.is_err());
    assert_eq!(store.get("p").await.unwrap().unwrap().owner, node("a"));
}

async fn who_wakes_up_forgets_the_sleep_and_nothing_else(store: &dyn Store) {
    store.claim(record("p", 50)).await.unwrap();
    let sleep = Sleep {
        digest: Digest32([2; 32]),
        holder: "a".into(),
        on_syn: OnSyn::Wake,
        connections: 3,
        since_us: 7,
    };
    let asleep = Ownership::Sleeping(sleep.clone());
    let record = store.advance("p", 1, None, asleep.clone()).await.unwrap();
    assert_eq!((record.owner.node(), record.owner.sleep()), (None, Some(&sleep)));
    assert_eq!(store.renew("p", 2, Renewal::Awake).await.unwrap().owner, asleep);
    let waking = Ownership::Waking { name: "b".into(), sleep: sleep.clone() };
    let record = store.advance("p", 2, None, waking).await.unwrap();
    assert_eq!((record.owner.node(), record.owner.sleep()), (Some("b"), Some(&sleep)));
    assert!(store.renew("p", 2, Renewal::Awake).await.is_err());
    let record = store.renew("p", 3, Renewal::Awake).await.unwrap();
    assert_eq!((record.epoch, record.owner), (3, node("b")));
}

async fn watchers_see_changes_in_order(store: &dyn Store) {
    let mut watch = store.watch();
    store.claim(record("p", 50)).await.unwrap();
    store.advance("p", 1, None, node("b")).await.unwrap();
    store.release("p", 2).await.unwrap();
    let epochs: Vec<Option<u64>> =
        [watch.recv().await.unwrap(), watch.recv().await.unwrap(), watch.recv().await.unwrap()]
            .map(|change| change.record.map(|record| record.epoch))
            .into();
    assert_eq!(epochs, [Some(1), Some(2), None]);
}

fn embedded() -> (tempfile::TempDir, EmbeddedStore) {
    let dir = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open(&dir.path().join("s")).unwrap();
    (dir, store)
}

/// Every promise as a test of the embedded store, and all of them one after another in one etcd.
macro_rules! promises {
    ($($name:ident)*) => {
        mod of_the_embedded_store {
            $(#[tokio::test]
            async fn $name() {
                super::$name(&super::embedded().1).await;
            })*
        }

        #[tokio::test]
        async fn etcd_keeps_every_promise() {
            let etcd = etcd::Server::start().await;
            $({
                let (store, _term) = etcd.leading(stringify!($name)).await;
                $name(&*store).await;
            })*
        }
    };
}

promises! {
    names_and_addresses_are_claimed_once
    epochs_outlive_the_record
    a_commit_happens_once_and_only_for_its_move
    after_the_move_was_ended_a_late_commit_fails
    who_wakes_up_forgets_the_sleep_and_nothing_else
    watchers_see_changes_in_order
}

#[tokio::test]
async fn everything_told_is_there_after_reopening() {
    let (dir, store) = embedded();
    store.claim(record("p", 50)).await.unwrap();
    store.advance("p", 1, None, node("b")).await.unwrap();
    store.put_document("migration", "m1", b"{}".to_vec()).await.unwrap();
    store.put_document("other", "x", b"[]".to_vec()).await.unwrap();
    // What a crash leaves: the file as it is now, without a clean end.
    let copy = dir.path().join("copy");
    std::fs::copy(dir.path().join("s"), &copy).unwrap();
    let after = EmbeddedStore::open(&copy).unwrap();
    assert_eq!(after.list().await.unwrap()[0].epoch, 2);
    assert_eq!(after.documents("migration").await.unwrap(), [b"{}".to_vec()]);
}

#[tokio::test]
async fn a_second_manager_cannot_open_it() {
    let (dir, _store) = embedded();
    let error = EmbeddedStore::open(&dir.path().join("s")).unwrap_err();
    assert!(matches!(error, StoreError::Failed { .. }), "{error}");
}

/// A real etcd of one member, on loopback.
mod etcd {
    use std::process::{Child, Command, Stdio};

    use super::*;
    use crate::store::etcd::Term;

    pub(super) struct Server {
        process: Child,
        url: String,
        dir: tempfile::TempDir,
    }

    impl Drop for Server {
        fn drop(&mut self) {
            let _ = self.process.kill();
            let _ = self.process.wait();
        }
    }

    fn free_port() -> u16 {
        std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
    }

    impl Server {
        /// Starts one that listens. A port that was free may be somebody else's a moment later: then it ends at
        /// once, and another is tried.
        pub(super) async fn start() -> Self {
            for _ in 0..10 {
                let mut server = Self::spawn();
                let begun = std::time::Instant::now();
                let address = server.url.strip_prefix("http://").unwrap().to_owned();
                while server.process.try_wait().unwrap().is_none() {
                    if std::net::TcpStream::connect(&address).is_ok() {
                        // What answers there is ours, if it goes on.
                        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                        if server.process.try_wait().unwrap().is_none() {
                            return server;
                        }
                    }
                    assert!(
                        begun.elapsed() < std::time::Duration::from_secs(30),
                        "etcd does not listen"
                    );
                    tokio::time::sleep(std::time::Duration::from_millis(20)).await;
                }
            }
            panic!("etcd ends at once, ten times");
        }

        fn spawn() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let url = format!("http://127.0.0.1:{}", free_port());
            let peers = format!("http://127.0.0.1:{}", free_port());
            let process = Command::new("etcd")
                .arg("--data-dir")
                .arg(dir.path())
                .args(["--listen-client-urls", &url, "--advertise-client-urls", &url])
                .args(["--listen-peer-urls", &peers, "--initial-advertise-peer-urls", &peers])
                .args(["--initial-cluster", &format!("default={peers}")])
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .expect("etcd is installed by qemu/setup.sh --tests");
            Self { process, url, dir }
        }

        pub(super) async fn open(&self, prefix: &str) -> Arc<EtcdStore> {
            self.open_at(&self.url, prefix).await
        }

        pub(super) async fn open_at(&self, url: &str, prefix: &str) -> Arc<EtcdStore> {
            let endpoints = url.parse().unwrap();
            let prefix = format!("/{prefix}/");
            let config = EtcdConfig { endpoints, prefix, ca: None, identity: None };
            EtcdStore::open(&config).await.unwrap()
        }

        fn lease(&self, prefix: &str) -> std::path::PathBuf {
            self.dir.path().join(format!("lease-{prefix}"))
        }

        pub(super) async fn leading(&self, prefix: &str) -> (Arc<EtcdStore>, Term) {
            let store = self.open(prefix).await;
            let term = store.campaign("here", &self.lease(prefix)).await;
            (store, term)
        }
    }

    #[tokio::test]
    async fn one_leads_and_who_was_deposed_changes_nothing() {
        let etcd = Server::start().await;
        let (first, term) = etcd.leading("p").await;
        let second = etcd.open("p").await;
        assert_eq!(second.leader().await.unwrap().as_deref(), Some("here"));
        let early = second.claim(record("p", 50)).await;
        assert!(matches!(early, Err(StoreError::Failed { .. })), "{early:?}");
        first.claim(record("p", 50)).await.unwrap();
        term.resign().await;
        let _term = second.campaign("there", &etcd.lease("second")).await;
        assert_eq!(second.leader().await.unwrap().as_deref(), Some("there"));
        // The first does not know yet.
        let late = first.advance("p", 1, None, node("b")).await;
        assert!(matches!(late, Err(StoreError::Failed { .. })), "{late:?}");
        assert_eq!(second.get("p").await.unwrap().unwrap().epoch, 1);
        assert_eq!(second.advance("p", 1, None, node("b")).await.unwrap().epoch, 2);
        assert_eq!(first.get("p").await.unwrap().unwrap().epoch, 2);
    }

    #[tokio::test]
    async fn a_manager_started_again_leads_at_once() {
        let etcd = Server::start().await;
        let (first, term) = etcd.leading("p").await;
        // It was killed: nothing of it resigns.
        std::mem::forget(term);
        let begun = std::time::Instant::now();
        let (again, _term) = etcd.leading("p").await;
        assert!(begun.elapsed() < std::time::Duration::from_secs(4), "{:?}", begun.elapsed());
        assert!(first.claim(record("p", 50)).await.is_err());
        again.claim(record("p", 50)).await.unwrap();
    }

    #[tokio::test]
    async fn whoever_waits_learns_who_leads_however_late_that_is_known() {
        use rustix::process::{Pid, Signal, kill_process};
        let etcd = Server::start().await;
        let (waiting, own) = (etcd.open("p").await, etcd.open("p").await);
        let process = Pid::from_child(&etcd.process);
        kill_process(process, Signal::STOP).unwrap();
        let mut learnt = tokio::spawn(async move { waiting.other_leader("there").await });
        let mut known_within = async |time: std::time::Duration| {
            tokio::time::timeout(time, &mut learnt).await.ok().map(Result::unwrap)
        };
        // First etcd is silent, then nobody leads, then it is the asker's former self.
        let moment = std::time::Duration::from_millis(300);
        assert_eq!(known_within(moment).await, None);
        kill_process(process, Signal::CONT).unwrap();
        assert_eq!(known_within(moment).await, None);
        let term = own.campaign("there", &etcd.lease("own")).await;
        assert_eq!(known_within(moment).await, None);
        term.resign().await;
        let _leading = etcd.leading("p").await;
        let limit = std::time::Duration::from_secs(30);
        assert_eq!(known_within(limit).await.as_deref(), Some("here"));
    }

    #[tokio::test]
    async fn a_term_ends_with_its_lease() {
        let etcd = Server::start().await;
        let (_store, mut term) = etcd.leading("p").await;
        drop(etcd);
        let over = tokio::time::timeout(std::time::Duration::from_secs(30), term.over());
        over.await.expect("a manager that cannot renew its lease gives up");
    }

    #[tokio::test]
    async fn many_documents_come_in_pages() {
        let etcd = Server::start().await;
        let (store, _term) = etcd.leading("p").await;
        for i in 0..205 {
            store.put_document("k", &format!("{i:03}"), vec![i as u8]).await.unwrap();
        }
        store.put_document("k2", "x", b"other".to_vec()).await.unwrap();
        let all = store.documents("k").await.unwrap();
        assert_eq!(all, (0..205).map(|i| vec![i as u8]).collect::<Vec<_>>());
    }
}
