//! `migrate`, `migration ls` and `show`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};
use hyper::Method;

use super::Done;
use super::args::{EXIT_CODES, EXIT_KEPT};
use super::follow::{self, Told};
use super::output::{Progress, Table, print, print_json, print_json_line};
use crate::api::client::Lines;
use crate::api::{ApiError, Client, MigrateRequest, Migration, MoveEvent, MoveSummary, Problem};
use crate::migration::precopy::{Limits, OnTimeout};
use crate::migration::{Outcome, PhaseRecord};
use crate::snapshot::file::write_atomically;
use crate::timeline::{self, draw::bytes, draw::time};

/// `migrate`.
#[derive(Debug, Args)]
#[expect(missing_docs, reason = "the texts are clap's help")]
pub struct MigrateArgs {
    #[arg(help = "Name of the service")]
    pub name: String,
    #[arg(long, value_name = "NODE", help = "Node to move it to")]
    pub to: String,
    #[arg(
        long,
        value_name = "TIME",
        value_parser = humantime::parse_duration,
        help = "Copy pages until the service would stand still no longer than this, as in 20ms"
    )]
    pub max_downtime: Option<Duration>,
    #[arg(
        long,
        value_name = "TIME",
        value_parser = humantime::parse_duration,
        help = "Time until the service has to be ready to be moved, as in 30s"
    )]
    pub timeout: Option<Duration>,
    #[arg(long, value_enum, default_value_t, requires = "timeout", help = "What happens then")]
    pub on_timeout: OnTimeout,
    #[arg(
        long,
        conflicts_with = "timeline",
        help = "Return once the move has begun, with its id; the move goes on"
    )]
    pub detach: bool,
    #[arg(long, help = "Only say what would be in the way, as `check` does")]
    pub dry_run: bool,
    #[arg(long, value_name = "FILE.svg", help = "Draw the phases of the move")]
    pub timeline: Option<PathBuf>,
}

impl MigrateArgs {
    /// What the user allows the move.
    #[must_use]
    pub fn limits(&self) -> Limits {
        let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        Limits {
            max_downtime_us: self.max_downtime.map(micros),
            timeout_us: self.timeout.map(micros),
            on_timeout: self.on_timeout,
        }
    }
}

/// `migration`.
#[derive(Debug, Subcommand)]
pub enum MigrationCommand {
    /// List moves
    Ls,
    /// Show a move
    Show {
        /// Id of the move
        id: String,
        /// Draw the phases of the move
        #[arg(long, value_name = "FILE.svg")]
        timeline: Option<PathBuf>,
    },
    /// Follow a move to its end
    #[command(after_help = EXIT_CODES)]
    Watch {
        /// Id of the move
        id: String,
    },
    /// End a move that has not committed; the service stays where it is, its connections open
    #[command(
        after_help = "Exit code 0: the service serves on its source. 4: the move is over or has \
                      committed, nothing was changed."
    )]
    Cancel {
        /// Id of the move
        id: String,
        /// This node of the move is silent and never comes back: decide without it
        ///
        /// After the commit, the source's copy goes on in place of a destination that is gone; clients may see
        /// an older state of their connections if the destination has spoken to them. A service on a source
        /// that is gone is lost until that returns. The node's agent, if it returns all the same, ends what
        /// no longer belongs to it. Refused until the node's lease has ended: since then nothing runs there, unless
        /// its agent was killed. If in doubt, make sure that the machine is off.
        #[arg(long, value_name = "NODE")]
        host_is_gone: Option<String>,
    },
}

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
    if args.detach {
        progress.clear();
        return begun(&mut lines, json).await;
    }
    let mut told = Told::default();
    follow::show(&mut lines, &mut progress, &mut told, json).await?;
    let Told { id, source, ended } = told;
    if let Some(file) = &args.timeline {
        draw(manager, &id, file).await?;
    }
    let Some((result, summary)) = ended else {
        return Err(follow::lost(&id, ApiError::failed("the stream ended early")));
    };
    let names = Names { service: &args.name, source: &source, destination: &args.to, id: &id };
    if !json && matches!(result, Outcome::Moved { .. }) {
        print(&summary_text(&names, &summary));
    }
    finish(&names, &result)
}

/// What a move is about.
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Names<'a> {
    pub service: &'a str,
    pub source: &'a str,
    pub destination: &'a str,
    pub id: &'a str,
}

/// Says which move has begun, and leaves it alone.
async fn begun(lines: &mut Lines, json: bool) -> Done {
    while let Some(event) = lines.next::<MoveEvent>().await? {
        if let MoveEvent::Begun { migration, .. } = &event {
            if json {
                print_json_line(&event)?;
            } else {
                print(&format!("{migration}\n"));
            }
            return Ok(ExitCode::SUCCESS);
        }
    }
    Err(ApiError::failed("the stream ended before the move began"))
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
///
/// # Errors
/// The service does not run, or its owner does not answer.
pub fn finish(names: &Names<'_>, result: &Outcome) -> Done {
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
        .hint(format!("bring node {destination} back, or `host-tools migration cancel {id} --host-is-gone {destination}`"))),
    }
}

async fn draw(manager: &Client, id: &str, file: &Path) -> Result<(), ApiError> {
    let migration: Migration = manager.get(&format!("/v1/migrations/{id}")).await?;
    write_atomically(file, timeline::svg(&migration).as_bytes())
        .map_err(|error| ApiError::failed(format!("{}: {error}", file.display())))
}

/// `migration`.
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
        MigrationCommand::Watch { id } => return follow::watch(manager, &id, json).await,
        MigrationCommand::Cancel { id, host_is_gone } => {
            return follow::cancel(manager, &id, host_is_gone, json).await;
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
