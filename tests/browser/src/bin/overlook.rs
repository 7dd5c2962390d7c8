//! Looks at the manager's page while a shell command moves a service.

use std::path::PathBuf;
use std::process::{Command, ExitCode};

use clap::Parser;
use ferry_browser::browser::CHROMIUM;
use ferry_browser::overlook::Overlook;

/// Somebody looks at the manager's page in headless Chromium while a command moves a service. Fails if the
/// move is not seen as it happens, or if the page is not as usable as it must be.
#[derive(Parser)]
#[command(name = "overlook-browser")]
struct Arguments {
    /// The page, as `host-tools web` prints it
    #[arg(long)]
    url: String,

    /// Service that is moved
    #[arg(long)]
    service: String,

    /// Where it is
    #[arg(long)]
    from: String,

    /// Where it is moved to
    #[arg(long)]
    to: String,

    /// Shell command that moves it
    #[arg(long)]
    hook: String,

    /// Shell command that ends the manager and starts it again
    #[arg(long)]
    restart: Option<String>,

    /// The browser
    #[arg(long, default_value = CHROMIUM)]
    chromium: String,

    /// Folder for pictures of the page
    #[arg(long, default_value = "target/browser")]
    pictures: PathBuf,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let overlook = Overlook {
        url: arguments.url,
        chromium: arguments.chromium,
        service: arguments.service,
        from: arguments.from,
        to: arguments.to,
        pictures: arguments.pictures,
    };
    let restart = arguments.restart;
    let hook = || run(&arguments.hook);
    match overlook.run(hook, || restart.as_deref().map_or(Ok(()), run)) {
        Ok(report) => {
            println!("{report}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("overlook-browser: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: &str) -> Result<(), String> {
    let output = Command::new("sh").args(["-c", command]).output();
    let output = output.map_err(|error| format!("cannot run `{command}`: {error}"))?;
    let words = [output.stdout, output.stderr].concat();
    let words = String::from_utf8_lossy(&words);
    eprint!("{words}");
    let good = output.status.success();
    if good { Ok(()) } else { Err(format!("`{command}` failed with {}:\n{words}", output.status)) }
}
