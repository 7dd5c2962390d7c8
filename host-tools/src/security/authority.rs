//! The cluster's keys, and certificates from them.
//!
//! All of them lie in one file, so that there is never half an authority: the key of the certificate
//! authority, the key that images are signed with, and the key that snapshots are sealed with.

use std::io;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData,
    SanType, SerialNumber,
};
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde::{Deserialize, Serialize};
use time::{Duration, OffsetDateTime};

use super::credentials::Credentials;
use super::identity::{Identity, Role, hex};
use super::seal::SealKey;
use super::secret;
use super::tls::Party;

/// Version of the file's format.
const VERSION: u32 = 1;
/// How long the authority's own certificate and the manager's last.
const AUTHORITY_DAYS: i64 = 3650;
/// How long the certificates of users and agents last.
pub const MEMBER_DAYS: i64 = 398;
/// Clocks of a cluster may differ by this.
const CLOCK_SKEW: Duration = Duration::hours(1);

/// Why there are no keys, or no certificate.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what the fields are")]
pub enum AuthorityError {
    #[error("{path}: {source}")]
    File { path: PathBuf, source: io::Error },
    #[error(
        "{path} holds no keys that this version can use ({reason}). Without them no member of the \
         cluster can be recognised: put the file back from a copy"
    )]
    Unreadable { path: PathBuf, reason: String },
    #[error("keys cannot be made: {reason}")]
    Make { reason: String },
    #[error("the certificate request is none: {reason}")]
    Request { reason: String },
    #[error(
        "`{name}` cannot be the name of a node: its parts between dots must begin and end with a letter \
         or digit"
    )]
    NodeName { name: String },
}

/// What the file holds.
#[derive(Serialize, Deserialize)]
struct Kept {
    version: u32,
    cluster: String,
    ca: String,
    ca_key: String,
    image_key: String,
    seal_key: String,
}

/// The keys of a cluster.
pub struct Authority {
    cluster: String,
    ca: String,
    ca_der: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
    image_key: Ed25519KeyPair,
    seal_key: [u8; 32],
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").field("cluster", &self.cluster).finish_non_exhaustive()
    }
}

fn make(error: impl std::fmt::Display) -> AuthorityError {
    AuthorityError::Make { reason: error.to_string() }
}

