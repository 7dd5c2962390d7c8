//! Asking a manager or an agent over HTTP/1.1.

use std::io;
use std::sync::Arc;
use std::time::Duration;

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
use crate::wire::{self, Address};

/// Longest time a connection may take to come about.
const CONNECT_LIMIT: Duration = Duration::from_secs(3);
/// Longest answer that is taken into memory, in bytes.
const MAX_ANSWER: usize = 64 << 20;

/// A client of one address. Keeps one connection open for requests with small answers, so that a
/// request on it costs one round trip.
#[derive(Debug)]
pub struct Client {
    address: Address,
    who: String,
    secured: Secured,
    kept: Mutex<Option<SendRequest<Body>>>,
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

/// A body that arrives in lines.
#[derive(Debug)]
pub struct Lines {
    body: Incoming,
    buffer: Vec<u8>,
}

impl Client {
    /// A client of `address`; `who` names it in error messages, as in "the manager".
    pub fn new(address: Address, who: impl Into<String>) -> Self {
        Self { address, who: who.into(), secured: Secured::No, kept: Mutex::new(None) }
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
    pub fn newcomer(address: Address, fingerprint: [u8; 32]) -> Self {
        let secured = Secured::Newcomer(fingerprint);
        Self { secured, ..Self::new(address, "the manager") }
    }

    /// The address.
    #[must_use]
    pub fn address(&self) -> &Address {
        &self.address
    }

    fn unreachable(&self, error: impl std::fmt::Display) -> ApiError {
        ApiError::new(Problem::Unreachable, format!("{} cannot be reached: {error}", self.who))
    }

    /// Why a connection ended. A peer that refuses our certificate says so only after our handshake.
    fn broken(&self, error: &(dyn std::error::Error + 'static)) -> ApiError {
        match tls::explain(error) {
            Some(reason) => ApiError::denied(format!(
                "{} at {} and we do not trust each other: {reason}",
                self.who, self.address
            )),
            None if matches!(self.secured, Secured::No) => self
                .unreachable(error)
                .hint("it may want TLS: use --credentials FILE, as `host-tools enrol` makes it"),
            None => self.unreachable(error),
        }
    }

    async fn connect(&self) -> Result<SendRequest<Body>, ApiError> {
        if matches!(self.secured, Secured::No) && !self.address.is_local() {
            return Err(ApiError::denied(format!(
                "{} at {} is not on this machine, and there are no credentials to ask it with",
                self.who, self.address
            ))
            .hint("`host-tools enrol --manager HOST:PORT --token TOKEN` gets some; an admin makes tokens with `host-tools token create`"));
        }
        let stream = wire::connect(&self.address, CONNECT_LIMIT)
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
        tokio::spawn(connection.with_upgrades());
        Ok(sender)
    }

    fn request(&self, method: Method, path: &str, body: Body) -> Result<Request<Body>, ApiError> {
        let host = match &self.address {
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
        let mut sender = self.connect().await?;
        let request = self.request(method, path, body)?;
        let answer = sender.send_request(request).await.map_err(|error| self.broken(&error))?;
        check(answer).await
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
        let exchange = async {
            let mut kept = self.kept.lock().await;
            let mut sender = match kept.take() {
                Some(mut sender) => match sender.ready().await {
                    Ok(()) => sender,
                    Err(_) => self.connect().await?,
                },
                None => self.connect().await?,
            };
            let content = serde_json::to_vec(body).map_err(ApiError::failed)?;
            let request = self.request(method, path, Body::from(content))?;
            let answer = sender.send_request(request).await.map_err(|error| self.broken(&error))?;
            let answer = check(answer).await;
            let bytes = match answer {
                Ok(answer) => collect(answer.into_body()).await?,
                Err(error) => {
                    *kept = Some(sender);
                    return Err(error);
                }
            };
            *kept = Some(sender);
            serde_json::from_slice(&bytes).map_err(|error| {
                ApiError::failed(format!("{} sent an answer that is no answer: {error}", self.who))
            })
        };
        match tokio::time::timeout(limit, exchange).await {
            Ok(result) => result,
            Err(_) => Err(self.unreachable(format!("no answer within {} s", limit.as_secs()))),
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
        let attempt = async {
            let mut sender = self.connect().await?;
            let mut request = self.request(Method::GET, path, Body::empty())?;
            let headers = request.headers_mut();
            headers.insert("connection", hyper::header::HeaderValue::from_static("upgrade"));
            headers.insert("upgrade", hyper::header::HeaderValue::from_static(protocol));
            let answer = sender.send_request(request).await.map_err(|error| self.broken(&error))?;
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
