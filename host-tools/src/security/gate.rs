//! Every request passes the gate: who asks, whether they may, and the line in the audit log.

use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError, RwLock};

use axum::Router;
use axum::extract::{ConnectInfo, MatchedPath, Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use time::OffsetDateTime;

use super::access::{self, Rule, Who};
use super::audit::{Audit, Entry, Result};
use super::identity::Role;
use super::listener::Guarded;
use super::tls::Security;
use crate::api::{ApiError, Problem};
use crate::wire::Listener;

/// The other end of a connection. Handlers get it as an extension of the request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Who.
    pub who: Who,
    /// From where.
    pub from: String,
}

impl Peer {
    /// Agents speak for their own node only.
    ///
    /// # Errors
    /// It is the agent of another node.
    pub fn speaks_for(&self, node: &str) -> std::result::Result<(), ApiError> {
        match &self.who {
            Who::Member(member)
                if member.identity.role == Role::Agent && member.identity.name != node =>
            {
                let name = &member.identity.name;
                Err(ApiError::denied(format!(
                    "the agent of node {name} cannot speak for node {node}"
                )))
            }
            _ => Ok(()),
        }
    }
}

/// Why a request did not go well, for the audit log. Answers carry it as an extension.
#[derive(Clone, Debug)]
pub struct Reason(pub String);

/// The gate of a manager or an agent.
#[derive(Debug)]
pub struct Gate {
    table: &'static [Rule],
    security: Security,
    /// The log.
    pub audit: Arc<Audit>,
    revoked: RwLock<BTreeSet<String>>,
}

impl Gate {
    /// A gate with nobody revoked.
    #[must_use]
    pub fn new(table: &'static [Rule], security: Security, audit: Arc<Audit>) -> Self {
        Self { table, security, audit, revoked: RwLock::default() }
    }

    /// How connections are made.
    #[must_use]
    pub fn security(&self) -> &Security {
        &self.security
    }

    /// The cluster; empty if connections are not secured.
    #[must_use]
    pub fn cluster(&self) -> &str {
        match &self.security {
            Security::Plain => "",
            Security::Tls(tls) => &tls.credentials.identity.cluster,
        }
    }

    /// From now on certificates with these numbers are refused. Returns whether that is news.
    pub fn revoke(&self, serials: BTreeSet<String>) -> bool {
        let mut revoked = self.revoked.write().unwrap_or_else(PoisonError::into_inner);
        let news = *revoked != serials;
        *revoked = serials;
        news
    }

    /// Numbers of the certificates that are refused.
    #[must_use]
    pub fn revoked(&self) -> BTreeSet<String> {
        self.revoked.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Puts the gate before all routes.
    pub fn before(self: &Arc<Self>, router: Router) -> Router {
        router.layer(from_fn_with_state(Arc::clone(self), pass))
    }

    /// Serves the routes behind the gate on `listener`, until it is aborted.
    pub fn serve(
        self: &Arc<Self>,
        listener: Listener,
        router: Router,
    ) -> tokio::task::JoinHandle<std::io::Result<()>> {
        let guarded = Guarded::new(listener, &self.security, &self.audit);
        let service = self.before(router).into_make_service_with_connect_info::<Peer>();
        tokio::spawn(async move { axum::serve(guarded, service).await })
    }

    fn decide(&self, rule: Option<&Rule>, who: &Who) -> std::result::Result<(), access::Denied> {
        let revoked = self.revoked.read().unwrap_or_else(PoisonError::into_inner);
        access::decide(rule, who, self.cluster(), |serial| revoked.contains(serial))
    }
}

async fn pass(
    State(gate): State<Arc<Gate>>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    mut request: Request,
    next: Next,
) -> Response {
    let matched = request.extensions().get::<MatchedPath>().cloned();
    let rule = matched
        .as_ref()
        .and_then(|path| access::find(gate.table, request.method().as_str(), path.as_str()));
    let what = format!("{} {}", request.method(), request.uri().path());
    let entry = || Entry::new(OffsetDateTime::now_utc(), &peer.who, &peer.from, what.as_str());
    if let Err(denied) = gate.decide(rule, &peer.who) {
        gate.audit.write(&entry().ended(Result::Refused, denied.to_string()));
        return match denied {
            access::Denied::NoRule => ApiError::not_found(denied.to_string()),
            _ => ApiError::denied(denied.to_string()),
        }
        .into_response();
    }
    request.extensions_mut().insert(peer.clone());
    let response = next.run(request).await;
    let reason = response.extensions().get::<Reason>().map(|Reason(reason)| reason.clone());
    let status = response.status();
    let failed = status.is_client_error() || status.is_server_error() || reason.is_some();
    let logged = rule.is_some_and(|rule| rule.logged);
    let denied = status == Problem::Denied.status();
    if failed && (logged || denied) {
        let result = if status.is_server_error() { Result::Failed } else { Result::Refused };
        gate.audit.write(&entry().ended(result, reason.unwrap_or_else(|| status.to_string())));
    } else if logged {
        gate.audit.write(&entry());
    }
    response
}
