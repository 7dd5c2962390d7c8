//! How a manager's connections are secured, and the first admin's credentials.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use time::OffsetDateTime;

use super::Config;
use super::members::{FIRST_ADMIN, Members};
use crate::api::{ApiError, now_us};
use crate::security::access::MANAGER;
use crate::security::{Audit, Authority, Credentials, Gate, Role, Security, Tls};
use crate::wire::Address;

/// Where the first admin's credentials lie.
#[must_use]
pub fn admin_file(state_dir: &Path) -> PathBuf {
    state_dir.join("admin.json")
}

/// Refuses addresses that others than this machine can reach, if connections are not secured.
///
/// # Errors
/// There is one.
pub fn check_insecure<'a>(
    what: &str,
    addresses: impl IntoIterator<Item = &'a Address>,
) -> Result<(), ApiError> {
    match addresses.into_iter().find(|address| !address.is_local()) {
        Some(address) => Err(ApiError::invalid(format!(
            "{what} does not listen on {address} without TLS: other machines can reach it there"
        ))
        .hint(
            "leave --insecure-loopback out, or use an address of this machine such as 127.0.0.1",
        )),
        None => Ok(()),
    }
}

/// The gate of a manager. Its own certificate is made anew at each start.
///
/// # Errors
/// Keys, credentials or the log cannot be had, or the manager was told to listen without TLS where others
/// can reach it.
pub async fn gate(config: &Config, members: &Members) -> Result<Arc<Gate>, ApiError> {
    let audit = open_audit(&config.state_dir)?;
    let security = own_security(config, members.authority())?;
    if matches!(security, Security::Tls(_)) {
        first_admin(config, members).await?;
    }
    let gate = Gate::new(MANAGER, security, Arc::new(audit));
    gate.revoke(members.revoked().await?);
    Ok(Arc::new(gate))
}

/// The audit log of a manager.
pub(super) fn open_audit(state_dir: &Path) -> Result<Audit, ApiError> {
    let path = state_dir.join("audit.log");
    Audit::open(&path).map_err(|error| ApiError::failed(format!("{}: {error}", path.display())))
}

/// How a manager secures its connections: by a certificate that it makes itself.
pub(super) fn own_security(config: &Config, authority: &Authority) -> Result<Security, ApiError> {
    if config.insecure_loopback {
        check_insecure("the manager", &config.listen)?;
        return Ok(Security::Plain);
    }
    let made = authority.credentials(Role::Manager, "manager", OffsetDateTime::now_utc());
    let (credentials, _) = made.map_err(ApiError::failed)?;
    Ok(Security::Tls(Arc::new(Tls::new(credentials).map_err(ApiError::failed)?)))
}

/// Writes the first admin's credentials, unless they are there.
async fn first_admin(config: &Config, members: &Members) -> Result<(), ApiError> {
    let path = admin_file(&config.state_dir);
    let address = config.socket.clone().map(Address::Unix).or_else(|| config.listen.clone());
    let manager = address.map(|address| address.to_string());
    let ours = members.authority().cluster();
    if let Ok(known) = Credentials::load(&path)
        && known.identity.cluster == ours
    {
        if known.manager != manager {
            Credentials { manager, ..known }.store(&path).map_err(ApiError::failed)?;
        }
        return Ok(());
    }
    let made = members.authority().credentials(Role::Admin, FIRST_ADMIN, OffsetDateTime::now_utc());
    let (credentials, issued) = made.map_err(ApiError::failed)?;
    // Known before it can be used: it can be revoked.
    members.note(&credentials.identity, &issued, now_us()).await?;
    Credentials { manager, ..credentials }.store(&path).map_err(ApiError::failed)?;
    tracing::info!("credentials of an admin are in {}", path.display());
    Ok(())
}
