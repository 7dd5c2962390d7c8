//! Manager and agents are killed in every phase of a suspend and of a resume and started again. Afterwards
//! the service runs, or it sleeps and somebody answers for it, as the store says; and nothing is left over.

use std::process::Stdio;
use std::time::{Duration, Instant};

use host_tools::api::{HolderView, InstanceState, Service, ServiceState};

use crate::faults::killed;
use crate::scripted::mishap::Mishap;
use crate::scripted::qemu::Deed;
use crate::scripted::random::{Random, from_environment};
use crate::scripted::world::{World, files};
use crate::started;

/// Longest life of a command whose manager may be gone.
const LIMIT: Duration = Duration::from_secs(30);

/// Where a service is, and under which epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rest<'a> {
    Runs(&'a str, u64),
    /// The node answers for it.
    Sleeps(&'a str, u64),
}
use Rest::{Runs, Sleeps};

/// Who is killed, by the guest or the switch of which node, at which order, whether after it, and what may
/// come of it. A switch's agent kills itself last.
type Case<'a> = (&'a [&'a str], &'a str, &'a str, bool, &'a [Rest<'a>]);

async fn holders(world: &World, node: &str) -> Option<Vec<HolderView>> {
    world.agent(node).get("/v1/holders").await.ok()
}

/// Where the service is if it is at rest, and nothing of it is anywhere else.
async fn at_rest(world: &World) -> Option<Service> {
    let service: Service = world.client().get("/v1/services/p").await.ok()?;
    let (mut running, mut holding) = (Vec::new(), Vec::new());
    for node in ["a", "b"] {
        if let Some(instance) = world.try_instance(node, "p").await.ok()? {
            running.push((node.to_owned(), instance.state, instance.epoch));
        }
        for holder in holders(world, node).await? {
            holding.push((node.to_owned(), holder.holding.epoch, holder.failure));
        }
    }
    let epoch = service.epoch;
    *world.seen.lock().unwrap() = format!("{service:?}, running {running:?}, holding {holding:?}");
    let right = match (&service.state, &service.node, &service.sleep) {
        (ServiceState::Running, Some(node), None) => {
            running == [(node.clone(), InstanceState::Running, epoch)] && holding.is_empty()
        }
        (ServiceState::Suspended, None, Some(sleep)) => {
            holding == [(sleep.node.clone(), epoch, None)] && running.is_empty()
        }
        _ => false,
    };
    (right && service.migration.is_none()).then_some(service)
}

/// Waits until the service is at rest; then nothing may be left over.
async fn settled(world: &World, what: &str) -> Service {
    world
        .until(&format!("{what}: the service runs or sleeps"), async |world: &World| {
            at_rest(world).await.is_some()
        })
        .await;
    let service = world.service("p").await;
    let sleeps = service.sleep.as_ref().map(|sleep| sleep.node.clone());
    let at = service.node.clone().or(sleeps).unwrap();
    let other = if at == "a" { "b" } else { "a" };
    for directory in ["run", "taps"] {
        assert_eq!(files(&world.path(other).join(directory)), [] as [String; 0], "{what}");
    }
    for node in ["a", "b"] {
        assert_eq!(files(&world.path(node).join("ram")), [] as [String; 0], "{what}");
    }
    let [tap] = &files(&world.path(&at).join("taps"))[..] else { panic!("{what}: one tap") };
    assert_eq!(tap.ends_with("-hold"), service.node.is_none(), "{what}: {tap}");
    let port = std::fs::read_to_string(world.path(&at).join("taps").join(tap)).unwrap();
    assert_eq!(port, "open", "{what}");
    if service.node.is_some() {
        let connections = world.good(&["conns", "p"]).await;
        assert_eq!(connections.lines().count(), 3, "{what}: {connections}");
    }
    world.assert_one_at_a_time();
    service
}

fn rest(service: &Service) -> Rest<'_> {
    match (&service.node, &service.sleep) {
        (Some(node), _) => Runs(node, service.epoch),
        (None, Some(sleep)) => Sleeps(&sleep.node, service.epoch),
        (None, None) => panic!("{service:?}"),
    }
}

/// Breaks a command off, lets what it has left come to rest, and then repeats it without a fault: whatever
/// was left must not be in its way.
async fn run(before: &[&str], command: &[&str], cases: &[Case<'_>]) {
    for (victims, node, order, after, expected) in cases {
        let mut world = started().await;
        if !before.is_empty() {
            world.good(before).await;
        }
        let when = if *after { "after" } else { "at" };
        let victims_named = victims.join(" and ");
        let what = format!("{}: {victims_named} killed {when} {order} of {node}", command[0]);
        let begun = Instant::now();
        killed(&mut world, command, victims, node, order, *after).await;
        let service = settled(&world, &what).await;
        let found = rest(&service);
        println!("{what}: {found:?}, {} ms", begun.elapsed().as_millis());
        assert!(expected.contains(&found), "{what}: {found:?}\n{}", world.story());
        match found {
            Runs(..) => repeat(&world, &["suspend", "p"]).await,
            Sleeps(..) => repeat(&world, &["resume", "p", "--on", "b"]).await,
        }
        let repeated = settled(&world, &what).await;
        assert_eq!(repeated.node.is_some(), matches!(found, Sleeps(..)), "{what}");
        assert_eq!(repeated.epoch, service.epoch + 1, "{what}");
    }
}

/// A command that must succeed once nobody is at work on the service any more.
async fn repeat(world: &World, command: &[&str]) {
    world
        .until(&format!("{command:?} succeeds"), async |world: &World| {
            world.run(command).await.status.success()
        })
        .await;
}

const AWAKE: Rest<'_> = Runs("a", 1);
const ASLEEP: Rest<'_> = Sleeps("a", 2);
const WOKEN: Rest<'_> = Runs("b", 3);
const ASLEEP_AGAIN: Rest<'_> = Sleeps("a", 4);

const SUSPEND: &[&str] = &["suspend", "p"];
const RESUME: &[&str] = &["resume", "p", "--on", "b"];

#[tokio::test(flavor = "multi_thread")]
async fn the_manager_is_killed_during_a_suspend() {
    let cases: &[Case<'_>] = &[
        (&["manager"], "a", "drain", false, &[AWAKE]),
        (&["manager"], "a", "freeze", false, &[AWAKE]),
        (&["manager"], "a", "connections", true, &[AWAKE]),
        (&["manager"], "a", "stop", true, &[AWAKE]),
        // The holder is made, then opened; the frozen guest is ended.
        (&["manager"], "a", "plug", false, &[ASLEEP]),
        (&["manager"], "a", "open", true, &[ASLEEP]),
        (&["manager"], "a", "unplug", false, &[ASLEEP]),
    ];
    run(&[], SUSPEND, cases).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_agent_is_killed_during_a_suspend() {
    let cases: &[Case<'_>] = &[
        (&["a"], "a", "drain", false, &[AWAKE]),
        (&["a"], "a", "freeze", false, &[AWAKE]),
        (&["a"], "a", "freeze", true, &[AWAKE]),
        (&["a"], "a", "connections", true, &[AWAKE]),
        (&["a"], "a", "stop", true, &[AWAKE]),
        (&["a"], "a", "close", true, &[AWAKE]),
        (&["a"], "a", "plug", false, &[ASLEEP]),
        (&["a"], "a", "plug", true, &[ASLEEP]),
        (&["a"], "a", "open", true, &[ASLEEP]),
        (&["a"], "a", "unplug", false, &[ASLEEP]),
    ];
    run(&[], SUSPEND, cases).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_manager_is_killed_during_a_resume() {
    let cases: &[Case<'_>] = &[
        (&["manager"], "b", "ready", false, &[ASLEEP]),
        // The holder is closed and removed.
        (&["manager"], "a", "close", false, &[WOKEN]),
        (&["manager"], "a", "unplug", true, &[WOKEN]),
        (&["manager"], "b", "open", false, &[WOKEN]),
        (&["manager"], "b", "resume", false, &[WOKEN]),
        (&["manager"], "b", "resume", true, &[WOKEN]),
    ];
    run(SUSPEND, RESUME, cases).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_is_killed_during_a_resume() {
    let cases: &[Case<'_>] = &[
        (&["b"], "b", "plug", true, &[ASLEEP]),
        (&["b"], "b", "ready", false, &[ASLEEP]),
        (&["b"], "a", "close", false, &[WOKEN]),
        (&["b"], "b", "open", true, &[WOKEN]),
        (&["b"], "b", "resume", false, &[WOKEN]),
        (&["b"], "b", "resume", true, &[WOKEN]),
        // The holder's.
        (&["a"], "b", "ready", false, &[ASLEEP, WOKEN]),
        (&["a"], "a", "close", false, &[WOKEN]),
        (&["a"], "a", "close", true, &[WOKEN]),
        (&["a"], "b", "resume", true, &[WOKEN]),
    ];
    run(SUSPEND, RESUME, cases).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn several_are_killed_at_once() {
    let cases: &[Case<'_>] = &[
        (&["manager", "a"], "a", "freeze", true, &[AWAKE]),
        (&["manager", "a"], "a", "stop", true, &[AWAKE]),
        (&["manager", "a"], "a", "open", true, &[ASLEEP]),
        (&["manager", "b", "a"], "a", "unplug", false, &[ASLEEP]),
    ];
    run(&[], SUSPEND, cases).await;
    let cases: &[Case<'_>] = &[
        (&["manager", "b"], "b", "ready", false, &[ASLEEP]),
        (&["manager", "a"], "a", "close", true, &[WOKEN]),
        (&["manager", "b"], "b", "resume", false, &[WOKEN]),
        (&["manager", "a", "b"], "b", "resume", true, &[WOKEN]),
        (&["manager", "b", "a"], "a", "close", false, &[WOKEN]),
    ];
    run(SUSPEND, RESUME, cases).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_is_lost_as_it_wakes_leaves_the_service_asleep() {
    for daemons in [&["b"][..], &["manager"], &["b", "manager"]] {
        let mut world = started().await;
        world.good(SUSPEND).await;
        let pid = |daemon: &&str| std::fs::read_to_string(world.daemon_pid_file(daemon)).unwrap();
        let pids: Vec<String> = daemons.iter().map(pid).collect();
        let file = world.path("victims");
        std::fs::write(&file, pids.join("\n")).unwrap();
        world.script("b", &[("resume", Deed::KillAllAndDie(file))]);
        let mut command = world.command(RESUME);
        let mut user = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        for daemon in daemons {
            world.until_dead(daemon).await;
        }
        world.script("b", &[]);
        daemons.iter().for_each(|daemon| world.kill(daemon));
        daemons.iter().for_each(|daemon| world.start(daemon));
        tokio::task::spawn_blocking(move || user.wait().unwrap()).await.unwrap();
        let what = format!("{daemons:?} and the guest of b are lost");
        let service = settled(&world, &what).await;
        assert_eq!(rest(&service), ASLEEP_AGAIN, "{what}\n{}", world.story());
    }
}

/// `FERRY_FAULT_RUNS` and `FERRY_FAULT_SEED` ask for more runs, and others.
#[tokio::test(flavor = "multi_thread")]
async fn some_are_killed_at_any_instant() {
    let runs = from_environment("FERRY_FAULT_RUNS", 20);
    let seed = from_environment("FERRY_FAULT_SEED", 1);
    let mut random = Random(seed);
    let mut world = started().await;
    let mut service = settled(&world, "the beginning").await;
    for run in 0..runs {
        let on = ["a", "b"][random.below(2) as usize];
        let verb = if service.node.is_some() { "suspend" } else { "resume" };
        let mishap = Mishap::draw(&mut random);
        let what = format!("seed {seed}, run {run}: {verb} on {on}, {mishap}");
        mishap.befall(&mut world, &[verb, "p", "--on", on], LIMIT, &what).await;
        let before = service.epoch;
        service = settled(&world, &what).await;
        println!("{what}: {:?}", rest(&service));
        assert!((before..=before + 2).contains(&service.epoch), "{what}: {}", service.epoch);
    }
}
