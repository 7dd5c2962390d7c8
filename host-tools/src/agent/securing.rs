//! An agent's certificate, and what it is good for: how connections are secured, which images boot, who opens
//! snapshots.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use time::OffsetDateTime;

use super::Config;
use super::host::Host;
use crate::api::{ApiError, ImageRef, now_us};
use crate::manager::securing::check_insecure;
use crate::security::access::AGENT;
use crate::security::credentials::CredentialsError;
use crate::security::enrol::{self, enrol};
use crate::security::seal::SealKey;
use crate::security::secret;
use crate::security::signature::Grant;
use crate::security::token::Token;
use crate::security::{
    Audit, Credentials, Entry, Gate, Peer, Role, Security, Tls, audit, signature,
};
use crate::snapshot::file::write_atomically;

/// How often it is looked whether the certificate should be renewed, and how soon again if it could not be.
const RENEW_INTERVAL: Duration = Duration::from_secs(6 * 3600);
const RENEW_RETRY: Duration = Duration::from_secs(600);

/// Where an agent's credentials lie.
#[must_use]
pub fn credentials_file(state_dir: &Path) -> PathBuf {
    state_dir.join("credentials.json")
}

fn revoked_file(state_dir: &Path) -> PathBuf {
    state_dir.join("revoked.json")
}

/// The gate of an agent. Without a certificate it gets one for its token.
///
/// # Errors
/// There are neither credentials nor a token, the manager refuses the token, or the agent was told to listen
/// without TLS where others can reach it.
pub async fn gate(config: &Config) -> Result<Arc<Gate>, ApiError> {
    let named = |path: &Path, error: std::io::Error| {
        ApiError::failed(format!("{}: {error}", path.display()))
    };
    secret::make_directory(&config.state_dir).map_err(|error| named(&config.state_dir, error))?;
    let path = config.state_dir.join("audit.log");
    let audit = Audit::open(&path).map_err(|error| named(&path, error))?;
    let security = if config.insecure_loopback {
        check_insecure("the agent", config.manager.iter().chain([&config.listen]))?;
        Security::Plain
    } else {
        let credentials = credentials(config).await?;
        Security::Tls(Arc::new(Tls::new(credentials).map_err(ApiError::failed)?))
    };
    let gate = Gate::new(AGENT, security, Arc::new(audit));
    // What was revoked stays so while the manager does not answer.
    if let Ok(kept) = std::fs::read(revoked_file(&config.state_dir)) {
        gate.revoke(serde_json::from_slice(&kept).map_err(ApiError::failed)?);
    }
    Ok(Arc::new(gate))
}

async fn credentials(config: &Config) -> Result<Credentials, ApiError> {
    let path = credentials_file(&config.state_dir);
    match Credentials::load(&path) {
        Ok(known) if known.identity.name == config.name => return Ok(known),
        Ok(known) => {
            return Err(ApiError::conflict(format!(
                "{} is of node {}, and this agent is called {}",
                path.display(),
                known.identity.name,
                config.name
            ))
            .hint("each agent needs a state directory of its own"));
        }
        Err(CredentialsError::NotFound { .. }) => {}
        Err(error) => return Err(ApiError::failed(error)),
    }
    let Some(token) = &config.join else {
        return Err(ApiError::denied(format!(
            "this agent has no certificate in {}, and no token to get one with",
            path.display()
        ))
        .hint(format!(
            "have an admin type `host-tools token create --role agent --name {}`, and use --join TOKEN",
            config.name
        )));
    };
    let token: Token = token.parse().map_err(|error| ApiError::invalid(format!("{error}")))?;
    let credentials = enrol(&config.manager, &token, Some(config.name.clone())).await?;
    if credentials.identity.role != Role::Agent {
        return Err(ApiError::invalid(format!(
            "the token is for the role {}, and it is used up now",
            credentials.identity.role
        ))
        .hint("an agent needs one made with `host-tools token create --role agent`"));
    }
    credentials.store(&path).map_err(ApiError::failed)?;
    tracing::info!("enrolled as node {}", credentials.identity.name);
    Ok(credentials)
}

/// Renews the certificate long before it ends, for as long as the agent runs.
pub async fn renew_forever(host: Arc<Host>) {
    let Security::Tls(tls) = host.gate.security() else { return };
    let path = credentials_file(host.state_dir());
    let mut expires_us = tls.credentials.expires_us;
    loop {
        let mut wait = RENEW_INTERVAL;
        if enrol::is_due(expires_us, now_us()) {
            match renew(&host, tls, &path).await {
                Ok(renewed) => {
                    expires_us = renewed;
                    tracing::info!("the certificate of node {} is renewed", host.name());
                }
                Err(error) => {
                    tracing::warn!("the certificate cannot be renewed, trying again: {error}");
                    wait = RENEW_RETRY;
                }
            }
        }
        tokio::time::sleep(wait).await;
    }
}

