//! Asking a manager or an agent over HTTP/1.1.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use axum::body::Body;
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Method, Request, Response, StatusCode, body::Incoming};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use tokio::sync::Mutex;

use super::error::{ApiError, Problem};
use crate::security::tls::{self, Party, Security, Tls};
use crate::trace;
use crate::wire::{self, Address, Addresses, Pause};

/// Longest time a connection may take to come about.
const CONNECT_LIMIT: Duration = Duration::from_secs(3);
/// Longest answer that is taken into memory, in bytes.
const MAX_ANSWER: usize = 64 << 20;

/// Longest wait for one of several managers to lead: as long as a leader's lease, and the election.
const LEADER_LIMIT: Duration = Duration::from_secs(20);
/// First and longest pause before the managers are asked once more who leads.
const LEADER_PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(500));

/// A client of one party. Keeps one connection open for requests with small answers, so that a
/// request on it costs one round trip.
///
/// Of several managers it asks the one that leads: it goes on to the next when one cannot be reached or says
/// that another leads, and waits while they elect one.
#[derive(Debug)]
pub struct Client {
    addresses: Addresses,
    /// Place of the address that answered last.
    at: AtomicUsize,
    who: String,
    secured: Secured,
    kept: Mutex<Option<Connection>>,
}

/// How the peer is authenticated.
#[derive(Clone, Debug)]
enum Secured {
    /// Not at all: only peers on this machine are asked.
    No,
    /// By certificates on both sides.
    By(Arc<Tls>, Party),
    /// By the fingerprint of its authority; we have no certificate yet.
    Newcomer([u8; 32]),
}

/// A connection, and how it ends.
#[derive(Debug)]
struct Connection {
    sender: SendRequest<Body>,
    ended: tokio::task::JoinHandle<hyper::Result<()>>,
}

/// A body that arrives in lines.
#[derive(Debug)]
pub struct Lines {
    body: Incoming,
    buffer: Vec<u8>,
}

impl Client {
    /// A client of the party at `addresses`; `who` names it in error messages, as in "the manager".
    pub fn new(addresses: impl Into<Addresses>, who: impl Into<String>) -> Self {
        Self {
            addresses: addresses.into(),
            at: AtomicUsize::new(0),
            who: who.into(),
            secured: Secured::No,
            kept: Mutex::new(None),
        }
    }

    /// The same with connections that `security` makes to `party`.
    #[must_use]
    pub fn secured(self, security: &Security, party: Party) -> Self {
        match security {
            Security::Plain => self,
            Security::Tls(tls) => Self { secured: Secured::By(Arc::clone(tls), party), ..self },
        }
    }

    /// A client of the manager for somebody who has no certificate yet and knows its authority by
    /// `fingerprint`.
    #[must_use]
    pub fn newcomer(addresses: impl Into<Addresses>, fingerprint: [u8; 32]) -> Self {
        let secured = Secured::Newcomer(fingerprint);
        Self { secured, ..Self::new(addresses, "the manager") }
    }

    /// The address that is asked next.
    #[must_use]
    pub fn address(&self) -> &Address {
        self.addresses.nth(self.at.load(Ordering::Relaxed))
    }

    /// From now on the next address is asked.
    fn turn_away(&self) {
        self.at.fetch_add(1, Ordering::Relaxed);
    }

    fn unreachable(&self, error: impl std::fmt::Display) -> ApiError {
        ApiError::new(Problem::Unreachable, format!("{} cannot be reached: {error}", self.who))
    }

    /// Why a connection ended. A peer that refuses our certificate says so only after our handshake.
    fn broken(&self, error: &(dyn std::error::Error + 'static)) -> ApiError {
        match tls::explain(error) {
            Some(reason) => ApiError::denied(format!(
                "{} at {} and we do not trust each other: {reason}",
                self.who,
                self.address()
            )),
            None if matches!(self.secured, Secured::No) => self
                .unreachable(error)
                .hint("it may want TLS: use --credentials FILE, as `host-tools enrol` makes it"),
            None => self.unreachable(error),
        }
    }

    /// Connects to the address that answered last, else to the next that can be reached.
    async fn connect(&self) -> Result<Connection, ApiError> {
        let mut tried = 1;
        loop {
            match self.connect_here().await {
                Err(error)
                    if error.problem == Problem::Unreachable && tried < self.addresses.len() =>
                {
                    tried += 1;
                    self.turn_away();
                }
                other => return other,
            }
        }
    }

    async fn connect_here(&self) -> Result<Connection, ApiError> {
        let address = self.address().clone();
        if matches!(self.secured, Secured::No) && !address.is_local() {
            return Err(ApiError::denied(format!(
                "{} at {address} is not on this machine, and there are no credentials to ask it with",
                self.who
            ))
            .hint("`host-tools enrol --manager HOST:PORT --token TOKEN` gets some; an admin makes tokens with `host-tools token create`"));
        }
        let stream = wire::connect(&address, CONNECT_LIMIT)
            .await
            .map_err(|error| self.unreachable(error))?;
        let handshake = async {
            match &self.secured {
                Secured::No => Ok(stream),
                Secured::By(tls, party) => {
                    let name = party.server_name().map_err(io::Error::other)?;
                    tls.connect(stream, name).await
                }
                Secured::Newcomer(fingerprint) => tls::connect_newcomer(stream, *fingerprint).await,
            }
        };
        let stream = match tokio::time::timeout(CONNECT_LIMIT, handshake).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Err(self.broken(&error)),
            Err(_) => return Err(self.unreachable("no TLS handshake in time")),
        };
        let (sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| self.broken(&error))?;
        Ok(Connection { sender, ended: tokio::spawn(connection.with_upgrades()) })
    }

