//! `migrate`, `migration`, with progress.

use std::path::Path;
use std::process::ExitCode;

use hyper::Method;

use super::Done;
use super::args::{EXIT_KEPT, MigrateArgs, MigrationCommand};
use super::output::{Progress, Table, print, print_json, print_json_line};
use crate::api::{ApiError, Client, MigrateRequest, Migration, MoveEvent, MoveSummary, Problem};
use crate::migration::{Outcome, PhaseRecord};
use crate::snapshot::file::write_atomically;
use crate::timeline::{self, draw::bytes, draw::time};

/// `migrate`.
///
/// # Errors
/// The move did not begin, or the manager was lost on the way.
pub async fn migrate(manager: &Client, args: MigrateArgs, json: bool) -> Done {
    let path = format!("/v1/services/{}/migrate", args.name);
    let request = MigrateRequest { to: args.to.clone(), limits: args.limits() };
    let mut progress = Progress::new(!json);
    progress.show("asking the manager");
    let mut lines = manager.lines(Method::POST, &path, &request).await?;
    let mut id = String::new();
    let mut source = String::new();
    let mut ended = None;
    while let Some(event) = lines.next::<MoveEvent>().await.map_err(|error| lost(&id, error))? {
        if json {
            print_json_line(&event)?;
        }
        match event {
            MoveEvent::Begun { migration, source: from, .. } => {
                (id, source) = (migration, from);
                if args.detach {
                    progress.clear();
                    if !json {
                        print(&format!("{id}\n"));
                    }
                    return Ok(ExitCode::SUCCESS);
                }
            }
            MoveEvent::Entered { phase } => {
                progress.show(&format!("{phase}: {}", phase.row().does));
            }
            MoveEvent::Waiting { reason } => progress.show(&format!("waiting: {reason}")),
            MoveEvent::Phase(record) => {
                progress.clear();
                if !json {
                    print(&phase_line(&record));
                }
            }
            MoveEvent::Ended { result, summary } => ended = Some((result, summary)),
        }
    }
    progress.clear();
    if let Some(file) = &args.timeline {
        draw(manager, &id, file).await?;
    }
    let Some((result, summary)) = ended else {
        return Err(lost(&id, ApiError::failed("the stream ended early")));
    };
    let names = Names { service: &args.name, source: &source, destination: &args.to, id: &id };
    if !json && matches!(result, Outcome::Moved { .. }) {
        print(&summary_text(&names, &summary));
    }
    finish(&names, &result)
}

fn lost(id: &str, error: ApiError) -> ApiError {
    ApiError { message: format!("{}; the move {id} goes on without us", error.message), ..error }
        .hint(format!("`host-tools migration show {id}` tells how it ended"))
}

struct Names<'a> {
    service: &'a str,
    source: &'a str,
    destination: &'a str,
    id: &'a str,
}

/// One line for a phase: name, time, and what was moved in it.
#[must_use]
pub fn phase_line(record: &PhaseRecord) -> String {
    let moved = match (record.pages, record.bytes) {
        (_, 0) => String::new(),
        (0, len) => bytes(len),
        (pages, len) => format!("{pages} pages, {}", bytes(len)),
    };
    let line = format!(
        "{:9} {:>10}  {moved:24}  {}",
        record.phase,
        time(record.elapsed_us()),
        record.note
    );
    format!("{}\n", line.trim_end())
}

fn summary_text(names: &Names<'_>, summary: &MoveSummary) -> String {
    let Names { service, source, destination, .. } = names;
    format!(
        "{service} moved from {source} to {destination} in {}\n\
         \x20 drain             {}\n\
         \x20 freeze → resume   {}\n\
         \x20 connections       {} of {} resumed\n\
         \x20 frames held       {}\n\
         \x20 pages             {} ({} while frozen), {}\n",
        time(summary.total_us),
        time(summary.drain_us),
        time(summary.freeze_to_resume_us),
        summary.resumed,
        summary.connections,
        summary.held_frames,
        summary.pages,
        summary.frozen_pages,
        bytes(summary.bytes),
    )
}

