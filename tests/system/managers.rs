//! Several managers and an etcd of three members: whichever of them dies, the work goes on.

use std::time::{Duration, Instant};

use ferry_tests::harness::{World, output_within};
use rustix::process::Signal;

use crate::load::Load;
use crate::{report, signal};

/// Longest time until something is as it has to be.
const LIMIT: Duration = Duration::from_secs(90);
/// Longest time for a drain.
const DRAIN_LIMIT: Duration = Duration::from_secs(180);
/// How often a metric is looked at.
const LOOK: Duration = Duration::from_millis(100);

fn world(name: &str) -> World {
    World::with_managers(env!("CARGO_TARGET_TMPDIR"), name, 3, 3)
}

fn kill(world: &World, node: &str) {
    signal(world, node, Signal::KILL);
}

/// The member of etcd that leads, as it says itself.
fn leading_member(world: &World) -> String {
    let begun = Instant::now();
    while begun.elapsed() < LIMIT {
        for member in 1..=3 {
            let node = format!("etcd{member}");
            let files = world.dir().join("manager");
            let file = |name: &str| files.join(name).to_string_lossy().into_owned();
            let (ca, certificate, key) =
                (file("etcd-ca.pem"), file("etcd-cert.pem"), file("etcd-key.pem"));
            let url = format!("https://10.77.0.{}:2379/metrics", 4 + member);
            let curl = ["curl", "-sS", "--max-time", "5", "--cacert", &ca, "--cert", &certificate];
            let asked = world.in_node("manager", &[&curl[..], &["--key", &key, &url]].concat());
            let answer = output_within(&asked, LIMIT);
            let metrics = String::from_utf8_lossy(&answer.stdout).into_owned();
            if metrics.lines().any(|line| line == "etcd_server_is_leader 1") {
                return node;
            }
        }
        std::thread::sleep(LOOK);
    }
    panic!("no member of etcd leads");
}

#[test]
fn a_drain_goes_on_while_etcd_elects_a_new_leader() {
    let world = world("etcd-drain");
    let load = Load::start(&world, 6);
    let member = leading_member(&world);
    let manager = world.leader();

    let out = std::thread::scope(|scope| {
        let command = world.command(&["node", "drain", "a", "-o", "json"]);
        let drain = scope.spawn(move || output_within(&command, DRAIN_LIMIT));
        // In the midst of it: some services have moved, others have not.
        let begun = Instant::now();
        while world.guests("b").len() + world.guests("c").len() == 0 && begun.elapsed() < LIMIT {
            std::thread::sleep(LOOK);
        }
        kill(&world, &member);
        assert!(!world.guests("a").is_empty(), "the drain was over before its store was harmed");
        drain.join().expect("the drain was waited for")
    });
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let told = String::from_utf8_lossy(&out.stdout).into_owned();
    let last: serde_json::Value = serde_json::from_str(told.lines().last().unwrap()).unwrap();
    assert_eq!((&last["moved"], &last["stayed"]), (&6.into(), &0.into()), "{told}");
    assert!(world.guests("a").is_empty(), "a guest is left on the drained host");
    assert_eq!(world.leader(), manager, "the end of a member of etcd deposed a manager");
    assert_ne!(leading_member(&world), member);

    load.end_flawlessly(&world);
    // The member that was killed comes back to what has happened meanwhile.
    world.run(&["lab", "restart", &member]);
    world.run(&["node", "undrain", "a"]);
}

#[test]
fn another_manager_takes_over_a_move_whose_manager_is_killed() {
    let world = world("managers");
    let load = Load::start(&world, 2);
    let first = world.leader();
    let mut migrate = world.command(&["migrate", "s1", "--to", "b"]);
    migrate.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
    let mut migrate = migrate.spawn().unwrap();
    let begun = Instant::now();
    while world.guests("b").is_empty() && begun.elapsed() < LIMIT {
        std::thread::sleep(LOOK / 10);
    }
    kill(&world, &first);
    let _ = migrate.wait().unwrap();

    let next = world.leader();
    assert_ne!(next, first);
    let begun = Instant::now();
    let result = loop {
        let all = world.json(&["migration", "ls"]);
        let result = all[0]["result"].clone();
        if !result.is_null() || begun.elapsed() > LIMIT {
            break result;
        }
        std::thread::sleep(LOOK);
    };
    let outcome = result["outcome"].as_str().unwrap_or("none");
    assert!(["moved", "kept", "taken-back"].contains(&outcome), "{result}");
    let owner = world.json(&["inspect", "s1"])["node"].as_str().unwrap().to_owned();
    assert_eq!(owner, if outcome == "moved" { "b" } else { "a" });
    assert_eq!(world.guests("a").len() + world.guests("b").len(), 2);
    report(&format!("the manager of {next} took over: the move was {outcome}"));

    // What the new one decides, the old one knows when it leads again.
    let other = if owner == "a" { "b" } else { "a" };
    world.run(&["migrate", "s1", "--to", other]);
    world.run(&["lab", "restart", &first]);
    kill(&world, &next);
    assert_ne!(world.leader(), next);
    assert_eq!(world.json(&["inspect", "s1"])["node"], other);
    load.end_flawlessly(&world);
}
