//! Many services: placing them, draining a node, rebalancing.

use host_tools::api::Node;

use crate::scripted::qemu::Deed;
use crate::scripted::world::World;

/// Which node each of these services runs on.
async fn nodes_of(world: &World, names: &[&str]) -> String {
    let mut nodes = Vec::new();
    for name in names {
        let node = world.service(name).await.node.unwrap();
        assert!(world.instance(&node, name).await.is_some(), "{name} on {node}");
        let other = if node == "a" { "b" } else { "a" };
        assert!(world.instance(other, name).await.is_none(), "{name} also on {other}");
        nodes.push(node);
    }
    nodes.concat()
}

async fn drained(world: &World, name: &str) -> bool {
    let nodes: Vec<Node> = world.client().get("/v1/nodes").await.unwrap();
    nodes.iter().find(|node| node.report.name == name).unwrap().drained
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drained_node_is_left_as_far_as_there_is_room() {
    let world = World::new().await;
    // On node b, of 1000 MiB, there is room for two of the three.
    for (name, node, memory) in
        [("own", "b", "200M"), ("big", "a", "500M"), ("p", "a", "64M"), ("q", "a", "64M")]
    {
        world.good(&["run", "svc", "--name", name, "--on", node, "--memory", memory]).await;
    }
    let plan = world.run(&["node", "drain", "a", "--dry-run"]).await;
    assert_eq!(plan.status.code(), Some(1));
    let plan = String::from_utf8(plan.stdout).unwrap();
    assert!(plan.starts_with("big: a → b\np: a → b\nq was not moved: no other node"), "{plan}");
    assert!(plan.ends_with("2 would be moved, 1 not\n"), "{plan}");
    assert!(!drained(&world, "a").await);
    assert_eq!(nodes_of(&world, &["big", "p", "q"]).await, "aaa");

    let said = world.run(&["node", "drain", "a", "--parallel", "1"]).await;
    assert_eq!(said.status.code(), Some(1));
    let said = String::from_utf8(said.stdout).unwrap();
    assert!(said.contains("p runs on node b; freeze → resume "), "{said}");
    assert!(said.contains("MiB of memory to give; it runs on node a as before\n"), "{said}");
    assert!(said.ends_with("2 moved, 1 not\n"), "{said}");
    assert!(drained(&world, "a").await);
    assert_eq!(nodes_of(&world, &["big", "p", "q"]).await, "bba");

    // Nothing comes back before it is undrained.
    for line in ["run svc --name r --on a", "migrate p --to a"] {
        let words: Vec<&str> = line.split(' ').collect();
        let said = world.bad(&words, 4).await;
        assert!(said.contains("node a is drained and takes no services"), "{line}: {said}");
    }
    let table = world.good(&["node", "ls"]).await;
    assert_eq!(table.lines().filter(|line| line.contains("drained")).count(), 1, "{table}");
    world.good(&["node", "undrain", "a"]).await;
    world.good(&["migrate", "p", "--to", "a"]).await;
    assert_eq!(nodes_of(&world, &["big", "p", "q"]).await, "baa");
    world.bad(&["node", "drain", "nowhere"], 3).await;
    world.bad(&["node", "undrain", "nowhere"], 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_cannot_move_stays_and_the_others_go() {
    let world = World::new().await;
    for name in ["p", "q", "r"] {
        world.good(&["run", "svc", "--name", name, "--on", "a"]).await;
    }
    // No standby comes up.
    world.script("b", &[("ready", Deed::Die)]);
    let said = world.run(&["node", "drain", "a", "-o", "json"]).await;
    assert_eq!(said.status.code(), Some(1));
    let lines = String::from_utf8(said.stdout).unwrap();
    let last: serde_json::Value = serde_json::from_str(lines.lines().last().unwrap()).unwrap();
    assert_eq!(last, serde_json::json!({"event": "ended", "moved": 0, "stayed": 3}));
    assert_eq!(nodes_of(&world, &["p", "q", "r"]).await, "aaa");
    world.script("b", &[]);
    world.good(&["node", "drain", "a"]).await;
    assert_eq!(nodes_of(&world, &["p", "q", "r"]).await, "bbb");
    let again = world.good(&["node", "drain", "a"]).await;
    assert_eq!(again, "there is nothing to move\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn services_are_placed_and_rebalanced() {
    let world = World::new().await;
    for name in ["p", "q"] {
        world.good(&["run", "svc", "--name", name]).await;
    }
    assert_eq!(nodes_of(&world, &["p", "q"]).await, "ab");
    world.good(&["migrate", "q", "--to", "a"]).await;
    for name in ["r", "s"] {
        world.good(&["run", "svc", "--name", name, "--on", "a"]).await;
    }
    let plan = world.good(&["rebalance", "--dry-run"]).await;
    assert_eq!(plan, "p: a → b\nq: a → b\n2 would be moved\n");
    world.good(&["rebalance"]).await;
    assert_eq!(nodes_of(&world, &["p", "q", "r", "s"]).await, "bbaa");
    assert_eq!(world.good(&["rebalance"]).await, "there is nothing to move\n");
    let said = world.bad(&["run", "svc", "--name", "t", "--memory", "990M"], 4).await;
    assert!(said.contains("no node has 1054 MiB of memory to give"), "{said}");
}
