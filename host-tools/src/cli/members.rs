//! `token`, `enrol`, `renew`, `user`, `audit`: who belongs to the cluster, and what was done in it.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use hyper::Method;

use super::output::{Table, age, print, print_json, print_json_line};
use super::services::SHORT;
use super::{Done, connect};
use crate::api::{ApiError, Client, now_us};
use crate::manager::members::{Certificate, TokenAnswer, TokenRequest};
use crate::security::audit::{Entry, Result as Outcome};
use crate::security::enrol;
use crate::security::token::{Token, time_to_live};
use crate::security::{Credentials, Role, credentials};
use crate::wire::Addresses;

/// `token`.
#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Make a one-time token, with which a user or an agent gets a certificate
    Create(TokenArgs),
}

/// `token create`.
#[derive(Debug, Args)]
#[expect(missing_docs, reason = "the texts are clap's help")]
pub struct TokenArgs {
    #[arg(long, value_enum, help = "What its bearer may do")]
    pub role: Role,
    #[arg(long, help = "The name its bearer will have [default: the bearer's choice]")]
    pub name: Option<String>,
    #[arg(
        long,
        default_value = "1h",
        value_parser = time_to_live,
        help = "How long it can be used, as in 15m, 1h or 7d"
    )]
    pub ttl: u64,
}

/// `enrol`.
#[derive(Debug, Args)]
#[expect(missing_docs, reason = "the texts are clap's help")]
pub struct EnrolArgs {
    #[arg(long, env = "FERRY_TOKEN", hide_env_values = true, help = "One-time token of an admin")]
    pub token: String,
    #[arg(long, help = "Name to be known by [default: the token's]")]
    pub name: Option<String>,
}

/// `user`.
#[derive(Debug, Subcommand)]
pub enum UserCommand {
    /// List users and agents, with their certificates
    Ls,
    /// Refuse a user or an agent from now on
    Revoke {
        /// Name
        name: String,
    },
}

/// `audit`.
#[derive(Debug, Subcommand)]
pub enum AuditCommand {
    /// Print the end of the log of changes and refusals
    Ls {
        /// How many lines
        #[arg(short = 'n', long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
        lines: u32,
        /// The log of this node's agent, not the manager's
        #[arg(long)]
        node: Option<String>,
    },
}

/// `token`.
///
/// # Errors
/// The user is no admin, or the manager does not answer.
pub async fn token(manager: &Client, command: TokenCommand, json: bool) -> Done {
    let TokenCommand::Create(args) = command;
    let request = TokenRequest { role: args.role, name: args.name, ttl_us: args.ttl };
    let made: TokenAnswer = manager.json(Method::POST, "/v1/tokens", &request, SHORT).await?;
    if json {
        print_json(&made)?;
    } else {
        print(&format!("{}\n", made.token));
    }
    Ok(ExitCode::SUCCESS)
}

/// `enrol`.
///
/// # Errors
/// The manager refuses the token, or the credentials cannot be written.
pub async fn enrol(
    manager: Option<Addresses>,
    file: Option<PathBuf>,
    args: EnrolArgs,
    json: bool,
) -> Done {
    let manager = manager.ok_or_else(|| {
        ApiError::invalid("where is the manager?").hint("use --manager HOST:PORT")
    })?;
    let token: Token = args.token.parse().map_err(|error| ApiError::invalid(format!("{error}")))?;
    let path = file.or_else(credentials::default_path).ok_or_else(|| {
        ApiError::invalid("there is no home directory for credentials")
            .hint("use --credentials FILE")
    })?;
    // The token is used up once: first see that its fruit can be kept.
    if let Some(parent) = path.parent() {
        crate::security::secret::make_directory(parent)
            .map_err(|error| ApiError::failed(format!("{}: {error}", parent.display())))?;
    }
    let credentials = enrol::enrol(&manager, &token, args.name).await?;
    credentials.store(&path).map_err(ApiError::failed)?;
    if json {
        print_json(&credentials.identity)?;
    } else {
        let identity = &credentials.identity;
        print(&format!(
            "enrolled as {} with the role {}; the credentials are in {}\n",
            identity.name,
            identity.role,
            path.display()
        ));
    }
    Ok(ExitCode::SUCCESS)
}

