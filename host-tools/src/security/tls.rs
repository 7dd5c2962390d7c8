//! Connections: TLS 1.3, a certificate of the cluster's authority on each side.
//!
//! A server is known by what it is, not by where it is: the manager's certificate names
//! `manager.ferry.internal`, that of node `a` `a.node.ferry.internal`. Sessions are never resumed, so each
//! connection has verified its peer's certificate, and that it has not expired.

use std::io;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, ring as provider};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, InvalidDnsNameError, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig,
    SignatureScheme, version,
};
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

use super::authority::fingerprint;
use super::credentials::Credentials;
use super::identity::{IdentityError, Member, Role};
use crate::wire::Stream;

/// Whom a connection is to reach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Party {
    /// The manager.
    Manager,
    /// The agent of the node with this name.
    Node(String),
}

impl Party {
    /// The name in its certificate.
    ///
    /// # Errors
    /// The node's name cannot be part of one.
    pub fn server_name(&self) -> Result<ServerName<'static>, InvalidDnsNameError> {
        match self {
            Self::Manager => "manager.ferry.internal".to_owned().try_into(),
            Self::Node(name) => format!("{name}.node.ferry.internal").try_into(),
        }
    }
}

/// Why connections cannot be secured.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what the fields are")]
pub enum TlsError {
    #[error("the credentials cannot be used: {reason}")]
    Credentials { reason: String },
    #[error("`{name}` cannot be the name of a node")]
    Name { name: String },
}

fn unusable(error: impl std::fmt::Display) -> TlsError {
    TlsError::Credentials { reason: error.to_string() }
}

/// How a process speaks to others.
#[derive(Clone, Debug)]
pub enum Security {
    /// Plain HTTP, to addresses on this machine only.
    Plain,
    /// With its credentials.
    Tls(Arc<Tls>),
}

/// A member's ends of connections.
#[derive(Debug)]
pub struct Tls {
    /// Who it is, and whom it knows. Its certificate may have been renewed since.
    pub credentials: Credentials,
    ends: RwLock<Ends>,
}

/// What shows a certificate.
#[derive(Clone, Debug)]
struct Ends {
    client: Arc<ClientConfig>,
    server: Option<Arc<ServerConfig>>,
}

/// TLS 1.3 with AES-GCM.
fn crypto() -> Arc<CryptoProvider> {
    let mut crypto = provider::default_provider();
    crypto.cipher_suites = vec![
        provider::cipher_suite::TLS13_AES_256_GCM_SHA384,
        provider::cipher_suite::TLS13_AES_128_GCM_SHA256,
    ];
    Arc::new(crypto)
}

fn roots(ca: CertificateDer<'static>) -> Result<Arc<RootCertStore>, rustls::Error> {
    let mut roots = RootCertStore::empty();
    roots.add(ca)?;
    Ok(Arc::new(roots))
}

impl Tls {
    /// The ends of whoever has these credentials.
    ///
    /// # Errors
    /// They cannot be used.
    pub fn new(credentials: Credentials) -> Result<Self, TlsError> {
        let ends = RwLock::new(Ends::new(&credentials)?);
        Ok(Self { credentials, ends })
    }

    /// From now on connections show the certificate of these credentials, which are the same member's. Those
    /// there are go on.
    ///
    /// # Errors
    /// They cannot be used; nothing changes.
    pub fn renew(&self, credentials: &Credentials) -> Result<(), TlsError> {
        let renewed = Ends::new(credentials)?;
        *self.ends.write().unwrap_or_else(PoisonError::into_inner) = renewed;
        Ok(())
    }

