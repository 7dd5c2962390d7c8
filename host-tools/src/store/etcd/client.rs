//! Requests to etcd, each with a deadline, asked again while its members elect a leader.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, Instant};

use etcd_client::{
    Certificate, Client, ConnectOptions, Error, GetOptions, Identity, TlsOptions, Txn, TxnResponse,
};

use super::{StoreError, failed};
use crate::wire::Pause;

/// Longest wait for one answer of one member.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);
/// Longest time until a request is given up: etcd's members may have to elect a leader meanwhile, which takes
/// them one to three seconds.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
/// First and longest pause between two attempts.
const PAUSES: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(500));

/// The pauses between the attempts at one request.
pub(super) fn pauses() -> Pause {
    Pause::growing(PAUSES.0, PAUSES.1)
}

/// Silence after which a member is asked whether it is there, and how long it has to say so. etcd takes
/// questions that come more often than every 5 s for an attack.
const KEEP_ALIVE: (Duration, Duration) = (Duration::from_secs(6), Duration::from_secs(2));
/// Longest wait for a connection.
const CONNECT_LIMIT: Duration = Duration::from_secs(1);
/// Values in one answer of a range.
const PAGE: i64 = 100;
/// Longest answer, in bytes.
const MAX_ANSWER: usize = 64 << 20;

/// Where the members of an etcd listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoints(Vec<String>);

/// A text that names no members.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{text}` names no members of an etcd: use http://HOST:PORT[,http://HOST:PORT...] or https://"
)]
pub struct EndpointsError {
    /// What was given.
    pub text: String,
}

impl FromStr for Endpoints {
    type Err = EndpointsError;

    fn from_str(text: &str) -> Result<Self, EndpointsError> {
        let urls: Vec<String> = text.split(',').map(|url| url.trim().to_owned()).collect();
        let is_url = |url: &String| {
            let rest = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"));
            rest.and_then(|rest| rest.trim_end_matches('/').rsplit_once(':'))
                .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
        };
        if urls.iter().all(is_url) {
            Ok(Self(urls))
        } else {
            Err(EndpointsError { text: text.to_owned() })
        }
    }
}

impl fmt::Display for Endpoints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join(","))
    }
}

impl Endpoints {
    /// Whether every member is asked over TLS, or on this machine.
    #[must_use]
    pub fn are_secured(&self) -> bool {
        self.0.iter().all(|url| match url.strip_prefix("http://") {
            Some(rest) => {
                rest.parse().is_ok_and(|address: crate::wire::Address| address.is_local())
            }
            None => true,
        })
    }
}

/// How etcd is asked.
#[derive(Clone, Debug)]
pub struct EtcdConfig {
    /// Its members.
    pub endpoints: Endpoints,
    /// What all keys begin with.
    pub prefix: String,
    /// Certificate of the authority that its members' certificates are of, in PEM.
    pub ca: Option<PathBuf>,
    /// Our certificate and its key, in PEM.
    pub identity: Option<(PathBuf, PathBuf)>,
}

impl EtcdConfig {
    fn options(&self) -> Result<ConnectOptions, StoreError> {
        let read = |path: &Path| {
            std::fs::read(path).map_err(|error| failed(format!("{}: {error}", path.display())))
        };
        let options = ConnectOptions::new()
            .with_connect_timeout(CONNECT_LIMIT)
            .with_keep_alive(KEEP_ALIVE.0, KEEP_ALIVE.1)
            .with_keep_alive_while_idle(true)
            .with_require_leader(true);
        if self.ca.is_none() && self.identity.is_none() {
            return Ok(options);
        }
        let mut tls = TlsOptions::new();
        if let Some(ca) = &self.ca {
            tls = tls.ca_certificate(Certificate::from_pem(read(ca)?));
        }
        if let Some((certificate, key)) = &self.identity {
            tls = tls.identity(Identity::from_pem(read(certificate)?, read(key)?));
        }
        Ok(options.with_tls(tls))
    }
}

/// A client of all members.
#[derive(Clone)]
pub(super) struct Etcd {
    client: Client,
}

impl fmt::Debug for Etcd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Etcd")
    }
}

/// Whether another attempt may go better: the member is gone, or etcd has no leader just now.
pub(super) fn is_passing(error: &Error) -> bool {
    use code::{CANCELLED, DEADLINE_EXCEEDED, INTERNAL, UNAVAILABLE, UNKNOWN};
    match error {
        Error::GRpcStatus(status) => [CANCELLED, DEADLINE_EXCEEDED, INTERNAL, UNAVAILABLE, UNKNOWN]
            .contains(&(status.code() as i32)),
        Error::TransportError(_)
        | Error::IoError(_)
        | Error::LeaseKeepAliveError(_)
        | Error::ElectError(_)
        | Error::WatchError(_) => true,
        _ => false,
    }
}

