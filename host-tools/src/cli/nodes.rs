//! `node`, `rebalance`.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use hyper::Method;

use super::Done;
use super::args::EXIT_CODES;
use super::output::{Progress, Table, print, print_json, print_json_line};
use super::services::SHORT;
use crate::api::{ApiError, Client, Node, RelocateEvent, RelocateRequest};
use crate::timeline::draw::time;

/// `node`.
#[derive(Debug, Subcommand)]
pub enum NodeCommand {
    /// List nodes
    Ls,
    /// Move every service off a node, which takes no more until it is undrained
    #[command(after_help = EXIT_CODES)]
    Drain {
        /// Name of the node
        node: String,
        #[command(flatten)]
        #[expect(missing_docs, reason = "flattened: it has texts of its own")]
        how: RelocateArgs,
    },
    /// Let a drained node take services again
    Undrain {
        /// Name of the node
        node: String,
    },
}

/// How many services are moved.
#[derive(Clone, Copy, Debug, Args)]
#[expect(missing_docs, reason = "the texts are clap's help")]
pub struct RelocateArgs {
    #[arg(
        long,
        value_name = "N",
        value_parser = clap::value_parser!(u32).range(1..=64),
        help = "Most moves at one time [default: 2]"
    )]
    pub parallel: Option<u32>,
    #[arg(long, help = "Only say what would be moved where")]
    pub dry_run: bool,
}

/// `node`.
///
/// # Errors
/// There is no such node, or the manager does not answer.
pub async fn node(manager: &Client, command: NodeCommand, json: bool) -> Done {
    match command {
        NodeCommand::Ls => list(manager, json).await,
        NodeCommand::Drain { node, how } => {
            relocate(manager, &format!("/v1/nodes/{node}/drain"), how, json).await
        }
        NodeCommand::Undrain { node } => {
            let path = format!("/v1/nodes/{node}/undrain");
            manager.json::<()>(Method::POST, &path, &(), SHORT).await?;
            if !json {
                print(&format!("node {node} takes services again\n"));
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// `rebalance`.
///
/// # Errors
/// The manager does not answer.
pub async fn rebalance(manager: &Client, how: RelocateArgs, json: bool) -> Done {
    relocate(manager, "/v1/rebalance", how, json).await
}

/// Asks for many moves and tells how they go. The exit code says whether all of them went well.
async fn relocate(manager: &Client, path: &str, how: RelocateArgs, json: bool) -> Done {
    let request = RelocateRequest { parallel: how.parallel, dry_run: how.dry_run };
    let mut progress = Progress::new(!json);
    progress.show("asking the manager");
    let mut lines = manager.lines(Method::POST, path, &request).await?;
    let (mut all, mut done) = (0, 0);
    while let Some(event) = lines.next::<RelocateEvent>().await.map_err(lost)? {
        if json {
            print_json_line(&event)?;
        }
        match &event {
            RelocateEvent::Begun { services } => all = services.len(),
            RelocateEvent::Moved { .. }
            | RelocateEvent::Held { .. }
            | RelocateEvent::Stayed { .. } => done += 1,
            _ => {}
        }
        let text = line(&event, how.dry_run);
        if !json && !text.is_empty() {
            progress.clear();
            print(&text);
        }
        match event {
            RelocateEvent::Moving { service, to, .. } => {
                progress.show(&format!("{done} of {all} done; moving {service} to {to}"));
            }
            RelocateEvent::Ended { stayed, .. } => {
                return Ok(if stayed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE });
            }
            _ => {}
        }
    }
    Err(lost(ApiError::failed("the stream ended early")))
}

fn lost(error: ApiError) -> ApiError {
    ApiError { message: format!("{}; the moves go on without us", error.message), ..error }
        .hint("`host-tools migration ls` tells how they end")
}

fn line(event: &RelocateEvent, dry_run: bool) -> String {
    let moved_word = if dry_run { "would be moved" } else { "moved" };
    match event {
        RelocateEvent::Begun { .. } | RelocateEvent::Moving { .. } => String::new(),
        RelocateEvent::Planned { service, from, to } => format!("{service}: {from} → {to}\n"),
        RelocateEvent::Moved { service, to, freeze_to_resume_us } => {
            format!("{service} runs on node {to}; freeze → resume {}\n", time(*freeze_to_resume_us))
        }
        RelocateEvent::Held { service, to } => {
            format!("{service} sleeps on, node {to} answers for it\n")
        }
        RelocateEvent::Stayed { service, reason } => format!("{service} was not moved: {reason}\n"),
        RelocateEvent::Ended { moved: 0, stayed: 0 } => "there is nothing to move\n".into(),
        RelocateEvent::Ended { moved, stayed: 0 } => format!("{moved} {moved_word}\n"),
        RelocateEvent::Ended { moved, stayed } => format!("{moved} {moved_word}, {stayed} not\n"),
    }
}

async fn list(manager: &Client, json: bool) -> Done {
    let nodes: Vec<Node> = manager.get("/v1/nodes").await?;
    if json {
        print_json(&nodes)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = Table::new(&["NAME", "STATE", "ADDRESS", "INSTANCES", "FREE", "ACCEL"]);
    for Node { report, seen_ms_ago, ready, drained } in nodes {
        let state = match (ready, drained, seen_ms_ago) {
            (true, false, _) => "ready".into(),
            (true, true, _) => "drained".into(),
            (false, _, Some(ms)) => format!("silent for {} s", ms / 1000),
            (false, _, None) => "not heard of yet".into(),
        };
        table.row([
            report.name,
            state,
            report.address,
            report.instances.to_string(),
            format!("{} of {} MiB", report.free_mib, report.memory_mib),
            report.accel.to_string(),
        ]);
    }
    table.print();
    Ok(ExitCode::SUCCESS)
}
