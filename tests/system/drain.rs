//! A host with eight services under load is drained.

use std::time::Duration;

use ferry_tests::harness::Client;
use ferry_tests::harness::counters::Counters;

use crate::report;

/// How long a client may take to end.
const LIMIT: Duration = Duration::from_secs(90);

#[test]
fn a_host_with_eight_services_under_load_is_drained() {
    let world = ferry_tests::harness::World::start(env!("CARGO_TARGET_TMPDIR"), "drain", 3);
    let before = Counters::read(&world);
    let load: [(&str, u16, &[&str]); 4] = [
        ("pingpong", 7, &["pingpong", "--connections", "20", "--think-ms", "50"]),
        ("pingpong", 7, &["hold", "--connections", "50"]),
        ("transfer", 80, &["download", "--bytes", "2000000", "--rate", "1000000", "--again"]),
        ("transfer", 80, &["upload", "--bytes", "2000000", "--rate", "1000000", "--again"]),
    ];
    let clients: Vec<Client> = (0..8)
        .map(|i| {
            let (image, port, arguments) = load[i % load.len()];
            let (name, ip) = (format!("s{i}"), format!("10.77.0.{}", 50 + i));
            let service = world.service(image, &name, "a", &ip, &[]);
            Client::start(&world, &[arguments, &["--connect", &service.at(port)]].concat())
        })
        .collect();

    let (code, out, err) =
        world.try_run(&["node", "drain", "a", "-o", "json"], Duration::from_secs(120));
    assert_eq!(code, Some(0), "{out}{err}");
    let events: Vec<serde_json::Value> =
        out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let last = events.last().unwrap();
    assert_eq!((&last["moved"], &last["stayed"]), (&8.into(), &0.into()), "{last}");
    let moved: Vec<_> = events.iter().filter(|event| event["event"] == "moved").collect();
    assert_eq!(moved.len(), 8);
    assert!(world.guests("a").is_empty(), "a guest is left on the drained host");
    // By the memory they take they are spread over the other two.
    let on_b = moved.iter().filter(|event| event["to"] == "b").count();
    assert_eq!((on_b, world.guests("b").len(), world.guests("c").len()), (4, 4, 4));

    for client in clients {
        let end = client.end(LIMIT);
        assert!(end.flawless(), "{end:?}");
        assert_eq!((end.resets, end.damaged), (0, 0));
        report(&format!(
            "{} x{}: longest gap of a connection {:.0} ms",
            end.client, end.connections, end.gap_ms.max
        ));
    }
    let names = ["TcpEstabResets", "TcpOutRsts", "TcpExtTCPAbortOnTimeout"];
    let grown = Counters::read(&world).grown(&before, &names);
    assert!(grown.is_empty(), "{grown:?}");
}
