//! Services that sleep, and who answers for them meanwhile.

mod faults;

use std::time::Duration;

use host_tools::api::{
    Checkpoint, CheckpointRequest, HolderView, Instance, InstanceState, Knock, ResumeRequest,
    Resumed, Service, ServiceState, StartRequest,
};
use host_tools::holder::OnSyn;
use hyper::Method;

use crate::scripted::qemu::Deed;
use crate::scripted::world::{World, files};
use crate::{runs_on, started};

/// Longest time for what a report of an agent sets off.
const LIMIT: Duration = Duration::from_secs(20);

/// Waits until the service looks as `wanted` says.
async fn until(world: &World, wanted: impl Fn(&Service) -> bool) -> Service {
    let look = async {
        loop {
            let service = world.service("p").await;
            if wanted(&service) {
                return service;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(LIMIT, look).await.expect("it never came to look like that")
}

fn holder(service: &Service) -> Option<HolderView> {
    service.sleep.as_ref()?.holder.clone()
}

/// It sleeps, `node` answers for it under `epoch`, and nothing of it runs.
async fn sleeps_on(world: &World, node: &str, epoch: u64) {
    let service = world.service("p").await;
    assert_eq!((service.state, service.node.clone()), (ServiceState::Suspended, None));
    assert_eq!((service.epoch, service.reason.clone()), (epoch, None));
    let sleep = service.sleep.clone().unwrap();
    assert_eq!((sleep.node.as_str(), sleep.connections), (node, 2));
    let holder = holder(&service).unwrap();
    assert_eq!((holder.holding.epoch, holder.counts.connections), (epoch, 2));
    for node in ["a", "b"] {
        assert_eq!(world.instance(node, "p").await.map(|instance| instance.state), None);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_sleeps_and_wakes_elsewhere_with_somebody_answering_in_between() {
    let world = started().await;
    world.journal.take();
    let said = world.good(&["suspend", "p", "--on-syn", "refuse"]).await;
    assert!(said.contains("2 connections") && said.contains("node a answers for it"), "{said}");
    sleeps_on(&world, "a", 2).await;
    // The guest's port is closed before the holder's opens; its QEMU ends last.
    let expected = ["a close", "a plug closed", "a open", "a unplug"];
    assert_eq!(world.journal.take(), expected);
    for (line, code, reason) in [
        ("suspend p", 4, "suspended already"),
        ("migrate p --to b", 4, "`host-tools resume p` lets it go on"),
        ("checkpoint p -e /tmp/x", 4, "is suspended"),
        ("conns p", 4, "is suspended"),
        ("resume p --on c", 3, "known nodes: a, b"),
        ("resume q", 3, "there is no service `q`"),
    ] {
        let said = world.bad(&line.split(' ').collect::<Vec<_>>(), code).await;
        assert!(said.contains(reason), "{line}: {said}");
        sleeps_on(&world, "a", 2).await;
    }
    let shown = world.good(&["inspect", "p"]).await;
    assert!(shown.contains("2 connections on node a") && shown.contains("are refused"), "{shown}");
    assert!(world.good(&["ps"]).await.contains("suspended"));

    let said = world.good(&["resume", "p", "--on", "b"]).await;
    assert!(said.contains("p runs on node b") && said.contains("2 connections go on"), "{said}");
    runs_on(&world, "b", 3).await;
    // Whoever answered has been closed and removed before the guest's port opens.
    assert_eq!(world.journal.take(), ["b plug closed", "a close", "a unplug", "b open"]);
    // A manager that did not hear the answer asks again.
    let resume = ResumeRequest { epoch: 3 };
    let path = "/v1/instances/p/resume";
    let again: Resumed = world.agent("b").json(Method::POST, path, &resume, LIMIT).await.unwrap();
    assert_eq!(again.connections, 2);
    runs_on(&world, "b", 3).await;
    assert_eq!(files(&world.path("manager").join("snapshots")), [] as [String; 0]);
    let log = world.good(&["logs", "p"]).await;
    assert!(log.starts_with("scripted guest up, Running\n"), "{log}");
    assert!(log.ends_with("scripted guest resumed, epoch 3\n"), "{log}");
    world.bad(&["resume", "p"], 4).await;
    world.good(&["migrate", "p", "--to", "a"]).await;
    runs_on(&world, "a", 4).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_goes_wrong_before_it_sleeps_leaves_it_running() {
    let world = started().await;
    world.journal.take();
    for (deeds, reason) in [
        (("drain", Deed::Refuse), "refused drain"),
        (("freeze", Deed::Refuse), "did not come to rest"),
        (("connections", Deed::BadRange), "its connections cannot be held"),
        (("connections", Deed::Refuse), "its connections cannot be held"),
    ] {
        world.script("a", std::slice::from_ref(&deeds));
        let said = world.bad(&["suspend", "p"], 1).await;
        assert!(said.contains(reason) && said.contains("runs on"), "{deeds:?}: {said}");
        world.script("a", &[]);
        runs_on(&world, "a", 1).await;
    }
    world.bad(&["suspend", "p", "--on", "c"], 3).await;
    runs_on(&world, "a", 1).await;
    assert!(!world.journal.take().iter().any(|deed| deed.contains("plug")), "nobody has held it");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_goes_wrong_when_it_wakes_leaves_it_asleep() {
    let world = started().await;
    world.good(&["suspend", "p", "--on", "b"]).await;
    sleeps_on(&world, "b", 2).await;
    world.script("a", &[("ready", Deed::Die)]);
    let said = world.bad(&["resume", "p", "--on", "a"], 1).await;
    assert!(said.contains("it is still asleep, its connections held"), "{said}");
    sleeps_on(&world, "b", 2).await;
    // Beyond the change of owner: back under the next epoch but one.
    for (epoch, deed) in [(4, Deed::Refuse), (6, Deed::Die)] {
        world.script("a", &[("resume", deed)]);
        let said = world.bad(&["resume", "p", "--on", "a"], 1).await;
        assert!(said.contains("it is still asleep, its connections held"), "{said}");
        sleeps_on(&world, "b", epoch).await;
    }
    world.script("a", &[]);
    world.good(&["resume", "p", "--on", "a"]).await;
    runs_on(&world, "a", 7).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_starts_again_answers_again() {
    let mut world = started().await;
    world.good(&["suspend", "p"]).await;
    world.kill("a");
    let service = world.service("p").await;
    assert_eq!((service.state, holder(&service)), (ServiceState::Suspended, None));
    assert!(service.reason.is_some_and(|reason| reason.contains("node a cannot be reached")));
    // Nobody knows whether it still answers: the service must not be woken elsewhere.
    let said = world.bad(&["resume", "p", "--on", "b"], 6).await;
    assert!(said.contains("node a answers for `p` and could not be told to stop"), "{said}");
    assert_eq!(world.instance("b", "p").await.map(|instance| instance.state), None);
    let epoch = world.service("p").await.epoch;
    world.start("a");
    let service = until(&world, |service| holder(service).is_some()).await;
    assert_eq!((service.epoch, service.reason), (epoch, None));
    world.good(&["resume", "p", "--on", "b"]).await;
    runs_on(&world, "b", epoch + 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_knocks_wakes_it() {
    let world = started().await;
    world.good(&["suspend", "p", "--on-syn", "wake"]).await;
    let service = world.service("p").await;
    assert_eq!(service.sleep.unwrap().on_syn, OnSyn::Wake);
    let client = world.client();
    let knock = async |id: &str, epoch| {
        let knock = Knock { id: id.into(), epoch };
        let path = "/v1/services/p/wake";
        client.json::<()>(Method::POST, path, &knock, LIMIT).await.unwrap();
    };
    knock("somebody else", 2).await;
    knock(&service.spec.id, 1).await;
    sleeps_on(&world, "a", 2).await;
    knock(&service.spec.id, 2).await;
    knock(&service.spec.id, 2).await;
    until(&world, |service| service.state == ServiceState::Running).await;
    runs_on(&world, "a", 3).await;
    knock(&service.spec.id, 2).await;
    runs_on(&world, "a", 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sleeper_that_is_stopped_is_gone() {
    let world = started().await;
    world.good(&["suspend", "p"]).await;
    let file = world.path("manager").join("snapshots");
    let digest = files(&file).pop().unwrap();
    let content = file.join(digest);
    let kept = world.path("kept");
    std::fs::copy(content, &kept).unwrap();
    let kept = kept.to_str().unwrap();
    // Its place is taken: by itself, asleep.
    let said = world.bad(&["restore", "-i", kept, "--on", "b"], 4).await;
    assert!(said.contains("`host-tools resume p`"), "{said}");
    sleeps_on(&world, "a", 2).await;
    world.journal.take();
    world.good(&["stop", "p"]).await;
    assert_eq!(world.journal.take(), ["a close", "a unplug"]);
    world.bad(&["inspect", "p"], 3).await;
    assert_eq!(files(&file), [] as [String; 0]);
    world.good(&["run", "svc", "--name", "p", "--on", "b"]).await;
    runs_on(&world, "b", 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_manager_that_died_has_left_is_tidied() {
    let world = started().await;
    // It died before the snapshot was kept: the guest goes on.
    let request = CheckpointRequest { leave_running: false, hold: true, id: None };
    let path = "/v1/instances/p/checkpoint";
    let _: Checkpoint = world.agent("a").json(Method::POST, path, &request, LIMIT).await.unwrap();
    until(&world, |service| service.state == ServiceState::Running).await;
    runs_on(&world, "a", 1).await;
    // It died before the standby was given the service: it is ended.
    world.good(&["suspend", "p"]).await;
    let service = world.service("p").await;
    let snapshot = service.sleep.map(|sleep| sleep.snapshot);
    let start = StartRequest { spec: service.spec, epoch: 3, snapshot };
    let standby: Instance =
        world.agent("b").json(Method::POST, "/v1/instances", &start, LIMIT).await.unwrap();
    assert_eq!(standby.state, InstanceState::Standby);
    let gone = async {
        while world.instance("b", "p").await.is_some() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(LIMIT, gone).await.expect("the standby is still there");
    sleeps_on(&world, "a", 2).await;
    world.good(&["resume", "p", "--on", "b"]).await;
    runs_on(&world, "b", 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_drained_gives_away_what_it_answers_for() {
    let world = started().await;
    world.good(&["suspend", "p"]).await;
    sleeps_on(&world, "a", 2).await;
    world.journal.take();
    let planned = world.good(&["node", "drain", "a", "--dry-run"]).await;
    assert!(planned.contains("p: a → b"), "{planned}");
    sleeps_on(&world, "a", 2).await;
    let said = world.good(&["node", "drain", "a"]).await;
    assert!(said.contains("p sleeps on, node b answers for it"), "{said}");
    sleeps_on(&world, "b", 3).await;
    // Never two at once.
    assert_eq!(world.journal.take(), ["a close", "a unplug", "b plug closed", "b open"]);
    let stays = world.run(&["node", "drain", "b"]).await;
    let said = String::from_utf8([stays.stdout, stays.stderr].concat()).unwrap();
    assert!(!stays.status.success() && said.contains("p was not moved: no other node"), "{said}");
    sleeps_on(&world, "b", 3).await;
    world.good(&["node", "undrain", "a"]).await;
    world.good(&["resume", "p", "--on", "a"]).await;
    runs_on(&world, "a", 4).await;
}
