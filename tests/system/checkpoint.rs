//! Line 6: a service in a file, and its connections go on when it comes back, anywhere.

use std::time::Duration;

use ferry_tests::harness::{Client, World};

use crate::state::{Talk, counts};
use crate::{IP, report, world};

/// Largest snapshot of `pingpong` with 100 idle connections, in bytes.
const SNAPSHOT_MAX: u64 = 2 << 20;

fn no_guest_runs(world: &World) {
    for host in ["a", "b"] {
        assert!(world.guests(host).is_empty(), "a guest is left on {host}");
        let ports = world.exec(host, &["ip", "-o", "link", "show", "master", "br0"]);
        // The cable to the switch is the only port of the bridge: no guest's tap.
        assert_eq!(ports.lines().count(), 1, "{ports}");
    }
}

#[test]
fn of_100_idle_connections_is_restored_on_the_other_host() {
    let world = world("checkpoint");
    let service = world.service("pingpong", "pp", "a", IP, &[]);
    let hold = ["hold", "--connect", &service.at(7), "--connections", "100"];
    let mut idle = Client::start(&world, &hold);
    let busy = ["pingpong", "--connect", &service.at(7), "--connections", "5"];
    assert_eq!(idle.mark("before").alive, 100);
    let file = world.files().join("pp.snapshot");
    let path = file.to_string_lossy().into_owned();

    world.run(&["checkpoint", "pp", "-e", &path]);
    let size = std::fs::metadata(&file).unwrap().len();
    report(&format!("snapshot of pingpong with 100 idle connections: {size} bytes"));
    assert!(size <= SNAPSHOT_MAX, "{size} bytes");
    no_guest_runs(&world);

    world.run(&["restore", "-i", &path, "--on", "b"]);
    let seen = idle.mark("after");
    assert_eq!(seen.alive, 100, "{seen:?}");

    // The same under traffic, and back: the clients wait while nothing runs, and go on.
    let talking = Client::start(&world, &busy);
    world.run(&["checkpoint", "pp", "-e", &path]);
    no_guest_runs(&world);
    world.run(&["restore", "-i", &path, "--on", "a"]);
    let end = talking.end(Duration::from_secs(90));
    assert!(end.flawless(), "{end:?}");
    report(&format!("pingpong across checkpoint and restore: gap {:.0} ms", end.gap_ms.max));
    assert!(idle.end(Duration::from_secs(90)).flawless());
}

#[test]
fn two_restores_do_not_share_random_numbers() {
    let world = world("twice");
    let _service = world.service("stateful", "st", "a", IP, &[]);
    let mut talk = Talk::open(&world, IP, 7000);
    counts(&talk.ask("tick"), 1);
    let before = talk.ask("random")["random"].clone();
    let file = world.files().join("st.snapshot");
    let path = file.to_string_lossy().into_owned();
    world.run(&["checkpoint", "st", "-e", &path]);
    let mut drawn = vec![before];
    for node in ["b", "a"] {
        world.run(&["restore", "-i", &path, "--on", node]);
        let mut fresh = Talk::open(&world, IP, 7000);
        counts(&fresh.ask("state"), 1);
        drawn.push(fresh.ask("random")["random"].clone());
        drawn.push(fresh.ask("random")["random"].clone());
        world.run(&["stop", "st"]);
    }
    let mut distinct: Vec<String> = drawn.iter().map(ToString::to_string).collect();
    distinct.sort();
    distinct.dedup();
    assert_eq!(distinct.len(), drawn.len(), "{drawn:?}");
    assert!(drawn.iter().all(|d| d.as_str().is_some_and(|s| s.len() == 64)), "{drawn:?}");
}
