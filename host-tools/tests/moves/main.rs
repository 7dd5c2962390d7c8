//! Manager and agents as they are, the real command, and guests that play a script.

mod cancel;
mod faults;
mod lease;
mod relocation;
#[expect(dead_code, reason = "the world has more to it than these tests need")]
mod scripted;
mod seeing;
mod sleep;

use host_tools::api::{InstanceState, ServiceState};
use scripted::qemu::{ARGUMENTS, Deed, play};
use scripted::world::{AGENT, World, files, image_file, run_agent};

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

async fn started() -> World {
    let world = World::new().await;
    world.good(&["run", "svc", "--name", "p", "--on", "a"]).await;
    world
}

/// The service runs on `node` under `epoch`, and nothing of it is elsewhere.
async fn runs_on(world: &World, node: &str, epoch: u64) {
    let service = world.service("p").await;
    assert_eq!((service.node.as_deref(), service.epoch), (Some(node), epoch));
    assert_eq!((service.state, service.migration), (ServiceState::Running, None));
    let other = if node == "a" { "b" } else { "a" };
    assert_eq!(world.instance(other, "p").await.map(|instance| instance.state), None);
    let here = world.instance(node, "p").await.unwrap();
    assert_eq!((here.state, here.epoch), (InstanceState::Running, epoch));
    let connections = world.good(&["conns", "p"]).await;
    assert_eq!(connections.lines().count(), 3, "{connections}");
    world.assert_one_at_a_time();
}