/// `renew`.
///
/// # Errors
/// There are no credentials, the manager refuses, or the new ones cannot be written.
pub async fn renew(manager: Option<Addresses>, file: Option<PathBuf>, json: bool) -> Done {
    let path = connect::credentials_path(manager.as_ref(), file.as_deref()).ok_or_else(|| {
        ApiError::invalid("there are no credentials to be renewed")
            .hint("use --credentials FILE, or `host-tools enrol --token TOKEN`")
    })?;
    let known = Credentials::load(&path).map_err(ApiError::failed)?;
    let client = connect::find_manager(manager, Some(path.clone()))?;
    let renewed = enrol::renew(&client, &known).await?;
    renewed.store(&path).map_err(ApiError::failed)?;
    if json {
        print_json(&serde_json::json!({ "expires_us": renewed.expires_us }))?;
    } else {
        let days = days_left(renewed.expires_us).unwrap_or_default();
        let name = &renewed.identity.name;
        print(&format!("{name} has a certificate for {days} days; it is in {}\n", path.display()));
    }
    Ok(ExitCode::SUCCESS)
}

/// Days until a certificate ends, if that is known.
#[must_use]
pub fn days_left(expires_us: Option<u64>) -> Option<u64> {
    const DAY_US: u64 = 24 * 3600 * 1_000_000;
    expires_us.map(|expires_us| expires_us.saturating_sub(now_us()) / DAY_US)
}

/// `user`.
///
/// # Errors
/// The user is no admin, or there is no such user.
pub async fn user(manager: &Client, command: UserCommand, json: bool) -> Done {
    match command {
        UserCommand::Ls => {
            let all: Vec<Certificate> = manager.get("/v1/users").await?;
            if json {
                print_json(&all)?;
                return Ok(ExitCode::SUCCESS);
            }
            let mut table = Table::new(&["NAME", "ROLE", "STATE", "CERTIFICATE", "AGE"]);
            for certificate in all {
                let state = if certificate.revoked_us.is_some() {
                    "revoked"
                } else if certificate.expires_us <= now_us() {
                    "expired"
                } else {
                    "valid"
                };
                table.row([
                    certificate.name,
                    certificate.role.to_string(),
                    state.into(),
                    certificate.serial,
                    age(certificate.issued_us, now_us()),
                ]);
            }
            table.print();
        }
        UserCommand::Revoke { name } => {
            let path = format!("/v1/users/{name}/revoke");
            let revoked: usize = manager.json(Method::POST, &path, &(), SHORT).await?;
            if json {
                print_json(&serde_json::json!({ "revoked": revoked }))?;
            } else {
                print(&format!("{name} is refused from now on\n"));
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// `audit`.
///
/// # Errors
/// The user is no admin, or there is no such node.
pub async fn audit(manager: &Client, command: AuditCommand, json: bool) -> Done {
    let AuditCommand::Ls { lines, node } = command;
    let path = match node {
        Some(node) => format!("/v1/nodes/{node}/audit?last={lines}"),
        None => format!("/v1/audit?last={lines}"),
    };
    let entries: Vec<Entry> = manager.get(&path).await?;
    if json {
        entries.iter().try_for_each(print_json_line)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = Table::new(&["TIME", "WHO", "ROLE", "FROM", "WHAT", "RESULT", "REASON"]);
    for entry in entries {
        let result = match entry.result {
            Outcome::Done => "done",
            Outcome::Refused => "refused",
            Outcome::Failed => "failed",
        };
        let time = entry.time.split('.').next().unwrap_or_default().trim_end_matches('Z').into();
        let reason = entry.reason.unwrap_or_default();
        table.row([time, entry.who, entry.role, entry.from, entry.what, result.into(), reason]);
    }
    table.print();
    Ok(ExitCode::SUCCESS)
}