/// The last word of a move.
fn finish(names: &Names<'_>, result: &Outcome) -> Done {
    let Names { service, source, destination, id } = names;
    match result {
        Outcome::Moved { .. } => Ok(ExitCode::SUCCESS),
        Outcome::Kept { phase, reason } => {
            eprintln!("error: the move of {service} failed in the {phase} phase: {reason}");
            eprintln!("{service} runs on node {source} as before, its connections open");
            Ok(ExitCode::from(EXIT_KEPT))
        }
        Outcome::TakenBack { phase, reason, epoch } => {
            eprintln!("error: the move of {service} failed in the {phase} phase: {reason}");
            eprintln!("{service} runs on node {source} again, under epoch {epoch}");
            Ok(ExitCode::from(EXIT_KEPT))
        }
        Outcome::Broken { phase, reason } => Err(ApiError::new(
            Problem::Failed,
            format!("the move of {service} failed in the {phase} phase: {reason}; {service} does not run"),
        )
        .hint(format!("`host-tools logs {service}` shows its console"))),
        Outcome::Held { phase, reason, epoch } => Err(ApiError::new(
            Problem::Failed,
            format!(
                "node {destination} owns {service} (epoch {epoch}) and does not answer since the {phase} phase: {reason}; \
                 node {source} keeps its frozen copy"
            ),
        )
        .hint(format!("bring node {destination} back; `host-tools migration show {id}` has the details"))),
    }
}

async fn draw(manager: &Client, id: &str, file: &Path) -> Result<(), ApiError> {
    let migration: Migration = manager.get(&format!("/v1/migrations/{id}")).await?;
    write_atomically(file, timeline::svg(&migration).as_bytes())
        .map_err(|error| ApiError::failed(format!("{}: {error}", file.display())))
}

/// `migration ls` and `migration show`.
///
/// # Errors
/// There is no such move.
pub async fn migration(manager: &Client, command: MigrationCommand, json: bool) -> Done {
    match command {
        MigrationCommand::Ls => {
            let all: Vec<Migration> = manager.get("/v1/migrations").await?;
            if json {
                print_json(&all)?;
                return Ok(ExitCode::SUCCESS);
            }
            let headings =
                ["ID", "SERVICE", "FROM", "TO", "RESULT", "TOTAL", "FREEZE-RESUME", "BYTES"];
            let mut table = Table::new(&headings);
            for migration in all {
                let result = result_name(&migration);
                let summary = migration.summary.unwrap_or_default();
                table.row([
                    migration.id,
                    migration.service,
                    migration.source,
                    migration.destination,
                    result,
                    time(summary.total_us),
                    time(summary.freeze_to_resume_us),
                    bytes(summary.bytes),
                ]);
            }
            table.print();
        }
        MigrationCommand::Show { id, timeline } => {
            let migration: Migration = manager.get(&format!("/v1/migrations/{id}")).await?;
            if let Some(file) = timeline {
                draw(manager, &id, &file).await?;
            }
            if json {
                print_json(&migration)?;
                return Ok(ExitCode::SUCCESS);
            }
            show(&migration);
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn result_name(migration: &Migration) -> String {
    match (&migration.result, migration.phase) {
        (Some(Outcome::Moved { .. }), _) => "moved".into(),
        (Some(Outcome::Kept { phase, .. }), _) => format!("failed in {phase}"),
        (Some(Outcome::Broken { phase, .. }), _) => format!("lost in {phase}"),
        (Some(Outcome::TakenBack { phase, .. }), _) => format!("taken back in {phase}"),
        (Some(Outcome::Held { phase, .. }), _) => format!("held in {phase}"),
        (None, Some(phase)) => format!("in {phase}"),
        (None, None) => "beginning".into(),
    }
}

fn show(migration: &Migration) {
    let Migration { id, service, source, destination, .. } = migration;
    print(&format!("{id}: {service} from {source} to {destination}, {}\n", result_name(migration)));
    for record in &migration.phases {
        print(&phase_line(record));
        for (name, us) in &record.steps {
            print(&format!("  {name:24} {:>10}\n", time(*us)));
        }
    }
    match &migration.result {
        Some(Outcome::Moved { .. }) => {
            let names = Names { service, source, destination, id };
            print(&summary_text(&names, &migration.summary.clone().unwrap_or_default()));
        }
        Some(
            Outcome::Kept { reason, .. }
            | Outcome::Broken { reason, .. }
            | Outcome::TakenBack { reason, .. }
            | Outcome::Held { reason, .. },
        ) => print(&format!("reason: {reason}\n")),
        None => {}
    }
}
