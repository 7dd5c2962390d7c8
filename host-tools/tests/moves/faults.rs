//! Manager and agents are killed in every phase of a move and started again. Afterwards exactly one instance
//! runs, where the store says, the move has ended, and nothing is left over.

use std::process::Stdio;
use std::time::{Duration, Instant};

use host_tools::api::{InstanceState, Migration, Service, ServiceState};
use host_tools::migration::Outcome;

use crate::scripted::mishap::Mishap;
use crate::scripted::qemu::{Deed, kill};
use crate::scripted::random::{Random, from_environment};
use crate::scripted::world::{World, files};
use crate::started;

/// How long a daemon stays down.
const DOWN: Duration = Duration::from_millis(100);
const LIMIT: Duration = Duration::from_secs(20);

async fn all_ended(world: &World) -> bool {
    let all: Result<Vec<Migration>, _> = world.client().get("/v1/migrations").await;
    all.is_ok_and(|all| all.iter().all(|migration| migration.result.is_some()))
}

async fn settled(world: &World, what: &str) -> (String, u64, Outcome) {
    let (owner, epoch, outcome) = settled_any(world, what).await;
    (owner, epoch, outcome.unwrap())
}

/// Waits until all moves have ended and the service serves; then nothing may be left over. Returns the
/// node, and how the last move ended.
async fn settled_any(world: &World, what: &str) -> (String, u64, Option<Outcome>) {
    world
        .until(&format!("{what}: the move ends and the service runs"), async |world: &World| {
            if !all_ended(world).await {
                return false;
            }
            let service: Result<Service, _> = world.client().get("/v1/services/p").await;
            let Ok(service) = service else { return false };
            let Some(owner) = service.node.as_deref() else { return false };
            let other = if owner == "a" { "b" } else { "a" };
            let here = world.try_instance(owner, "p").await;
            let there = world.try_instance(other, "p").await;
            let serves = matches!(here, Ok(Some(instance))
                if instance.state == InstanceState::Running && instance.epoch == service.epoch);
            serves && there == Ok(None) && service.state == ServiceState::Running
        })
        .await;
    let service = world.service("p").await;
    let owner = service.node.unwrap();
    let other = if owner == "a" { "b" } else { "a" };
    assert_eq!(service.migration, None, "{what}");
    assert_eq!(files(&world.path(other).join("run")), [] as [String; 0], "{what}");
    assert_eq!(files(&world.path(other).join("taps")), [] as [String; 0], "{what}");
    for node in ["a", "b"] {
        assert_eq!(files(&world.path(node).join("ram")), [] as [String; 0], "{what}");
    }
    let [tap] = &files(&world.path(&owner).join("taps"))[..] else { panic!("{what}: one tap") };
    let port = std::fs::read_to_string(world.path(&owner).join("taps").join(tap)).unwrap();
    assert_eq!(port, "open", "{what}");
    let connections = world.good(&["conns", "p"]).await;
    assert_eq!(connections.lines().count(), 3, "{what}: {connections}");
    world.assert_one_at_a_time();
    let all: Vec<Migration> = world.client().get("/v1/migrations").await.unwrap();
    (owner, service.epoch, all.last().and_then(|last| last.result.clone()))
}

/// A command in which a guest, or the switch of a node, kills daemons when it gets an order; then they are
/// started again.
pub async fn killed(
    world: &mut World,
    command: &[&str],
    victims: &[&str],
    node: &str,
    order: &str,
    after: bool,
) {
    let pids: Vec<String> = victims
        .iter()
        .map(|victim| std::fs::read_to_string(world.daemon_pid_file(victim)).unwrap())
        .collect();
    let file = world.path("victims");
    std::fs::write(&file, pids.join("\n")).unwrap();
    let deed = if after { Deed::KillAfter(file) } else { Deed::Kill(file) };
    world.script(node, &[(order, deed)]);
    let mut command = world.command(command);
    let mut user = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    for victim in victims {
        world.until_dead(victim).await;
    }
    world.script(node, &[]);
    for victim in victims {
        world.kill(victim);
    }
    tokio::time::sleep(DOWN).await;
    for victim in victims {
        world.start(victim);
    }
    // The command lives as long as the move, or its manager.
    let ended = tokio::task::spawn_blocking(move || user.wait().unwrap());
    tokio::time::timeout(LIMIT, ended).await.expect("the command ends").unwrap();
}

/// What may come of it: where the service is afterwards, and under which epoch.
fn check(what: &str, found: &(String, u64, Outcome), expected: &[(&str, u64)]) {
    let (node, epoch, outcome) = found;
    assert!(expected.contains(&(node.as_str(), *epoch)), "{what}: on {node} under {epoch}");
    let right = match outcome {
        Outcome::Kept { .. } => (node.as_str(), *epoch) == ("a", 1),
        Outcome::Moved { epoch: at } => node == "b" && epoch == at,
        Outcome::TakenBack { epoch: at, .. } => node == "a" && epoch == at,
        Outcome::Held { .. } | Outcome::Broken { .. } => false,
    };
    assert!(right, "{what}: {outcome:?}, on {node} under {epoch}");
}