    /// Sends a request. If the connection ends before it is sent, the reason is the connection's.
    async fn exchange_on(
        &self,
        connection: &mut Connection,
        request: Request<Body>,
    ) -> Result<Response<Incoming>, ApiError> {
        match connection.sender.send_request(request).await {
            Ok(answer) => Ok(answer),
            Err(error) if error.is_canceled() => {
                match tokio::time::timeout(CONNECT_LIMIT, &mut connection.ended).await {
                    Ok(Ok(Err(reason))) => Err(self.broken(&reason)),
                    _ => Err(self.broken(&error)),
                }
            }
            Err(error) => Err(self.broken(&error)),
        }
    }

    fn request(&self, method: Method, path: &str, body: Body) -> Result<Request<Body>, ApiError> {
        let host = match self.address() {
            Address::Tcp(host_port) => host_port.clone(),
            Address::Unix(_) => "localhost".into(),
        };
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", host)
            .header("content-type", "application/json")
            .body(body)
            .map_err(ApiError::failed)?;
        if let Some(trace) = trace::header() {
            request.headers_mut().insert(trace::TRACEPARENT, trace);
        }
        Ok(request)
    }

    /// Finds the one of several managers that leads, before something is sent that cannot be sent twice.
    async fn find_leader(&self) -> Result<(), ApiError> {
        if self.addresses.len() > 1 {
            let _leads: bool = self.get("/v1/leader").await?;
        }
        Ok(())
    }

