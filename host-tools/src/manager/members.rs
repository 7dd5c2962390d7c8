//! The members of the cluster: who has a certificate, who may get one, who has lost it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use tokio::sync::Mutex;

use crate::api::spec::check_name;
use crate::api::{ApiError, Digest32, ImageRef};
use crate::security::authority::Issued;
use crate::security::enrol::{EnrolRequest, Enrolled, RenewRequest};
use crate::security::seal::SealKey;
use crate::security::signature::Grant;
use crate::security::token::{KeptToken, Token, TokenError};
use crate::security::{Authority, Identity, Role, signature};
use crate::snapshot::file::write_atomically;
use crate::store::Store;

/// Kind of the store's documents that hold tokens, by their ids.
const TOKEN_DOCUMENT: &str = "token";
/// Kind of the store's documents that hold certificates, by their numbers.
const CERTIFICATE_DOCUMENT: &str = "certificate";
/// Name of the user whose credentials the manager writes at its first start.
pub const FIRST_ADMIN: &str = "admin";

/// A certificate that was given out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certificate {
    /// Its number.
    pub serial: String,
    /// Whose it is.
    pub name: String,
    /// What it allows.
    pub role: Role,
    /// When it was made, in microseconds since the Unix epoch.
    pub issued_us: u64,
    /// When it ends.
    pub expires_us: u64,
    /// When it was revoked.
    pub revoked_us: Option<u64>,
}

/// `POST /v1/tokens`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TokenRequest {
    /// What the bearer will be.
    pub role: Role,
    /// The name the bearer will have.
    pub name: Option<String>,
    /// How long it can be used, in microseconds.
    pub ttl_us: u64,
}

/// A token that was made.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TokenAnswer {
    /// What to give to the newcomer.
    pub token: String,
    /// Until when it can be used, in microseconds since the Unix epoch.
    pub expires_us: u64,
}

/// The members.
pub struct Members {
    authority: Authority,
    signatures: PathBuf,
    store: Arc<dyn Store>,
    /// One enrolment at a time: a token is used once.
    enrolling: Mutex<()>,
}

impl Members {
    /// The members of the cluster whose keys lie in `state_dir`; makes them at the first start. The signatures
    /// of images lie beside the images.
    ///
    /// # Errors
    /// The keys cannot be read or made.
    pub fn open(
        store: Arc<dyn Store>,
        state_dir: &Path,
        repository: &Path,
    ) -> Result<Self, ApiError> {
        let now = OffsetDateTime::now_utc();
        let authority =
            Authority::open(&state_dir.join("authority.json"), now).map_err(ApiError::failed)?;
        let signatures = repository.join("signatures");
        std::fs::create_dir_all(&signatures)
            .map_err(|error| ApiError::failed(format!("{}: {error}", signatures.display())))?;
        Ok(Self { authority, signatures, store, enrolling: Mutex::default() })
    }

    /// The cluster's keys.
    #[must_use]
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// The key that snapshots are sealed with.
    #[must_use]
    pub fn seal_key(&self) -> SealKey {
        self.authority.seal_key()
    }

    /// Makes a token.
    ///
    /// # Errors
    /// Nobody can have this role or name, or the store does not take it.
    pub async fn create_token(
        &self,
        request: TokenRequest,
        now_us: u64,
    ) -> Result<TokenAnswer, ApiError> {
        if request.role == Role::Manager {
            return Err(ApiError::invalid("managers need no token: they share authority.json"));
        }
        if let Some(name) = &request.name {
            check_name(name).map_err(|error| ApiError::invalid(error.to_string()))?;
        }
        let token = Token::new(self.authority.fingerprint()).map_err(ApiError::failed)?;
        let expires_us = now_us.saturating_add(request.ttl_us);
        let kept = KeptToken::of(&token, request.role, request.name, expires_us);
        self.keep(TOKEN_DOCUMENT, &kept.id, &kept).await?;
        Ok(TokenAnswer { token: token.to_string(), expires_us })
    }

    /// Makes the bearer of a token a member. The token is used up, durably, before the certificate is made.
    ///
    /// # Errors
    /// The token does not admit the bearer, the name is taken, or the request is none.
    pub async fn enrol(&self, request: EnrolRequest, now_us: u64) -> Result<Enrolled, ApiError> {
        let refused = |error: TokenError| {
            ApiError::denied(format!("{error}; nobody was enrolled"))
                .hint("an admin makes a new one with `host-tools token create`")
        };
        let token: Token = request.token.parse().map_err(|_| refused(TokenError::Unknown))?;
        let _one = self.enrolling.lock().await;
        let tokens: Vec<KeptToken> = self.documents(TOKEN_DOCUMENT).await?;
        let kept = tokens.into_iter().find(|kept| kept.id == token.id());
        let mut kept = kept.ok_or_else(|| refused(TokenError::Unknown))?;
        let name = request.name.or_else(|| kept.name.clone()).ok_or_else(|| {
            ApiError::invalid("the token has no name, so the newcomer has to choose one")
                .hint("use --name NAME")
        })?;
        check_name(&name).map_err(|error| ApiError::invalid(error.to_string()))?;
        kept.admit(&token, &name, now_us).map_err(refused)?;
        let taken = |known: &Certificate| {
            known.name == name && known.revoked_us.is_none() && known.expires_us > now_us
        };
        // Who makes a token for a name says that it is to be had again.
        if kept.name.is_none() && self.certificates().await?.iter().any(taken) {
            return Err(ApiError::conflict(format!("there is a member called `{name}` already"))
                .hint(
                    "choose another name, or have a token made for this one: `token create --name`",
                ));
        }
        let identity = Identity { cluster: self.authority.cluster().into(), role: kept.role, name };
        let issued = self
            .authority
            .issue(&request.request, &identity, moment(now_us)?)
            .map_err(|error| ApiError::invalid(error.to_string()))?;
        kept.used_by = Some(identity.name.clone());
        self.keep(TOKEN_DOCUMENT, &kept.id, &kept).await?;
        self.note(&identity, &issued, now_us).await?;
        Ok(self.enrolled(identity, issued))
    }

