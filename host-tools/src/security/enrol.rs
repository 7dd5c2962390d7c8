//! Becoming a member: a key is made here and stays here, the manager certifies it.

use std::time::Duration;

use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde::{Deserialize, Serialize};

use super::authority::fingerprint;
use super::credentials::Credentials;
use super::identity::Identity;
use super::token::Token;
use crate::api::{ApiError, Client};
use crate::wire::Addresses;

/// Longest wait for the manager.
const LIMIT: Duration = Duration::from_secs(15);

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

/// What a new member gets.
#[derive(Clone, Serialize, Deserialize)]
pub struct Enrolled {
    /// Who it is.
    pub identity: Identity,
    /// The authority's certificate, in PEM.
    pub ca: String,
    /// The member's, in PEM.
    pub certificate: String,
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
    let key = KeyPair::generate().map_err(ApiError::failed)?;
    let request = CertificateParams::default().serialize_request(&key);
    let request = request.and_then(|request| request.pem()).map_err(ApiError::failed)?;
    let asked = EnrolRequest { token: token.to_string(), name, request };
    let client = Client::newcomer(address.clone(), token.fingerprint);
    let enrolled: Enrolled = client.json(hyper::Method::POST, "/v1/enrol", &asked, LIMIT).await?;
    let ca = CertificateDer::from_pem_slice(enrolled.ca.as_bytes()).map_err(ApiError::failed)?;
    if fingerprint(&ca) != token.fingerprint {
        return Err(ApiError::failed("the manager sent the certificate of another cluster"));
    }
    Ok(Credentials {
        identity: enrolled.identity,
        manager: Some(address.to_string()),
        ca: enrolled.ca,
        certificate: enrolled.certificate,
        key: key.serialize_pem(),
        image_key: enrolled.image_key,
        seal_key: enrolled.seal_key,
    })
}
