//! `suspend` and `resume`.

use std::process::ExitCode;

use clap::Args;
use hyper::Method;

use super::Done;
use super::output::{Progress, age, print, print_json};
use super::services::LONG;
use crate::api::{
    Client, Resumed, Service, SleepView, SuspendRequest, Suspended, WakeRequest, now_us,
};
use crate::holder::OnSyn;
use crate::timeline::draw::bytes;

/// `suspend`.
#[derive(Debug, Args)]
#[expect(missing_docs, reason = "the texts are clap's help")]
pub struct SuspendArgs {
    #[arg(help = "Name of the service")]
    pub name: String,
    #[arg(long, value_enum, default_value_t, help = "What becomes of new connections meanwhile")]
    pub on_syn: OnSyn,
    #[arg(
        long,
        value_name = "NODE",
        help = "Node that answers for it meanwhile [default: where it runs]"
    )]
    pub on: Option<String>,
}

/// `resume`.
#[derive(Debug, Args)]
#[expect(missing_docs, reason = "the texts are clap's help")]
pub struct ResumeArgs {
    #[arg(help = "Name of the service")]
    pub name: String,
    #[arg(
        long,
        value_name = "NODE",
        help = "Node to go on at [default: the one that answers for it]"
    )]
    pub on: Option<String>,
}

/// `suspend`.
///
/// # Errors
/// It was not suspended; the message says what the service does.
pub async fn suspend(manager: &Client, args: SuspendArgs, json: bool) -> Done {
    let mut progress = Progress::new(!json);
    progress.show("freezing and writing");
    let request = SuspendRequest { on_syn: args.on_syn, on: args.on };
    let path = format!("/v1/services/{}/suspend", args.name);
    let made: Suspended = manager.json(Method::POST, &path, &request, LONG).await?;
    progress.clear();
    if json {
        print_json(&made)?;
        return Ok(ExitCode::SUCCESS);
    }
    print(&format!(
        "{} is asleep: {} connections, {} in the repository\n",
        args.name,
        made.connections,
        bytes(made.bytes)
    ));
    match made.unheld {
        None => print(&format!(
            "node {} answers for it; new connections {}\n",
            made.holder,
            fate(made.on_syn)
        )),
        Some(reason) => {
            eprintln!("warning: nobody answers for it yet: {reason}");
            eprintln!("hint: the manager tries again every time node {} reports", made.holder);
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// `resume`.
///
/// # Errors
/// It does not run; the message says whether it sleeps on.
pub async fn resume(manager: &Client, args: ResumeArgs, json: bool) -> Done {
    let mut progress = Progress::new(!json);
    progress.show("waking");
    let path = format!("/v1/services/{}/resume", args.name);
    let request = WakeRequest { on: args.on };
    let (service, resumed): (Service, Resumed) =
        manager.json(Method::POST, &path, &request, LONG).await?;
    progress.clear();
    if json {
        print_json(&serde_json::json!({ "service": service, "resumed": resumed }))?;
    } else {
        print(&format!(
            "{} runs on node {} at {}, {} connections go on\n",
            service.spec.name,
            service.node.as_deref().unwrap_or("-"),
            service.spec.ip,
            resumed.connections
        ));
    }
    Ok(ExitCode::SUCCESS)
}

/// What becomes of new connections, in words.
fn fate(on_syn: OnSyn) -> &'static str {
    match on_syn {
        OnSyn::Hold => "wait until it is back",
        OnSyn::Refuse => "are refused",
        OnSyn::Wake => "wake it",
    }
}

/// Lines of `inspect` for a sleeping service.
#[must_use]
pub fn lines(sleep: &SleepView) -> Vec<(&'static str, String)> {
    let mut lines = vec![
        ("Asleep for", age(sleep.since_us, now_us())),
        ("Snapshot", sleep.snapshot.to_string()),
    ];
    match &sleep.holder {
        Some(holder) => {
            let counts = &holder.counts;
            let open = counts.connections - counts.closed.min(counts.connections);
            let gone = match counts.closed {
                0 => String::new(),
                closed => format!(" ({closed} given up by their clients)"),
            };
            lines.push(("Held", format!("{open} connections on node {}{gone}", sleep.node)));
            lines.push(("Answered", format!("{} probes", counts.answers)));
            let asked = format!("{}; {} asked", fate(sleep.on_syn), counts.syns);
            lines.push(("New ones", asked));
        }
        None => lines.push(("Held", "by nobody".into())),
    }
    lines
}
