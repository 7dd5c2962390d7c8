//! A host with eight services under load is drained.

use std::time::Duration;

use crate::load::Load;

#[test]
fn a_host_with_eight_services_under_load_is_drained() {
    let world = ferry_tests::harness::World::start(env!("CARGO_TARGET_TMPDIR"), "drain", 3);
    let load = Load::start(&world, 8);

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

    load.end_flawlessly(&world);
}