    /// Sends a request on a connection of its own and returns the answer, once it is known to be good.
    ///
    /// # Errors
    /// The peer cannot be reached, or refuses.
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        body: Body,
    ) -> Result<Response<Incoming>, ApiError> {
        self.find_leader().await?;
        let mut connection = self.connect().await?;
        let request = self.request(method, path, body)?;
        check(self.exchange_on(&mut connection, request).await?).await
    }

    /// Sends JSON and takes JSON, on the kept connection, within `limit`.
    ///
    /// A request on a kept connection that has meanwhile been closed is sent again on a new one, if
    /// nothing of it was sent.
    ///
    /// # Errors
    /// The peer cannot be reached, refuses, or does not answer in time.
    pub async fn json<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
        limit: Duration,
    ) -> Result<T, ApiError> {
        let content = serde_json::to_vec(body).map_err(ApiError::failed)?;
        let exchange = async {
            let bytes = self.exchange_with_leader(&method, path, &content).await?;
            serde_json::from_slice(&bytes).map_err(|error| {
                ApiError::failed(format!("{} sent an answer that is no answer: {error}", self.who))
            })
        };
        match tokio::time::timeout(limit, exchange).await {
            Ok(result) => result,
            Err(_) => {
                // Whoever is silent does not lead for long.
                self.turn_away();
                Err(self.unreachable(format!("no answer within {} s", limit.as_secs())))
            }
        }
    }

    /// One exchange; with several managers, as many as it takes to find the one that leads. What a manager
    /// that does not lead was asked, it has not done.
    async fn exchange_with_leader(
        &self,
        method: &Method,
        path: &str,
        content: &[u8],
    ) -> Result<Bytes, ApiError> {
        let until = Instant::now() + LEADER_LIMIT;
        let mut pause = Pause::growing(LEADER_PAUSES.0, LEADER_PAUSES.1);
        let mut tried = 0;
        loop {
            match self.exchange(method, path, content).await {
                Err(error)
                    if error.problem == Problem::NotLeading
                        && self.addresses.len() > 1
                        && Instant::now() < until =>
                {
                    self.turn_away();
                    tried += 1;
                    if tried % self.addresses.len() == 0 {
                        pause.wait().await;
                    }
                }
                other => return other,
            }
        }
    }

    /// One exchange on the kept connection, or on a new one.
    async fn exchange(
        &self,
        method: &Method,
        path: &str,
        content: &[u8],
    ) -> Result<Bytes, ApiError> {
        let mut kept = self.kept.lock().await;
        let mut connection = match kept.take() {
            Some(mut connection) => match connection.sender.ready().await {
                Ok(()) => connection,
                Err(_) => self.connect().await?,
            },
            None => self.connect().await?,
        };
        let request = self.request(method.clone(), path, Body::from(content.to_vec()))?;
        let answer = self.exchange_on(&mut connection, request).await?;
        match check(answer).await {
            Ok(answer) => {
                let bytes = collect(answer.into_body()).await?;
                *kept = Some(connection);
                Ok(bytes)
            }
            Err(error) => {
                if error.problem != Problem::NotLeading {
                    *kept = Some(connection);
                }
                Err(error)
            }
        }
    }

    /// `GET` of JSON.
    ///
    /// # Errors
    /// As [`Client::json`].
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ApiError> {
        self.json(Method::GET, path, &(), Duration::from_secs(10)).await
    }

    /// Fetches a body of at most `limit` bytes.
    ///
    /// # Errors
    /// The peer cannot be reached or refuses, or the body is longer.
    pub async fn download(&self, path: &str, limit: usize) -> Result<Vec<u8>, ApiError> {
        let answer = self.send(Method::GET, path, Body::empty()).await?;
        let mut body = answer.into_body();
        let mut out = Vec::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| self.unreachable(error))?;
            if let Some(data) = frame.data_ref() {
                if out.len() + data.len() > limit {
                    return Err(ApiError::failed(format!("more than {limit} bytes")));
                }
                out.extend_from_slice(data);
            }
        }
        Ok(out)
    }

    /// Asks for a stream of JSON lines.
    ///
    /// # Errors
    /// The peer cannot be reached, or refuses.
    pub async fn lines(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> Result<Lines, ApiError> {
        let content = serde_json::to_vec(body).map_err(ApiError::failed)?;
        let answer = self.send(method, path, Body::from(content)).await?;
        Ok(Lines { body: answer.into_body(), buffer: Vec::new() })
    }

    /// Asks to speak another protocol on a connection of its own (HTTP upgrade, RFC 9110 §7.8).
    ///
    /// # Errors
    /// The peer cannot be reached, or refuses.
    pub async fn upgrade(
        &self,
        path: &str,
        protocol: &'static str,
    ) -> Result<TokioIo<hyper::upgrade::Upgraded>, ApiError> {
        self.find_leader().await?;
        let attempt = async {
            let mut connection = self.connect().await?;
            let mut request = self.request(Method::GET, path, Body::empty())?;
            let headers = request.headers_mut();
            headers.insert("connection", hyper::header::HeaderValue::from_static("upgrade"));
            headers.insert("upgrade", hyper::header::HeaderValue::from_static(protocol));
            let answer = self.exchange_on(&mut connection, request).await?;
            if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
                check(answer).await?;
                return Err(ApiError::failed(format!("{} does not speak {protocol}", self.who)));
            }
            hyper::upgrade::on(answer).await.map_err(|error| self.unreachable(error))
        };
        match tokio::time::timeout(CONNECT_LIMIT, attempt).await {
            Ok(upgraded) => Ok(TokioIo::new(upgraded?)),
            Err(_) => Err(self.unreachable("no answer in time")),
        }
    }
}

impl Lines {
    /// The next line; `None` at the end.
    ///
    /// # Errors
    /// The connection broke or the line is not what it should be.
    pub async fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, ApiError> {
        loop {
            if let Some(end) = self.buffer.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return serde_json::from_slice(&line).map(Some).map_err(ApiError::failed);
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(Err(error)) => {
                    return Err(ApiError::new(
                        Problem::Unreachable,
                        format!("the stream of events broke off: {error}"),
                    ));
                }
                Some(Ok(frame)) => {
                    if let Some(data) = frame.data_ref() {
                        self.buffer.extend_from_slice(data);
                    }
                }
            }
        }
    }
}

async fn collect(body: Incoming) -> Result<Bytes, ApiError> {
    let limited = http_body_util::Limited::new(body, MAX_ANSWER);
    limited.collect().await.map(http_body_util::Collected::to_bytes).map_err(ApiError::failed)
}

/// Turns an answer that reports a failure into the failure.
async fn check(answer: Response<Incoming>) -> Result<Response<Incoming>, ApiError> {
    let status = answer.status();
    if status.is_success() || status == StatusCode::SWITCHING_PROTOCOLS {
        return Ok(answer);
    }
    let bytes = collect(answer.into_body()).await?;
    Err(serde_json::from_slice(&bytes).unwrap_or_else(|_| {
        let text = String::from_utf8_lossy(&bytes);
        ApiError::failed(format!("HTTP {status}: {}", text.trim()))
    }))
}
