//! The commands users type.
//!
//! 1. [`args`]: what can be typed, and the exit codes.
//! 2. [`output`]: tables, JSON, and words for errors.
//! 3. [`daemons`]: `manager` and `agent`.
//! 4. [`services`]: `run`, `ps`, `inspect`, `logs`, `stop`, `conns`.
//! 5. [`mod@check`]: what would be in the way of a move.
//! 6. [`moves`]: `migrate`, `migration`, with progress.
//! 7. [`nodes`]: `node`, `rebalance`.
//! 8. [`files`]: `checkpoint`, `restore`, `image`.
//! 9. [`sleep`]: `suspend`, `resume`.
//! 10. [`follow`]: `migration watch` and `cancel`: a move that is under way, with progress.
//! 11. [`members`]: `token`, `enrol`, `renew`, `user`, `audit`.
//! 12. [`connect`]: which manager is asked.
//! 13. [`top`] and [`web`]: seeing what happens.

pub mod args;
pub mod check;
pub mod connect;
pub mod daemons;
pub mod files;
pub mod follow;
pub mod members;
pub mod moves;
pub mod nodes;
pub mod output;
pub mod services;
pub mod sleep;
pub mod top;
pub mod web;

use std::process::ExitCode;

use clap::Parser;

pub use args::Cli;
use args::{CheckArgs, Command};
use moves::MigrateArgs;

use crate::api::ApiError;
use crate::trace::{TraceId, under};
use crate::wire::Addresses;

/// What a command ends with, unless it failed.
type Done = Result<ExitCode, ApiError>;

/// Reads the command line and carries it out.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    // The lab changes namespaces, which a process with threads cannot.
    if let Command::Lab { command } = cli.command {
        return crate::lab::run(command, cli.output == args::Output::Json);
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::FAILURE;
        }
    };
    let result = match cli.command {
        // What a daemon does belongs to the commands it is asked by.
        Command::Manager(_) | Command::Agent(_) => runtime.block_on(carry_out(cli)),
        _ => runtime.block_on(under(TraceId::of_command(), carry_out(cli))),
    };
    // A follower of logs may still hold a stream open.
    runtime.shutdown_background();
    result.unwrap_or_else(|error| {
        output::print_error(&error);
        args::exit_code(error.problem)
    })
}

async fn carry_out(cli: Cli) -> Done {
    let json = cli.output == args::Output::Json;
    let credentials = cli.credentials;
    let manager = |given: Option<Addresses>| connect::find_manager(given, credentials.clone());
    match cli.command {
        Command::Manager(args) => daemons::manager(args).await,
        Command::Agent(args) => daemons::agent(args, cli.manager).await,
        Command::Lab { .. } => Ok(ExitCode::SUCCESS),
        Command::Run(args) => services::run(&manager(cli.manager)?, args, json).await,
        Command::Ps => services::ps(&manager(cli.manager)?, json).await,
        Command::Inspect { name } => services::inspect(&manager(cli.manager)?, &name, json).await,
        Command::Logs { name, follow } => {
            services::logs(&manager(cli.manager)?, &name, follow).await
        }
        Command::Stop { name, host_is_gone } => {
            services::stop(&manager(cli.manager)?, &name, host_is_gone.as_deref(), json).await
        }
        Command::Conns { name } => services::conns(&manager(cli.manager)?, &name, json).await,
        Command::Check(args) => check::check(&manager(cli.manager)?, args, json).await,
        Command::Migrate(MigrateArgs { dry_run: true, name, to, .. }) => {
            check::check(&manager(cli.manager)?, CheckArgs { name, to }, json).await
        }
        Command::Migrate(args) => moves::migrate(&manager(cli.manager)?, args, json).await,
        Command::Migration { command } => {
            moves::migration(&manager(cli.manager)?, command, json).await
        }
        Command::Checkpoint(args) => files::checkpoint(&manager(cli.manager)?, args, json).await,
        Command::Restore(args) => files::restore(&manager(cli.manager)?, args, json).await,
        Command::Suspend(args) => sleep::suspend(&manager(cli.manager)?, args, json).await,
        Command::Resume(args) => sleep::resume(&manager(cli.manager)?, args, json).await,
        Command::Image { command } => files::image(&manager(cli.manager)?, command, json).await,
        Command::Node { command } => nodes::node(&manager(cli.manager)?, command, json).await,
        Command::Token { command } => members::token(&manager(cli.manager)?, command, json).await,
        Command::Enrol(args) => members::enrol(cli.manager, credentials.clone(), args, json).await,
        Command::Renew => members::renew(cli.manager, credentials.clone(), json).await,
        Command::User { command } => members::user(&manager(cli.manager)?, command, json).await,
        Command::Audit { command } => members::audit(&manager(cli.manager)?, command, json).await,
        Command::Top(args) => top::top(manager(cli.manager)?, args).await,
        Command::Web(args) => web::web(manager(cli.manager)?, args, json).await,
        Command::Rebalance(how) => nodes::rebalance(&manager(cli.manager)?, how, json).await,
    }
}
