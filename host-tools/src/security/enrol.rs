//! Becoming a member, and staying one: a key is made here and stays here, the manager certifies it.

use std::time::Duration;

use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde::{Deserialize, Serialize};

use super::authority::{MEMBER_DAYS, fingerprint};
use super::credentials::Credentials;
use super::identity::Identity;
use super::token::Token;
use crate::api::{ApiError, Client};
use crate::wire::Addresses;

/// Longest wait for the manager.
const LIMIT: Duration = Duration::from_secs(15);
/// A certificate with less than this left is renewed, in microseconds: a third of its life, so that a node may be
/// away for months.
const RENEW_BEFORE_US: u64 = MEMBER_DAYS.unsigned_abs() * 24 * 3600 * 1_000_000 / 3;

/// `POST /v1/enrol`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EnrolRequest {
    /// The token.
    pub token: String,
    /// The name that is wanted, if the token has none.
    pub name: Option<String>,
    /// Certificate request (RFC 2986), in PEM.
    pub request: String,
}

/// `POST /v1/renew`: a member asks for another certificate with the one it has.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RenewRequest {
    /// Certificate request (RFC 2986), in PEM, for a new key.
    pub request: String,
}

/// What a new member gets.
#[derive(Clone, Serialize, Deserialize)]
pub struct Enrolled {
    /// Who it is.
    pub identity: Identity,
    /// The authority's certificate, in PEM.
    pub ca: String,
    /// The member's, in PEM.
    pub certificate: String,
    /// When that ends, in microseconds since the Unix epoch.
    pub expires_us: u64,
    /// Public key that images are signed with.
    pub image_key: String,
    /// Key that snapshots are sealed with, for agents.
    pub seal_key: Option<String>,
}

/// Gets credentials for a token from the manager at `address`.
///
/// # Errors
/// The manager cannot be reached, is another cluster's, or refuses the token.
pub async fn enrol(
    address: &Addresses,
    token: &Token,
    name: Option<String>,
) -> Result<Credentials, ApiError> {
    let (key, request) = new_key()?;
    let asked = EnrolRequest { token: token.to_string(), name, request };
    let client = Client::newcomer(address.clone(), token.fingerprint);
    let enrolled: Enrolled = client.json(hyper::Method::POST, "/v1/enrol", &asked, LIMIT).await?;
    let ca = CertificateDer::from_pem_slice(enrolled.ca.as_bytes()).map_err(ApiError::failed)?;
    if fingerprint(&ca) != token.fingerprint {
        return Err(ApiError::failed("the manager sent the certificate of another cluster"));
    }
    Ok(credentials(enrolled, &key, Some(address.to_string())))
}

/// Gets other credentials for a member from the manager, which knows it by the ones it has.
///
/// # Errors
/// The manager cannot be reached or refuses, or what it sends is another member's or cluster's.
pub async fn renew(manager: &Client, known: &Credentials) -> Result<Credentials, ApiError> {
    let (key, request) = new_key()?;
    let asked = RenewRequest { request };
    let renewed: Enrolled = manager.json(hyper::Method::POST, "/v1/renew", &asked, LIMIT).await?;
    if renewed.identity != known.identity || renewed.ca != known.ca {
        let found = renewed.identity;
        return Err(ApiError::failed(format!("the manager sent a certificate of {found}")));
    }
    Ok(credentials(renewed, &key, known.manager.clone()))
}

/// Whether a certificate that ends then should be renewed now; one of which it is not known should.
#[must_use]
pub fn is_due(expires_us: Option<u64>, now_us: u64) -> bool {
    expires_us.is_none_or(|expires_us| expires_us.saturating_sub(now_us) < RENEW_BEFORE_US)
}

/// A key, and the request for its certificate.
fn new_key() -> Result<(KeyPair, String), ApiError> {
    let key = KeyPair::generate().map_err(ApiError::failed)?;
    let request = CertificateParams::default().serialize_request(&key);
    let request = request.and_then(|request| request.pem()).map_err(ApiError::failed)?;
    Ok((key, request))
}

fn credentials(enrolled: Enrolled, key: &KeyPair, manager: Option<String>) -> Credentials {
    Credentials {
        identity: enrolled.identity,
        manager,
        ca: enrolled.ca,
        certificate: enrolled.certificate,
        expires_us: Some(enrolled.expires_us),
        key: key.serialize_pem(),
        image_key: enrolled.image_key,
        seal_key: enrolled.seal_key,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_renewed_in_the_last_third_of_its_life() {
        let days = |days: u64| days * 24 * 3600 * 1_000_000;
        let now_us = days(20_000);
        let left = |left: u64| is_due(Some(now_us + days(left)), now_us);
        assert_eq!([left(398), left(133), left(132), left(1)], [false, false, true, true]);
        assert!(is_due(Some(now_us - days(1)), now_us) && is_due(None, now_us));
    }
}
