//! `top`: hosts, services and moves in the terminal, as they change.
//!
//! 1. [`known`]: what the manager's stream has told so far.
//! 2. [`frame`]: one picture of it.

pub mod frame;
pub mod known;

use std::io::IsTerminal;
use std::process::ExitCode;
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

use clap::Args;
use hyper::Method;
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::crossterm::terminal;

use super::Done;
use super::output::print;
use crate::api::{ApiError, Client, WatchEvent};
use crate::wire::Pause;
use known::Known;

/// How often the frame is drawn anew although nothing was told: times go on.
const REDRAW: Duration = Duration::from_millis(250);
/// First and longest pause before a manager that is gone is asked again.
const RETRY: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(2));
/// Longest wait for the whole of the present state.
const FIRST_LIMIT: Duration = Duration::from_secs(10);
/// A frame where no terminal says how large it is.
const SIZE: (u16, u16) = (80, 24);

/// `top`.
#[derive(Clone, Copy, Debug, Args)]
#[expect(missing_docs, reason = "the texts are clap's help")]
pub struct TopArgs {
    #[arg(long, help = "Print one frame and end")]
    pub once: bool,
}

/// What the screen waits for.
enum Input {
    Told(Box<WatchEvent>),
    Lost(String),
    /// The terminal has another size.
    Resized,
    Quit,
}

/// `top`.
///
/// # Errors
/// The manager does not answer, or there is no terminal.
pub async fn top(manager: Client, args: TopArgs) -> Done {
    if args.once {
        return once(&manager).await;
    }
    if !std::io::stdout().is_terminal() {
        return Err(ApiError::invalid("standard output is no terminal")
            .hint("`host-tools top --once` prints one frame"));
    }
    // The first answer is asked for before the screen changes: its errors are for the shell.
    let lines = manager.lines(Method::GET, "/v1/watch", &()).await?;
    let (inputs, received) = std::sync::mpsc::channel();
    let keys = inputs.clone();
    // Ends with the process: it waits for a key that may never come.
    std::thread::spawn(move || read_keys(&keys));
    tokio::spawn(listen(manager, lines, inputs));
    tokio::task::spawn_blocking(move || {
        let mut terminal = ratatui::try_init().map_err(ApiError::failed)?;
        let shown = show(&mut terminal, &received);
        ratatui::restore();
        shown.map_err(ApiError::failed)
    })
    .await
    .map_err(ApiError::failed)??;
    Ok(ExitCode::SUCCESS)
}

fn show(
    terminal: &mut ratatui::DefaultTerminal,
    inputs: &std::sync::mpsc::Receiver<Input>,
) -> std::io::Result<()> {
    let mut known = Known::default();
    loop {
        terminal.draw(|frame| frame::draw(frame, &known, Instant::now()))?;
        match inputs.recv_timeout(REDRAW) {
            Ok(Input::Told(event)) => known.take(*event, Instant::now()),
            Ok(Input::Lost(reason)) => known.lost = Some(reason),
            Ok(Input::Resized) | Err(RecvTimeoutError::Timeout) => {}
            Ok(Input::Quit) | Err(RecvTimeoutError::Disconnected) => return Ok(()),
        }
    }
}

fn read_keys(inputs: &std::sync::mpsc::Sender<Input>) {
    loop {
        let input = match event::read() {
            Ok(Event::Key(key)) if key.kind == KeyEventKind::Press => match key.code {
                KeyCode::Char('q') | KeyCode::Esc => Input::Quit,
                KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => Input::Quit,
                _ => continue,
            },
            Ok(Event::Resize(..)) => Input::Resized,
            Ok(_) => continue,
            Err(_) => Input::Quit,
        };
        if inputs.send(input).is_err() {
            return;
        }
    }
}

/// Passes on what the manager tells; asks again when it was lost.
async fn listen(
    manager: Client,
    mut lines: crate::api::client::Lines,
    inputs: std::sync::mpsc::Sender<Input>,
) {
    loop {
        let reason = loop {
            match lines.next::<WatchEvent>().await {
                Ok(Some(event)) => {
                    if inputs.send(Input::Told(Box::new(event))).is_err() {
                        return;
                    }
                }
                Ok(None) => break "the manager has ended".to_owned(),
                Err(error) => break error.message,
            }
        };
        let mut pause = Pause::growing(RETRY.0, RETRY.1);
        if inputs.send(Input::Lost(reason)).is_err() {
            return;
        }
        lines = loop {
            pause.wait().await;
            match manager.lines(Method::GET, "/v1/watch", &()).await {
                Ok(lines) => break lines,
                Err(error) => {
                    if inputs.send(Input::Lost(error.message)).is_err() {
                        return;
                    }
                }
            }
        };
    }
}

/// One frame, as large as the terminal, as text.
async fn once(manager: &Client) -> Done {
    let mut lines = manager.lines(Method::GET, "/v1/watch", &()).await?;
    let mut known = Known::default();
    let whole = async {
        while !known.is_whole() {
            let Some(event) = lines.next::<WatchEvent>().await? else {
                return Err(ApiError::failed("the stream ended early"));
            };
            known.take(event, Instant::now());
        }
        Ok(())
    };
    match tokio::time::timeout(FIRST_LIMIT, whole).await {
        Ok(result) => result?,
        Err(_) => return Err(ApiError::failed("the manager does not say how things stand")),
    }
    let (width, height) = match terminal::size() {
        Ok((width, height)) if std::io::stdout().is_terminal() && width > 0 => (width, height),
        _ => SIZE,
    };
    let backend = TestBackend::new(width, height);
    let mut terminal = Terminal::new(backend).map_err(ApiError::failed)?;
    let drawn = terminal.draw(|frame| frame::draw(frame, &known, Instant::now()));
    drawn.map_err(ApiError::failed)?;
    print(&frame::text_of(terminal.backend().buffer()));
    Ok(ExitCode::SUCCESS)
}