/// Gets another certificate; when it ends.
async fn renew(host: &Host, tls: &Tls, path: &Path) -> Result<Option<u64>, ApiError> {
    let renewed = enrol::renew(&host.manager(), &tls.credentials).await?;
    // Kept first: the manager may be gone at the next start.
    renewed.store(path).map_err(ApiError::failed)?;
    tls.renew(&renewed).map_err(ApiError::failed)?;
    Ok(renewed.expires_us)
}

/// From now on certificates with these numbers are refused.
pub fn revoke(host: &Host, serials: BTreeSet<String>) {
    let json = serde_json::to_vec(&serials).unwrap_or_default();
    if host.gate.revoke(serials) {
        let path = revoked_file(host.state_dir());
        if let Err(error) = write_atomically(&path, &json) {
            tracing::warn!("{}: {error}", path.display());
        }
    }
}

/// Makes sure that the manager has signed an image, before it is booted.
///
/// # Errors
/// It has not, or it cannot be asked.
pub async fn check_signature(host: &Host, image: &ImageRef) -> Result<(), ApiError> {
    let Security::Tls(tls) = host.gate.security() else { return Ok(()) };
    let Credentials { identity, image_key, .. } = &tls.credentials;
    let verify =
        |signature: &str| signature::verify(image_key, &identity.cluster, image, signature);
    let directory = host.state_dir().join("signatures");
    let path = directory.join(image.digest.to_string());
    if std::fs::read_to_string(&path).is_ok_and(|kept| verify(&kept).is_ok()) {
        return Ok(());
    }
    let asked = format!("/v1/images/{}/signature", image.digest);
    let signature: String = host.manager().get(&asked).await?;
    verify(&signature).map_err(|error| {
        ApiError::denied(format!("{error}; it was not booted"))
            .hint("push the image again with `host-tools image push FILE NAME`")
    })?;
    std::fs::create_dir_all(&directory)
        .and_then(|()| write_atomically(&path, signature.as_bytes()))
        .map_err(|error| ApiError::failed(format!("{}: {error}", path.display())))
}

/// Makes sure that the manager has given a service to this node under an epoch, whoever says so.
///
/// # Errors
/// It has not signed that.
pub fn check_grant(
    host: &Host,
    service: &str,
    epoch: u64,
    signature: &str,
) -> Result<(), ApiError> {
    let Security::Tls(tls) = host.gate.security() else { return Ok(()) };
    let Credentials { identity, image_key, .. } = &tls.credentials;
    let grant = Grant { service, node: host.name(), epoch };
    grant
        .verify(image_key, &identity.cluster, signature)
        .map_err(|error| ApiError::denied(format!("{error}; nothing was set running")))
}

/// Notes what a peer wanted on a connection of its own protocol and was not allowed.
pub fn refused(host: &Host, peer: &Peer, what: String, reason: &str) {
    let entry = Entry::new(OffsetDateTime::now_utc(), &peer.who, &peer.from, what);
    host.gate.audit.write(&entry.ended(audit::Result::Refused, reason));
}

/// The key for snapshots; `None` where nothing is sealed.
fn seal_key(host: &Host) -> Result<Option<SealKey>, ApiError> {
    let Security::Tls(tls) = host.gate.security() else { return Ok(None) };
    let Credentials { identity, seal_key, .. } = &tls.credentials;
    let key = seal_key.as_deref().and_then(|text| SealKey::from_text(&identity.cluster, text));
    let missing = || ApiError::failed("this agent's credentials hold no key for snapshots");
    key.ok_or_else(missing).map(Some)
}

/// Seals a snapshot before it touches the disk.
///
/// # Errors
/// The system has no random numbers.
pub async fn seal(host: &Host, snapshot: Vec<u8>) -> Result<Vec<u8>, ApiError> {
    let Some(key) = seal_key(host)? else { return Ok(snapshot) };
    let sealed = tokio::task::spawn_blocking(move || key.seal(&snapshot)).await;
    sealed.map_err(ApiError::failed)?.map_err(ApiError::failed)
}

/// Opens a sealed snapshot.
///
/// # Errors
/// It is of another cluster, or was changed.
pub async fn open(host: &Host, file: Vec<u8>) -> Result<Vec<u8>, ApiError> {
    let Some(key) = seal_key(host)? else { return Ok(file) };
    let opened = tokio::task::spawn_blocking(move || key.open(&file)).await;
    opened.map_err(ApiError::failed)?.map_err(|error| ApiError::invalid(error.to_string()))
}
