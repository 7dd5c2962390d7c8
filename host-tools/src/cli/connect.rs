//! Which manager a command asks, and with which credentials.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::members::days_left;
use crate::api::{ApiError, Client, Problem};
use crate::manager::securing::admin_file;
use crate::security::{Credentials, Party, Security, Tls, credentials};
use crate::wire::Addresses;

/// Users hear that their certificate ends when fewer days are left.
const WARN_DAYS: u64 = 30;

/// The manager: as given, else the lab's, else the one that the user was enrolled by.
///
/// Without `file`, the lab's manager is asked with the credentials of its first admin, another with those
/// of the user. A manager on this machine that is not the one they are of is asked without any.
///
/// # Errors
/// No manager is known, or the credentials cannot be used.
pub fn find_manager(given: Option<Addresses>, file: Option<PathBuf>) -> Result<Client, ApiError> {
    let unknown = || {
        ApiError::new(Problem::Unreachable, "no manager is known: no lab is up, and none was given")
            .hint("use --manager HOST:PORT or $FERRY_MANAGER, or start a lab with `host-tools lab up`")
    };
    let lab = crate::lab::managers();
    if let Some(file) = file {
        let own = Credentials::load(&file).map_err(ApiError::failed)?;
        let address = match given {
            Some(address) => address,
            None => enrolled_by(&own)?.or(lab).ok_or_else(unknown)?,
        };
        return ask(address, Some(own));
    }
    if let Some(lab) = lab
        && given.as_ref().is_none_or(|given| *given == lab)
    {
        let admin = admin_file(&crate::lab::run_dir().join("manager"));
        let own = admin.exists().then(|| Credentials::load(&admin)).transpose();
        return ask(lab, own.map_err(ApiError::failed)?);
    }
    let path = credentials::default_path().filter(|path| path.exists());
    let own = path.map(|path| Credentials::load(&path)).transpose().map_err(ApiError::failed)?;
    let of = own.as_ref().map(enrolled_by).transpose()?.flatten();
    let address = given.or_else(|| of.clone()).ok_or_else(unknown)?;
    let ours = !address.are_local() || of.as_ref() == Some(&address);
    ask(address, own.filter(|_| ours))
}

/// Where the credentials lie that [`find_manager`] would use.
#[must_use]
pub fn credentials_path(given: Option<&Addresses>, file: Option<&Path>) -> Option<PathBuf> {
    if let Some(file) = file {
        return Some(file.to_owned());
    }
    if crate::lab::managers().is_some_and(|lab| given.is_none_or(|given| *given == lab)) {
        return Some(admin_file(&crate::lab::run_dir().join("manager")));
    }
    credentials::default_path().filter(|path| path.exists())
}

fn enrolled_by(own: &Credentials) -> Result<Option<Addresses>, ApiError> {
    let address = own.manager.as_deref().map(str::parse).transpose();
    address.map_err(|error: crate::wire::AddressError| ApiError::invalid(error.to_string()))
}

fn ask(address: Addresses, own: Option<Credentials>) -> Result<Client, ApiError> {
    if let Some(days) = own.as_ref().and_then(|own| days_left(own.expires_us))
        && days < WARN_DAYS
    {
        eprintln!("warning: your certificate ends in {days} days: `host-tools renew` gets another");
    }
    let security = match own {
        Some(own) => Security::Tls(Arc::new(Tls::new(own).map_err(ApiError::failed)?)),
        None => Security::Plain,
    };
    Ok(Client::new(address, "the manager").secured(&security, Party::Manager))
}
