//! Runs the scenario against a service, with a shell command that moves it.

use std::path::PathBuf;
use std::process::{Command, ExitCode};

use clap::{Parser, ValueEnum};
use ferry_browser::browser::CHROMIUM;
use ferry_browser::scenario::{Report, Scenario};

/// Two people in headless Chromium type into one document of `notes` while a command moves the
/// service. Fails if a live connection is reopened, a keystroke lost, or the texts differ.
#[derive(Parser)]
#[command(name = "notes-browser")]
struct Arguments {
    /// Where the service is, as http://ADDRESS or http://ADDRESS:PORT
    #[arg(long, env = "FERRY_NOTES_URL")]
    url: String,

    /// Shell command that moves the service; gets the move's number, from 1, as $MOVE
    #[arg(long, env = "FERRY_NOTES_HOOK")]
    hook: Option<String>,

    /// How often the command is run
    #[arg(long, default_value_t = 3)]
    moves: usize,

    /// Keys that each person presses before, between and after the moves
    #[arg(long, default_value_t = 120)]
    keys: usize,

    /// The browser
    #[arg(long, default_value = CHROMIUM)]
    chromium: String,

    /// Folder for pictures of the page
    #[arg(long, default_value = "target/browser")]
    pictures: PathBuf,

    /// How the result is printed
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

#[derive(Clone, Copy, ValueEnum)]
enum Output {
    Text,
    Json,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let hook = |number: usize| match &arguments.hook {
        Some(command) => run_hook(command, number),
        None => Ok(()),
    };
    let scenario = Scenario {
        url: arguments.url.clone(),
        chromium: arguments.chromium.clone(),
        moves: if arguments.hook.is_some() { arguments.moves } else { 0 },
        keys: arguments.keys,
        pictures: Some(arguments.pictures.clone()),
    };
    match scenario.run(hook) {
        Ok(report) => {
            match arguments.output {
                Output::Text => print(&report),
                Output::Json => println!("{}", serde_json::json!(report)),
            }
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("notes-browser: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The command's own output goes to standard error: standard output is for the result.
fn run_hook(command: &str, number: usize) -> Result<(), String> {
    let output = Command::new("sh")
        .args(["-c", command])
        .env("MOVE", number.to_string())
        .output()
        .map_err(|error| format!("cannot run `{command}`: {error}"))?;
    let words = [output.stdout, output.stderr].concat();
    let words = String::from_utf8_lossy(&words);
    eprint!("{words}");
    if output.status.success() {
        Ok(())
    } else {
        Err(format!("`{command}` failed with {}:\n{words}", output.status))
    }
}

fn print(report: &Report) {
    println!("{}", report.browser);
    for person in &report.people {
        println!(
            "{}: {} keys, none lost; live connection never reopened; longest answer {:.0} ms \
             ({:.0} ms before the first move)",
            person.name, person.keys, person.longest_answer_ms, person.longest_answer_before_ms
        );
    }
    println!(
        "{} characters, the same on both pages and the server; {} moves took {:?} ms",
        report.characters,
        report.moves_ms.len(),
        report.moves_ms
    );
}
