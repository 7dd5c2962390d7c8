//! What those who watch are told, of a real move.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use host_tools::api::{ServiceState, WatchEvent};
use host_tools::migration::{Outcome, Phase};
use hyper::Method;

use crate::scripted::world::World;
use crate::started;

/// Phases in which moves were seen, until the end of the first.
async fn watched_move(world: &World) -> Vec<Phase> {
    let mut lines = world.client().lines(Method::GET, "/v1/watch", &()).await.unwrap();
    let mut next = async || lines.next::<WatchEvent>().await.unwrap().unwrap();
    let (mut before, mut moves) = (None, None);
    while before.is_none() || moves.is_none() {
        match next().await {
            WatchEvent::Hello { phases, .. } => assert_eq!(phases.len(), 10),
            WatchEvent::Overview(overview) => before = Some(overview),
            WatchEvent::Moves { moves: all } => moves = Some(all.len()),
            WatchEvent::Move(seen) => panic!("nothing moves: {seen:?}"),
        }
    }
    let before = before.unwrap();
    assert_eq!((before.nodes.len(), moves), (2, Some(0)));
    let seen = &before.services[0];
    assert_eq!((seen.service.node.as_deref(), seen.connections), (Some("a"), Some(2)));

    let moving = world.good(&["migrate", "p", "--to", "b"]);
    let watching = async {
        let (mut phases, mut ended) = (Vec::new(), false);
        loop {
            match next().await {
                WatchEvent::Move(seen) => {
                    phases.extend(seen.migration.phase);
                    if let Some(result) = seen.migration.result {
                        assert_eq!(result, Outcome::Moved { epoch: 2 });
                        assert_eq!(seen.migration.phases.len(), 10);
                        ended = true;
                    }
                }
                WatchEvent::Overview(overview) => {
                    let seen = &overview.services[0];
                    let there = seen.service.node.as_deref() == Some("b");
                    if ended && there && seen.service.state == ServiceState::Running {
                        return phases;
                    }
                }
                other => panic!("{other:?}"),
            }
        }
    };
    let (_, phases) = tokio::join!(moving, watching);
    phases
}

#[tokio::test(flavor = "multi_thread")]
async fn a_move_is_seen_as_it_happens_and_counted_when_it_has() {
    let world = started().await;
    let phases = watched_move(&world).await;
    assert!(phases.is_sorted(), "{phases:?}");
    for phase in [Phase::Request, Phase::Prepare, Phase::Precopy, Phase::Drain, Phase::Remove] {
        assert!(phases.contains(&phase), "{phases:?}");
    }

    let text = world.client().download("/metrics", 1 << 20).await.unwrap();
    let text = String::from_utf8(text).unwrap();
    for line in [
        "ferry_moves_total{outcome=\"moved\"} 1",
        "ferry_moves_under_way 0",
        "ferry_nodes{state=\"ready\"} 2",
        "ferry_services{state=\"running\"} 1",
        "ferry_service_connections{service=\"p\"} 2",
        "ferry_move_frozen_seconds_count 1",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\n{text}");
    }
    let text = world.agent("b").download("/metrics", 1 << 20).await.unwrap();
    let text = String::from_utf8(text).unwrap();
    for line in [
        "ferry_agent_standby_boots_total{result=\"started\"} 1",
        "ferry_agent_connections{service=\"p\"} 2",
        "ferry_agent_instances{state=\"running\"} 1",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\n{text}");
    }

    let frame = world.good(&["top", "--once"]).await;
    assert!(frame.contains("2 of 2 hosts up · 1 services · 2 connections"), "{frame}");
    assert!(frame.contains(" m1 p") && frame.contains("moved"), "{frame}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_is_passed_on_to_a_browser_and_nothing_else_is() {
    let world = started().await;
    let mut web = world.command(&["web", "-o", "json"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(web.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let told: serde_json::Value = serde_json::from_str(&line).unwrap();
    let url = told["url"].as_str().unwrap().strip_prefix("http://").unwrap().to_owned();
    let (host, path) = url.split_once('/').unwrap();
    let browser = host_tools::api::Client::new(
        host.parse::<host_tools::wire::Address>().unwrap(),
        "the page",
    );
    let get = async |path: &str| {
        browser.download(path, 1 << 20).await.map(|bytes| String::from_utf8(bytes).unwrap())
    };
    let page = get(&format!("/{path}")).await.unwrap();
    assert!(page.contains("<title>Ferry</title>"), "{page}");
    let overview = get(&format!("/{path}v1/overview")).await.unwrap();
    assert!(overview.contains("\"connections\":2"), "{overview}");
    for refused in ["/", "/v1/overview", &format!("/{path}v1/services"), &format!("/{path}metrics")]
    {
        assert!(get(refused).await.is_err(), "{refused}");
    }
    web.kill().unwrap();
    web.wait().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn one_trace_leads_from_the_command_to_both_agents() {
    let world = started().await;
    let id = "4bf92f3577b34da6a3ce929d0e0e4736";
    let mut command = world.command(&["migrate", "p", "--to", "b"]);
    command.env("TRACEPARENT", format!("00-{id}-00f067aa0ba902b7-01"));
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    assert!(output.status.success());
    let story = world.story();
    for (daemon, words) in [
        ("manager", "move m1: p goes from a to b"),
        ("a", "move m1 has ended: Moved"),
        ("b", "a standby is started for move m1"),
    ] {
        let said =
            story.split("--- ").find(|part| part.starts_with(&format!("{daemon}\n"))).unwrap();
        let line = said.lines().find(|line| line.contains(words));
        assert!(line.is_some_and(|line| line.contains(id)), "{daemon}: {words}\n{story}");
    }
}
