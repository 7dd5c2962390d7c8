//! Moves that a user ends, and hosts that never come back.

use std::process::{Child, Stdio};
use std::time::Duration;

use host_tools::api::{InstanceState, Migration};
use host_tools::migration::{Outcome, Phase};
use rustix::process::{Pid, Signal, kill_process};

use crate::scripted::qemu::{Deed, kill};
use crate::scripted::world::{World, files};
use crate::{runs_on, started};

const LIMIT: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(50);

fn migrate(world: &World) -> Child {
    let mut command = world.command(&["migrate", "p", "--to", "b"]);
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

async fn code(mut user: Child) -> Option<i32> {
    let ended = tokio::task::spawn_blocking(move || user.wait().unwrap());
    tokio::time::timeout(LIMIT, ended).await.expect("the command ends").unwrap().code()
}

async fn the_move(world: &World) -> Option<Migration> {
    world.client().get("/v1/migrations/m1").await.ok()
}

async fn until_phase(world: &World, phase: Phase) {
    world
        .until(&format!("the move is in {phase}"), async |world: &World| {
            the_move(world).await.is_some_and(|it| it.phase == Some(phase))
        })
        .await;
}

async fn outcome(world: &World) -> Outcome {
    world
        .until("the move ends", async |world: &World| {
            the_move(world).await.is_some_and(|it| it.result.is_some())
        })
        .await;
    the_move(world).await.unwrap().result.unwrap()
}

/// Repeats a command until it succeeds: a node counts as silent some seconds after its last word.
async fn in_the_end(world: &World, arguments: &[&str], expected: i32) -> String {
    let repeated = async {
        loop {
            let output = world.run(arguments).await;
            let said = [output.stdout, output.stderr].concat();
            let said = String::from_utf8(said).unwrap();
            if output.status.code() == Some(expected) && !said.contains("is not gone") {
                return said;
            }
            assert!(said.contains("is not gone"), "{arguments:?}: {said}");
            tokio::time::sleep(LOOK).await;
        }
    };
    tokio::time::timeout(LIMIT, repeated).await.unwrap_or_else(|_| panic!("{}", world.story()))
}

pub(super) async fn nothing_left_on(world: &World, node: &str) {
    world
        .until(&format!("nothing is left on {node}"), async |world: &World| {
            world.try_instance(node, "p").await == Ok(None)
                && files(&world.path(node).join("run")).is_empty()
                && files(&world.path(node).join("taps")).is_empty()
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_move_that_has_not_committed_is_cancelled() {
    let world = started().await;
    // A scan that is not answered keeps the move in its precopy for seconds.
    world.script("a", &[("scan", Deed::Silence)]);
    let user = migrate(&world);
    until_phase(&world, Phase::Precopy).await;
    let said = world.good(&["migration", "cancel", "m1"]).await;
    assert!(said.contains("p runs on node a as before, its connections open"), "{said}");
    assert_eq!(code(user).await, Some(7));
    let Outcome::Kept { phase: Phase::Precopy, reason } = outcome(&world).await else {
        panic!("{:?}", outcome(&world).await)
    };
    assert_eq!(reason, "it was cancelled");
    world.script("a", &[]);
    nothing_left_on(&world, "b").await;
    runs_on(&world, "a", 1).await;
    let said = world.bad(&["migration", "cancel", "m1"], 4).await;
    assert!(said.contains("the move m1 is over"), "{said}");
    world.bad(&["migration", "cancel", "m2"], 3).await;
    world.bad(&["migration", "watch", "m1"], 7).await;
    // It stands in nobody's way.
    world.good(&["migrate", "p", "--to", "b"]).await;
    runs_on(&world, "b", 2).await;
    let said = world.good(&["migration", "watch", "m2"]).await;
    assert!(said.contains("p runs on node b, epoch 2"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_move_that_has_committed_is_not_cancelled() {
    let world = started().await;
    world.script("b", &[("resume", Deed::Silence)]);
    let user = migrate(&world);
    world
        .until("the move has committed", async |world: &World| world.service("p").await.epoch == 2)
        .await;
    let said = world.bad(&["migration", "cancel", "m1"], 4).await;
    assert!(said.contains("has committed: node b owns `p` under epoch 2"), "{said}");
    let said = world.bad(&["migration", "cancel", "m1", "--host-is-gone", "b"], 4).await;
    assert!(said.contains("node b is not gone"), "{said}");
    world.bad(&["migration", "cancel", "m1", "--host-is-gone", "manager"], 5).await;
    // The guest of b never takes over, also when its agent is asked about it: it is ended, and the source takes
    // the service back.
    assert_eq!(code(user).await, Some(7));
    runs_on(&world, "a", 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_source_goes_on_in_place_of_a_destination_that_never_comes_back() {
    let mut world = started().await;
    let file = world.path("victims");
    std::fs::write(&file, std::fs::read_to_string(world.daemon_pid_file("b")).unwrap()).unwrap();
    world.script("b", &[("resume", Deed::KillAllAndDie(file))]);
    let user = migrate(&world);
    world.until_dead("b").await;
    world.script("b", &[]);
    let said = in_the_end(&world, &["migration", "cancel", "m1", "--host-is-gone", "b"], 0).await;
    assert!(said.contains("p runs on node a again, under epoch 3"), "{said}");
    assert_eq!(code(user).await, Some(7));
    assert!(matches!(outcome(&world).await, Outcome::TakenBack { epoch: 3, .. }));
    world.good(&["conns", "p"]).await;
    world.kill("b");
    world.start("b");
    nothing_left_on(&world, "b").await;
    runs_on(&world, "a", 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_on_a_source_that_never_comes_back_can_be_started_elsewhere() {
    let mut world = started().await;
    let file = world.path("victims");
    std::fs::write(&file, std::fs::read_to_string(world.daemon_pid_file("a")).unwrap()).unwrap();
    world.script("a", &[("scan", Deed::Kill(file))]);
    let user = migrate(&world);
    world.until_dead("a").await;
    kill(&world.pid_file("a"));
    // Nobody can say what became of it: the move stays open, and says so to whoever wants something else.
    for arguments in [&["stop", "p"][..], &["migrate", "p", "--to", "b"]] {
        let said = world.bad(arguments, 4).await;
        assert!(said.contains("migration cancel m1"), "{said}");
    }
    let said = in_the_end(&world, &["migration", "cancel", "m1", "--host-is-gone", "a"], 1).await;
    assert!(said.contains("node a is gone, as a user says"), "{said}");
    assert_eq!(code(user).await, Some(1));
    assert!(matches!(outcome(&world).await, Outcome::Broken { .. }));
    let said = world.bad(&["stop", "p"], 6).await;
    assert!(said.contains("--host-is-gone a"), "{said}");
    world.bad(&["stop", "p", "--host-is-gone", "b"], 5).await;
    nothing_left_on(&world, "b").await;
    world.good(&["stop", "p", "--host-is-gone", "a"]).await;
    world.good(&["run", "svc", "--name", "p", "--on", "b"]).await;
    world.script("a", &[]);
    world.kill("a");
    world.start("a");
    nothing_left_on(&world, "a").await;
    runs_on(&world, "b", 1).await;
}

/// The host was only silent: what ran on it is ended as soon as it speaks again.
#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_was_given_up_and_returns_ends_what_it_no_longer_owns() {
    let world = started().await;
    let signal = |signal| {
        let pid = std::fs::read_to_string(world.daemon_pid_file("a")).unwrap();
        kill_process(Pid::from_raw(pid.trim().parse().unwrap()).unwrap(), signal).unwrap();
    };
    signal(Signal::STOP);
    in_the_end(&world, &["stop", "p", "--host-is-gone", "a"], 0).await;
    signal(Signal::CONT);
    nothing_left_on(&world, "a").await;
    // The same agent serves on.
    world.good(&["run", "svc", "--name", "p", "--on", "a"]).await;
    let here = world.instance("a", "p").await.unwrap();
    assert_eq!((here.state, here.epoch), (InstanceState::Running, 1));
    runs_on(&world, "a", 1).await;
}
