//! `migration watch` and `migration cancel`: a move that is under way.

use std::process::ExitCode;
use std::time::Duration;

use hyper::Method;

use super::Done;
use super::moves::{Names, finish, phase_line};
use super::output::{Progress, print, print_json_line};
use super::services::SHORT;
use crate::api::client::Lines;
use crate::api::{ApiError, CancelRequest, Client, Migration, MoveEvent, MoveSummary, Problem};
use crate::migration::Outcome;

/// Longest wait for the end of a move that was cancelled: its agents may have to be heard first.
const CANCEL_LIMIT: Duration = Duration::from_secs(60);

/// What a move's stream has told.
#[derive(Debug, Default)]
pub struct Told {
    /// Its id.
    pub id: String,
    /// From where.
    pub source: String,
    /// How it ended, if it did.
    pub ended: Option<(Outcome, Box<MoveSummary>)>,
}

/// Shows a move's events to the end of the stream.
///
/// # Errors
/// The stream broke; the move goes on.
pub async fn show(
    lines: &mut Lines,
    progress: &mut Progress,
    told: &mut Told,
    json: bool,
) -> Result<(), ApiError> {
    while let Some(event) =
        lines.next::<MoveEvent>().await.map_err(|error| lost(&told.id, error))?
    {
        if json {
            print_json_line(&event)?;
        }
        match event {
            MoveEvent::Begun { migration, source, .. } => {
                (told.id, told.source) = (migration, source);
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
            MoveEvent::Ended { result, summary } => told.ended = Some((result, summary)),
        }
    }
    progress.clear();
    Ok(())
}

/// The manager is gone, the move is not.
#[must_use]
pub fn lost(id: &str, error: ApiError) -> ApiError {
    ApiError { message: format!("{}; the move {id} goes on without us", error.message), ..error }
        .hint(format!("`host-tools migration watch {id}` follows it"))
}

async fn follow(manager: &Client, id: &str, json: bool) -> Result<Outcome, ApiError> {
    let path = format!("/v1/migrations/{id}/events");
    let mut progress = Progress::new(!json);
    let mut told = Told { id: id.to_owned(), ..Told::default() };
    let mut lines = manager.lines(Method::GET, &path, &()).await?;
    show(&mut lines, &mut progress, &mut told, json).await?;
    let early = || lost(id, ApiError::failed("the stream ended early"));
    told.ended.map(|(result, _)| result).ok_or_else(early)
}

/// `migration watch`.
///
/// # Errors
/// There is no such move, or the manager was lost.
pub async fn watch(manager: &Client, id: &str, json: bool) -> Done {
    let migration: Migration = manager.get(&format!("/v1/migrations/{id}")).await?;
    let Migration { service, source, destination, .. } = &migration;
    if !json {
        print(&format!("{id}: {service} from {source} to {destination}\n"));
    }
    let result = follow(manager, id, json).await?;
    if let Outcome::Moved { epoch } = result
        && !json
    {
        print(&format!("{service} runs on node {destination}, epoch {epoch}\n"));
    }
    finish(&Names { service, source, destination, id }, &result)
}

/// `migration cancel`.
///
/// # Errors
/// It is too late, or it is not over yet.
pub async fn cancel(manager: &Client, id: &str, host_is_gone: Option<String>, json: bool) -> Done {
    let migration: Migration = manager.get(&format!("/v1/migrations/{id}")).await?;
    let Migration { service, source, destination, .. } = &migration;
    let request = CancelRequest { host_is_gone };
    let path = format!("/v1/migrations/{id}/cancel");
    manager.json::<()>(Method::POST, &path, &request, SHORT).await?;
    let followed = tokio::time::timeout(CANCEL_LIMIT, follow(manager, id, json)).await;
    let result = followed.map_err(|_| {
        ApiError::new(
            Problem::Unreachable,
            format!(
                "the move {id} does not commit any more, and is not over after {} s: a node of it does not answer",
                CANCEL_LIMIT.as_secs()
            ),
        )
        .hint(format!(
            "`host-tools migration watch {id}` shows for what it waits; if that node never comes back: \
             `host-tools migration cancel {id} --host-is-gone NODE`"
        ))
    })??;
    match &result {
        Outcome::Kept { .. } => {
            if !json {
                print(&format!(
                    "the move {id} is cancelled: {service} runs on node {source} as before, its connections open\n"
                ));
            }
            Ok(ExitCode::SUCCESS)
        }
        Outcome::TakenBack { epoch, .. } => {
            if !json {
                print(&format!("{service} runs on node {source} again, under epoch {epoch}\n"));
            }
            Ok(ExitCode::SUCCESS)
        }
        other => finish(&Names { service, source, destination, id }, other),
    }
}