#[tokio::test(flavor = "multi_thread")]
async fn there_and_back_again() {
    let world = started().await;
    let before = world.service("p").await.spec;
    world.journal.take();
    let timeline = world.path("t.svg");
    let said =
        world.good(&["migrate", "p", "--to", "b", "--timeline", timeline.to_str().unwrap()]).await;
    for phase in host_tools::migration::TABLE {
        assert!(said.contains(phase.phase.name()), "{said}");
    }
    assert!(said.contains("2 of 2 resumed") && said.contains("frames held       3"), "{said}");
    assert!(std::fs::read_to_string(timeline).unwrap().contains("frozen"));
    runs_on(&world, "b", 2).await;
    // Who may speak when, and when frames reach both. The source's end of the mirror is made while the
    // destination boots, and the ends go when their tasks do: their places in the order are not fixed.
    let mut journal = world.journal.take();
    let loose = ["a wire", "a wire gone", "b wire gone"];
    journal.retain(|line| !loose.contains(&line.as_str()));
    let expected =
        ["b plug closed", "b wire", "a listen", "a mark", "a close", "b open", "a unplug"];
    assert_eq!(journal, expected);
    world.good(&["migrate", "p", "--to", "a"]).await;
    runs_on(&world, "a", 3).await;
    assert_eq!(world.service("p").await.spec, before, "address, MAC and all the rest stay");
    // The log is one, in order, over three instances.
    let log = world.good(&["logs", "p"]).await;
    let lines: Vec<&str> = log.lines().collect();
    assert_eq!(
        lines,
        [
            "scripted guest up, Running",
            "scripted guest up, Standby",
            "scripted guest resumed, epoch 2",
            "scripted guest up, Standby",
            "scripted guest resumed, epoch 3",
        ]
    );
    let moves = world.good(&["migration", "ls"]).await;
    assert_eq!(moves.matches("moved").count(), 2, "{moves}");
    assert_eq!(files(&world.path("a").join("ram")), [] as [String; 0], "memory has no name");
    world.good(&["stop", "p"]).await;
    assert_eq!(files(&world.path("a").join("run")), [] as [String; 0]);
    world.bad(&["inspect", "p"], 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_destination_that_dies_before_the_commit_leaves_the_source_serving() {
    let world = started().await;
    let pid_of_b = world.pid_file("b");
    let on_source = |order| (order, Deed::Kill(pid_of_b.clone()));
    let mut epoch = 1;
    for (phase, source, destination) in [
        ("prepare", vec![], vec![("ready", Deed::Die)]),
        ("precopy", vec![on_source("scan")], vec![]),
        ("drain", vec![on_source("drain")], vec![]),
        ("freeze", vec![on_source("freeze")], vec![]),
        ("transfer", vec![on_source("stop")], vec![]),
    ] {
        world.script("a", &source);
        world.script("b", &destination);
        let said = world.bad(&["migrate", "p", "--to", "b"], 7).await;
        // A scripted guest is frozen in no time: the end of the standby may be seen only after the commit.
        let late = said.contains(&format!("p runs on node a again, under epoch {}", epoch + 2));
        if late && ["freeze", "transfer"].contains(&phase) {
            epoch += 2;
        } else {
            let kept = "p runs on node a as before, its connections open";
            assert!(said.contains(kept), "{phase}: {said}");
        }
        world.script("a", &[]);
        world.script("b", &[]);
        runs_on(&world, "a", epoch).await;
    }
    world.good(&["migrate", "p", "--to", "b"]).await;
    runs_on(&world, "b", epoch + 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_dies_is_not_said_to_serve_on() {
    let world = started().await;
    world.script("a", &[("scan", Deed::Die)]);
    let said = world.bad(&["migrate", "p", "--to", "b"], 1).await;
    assert!(said.contains("p does not run"), "{said}");
    assert_eq!(world.service("p").await.state, ServiceState::Failed);
    let said = world.bad(&["migrate", "p", "--to", "b"], 4).await;
    assert!(said.contains("does not run on node a: QEMU ended"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_does_not_play_along_fails_the_move_and_serves_on() {
    let world = started().await;
    for (deeds, reason) in [
        (("scan", Deed::Refuse), "refused scan"),
        (("scan", Deed::BadRange), "does not lie in the guest's"),
        (("drain", Deed::Refuse), "refused drain"),
        (("freeze", Deed::Refuse), "did not come to rest"),
        (("freeze", Deed::BadRange), "does not lie in the guest's"),
        (("freeze", Deed::Silence), "did not answer freeze within"),
    ] {
        world.script("a", std::slice::from_ref(&deeds));
        let said = world.bad(&["migrate", "p", "--to", "b"], 7).await;
        assert!(said.contains(reason), "{deeds:?}: {said}");
        world.script("a", &[]);
        runs_on(&world, "a", 1).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_from_a_guest_is_counted_and_the_move_goes_on() {
    let world = started().await;
    world.script("a", &[("drain", Deed::Garbage)]);
    world.script("b", &[("ready", Deed::Garbage)]);
    world.bad(&["conns", "nobody"], 3).await;
    world.good(&["migrate", "p", "--to", "b"]).await;
    runs_on(&world, "b", 2).await;
    assert!(world.instance("b", "p").await.unwrap().refused_frames > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_destination_that_refuses_after_the_commit_gives_the_service_back() {
    let world = started().await;
    world.script("b", &[("resume", Deed::Refuse)]);
    let said = world.bad(&["migrate", "p", "--to", "b"], 7).await;
    assert!(said.contains("p runs on node a again, under epoch 3"), "{said}");
    runs_on(&world, "a", 3).await;
    // The same if it dies at that moment.
    world.script("b", &[("resume", Deed::Die)]);
    world.bad(&["migrate", "p", "--to", "b"], 7).await;
    runs_on(&world, "a", 5).await;
    world.script("b", &[]);
    world.good(&["migrate", "p", "--to", "b"]).await;
    runs_on(&world, "b", 6).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_is_refused_with_its_reason() {
    let mut world = started().await;
    for (line, code, reason) in [
        ("migrate p --to a", 4, "already runs on node a"),
        ("migrate p --to c", 3, "known nodes: a, b"),
        ("migrate q --to b", 3, "there is no service `q`"),
        ("run svc --name p --on b", 4, "a service `p` exists already"),
        ("run svc --name q --on b --ip 10.77.0.50", 4, "belongs to the service `p`"),
        ("run svc --name q --on b --ip 10.99.0.1", 5, "no address of the services' network"),
        ("run nothing --name q --on b", 3, "there is no image `nothing`"),
        ("run svc --name q --on b --memory 33M", 5, "too little"),
        ("run svc --name q --on b --memory 2000M", 4, "not enough memory"),
        ("run svc --name Q --on b", 5, "is no name"),
        ("restore -i /nonexistent --on b", 3, "no file"),
    ] {
        let words: Vec<&str> = line.split(' ').collect();
        let said = world.bad(&words, code).await;
        assert!(said.contains(reason), "{line}: {said}");
        runs_on(&world, "a", 1).await;
    }
    // A destination without memory for it, then one that is gone.
    world.good(&["run", "svc", "--name", "big", "--on", "b", "--memory", "900M"]).await;
    let said = world.bad(&["migrate", "p", "--to", "b"], 7).await;
    assert!(said.contains("not enough memory"), "{said}");
    world.kill("b");
    let said = world.bad(&["migrate", "p", "--to", "b"], 7).await;
    assert!(said.contains("node b cannot be reached"), "{said}");
    let connections = world.good(&["conns", "p"]).await;
    assert_eq!(connections.lines().count(), 3, "{connections}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_sleeps_in_a_file_and_wakes_elsewhere() {
    let world = started().await;
    let file = world.path("p.snapshot");
    let file = file.to_str().unwrap();
    world.good(&["checkpoint", "p", "-e", file, "--leave-running"]).await;
    runs_on(&world, "a", 1).await;
    world.good(&["checkpoint", "p", "-e", file]).await;
    assert_eq!(world.service("p").await.state, ServiceState::Suspended);
    assert_eq!(world.instance("a", "p").await.map(|instance| instance.state), None);
    world.bad(&["migrate", "p", "--to", "b"], 4).await;
    let said = world.good(&["restore", "-i", file, "--on", "b"]).await;
    assert!(said.contains("2 connections go on"), "{said}");
    runs_on(&world, "b", 3).await;
    let log = world.good(&["logs", "p"]).await;
    assert!(log.starts_with("scripted guest up, Running\n"), "{log}");
    assert!(log.ends_with("scripted guest resumed, epoch 3\n"), "{log}");
    // While it runs, its snapshot cannot run too, under whatever name.
    world.bad(&["restore", "-i", file, "--on", "a"], 4).await;
    world.bad(&["restore", "-i", file, "--on", "a", "--name", "q"], 4).await;
    runs_on(&world, "b", 3).await;
    // Damaged or of an unknown image: refused.
    let good = std::fs::read(file).unwrap();
    let bad_file = world.path("bad");
    let mut flipped = good.clone();
    flipped[good.len() / 2] ^= 1;
    for (bytes, reason) in [(&good[..4096], "bytes"), (&flipped, "digest"), (b"", "shorter")] {
        std::fs::write(&bad_file, bytes).unwrap();
        let said = world.bad(&["restore", "-i", bad_file.to_str().unwrap(), "--on", "a"], 5).await;
        assert!(said.contains(reason), "{said}");
    }
    world.good(&["stop", "p"]).await;
    world.good(&["image", "rm", "svc"]).await;
    let other = world.path("other");
    std::fs::write(&other, image_file(9)).unwrap();
    world.good(&["image", "push", other.to_str().unwrap(), "other"]).await;
    let said = world.bad(&["restore", "-i", file, "--on", "a"], 3).await;
    assert!(said.contains("not in the service repository"), "{said}");
    // With its image back it wakes, under an epoch that was never used.
    std::fs::write(&other, image_file(7)).unwrap();
    world.good(&["image", "push", other.to_str().unwrap(), "again"]).await;
    world.good(&["restore", "-i", file, "--on", "a"]).await;
    runs_on(&world, "a", 4).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_ends_by_itself_is_seen() {
    let world = started().await;
    world.script("a", &[("connections", Deed::Die)]);
    world.bad(&["conns", "p"], 1).await;
    world.script("a", &[]);
    let limit = std::time::Duration::from_secs(10);
    let failed = async {
        while world.service("p").await.state != ServiceState::Failed {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(limit, failed).await.unwrap();
    let said = world.good(&["inspect", "p"]).await;
    assert!(said.contains("QEMU ended"), "{said}");
    world.good(&["stop", "p"]).await;
    world.good(&["run", "svc", "--name", "p", "--on", "b"]).await;
    runs_on(&world, "b", 1).await;
}
