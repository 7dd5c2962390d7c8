//! The store's promises.

use super::*;
use crate::api::{Digest32, ImageRef, ServiceSpec};
use crate::holder::OnSyn;
use crate::qemu::Machine;
use crate::store::Sleep;

fn node(name: &str) -> Ownership {
    Ownership::Node { name: name.into() }
}

fn record(name: &str, last: u8) -> Record {
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

fn store() -> (tempfile::TempDir, EmbeddedStore) {
    let dir = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open(&dir.path().join("s")).unwrap();
    (dir, store)
}

#[tokio::test]
async fn names_and_addresses_are_claimed_once() {
    let (_dir, store) = store();
    assert_eq!(store.claim(record("p", 50)).await.unwrap().epoch, 1);
    assert_eq!(store.claim(record("p", 51)).await, Err(StoreError::NameTaken { name: "p".into() }));
    assert_eq!(
        store.claim(record("q", 50)).await,
        Err(StoreError::AddressTaken { ip: [10, 77, 0, 50].into(), owner: "p".into() })
    );
    store.release("p", 1).await.unwrap();
    assert_eq!(store.claim(record("q", 50)).await.unwrap().epoch, 1);
}

#[tokio::test]
async fn epochs_outlive_the_record() {
    let (_dir, store) = store();
    store.claim(record("p", 50)).await.unwrap();
    store.advance("p", 1, None, node("b")).await.unwrap();
    store.release("p", 2).await.unwrap();
    assert_eq!(store.claim(record("p", 50)).await.unwrap().epoch, 3);
    store.release("p", 3).await.unwrap();
    // A snapshot from elsewhere knows a higher epoch than this store.
    assert_eq!(store.claim(Record { epoch: 9, ..record("p", 50) }).await.unwrap().epoch, 9);
}

#[tokio::test]
async fn a_commit_happens_once_and_only_for_its_move() {
    let (_dir, store) = store();
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

#[tokio::test]
async fn after_the_move_was_ended_a_late_commit_fails() {
    let (_dir, store) = store();
    store.claim(record("p", 50)).await.unwrap();
    store.renew("p", 1, Renewal::BeginMove { migration: "m1".into() }).await.unwrap();
    store.renew("p", 1, Renewal::EndMove { migration: "m1".into() }).await.unwrap();
    assert!(store.advance("p", 1, Some("m1"), node("b")).await.is_err());
    assert_eq!(store.get("p").await.unwrap().unwrap().owner, node("a"));
}

#[tokio::test]
async fn who_wakes_up_forgets_the_sleep_and_nothing_else() {
    let (_dir, store) = store();
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

#[tokio::test]
async fn watchers_see_changes_in_order() {
    let (_dir, store) = store();
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

#[tokio::test]
async fn everything_told_is_there_after_reopening() {
    let (dir, store) = store();
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
    let (dir, _store) = store();
    let error = EmbeddedStore::open(&dir.path().join("s")).unwrap_err();
    assert!(matches!(error, StoreError::Failed { .. }), "{error}");
}