    fn ends(&self) -> Ends {
        self.ends.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The client's end.
    ///
    /// # Errors
    /// The handshake failed: [`explain`] says why.
    pub async fn connect(&self, stream: Stream, name: ServerName<'static>) -> io::Result<Stream> {
        let connected = TlsConnector::from(self.ends().client).connect(name, stream).await?;
        Ok(Stream::Secure(Box::new(TlsStream::Client(connected))))
    }

    /// The server's end, within `limit`, and who the client is, if it has a certificate.
    ///
    /// # Errors
    /// The handshake failed.
    pub async fn accept(
        &self,
        stream: Stream,
        limit: Duration,
    ) -> io::Result<(Stream, Option<Member>)> {
        let Some(server) = self.ends().server else {
            return Err(io::ErrorKind::Unsupported.into());
        };
        let accept = TlsAcceptor::from(server).accept(stream);
        let accepted = tokio::time::timeout(limit, accept).await??;
        let shown = accepted.get_ref().1.peer_certificates().and_then(<[_]>::first);
        let invalid = |error: IdentityError| io::Error::new(io::ErrorKind::InvalidData, error);
        let member = shown.map(Member::read).transpose().map_err(invalid)?;
        Ok((Stream::Secure(Box::new(TlsStream::Server(accepted))), member))
    }
}

impl Ends {
    fn new(credentials: &Credentials) -> Result<Self, TlsError> {
        let ca = CertificateDer::from_pem_slice(credentials.ca.as_bytes()).map_err(unusable)?;
        let own =
            CertificateDer::from_pem_slice(credentials.certificate.as_bytes()).map_err(unusable)?;
        let key = PrivateKeyDer::from_pem_slice(credentials.key.as_bytes()).map_err(unusable)?;
        let roots = roots(ca.clone()).map_err(unusable)?;
        let mut client = ClientConfig::builder_with_provider(crypto())
            .with_protocol_versions(&[&version::TLS13])
            .map_err(unusable)?
            .with_root_certificates(Arc::clone(&roots))
            .with_client_auth_cert(vec![own.clone()], key.clone_key())
            .map_err(unusable)?;
        client.resumption = Resumption::disabled();
        let role = credentials.identity.role;
        let server = if role.is_users() {
            None
        } else {
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, crypto());
            // Newcomers ask the manager for their certificate; the gate lets them do nothing else.
            let verifier = match role {
                Role::Manager => verifier.allow_unauthenticated(),
                _ => verifier,
            };
            let mut server = ServerConfig::builder_with_provider(crypto())
                .with_protocol_versions(&[&version::TLS13])
                .map_err(unusable)?
                .with_client_cert_verifier(verifier.build().map_err(unusable)?)
                // Newcomers recognise the authority by its fingerprint: it is shown too.
                .with_single_cert(vec![own, ca], key)
                .map_err(unusable)?;
            server.session_storage = Arc::new(NoServerSessionStorage {});
            server.send_tls13_tickets = 0;
            Some(Arc::new(server))
        };
        Ok(Self { client: Arc::new(client), server })
    }
}

/// A newcomer's end of a connection to the manager of the cluster with this fingerprint.
///
/// # Errors
/// The handshake failed, or it is another cluster's manager.
pub async fn connect_newcomer(stream: Stream, expected: [u8; 32]) -> io::Result<Stream> {
    let verifier = Arc::new(Fingerprint { expected, crypto: crypto() });
    let mut client = ClientConfig::builder_with_provider(crypto())
        .with_protocol_versions(&[&version::TLS13])
        .map_err(io::Error::other)?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    client.resumption = Resumption::disabled();
    let name = Party::Manager.server_name().map_err(io::Error::other)?;
    let connected = TlsConnector::from(Arc::new(client)).connect(name, stream).await?;
    Ok(Stream::Secure(Box::new(TlsStream::Client(connected))))
}

/// Takes the authority with this fingerprint for the root, if the server shows it, and verifies against it
/// as usual.
#[derive(Debug)]
struct Fingerprint {
    expected: [u8; 32],
    crypto: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Fingerprint {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let shown = intermediates.iter().find(|shown| fingerprint(shown) == self.expected);
        let ca = shown.ok_or(CertificateError::UnknownIssuer)?;
        let roots = roots(ca.clone().into_owned())?;
        WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&self.crypto))
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?
            .verify_server_cert(end_entity, &[], server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not spoken".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.crypto.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.crypto.signature_verification_algorithms.supported_schemes()
    }
}