/// Status codes of gRPC.
mod code {
    pub(super) const CANCELLED: i32 = 1;
    pub(super) const UNKNOWN: i32 = 2;
    pub(super) const DEADLINE_EXCEEDED: i32 = 4;
    pub(super) const INTERNAL: i32 = 13;
    pub(super) const UNAVAILABLE: i32 = 14;
}

impl Etcd {
    pub(super) async fn open(config: &EtcdConfig) -> Result<Self, StoreError> {
        let client = Client::connect(&config.endpoints.0, Some(config.options()?)).await;
        Ok(Self { client: client.map_err(failed)? })
    }

    /// One attempt.
    pub(super) async fn once<T, F>(&self, ask: impl FnOnce(Client) -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>>,
    {
        match tokio::time::timeout(ANSWER_LIMIT, ask(self.client.clone())).await {
            Ok(answer) => answer,
            Err(_) => Err(Error::IoError(std::io::ErrorKind::TimedOut.into())),
        }
    }

    /// As many attempts as there is time for.
    async fn patiently<T, F>(&self, ask: impl Fn(Client) -> F) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let until = Instant::now() + PATIENCE;
        let mut pause = pauses();
        loop {
            match self.once(&ask).await {
                Ok(answer) => return Ok(answer),
                Err(error) if !is_passing(&error) => return Err(failed(error)),
                Err(_) if Instant::now() < until => pause.wait().await,
                Err(error) => return Err(StoreError::Silent { reason: error.to_string() }),
            }
        }
    }

    pub(super) async fn get(&self, key: String) -> Result<Option<Vec<u8>>, StoreError> {
        let found = self.patiently(|mut client| {
            let key = key.clone();
            async move { client.get(key, None).await }
        });
        Ok(found.await?.kvs().first().map(|found| found.value().to_vec()))
    }

    /// All values whose keys begin with `prefix`, by key.
    pub(super) async fn all(&self, prefix: String) -> Result<Vec<Vec<u8>>, StoreError> {
        let mut after = prefix.clone().into_bytes();
        let options = GetOptions::new().with_range(after_all(&prefix)).with_limit(PAGE);
        let mut out = Vec::new();
        loop {
            let page = self.patiently(|client| {
                let (from, options) = (after.clone(), options.clone());
                let mut kv = client.kv_client().max_decoding_message_size(MAX_ANSWER);
                async move { kv.get(from, Some(options)).await }
            });
            let found = page.await?;
            out.extend(found.kvs().iter().map(|found| found.value().to_vec()));
            match found.kvs().last() {
                Some(last) if found.more() => {
                    after = last.key().to_vec();
                    after.push(0);
                }
                _ => return Ok(out),
            }
        }
    }

    /// For requests that have no deadline.
    pub(super) fn waiting_client(&self) -> Client {
        self.client.clone()
    }

    pub(super) async fn transaction(&self, transaction: Txn) -> Result<TxnResponse, Error> {
        self.once(|mut client| async move { client.txn(transaction).await }).await
    }
}

/// The first key after all that begin with `prefix`, which ends in a slash or a letter.
fn after_all(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_as_people_write_them() {
        let three: Endpoints =
            "http://10.0.0.1:2379, http://10.0.0.2:2379,http://c:2379".parse().unwrap();
        assert_eq!(three.to_string(), "http://10.0.0.1:2379,http://10.0.0.2:2379,http://c:2379");
        for text in ["", "10.0.0.1:2379", "http://:2379", "http://a", "ftp://a:1", "http://a:1,"] {
            assert!(text.parse::<Endpoints>().is_err(), "{text}");
        }
    }

    #[test]
    fn plain_text_leaves_this_machine_only_unnoticed() {
        for (text, secured) in [
            ("http://127.0.0.1:2379", true),
            ("https://10.0.0.1:2379", true),
            ("http://10.0.0.1:2379", false),
            ("https://10.0.0.1:2379,http://10.0.0.2:2379", false),
        ] {
            assert_eq!(text.parse::<Endpoints>().unwrap().are_secured(), secured, "{text}");
        }
    }

    #[test]
    fn a_range_ends_after_its_prefix() {
        assert_eq!(after_all("/f/services/"), b"/f/services0");
    }
}