impl Authority {
    /// Reads the keys in `path`, or makes them if there is no such file.
    ///
    /// # Errors
    /// The file cannot be read or written, or does not hold keys.
    pub fn open(path: &Path, now: OffsetDateTime) -> Result<Self, AuthorityError> {
        let file = |source| AuthorityError::File { path: path.to_owned(), source };
        let bytes = match secret::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let kept = Self::make(now)?;
                let bytes = serde_json::to_vec_pretty(&kept).map_err(make)?;
                secret::write(path, &bytes).map_err(file)?;
                bytes
            }
            Err(source) => return Err(file(source)),
        };
        let unreadable =
            |reason: String| AuthorityError::Unreadable { path: path.to_owned(), reason };
        let kept: Kept =
            serde_json::from_slice(&bytes).map_err(|error| unreadable(error.to_string()))?;
        if kept.version != VERSION {
            return Err(unreadable(format!("format {}", kept.version)));
        }
        Self::load(kept).map_err(unreadable)
    }

    fn make(now: OffsetDateTime) -> Result<Kept, AuthorityError> {
        let cluster = hex(&secret::random::<8>().map_err(make)?);
        let key = KeyPair::generate().map_err(make)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = named(&format!("Ferry cluster {cluster}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.not_before = now - CLOCK_SKEW;
        params.not_after = now + Duration::days(AUTHORITY_DAYS);
        params.serial_number = Some(new_serial()?);
        let ca = params.self_signed(&key).map_err(make)?;
        let image_key = Ed25519KeyPair::generate_pkcs8(&ring::rand::SystemRandom::new())
            .map_err(|_| make(secret::NoRandom))?;
        Ok(Kept {
            version: VERSION,
            cluster,
            ca: ca.pem(),
            ca_key: key.serialize_pem(),
            image_key: BASE64.encode(image_key.as_ref()),
            seal_key: BASE64.encode(secret::random::<32>().map_err(make)?),
        })
    }

    fn load(kept: Kept) -> Result<Self, String> {
        let key = KeyPair::from_pem(&kept.ca_key).map_err(|error| error.to_string())?;
        let issuer = Issuer::from_ca_cert_pem(&kept.ca, key).map_err(|error| error.to_string())?;
        let ca_der = CertificateDer::from_pem_slice(kept.ca.as_bytes())
            .map_err(|error| error.to_string())?;
        let image_key = BASE64.decode(&kept.image_key).map_err(|error| error.to_string())?;
        let image_key =
            Ed25519KeyPair::from_pkcs8(&image_key).map_err(|error| error.to_string())?;
        let seal_key = BASE64.decode(&kept.seal_key).map_err(|error| error.to_string())?;
        let seal_key = seal_key.try_into().map_err(|_| "the seal key has another length")?;
        Ok(Self { cluster: kept.cluster, ca: kept.ca, ca_der, issuer, image_key, seal_key })
    }

    /// Id of the cluster.
    #[must_use]
    pub fn cluster(&self) -> &str {
        &self.cluster
    }

    /// The authority's certificate, in PEM.
    #[must_use]
    pub fn certificate(&self) -> &str {
        &self.ca
    }

    /// SHA-256 of the authority's certificate, which newcomers know it by.
    #[must_use]
    pub fn fingerprint(&self) -> [u8; 32] {
        fingerprint(&self.ca_der)
    }

    /// The key that images are signed with.
    #[must_use]
    pub fn image_key(&self) -> &Ed25519KeyPair {
        &self.image_key
    }

    /// Its public half, in base64.
    #[must_use]
    pub fn image_public_key(&self) -> String {
        BASE64.encode(self.image_key.public_key().as_ref())
    }

    /// The key that snapshots are sealed with, in base64.
    #[must_use]
    pub fn seal_key_text(&self) -> String {
        BASE64.encode(self.seal_key)
    }

    /// The key that snapshots are sealed with.
    #[must_use]
    pub fn seal_key(&self) -> SealKey {
        SealKey::new(self.cluster.clone(), self.seal_key)
    }

    /// A certificate for whoever holds the key of the request. What else the request says is not heeded.
    ///
    /// # Errors
    /// The request is none, or is not signed by its key.
    pub fn issue(
        &self,
        request: &str,
        identity: &Identity,
        now: OffsetDateTime,
    ) -> Result<Issued, AuthorityError> {
        let request = CertificateSigningRequestParams::from_pem(request)
            .map_err(|error| AuthorityError::Request { reason: error.to_string() })?;
        self.certify(&request.public_key, identity, now, MEMBER_DAYS)
    }

    fn certify(
        &self,
        key: &impl PublicKeyData,
        identity: &Identity,
        now: OffsetDateTime,
        days: i64,
    ) -> Result<Issued, AuthorityError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = named(&identity.name);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let uri = identity.to_string();
        params.subject_alt_names = vec![SanType::URI(uri.try_into().map_err(make)?)];
        let party = match identity.role {
            Role::Manager => Some(Party::Manager),
            Role::Agent => Some(Party::Node(identity.name.clone())),
            _ => None,
        };
        if let Some(party) = party {
            let wrong = || AuthorityError::NodeName { name: identity.name.clone() };
            let name = party.server_name().map_err(|_| wrong())?.to_str().into_owned();
            params.subject_alt_names.push(SanType::DnsName(name.try_into().map_err(make)?));
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        params.not_before = now - CLOCK_SKEW;
        params.not_after = now + Duration::days(days);
        let serial = new_serial()?;
        let number = hex(&serial.to_bytes());
        params.serial_number = Some(serial);
        let certificate = params.signed_by(key, &self.issuer).map_err(make)?;
        Ok(Issued { certificate: certificate.pem(), serial: number, expires: params.not_after })
    }

    /// A key and a certificate for somebody on this machine: the manager itself, the first admin.
    ///
    /// # Errors
    /// They cannot be made.
    pub fn credentials(
        &self,
        role: Role,
        name: &str,
        now: OffsetDateTime,
    ) -> Result<(Credentials, Issued), AuthorityError> {
        let key = KeyPair::generate().map_err(make)?;
        let identity = Identity { cluster: self.cluster.clone(), role, name: name.to_owned() };
        let days = if role == Role::Manager { AUTHORITY_DAYS } else { MEMBER_DAYS };
        let issued = self.certify(&key, &identity, now, days)?;
        let credentials = Credentials {
            identity,
            manager: None,
            ca: self.ca.clone(),
            certificate: issued.certificate.clone(),
            expires_us: Some(issued.expires_us()),
            key: key.serialize_pem(),
            image_key: self.image_public_key(),
            seal_key: (!role.is_users()).then(|| self.seal_key_text()),
        };
        Ok((credentials, issued))
    }
}

/// A certificate that was made.
#[derive(Clone, Debug)]
pub struct Issued {
    /// In PEM.
    pub certificate: String,
    /// Its number, in hexadecimal digits.
    pub serial: String,
    /// When it ends.
    pub expires: OffsetDateTime,
}

impl Issued {
    /// When it ends, in microseconds since the Unix epoch.
    #[must_use]
    pub fn expires_us(&self) -> u64 {
        u64::try_from(self.expires.unix_timestamp()).unwrap_or(0) * 1_000_000
    }
}

/// SHA-256 of a certificate.
#[must_use]
pub fn fingerprint(certificate: &CertificateDer<'_>) -> [u8; 32] {
    let digest = ring::digest::digest(&ring::digest::SHA256, certificate);
    let mut out = [0; 32];
    out.copy_from_slice(digest.as_ref());
    out
}

fn named(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

/// RFC 5280 §4.1.2.2: positive, not longer than 20 bytes.
fn new_serial() -> Result<SerialNumber, AuthorityError> {
    let mut bytes: [u8; 16] = secret::random().map_err(make)?;
    bytes[0] = (bytes[0] & 0x7f) | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::security::identity::Member;

    fn now() -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap()
    }

    #[test]
    fn made_once_and_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("authority.json");
        let made = Authority::open(&path, now()).unwrap();
        let read = Authority::open(&path, now()).unwrap();
        assert_eq!(made.cluster(), read.cluster());
        assert_eq!(made.fingerprint(), read.fingerprint());
        assert_eq!(made.image_public_key(), read.image_public_key());
        std::fs::write(&path, "{}").unwrap();
        assert!(matches!(Authority::open(&path, now()), Err(AuthorityError::Unreadable { .. })));
    }

    #[test]
    fn a_certificate_says_who_it_is_whatever_the_request_says() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::open(&dir.path().join("a"), now()).unwrap();
        let identity =
            Identity { cluster: authority.cluster().into(), role: Role::View, name: "eve".into() };
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["manager.ferry.internal".into()]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let request = params.serialize_request(&key).unwrap().pem().unwrap();
        let issued = authority.issue(&request, &identity, now()).unwrap();
        let der = CertificateDer::from_pem_slice(issued.certificate.as_bytes()).unwrap();
        let member = Member::read(&der).unwrap();
        assert_eq!((member.identity, member.serial), (identity.clone(), issued.serial));
        let certificate = webpki::EndEntityCert::try_from(&der).unwrap();
        assert_eq!(certificate.valid_dns_names().count(), 0);
        assert!(authority.issue("nonsense", &identity, now()).is_err());
        let agent = Identity { role: Role::Agent, name: "a..b".into(), ..identity };
        let refused = authority.issue(&request, &agent, now());
        assert!(matches!(refused, Err(AuthorityError::NodeName { .. })), "{refused:?}");
    }
}
