//! Manager and agents are killed in every phase of a move and started again. Afterwards exactly one instance
//! runs, where the store says, the move has ended, and nothing is left over.

mod scripted;

use std::process::Stdio;
use std::time::{Duration, Instant};

use host_tools::api::{InstanceState, Migration, Service, ServiceState};
use host_tools::migration::Outcome;
use scripted::qemu::{ARGUMENTS, Deed, play};
use scripted::world::{AGENT, World, files, run_agent};

/// In a process that an agent has started this is the guest; else there is nothing to do.
#[test]
fn scripted_guest() {
    if let Ok(arguments) = std::env::var(ARGUMENTS) {
        play(&arguments);
    }
}

/// In a process that a world has started this is an agent.
#[test]
fn scripted_agent() {
    if let Ok(directory) = std::env::var(AGENT) {
        run_agent(&directory);
    }
}

/// How long a daemon stays down.
const DOWN: Duration = Duration::from_millis(100);
const LIMIT: Duration = Duration::from_secs(20);

async fn started() -> World {
    let world = World::new().await;
    world.good(&["run", "svc", "--name", "p", "--on", "a"]).await;
    world
}

/// The last move, if it has ended.
async fn ended(world: &World) -> Option<Migration> {
    let all: Vec<Migration> = world.client().get("/v1/migrations").await.ok()?;
    let last = all.last()?.clone();
    all.iter().all(|migration| migration.result.is_some()).then_some(last)
}

/// Waits until the last move has ended and the service serves; then nothing may be left over. Returns the
/// node, and how the move ended.
async fn settled(world: &World, what: &str) -> (String, u64, Outcome) {
    world
        .until(&format!("{what}: the move ends and the service runs"), async |world: &World| {
            let Some(_) = ended(world).await else { return false };
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
    let result = ended(world).await.and_then(|last| last.result).unwrap();
    (owner, service.epoch, result)
}

/// A move from `a` in which a guest kills a daemon when it gets an order; then the daemon is started again.
async fn killed(world: &mut World, victims: &[&str], guest: &str, order: &str, after: bool) {
    let pids: Vec<String> = victims
        .iter()
        .map(|victim| std::fs::read_to_string(world.daemon_pid_file(victim)).unwrap())
        .collect();
    let file = world.path("victims");
    std::fs::write(&file, pids.join("\n")).unwrap();
    let deed = if after { Deed::KillAfter(file) } else { Deed::Kill(file) };
    world.script(guest, &[(order, deed)]);
    let mut command = world.command(&["migrate", "p", "--to", "b"]);
    let mut user = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let begun = Instant::now();
    for victim in victims {
        while !world.is_dead(victim) {
            let story = world.story();
            assert!(
                begun.elapsed() < LIMIT,
                "{victim} is not killed at {order} of {guest}\n{story}"
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    world.script(guest, &[]);
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

async fn run(cases: &[(&[&str], &str, &str, bool, &[(&str, u64)])]) {
    for (victims, guest, order, after, expected) in cases {
        let mut world = started().await;
        let when = if *after { "after" } else { "at" };
        let what = format!("{} killed {when} {order} of {guest}", victims.join(" and "));
        let begun = Instant::now();
        killed(&mut world, victims, guest, order, *after).await;
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