/// What a failed handshake means to people; `None` if TLS has nothing to say about it.
#[must_use]
pub fn explain(error: &(dyn std::error::Error + 'static)) -> Option<String> {
    use rustls::{AlertDescription as Alert, Error, InvalidMessage};
    let mut error = Some(error);
    while let Some(current) = error {
        let tls = current.downcast_ref::<Error>().or_else(|| {
            // An io::Error hides what it wraps from `source`.
            let wrapped = current.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
            wrapped.and_then(|wrapped| wrapped.downcast_ref::<Error>())
        });
        if let Some(tls) = tls {
            return Some(match tls {
                Error::InvalidCertificate(CertificateError::UnknownIssuer) => {
                    "its certificate is not of our cluster".into()
                }
                Error::InvalidCertificate(
                    CertificateError::Expired | CertificateError::ExpiredContext { .. },
                ) => "its certificate has expired".into(),
                Error::InvalidCertificate(
                    CertificateError::NotValidForName
                    | CertificateError::NotValidForNameContext { .. },
                ) => "its certificate is somebody else's".into(),
                Error::NoCertificatesPresented => "it shows no certificate".into(),
                Error::AlertReceived(
                    Alert::UnknownCA | Alert::DecryptError | Alert::BadCertificate,
                ) => "it does not know our certificate: it belongs to another cluster".into(),
                Error::AlertReceived(Alert::CertificateExpired) => {
                    "our certificate has expired".into()
                }
                Error::AlertReceived(Alert::CertificateRequired) => {
                    "it wants a certificate of us".into()
                }
                Error::InvalidMessage(InvalidMessage::InvalidContentType) => {
                    "it does not speak TLS".into()
                }
                _ => return None,
            });
        }
        error = current.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use time::OffsetDateTime;
    use tokio::net::UnixStream;

    use super::*;
    use crate::security::Authority;

    /// Numbers of the certificates that a client and a server show each other.
    async fn shown(client: &Tls, server: &Tls) -> (String, String) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let name = Party::Node("b".into()).server_name().unwrap();
        let (ours, theirs) = tokio::join!(
            client.connect(Stream::Unix(ours), name),
            server.accept(Stream::Unix(theirs), Duration::from_secs(10))
        );
        let Stream::Secure(ours) = ours.unwrap() else { panic!("not secured") };
        let of_server = ours.get_ref().1.peer_certificates().unwrap()[0].clone();
        (theirs.unwrap().1.unwrap().serial, Member::read(&of_server).unwrap().serial)
    }

    #[tokio::test]
    async fn a_renewed_certificate_is_shown_from_then_on() {
        let dir = tempfile::tempdir().unwrap();
        let now = OffsetDateTime::now_utc();
        let authority = Authority::open(&dir.path().join("authority.json"), now).unwrap();
        let agent = |name| authority.credentials(Role::Agent, name, now).unwrap();
        let [(a, first_a), (b, first_b)] = [agent("a"), agent("b")];
        let (client, server) = (Tls::new(a).unwrap(), Tls::new(b).unwrap());
        assert_eq!(shown(&client, &server).await, (first_a.serial, first_b.serial.clone()));
        let (a, second_a) = agent("a");
        client.renew(&a).unwrap();
        assert_eq!(shown(&client, &server).await, (second_a.serial.clone(), first_b.serial));
        let (b, second_b) = agent("b");
        server.renew(&b).unwrap();
        assert_eq!(shown(&client, &server).await, (second_a.serial, second_b.serial.clone()));
        let nothing = Credentials { certificate: String::new(), ..b };
        assert!(server.renew(&nothing).is_err());
        assert_eq!(shown(&client, &server).await.1, second_b.serial, "nothing has changed");
    }
}
