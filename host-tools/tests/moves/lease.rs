//! A host that has lost the manager.

use host_tools::api::{InstanceState, ServiceState};

use super::cancel::nothing_left_on;
use super::scripted::world::{LEASE, World};
use super::{runs_on, started};

/// Services `p` on node a, whose lease is as short as it can be, and `q` on node b, which has none.
async fn leased() -> World {
    let mut world = started().await;
    world.kill("a");
    std::fs::write(world.path("a").join(LEASE), "3").unwrap();
    world.start("a");
    world
        .until("the manager has heard of the lease", async |world: &World| {
            let nodes: Vec<host_tools::api::Node> = world.client().get("/v1/nodes").await.unwrap();
            nodes.iter().any(|node| node.report.lease_us == Some(3_000_000))
        })
        .await;
    world.good(&["run", "svc", "--name", "q", "--on", "b"]).await;
    world.journal.take();
    world
}

async fn until_it_is(world: &World, state: InstanceState) {
    let is = async |world: &World| matches!(world.try_instance("a", "p").await, Ok(Some(instance)) if instance.state == state);
    world.until(&format!("the instance of p is {state:?}"), is).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_manager_guests_stand_still_until_one_answers() {
    let mut world = leased().await;
    world.kill("manager");
    until_it_is(&world, InstanceState::Frozen).await;
    assert_eq!(world.journal.take(), ["a close"]);
    let q = world.instance("b", "q").await.unwrap();
    assert_eq!(q.state, InstanceState::Running, "without a lease it never ends");
    world.start("manager");
    until_it_is(&world, InstanceState::Running).await;
    assert_eq!(world.journal.take(), ["a open"]);
    world
        .until("the manager says so too", async |world: &World| {
            world.service("p").await.state == ServiceState::Running
        })
        .await;
    runs_on(&world, "a", 1).await;
    // The same guest: nothing was started anew.
    let log = world.good(&["logs", "p"]).await;
    assert_eq!(log.lines().collect::<Vec<_>>(), ["scripted guest up, Running"]);
}

/// Its agent is killed too, and the next one has no manager either: what it finds stands still at once.
#[tokio::test(flavor = "multi_thread")]
async fn the_next_agent_goes_on_with_the_same_lease() {
    let mut world = leased().await;
    world.kill("manager");
    until_it_is(&world, InstanceState::Frozen).await;
    world.kill("a");
    world.start("a");
    until_it_is(&world, InstanceState::Frozen).await;
    let before = std::fs::read(world.path("a").join("lease")).unwrap();
    world.start("manager");
    until_it_is(&world, InstanceState::Running).await;
    assert_ne!(std::fs::read(world.path("a").join("lease")).unwrap(), before);
    world.assert_one_at_a_time();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_is_not_given_up_before_its_lease_has_ended() {
    let mut world = leased().await;
    world.kill("a");
    let refusals = std::sync::Mutex::new(Vec::new());
    let given_up = async |world: &World| {
        let output = world.run(&["stop", "p", "--host-is-gone", "a"]).await;
        let said = String::from_utf8(output.stderr).unwrap();
        let refused = output.status.code() == Some(4);
        assert!(refused || output.status.success(), "{said}");
        if refused {
            refusals.lock().unwrap().push(said);
        }
        !refused
    };
    world.until("the host is given up", given_up).await;
    let refusals = refusals.into_inner().unwrap();
    assert!(refusals[0].contains("it has reported"), "{}", refusals[0]);
    let last = refusals.last().unwrap();
    assert!(last.contains("may run services until its lease has ended, in 1 s"), "{last}");
    world.start("a");
    nothing_left_on(&world, "a").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn when_a_node_is_gone_another_answers_for_what_slept_there() {
    let mut world = leased().await;
    world.good(&["suspend", "p"]).await;
    world.kill("a");
    world
        .until("node b answers for it", async |world: &World| {
            let sleep = world.service("p").await.sleep;
            sleep.is_some_and(|sleep| sleep.node == "b" && sleep.holder.is_some())
        })
        .await;
    world.good(&["resume", "p"]).await;
    world.start("a");
    world
        .until("the agent of a is there", async |world: &World| {
            world.try_instance("a", "p").await.is_ok()
        })
        .await;
    // Asleep under epoch 2, held elsewhere under 3.
    runs_on(&world, "b", 4).await;
}