const KEPT: (&str, u64) = ("a", 1);
const MOVED: (&str, u64) = ("b", 2);
const TAKEN_BACK: (&str, u64) = ("a", 3);

/// Who is killed, by the guest of which node, at which order, whether after its answer, and what may come of
/// it.
type Case<'a> = (&'a [&'a str], &'a str, &'a str, bool, &'a [(&'a str, u64)]);

async fn run(cases: &[Case<'_>]) {
    for (victims, guest, order, after, expected) in cases {
        let mut world = started().await;
        let when = if *after { "after" } else { "at" };
        let what = format!("{} killed {when} {order} of {guest}", victims.join(" and "));
        let begun = Instant::now();
        let command = ["migrate", "p", "--to", "b"];
        killed(&mut world, &command, victims, guest, order, *after).await;
        let found = settled(&world, &what).await;
        println!("{what}: {:?}, {} ms", found, begun.elapsed().as_millis());
        check(&what, &found, expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sources_agent_is_killed() {
    run(&[
        (&["a"], "a", "scan", false, &[KEPT]),
        (&["a"], "a", "drain", false, &[KEPT]),
        (&["a"], "a", "drain", true, &[KEPT]),
        (&["a"], "a", "freeze", false, &[KEPT]),
        (&["a"], "a", "stop", true, &[KEPT, MOVED]),
        (&["a"], "b", "resume", false, &[MOVED]),
        (&["a"], "b", "resume", true, &[MOVED]),
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_destinations_agent_is_killed() {
    run(&[
        (&["b"], "b", "ready", false, &[KEPT]),
        (&["b"], "a", "scan", false, &[KEPT]),
        (&["b"], "a", "drain", true, &[KEPT]),
        (&["b"], "a", "freeze", false, &[KEPT]),
        (&["b"], "a", "stop", false, &[KEPT, MOVED, TAKEN_BACK]),
        (&["b"], "b", "resume", false, &[MOVED]),
        (&["b"], "b", "resume", true, &[MOVED]),
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_manager_is_killed() {
    run(&[
        (&["manager"], "a", "scan", false, &[KEPT, MOVED]),
        (&["manager"], "a", "drain", false, &[KEPT, MOVED]),
        (&["manager"], "a", "freeze", false, &[KEPT, MOVED]),
        (&["manager"], "a", "stop", true, &[KEPT, MOVED]),
        (&["manager"], "b", "resume", false, &[MOVED]),
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn several_are_killed_at_once() {
    run(&[
        (&["a", "b"], "a", "drain", false, &[KEPT]),
        (&["a", "b"], "b", "resume", false, &[MOVED]),
        (&["manager", "a"], "a", "freeze", false, &[KEPT]),
        (&["manager", "a"], "b", "resume", true, &[MOVED]),
        (&["manager", "b"], "b", "resume", false, &[MOVED]),
        (&["manager", "a", "b"], "a", "stop", false, &[KEPT]),
        (&["manager", "a", "b"], "b", "resume", false, &[MOVED]),
    ])
    .await;
}

/// The destination's guest takes these with it, and then itself, when it is to resume: after the commit.
async fn lost_at_resume(daemons: &[&str]) -> (String, u64, Outcome) {
    let mut world = started().await;
    let pids: String = daemons
        .iter()
        .map(|daemon| std::fs::read_to_string(world.daemon_pid_file(daemon)).unwrap() + "\n")
        .collect();
    let file = world.path("victims");
    std::fs::write(&file, pids).unwrap();
    world.script("b", &[("resume", Deed::KillAllAndDie(file))]);
    let mut command = world.command(&["migrate", "p", "--to", "b"]);
    let mut user = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    for daemon in daemons {
        world.until_dead(daemon).await;
    }
    world.script("b", &[]);
    daemons.iter().for_each(|daemon| world.kill(daemon));
    daemons.iter().for_each(|daemon| world.start(daemon));
    tokio::task::spawn_blocking(move || user.wait().unwrap()).await.unwrap();
    settled(&world, &format!("{daemons:?} and the guest of b are lost")).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_source_takes_back_what_the_destination_has_lost() {
    for daemons in [&["b"][..], &["b", "manager"], &["a", "b"], &["a", "b", "manager"]] {
        let (node, epoch, outcome) = lost_at_resume(daemons).await;
        assert_eq!((node.as_str(), epoch), TAKEN_BACK, "{daemons:?}: {outcome:?}");
        assert!(matches!(outcome, Outcome::TakenBack { epoch: 3, .. }), "{daemons:?}: {outcome:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_is_killed_during_a_checkpoint() {
    let mut world = started().await;
    let file = world.path("p.snapshot");
    for (order, after) in [("drain", false), ("freeze", true), ("stop", true)] {
        let victim = world.daemon_pid_file("a");
        let deed = if after { Deed::KillAfter(victim) } else { Deed::Kill(victim) };
        world.script("a", &[(order, deed)]);
        world.bad(&["checkpoint", "p", "-e", file.to_str().unwrap()], 6).await;
        world.script("a", &[]);
        world.kill("a");
        world.start("a");
        world
            .until("the service goes on", async |world: &World| {
                let here = world.try_instance("a", "p").await;
                matches!(here, Ok(Some(instance)) if instance.state == InstanceState::Running)
            })
            .await;
        world.good(&["conns", "p"]).await;
    }
    world.good(&["checkpoint", "p", "-e", file.to_str().unwrap()]).await;
    assert_eq!(world.service("p").await.state, ServiceState::Suspended);
    world.good(&["restore", "-i", file.to_str().unwrap(), "--on", "b"]).await;
    world.assert_one_at_a_time();
}

#[tokio::test(flavor = "multi_thread")]
async fn guests_outlive_their_agent_and_its_manager() {
    let mut world = started().await;
    let pid = world.instance("a", "p").await.unwrap().pid;
    for victims in [&["a"][..], &["manager"], &["a", "manager"], &["b", "manager", "a"]] {
        victims.iter().for_each(|victim| world.kill(victim));
        victims.iter().rev().for_each(|victim| world.start(victim));
        world
            .until("the guest is taken up", async |world: &World| {
                let here = world.try_instance("a", "p").await;
                let service: Result<Service, _> = world.client().get("/v1/services/p").await;
                matches!(here, Ok(Some(here)) if here.state == InstanceState::Running)
                    && service.is_ok_and(|service| service.state == ServiceState::Running)
            })
            .await;
        assert_eq!(world.instance("a", "p").await.unwrap().pid, pid, "it was never ended");
    }
    let log = world.good(&["logs", "p"]).await;
    assert_eq!(log, "scripted guest up, Running\n");
    // A guest that ends while nobody looks leaves nothing behind.
    world.kill("a");
    kill(&world.pid_file("a"));
    world.start("a");
    world
        .until("what was left is removed", async |world: &World| {
            world.try_instance("a", "p").await == Ok(None)
                && files(&world.path("a").join("taps")).is_empty()
                && files(&world.path("a").join("run")).is_empty()
        })
        .await;
    // Without a manager a running guest goes on, and is taken up when it answers.
    world.good(&["stop", "p"]).await;
    world.good(&["run", "svc", "--name", "p", "--on", "a"]).await;
    world.kill("manager");
    world.kill("a");
    world.start("a");
    world
        .until("the guest is found", async |world: &World| {
            matches!(world.try_instance("a", "p").await, Ok(Some(here))
                if here.state == InstanceState::Running)
        })
        .await;
    world.start("manager");
    world
        .until("the manager answers", async |world: &World| {
            world.client().get::<Service>("/v1/services/p").await.is_ok()
        })
        .await;
    world.good(&["migrate", "p", "--to", "b"]).await;
    assert_eq!(world.service("p").await.node.as_deref(), Some("b"));
    world.assert_one_at_a_time();
}

/// `FERRY_FAULT_RUNS` and `FERRY_FAULT_SEED` ask for more runs, and others.
#[tokio::test(flavor = "multi_thread")]
async fn some_are_killed_at_any_instant() {
    let runs = from_environment("FERRY_FAULT_RUNS", 20);
    let seed = from_environment("FERRY_FAULT_SEED", 1);
    let mut random = Random(seed);
    let mut world = started().await;
    let (mut from, mut epoch) = ("a".to_owned(), 1);
    for run in 0..runs {
        let to = if from == "a" { "b" } else { "a" };
        let mishap = Mishap::draw(&mut random);
        let what = format!("seed {seed}, run {run}: {from} to {to}, {mishap}");
        mishap.befall(&mut world, &["migrate", "p", "--to", to], LIMIT, &what).await;
        let (node, now, outcome) = settled_any(&world, &what).await;
        println!("{what}: {node} under {now}, {outcome:?}");
        let expected = match outcome {
            // The command may have been too late for its manager: then there was no move.
            _ if now == epoch => (from.clone(), epoch),
            Some(Outcome::Moved { .. }) => (to.to_owned(), epoch + 1),
            Some(Outcome::TakenBack { .. }) => (from.clone(), epoch + 2),
            other => panic!("{what}: {other:?}, {node} under {now}"),
        };
        assert_eq!((node.clone(), now), expected, "{what}");
        (from, epoch) = (node, now);
    }
}