    /// Gives a member, who has shown a valid certificate, another one for a new key. The one it has stays valid
    /// until it ends.
    ///
    /// # Errors
    /// It is a manager, which makes its own; the request is none; or the store does not take it.
    pub async fn renew(
        &self,
        identity: &Identity,
        request: &RenewRequest,
        now_us: u64,
    ) -> Result<Enrolled, ApiError> {
        if identity.role == Role::Manager {
            return Err(ApiError::invalid("managers make their certificates themselves"));
        }
        let issued = self
            .authority
            .issue(&request.request, identity, moment(now_us)?)
            .map_err(|error| ApiError::invalid(error.to_string()))?;
        self.note(identity, &issued, now_us).await?;
        Ok(self.enrolled(identity.clone(), issued))
    }

    fn enrolled(&self, identity: Identity, issued: Issued) -> Enrolled {
        Enrolled {
            ca: self.authority.certificate().to_owned(),
            expires_us: issued.expires_us(),
            certificate: issued.certificate,
            image_key: self.authority.image_public_key(),
            seal_key: (!identity.role.is_users()).then(|| self.authority.seal_key_text()),
            identity,
        }
    }

    /// Notes a certificate that was given out.
    ///
    /// # Errors
    /// The store does not take it.
    pub async fn note(
        &self,
        identity: &Identity,
        issued: &Issued,
        now_us: u64,
    ) -> Result<(), ApiError> {
        let certificate = Certificate {
            serial: issued.serial.clone(),
            name: identity.name.clone(),
            role: identity.role,
            issued_us: now_us,
            expires_us: issued.expires_us(),
            revoked_us: None,
        };
        self.keep(CERTIFICATE_DOCUMENT, &certificate.serial, &certificate).await
    }

    /// All certificates that were given out, the oldest first.
    ///
    /// # Errors
    /// The store does not answer.
    pub async fn certificates(&self) -> Result<Vec<Certificate>, ApiError> {
        let mut all: Vec<Certificate> = self.documents(CERTIFICATE_DOCUMENT).await?;
        all.sort_by_key(|certificate| certificate.issued_us);
        Ok(all)
    }

    /// Revokes all certificates of a member. Returns how many.
    ///
    /// # Errors
    /// There is no such member.
    pub async fn revoke(&self, name: &str, now_us: u64) -> Result<usize, ApiError> {
        let all = self.certificates().await?;
        let mut found = false;
        let mut revoked = 0;
        for certificate in all.into_iter().filter(|certificate| certificate.name == name) {
            found = true;
            if certificate.revoked_us.is_none() {
                let certificate = Certificate { revoked_us: Some(now_us), ..certificate };
                self.keep(CERTIFICATE_DOCUMENT, &certificate.serial, &certificate).await?;
                revoked += 1;
            }
        }
        if found {
            Ok(revoked)
        } else {
            Err(ApiError::not_found(format!("there is no member `{name}`"))
                .hint("`host-tools user ls` lists them"))
        }
    }

    /// Numbers of the certificates that are revoked.
    ///
    /// # Errors
    /// The store does not answer.
    pub async fn revoked(&self) -> Result<BTreeSet<String>, ApiError> {
        let all = self.certificates().await?;
        let revoked = all.into_iter().filter(|certificate| certificate.revoked_us.is_some());
        Ok(revoked.map(|certificate| certificate.serial).collect())
    }

    /// Signs that a service was given to a node.
    #[must_use]
    pub fn grant(&self, grant: &Grant<'_>) -> String {
        grant.sign(self.authority.image_key(), self.authority.cluster())
    }

    /// Signs an image that was pushed, and keeps the signature.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn sign(&self, image: &ImageRef) -> Result<(), ApiError> {
        let signature =
            signature::sign(self.authority.image_key(), self.authority.cluster(), image);
        let path = self.signatures.join(image.digest.to_string());
        write_atomically(&path, signature.as_bytes())
            .map_err(|error| ApiError::failed(format!("{}: {error}", path.display())))
    }

    /// The signature of an image.
    ///
    /// # Errors
    /// It has none.
    pub fn signature(&self, digest: &Digest32) -> Result<String, ApiError> {
        let path = self.signatures.join(digest.to_string());
        std::fs::read_to_string(path).map_err(|_| {
            ApiError::not_found(format!("image {} has no signature", digest.short()))
                .hint("push it again with `host-tools image push`")
        })
    }

    async fn keep(&self, kind: &str, id: &str, value: &impl Serialize) -> Result<(), ApiError> {
        let json = serde_json::to_vec(value).map_err(ApiError::failed)?;
        Ok(self.store.put_document(kind, id, json).await?)
    }

    async fn documents<T: serde::de::DeserializeOwned>(
        &self,
        kind: &str,
    ) -> Result<Vec<T>, ApiError> {
        let documents = self.store.documents(kind).await?;
        let read = |json: &Vec<u8>| serde_json::from_slice(json).map_err(ApiError::failed);
        documents.iter().map(read).collect()
    }
}

fn moment(us: u64) -> Result<OffsetDateTime, ApiError> {
    OffsetDateTime::from_unix_timestamp((us / 1_000_000).cast_signed()).map_err(ApiError::failed)
}
