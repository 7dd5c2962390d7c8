//! `check`.

use std::process::ExitCode;

use hyper::Method;

use super::Done;
use super::args::CheckArgs;
use super::output::{Table, print, print_json};
use crate::api::check::{CheckRequest, Finding, Grade};
use crate::api::{Client, Problem};

/// The manager asks two nodes one after the other, each for up to 15 s.
const LIMIT: std::time::Duration = std::time::Duration::from_secs(40);

/// `check`.
///
/// # Errors
/// There is no such service or node, or the manager does not answer.
pub async fn check(manager: &Client, args: CheckArgs, json: bool) -> Done {
    let CheckArgs { name, to } = args;
    let path = format!("/v1/services/{name}/check");
    let request = CheckRequest { to: to.clone() };
    let findings: Vec<Finding> = manager.json(Method::POST, &path, &request, LIMIT).await?;
    let refused = findings.iter().filter(|finding| finding.grade == Grade::Refused).count();
    if json {
        print_json(&findings)?;
    } else {
        let mut table = Table::new(&["", "", "FOUND"]);
        for Finding { subject, grade, detail } in &findings {
            table.row([mark(*grade).into(), subject.clone(), detail.clone()]);
        }
        table.print();
        print(&match refused {
            0 => format!("{name} can be moved to node {to}\n"),
            1 => format!("{name} cannot be moved to node {to}: one thing is in the way\n"),
            many => format!("{name} cannot be moved to node {to}: {many} things are in the way\n"),
        });
    }
    Ok(if refused == 0 { ExitCode::SUCCESS } else { super::args::exit_code(Problem::Conflict) })
}

fn mark(grade: Grade) -> &'static str {
    match grade {
        Grade::Good => "ok",
        Grade::Notice => "note",
        Grade::Refused => "NO",
    }
}
