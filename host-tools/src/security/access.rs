//! One table from route to role, for the manager and for agents. What is not in it is refused.

use super::identity::{Member, Role};

/// Who may do what a route does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// HTTP's method.
    pub method: &'static str,
    /// The route, as the router has it.
    pub path: &'static str,
    /// The least role that users need; `None`: no user may.
    pub users: Option<Role>,
    /// Whether agents may.
    pub agents: bool,
    /// Whether those without a certificate may.
    pub anybody: bool,
    /// Whether it is logged when it was allowed. Refusals always are.
    pub logged: bool,
}

const fn rule(method: &'static str, path: &'static str, users: Option<Role>) -> Rule {
    Rule { method, path, users, agents: false, anybody: false, logged: true }
}

/// Shows something.
const fn look(path: &'static str) -> Rule {
    Rule { logged: false, ..rule("GET", path, Some(Role::View)) }
}

/// Runs, moves or ends something.
const fn operate(method: &'static str, path: &'static str) -> Rule {
    rule(method, path, Some(Role::Operate))
}

/// Changes what the cluster is made of.
const fn admin(method: &'static str, path: &'static str) -> Rule {
    rule(method, path, Some(Role::Admin))
}

/// For agents only.
const fn agent(method: &'static str, path: &'static str) -> Rule {
    Rule { agents: true, ..rule(method, path, None) }
}

impl Rule {
    const fn and_agents(self) -> Self {
        Self { agents: true, ..self }
    }

    const fn and_anybody(self) -> Self {
        Self { anybody: true, ..self }
    }

    /// Said often, changes nothing that is not logged elsewhere.
    const fn quiet(self) -> Self {
        Self { logged: false, ..self }
    }
}

/// The manager's routes.
pub const MANAGER: &[Rule] = &[
    look("/v1/leader").and_agents(),
    look("/v1/nodes"),
    agent("POST", "/v1/nodes").quiet(),
    admin("POST", "/v1/nodes/{name}/drain"),
    admin("POST", "/v1/nodes/{name}/undrain"),
    admin("GET", "/v1/nodes/{name}/audit").quiet(),
    operate("POST", "/v1/rebalance"),
    look("/v1/services"),
    operate("POST", "/v1/services"),
    look("/v1/services/{name}"),
    operate("DELETE", "/v1/services/{name}"),
    look("/v1/services/{name}/connections"),
    look("/v1/services/{name}/log"),
    // Only looks, with a body.
    rule("POST", "/v1/services/{name}/check", Some(Role::View)).quiet(),
    operate("POST", "/v1/services/{name}/migrate"),
    agent("POST", "/v1/services/{name}/ownership").quiet(),
    operate("POST", "/v1/services/{name}/checkpoint"),
    operate("POST", "/v1/services/{name}/suspend"),
    operate("POST", "/v1/services/{name}/resume"),
    agent("POST", "/v1/services/{name}/wake"),
    operate("POST", "/v1/restore"),
    // Snapshots hold keys and users' data.
    operate("GET", "/v1/snapshots/{digest}").and_agents(),
    look("/v1/migrations"),
    look("/v1/migrations/{id}").and_agents(),
    look("/v1/migrations/{id}/events"),
    operate("POST", "/v1/migrations/{id}/cancel"),
    agent("POST", "/v1/migrations/{id}/ready").quiet(),
    agent("POST", "/v1/migrations/{id}/commit"),
    agent("POST", "/v1/migrations/{id}/settle"),
    agent("POST", "/v1/migrations/{id}/take-back"),
    look("/"),
    look("/style.css"),
    look("/app.js"),
    look("/view.js"),
    look("/dom.js"),
    look("/icon.svg"),
    look("/metrics"),
    look("/v1/overview"),
    look("/v1/watch"),
    look("/v1/watch/sse"),
    look("/v1/migrations/{id}/timeline.svg"),
    look("/v1/images"),
    operate("PUT", "/v1/images/{name}"),
    admin("DELETE", "/v1/images/{name}"),
    operate("GET", "/v1/images/{name}/file").and_agents().quiet(),
    look("/v1/images/{name}/signature").and_agents(),
    rule("POST", "/v1/enrol", None).and_anybody(),
    // For oneself.
    rule("POST", "/v1/renew", Some(Role::View)).and_agents(),
    admin("POST", "/v1/tokens"),
    admin("GET", "/v1/users").quiet(),
    admin("POST", "/v1/users/{name}/revoke"),
    admin("GET", "/v1/audit").quiet(),
];

/// An agent's routes. The manager may use all of them.
pub const AGENT: &[Rule] = &[
    look("/metrics"),
    agent("GET", "/v1/node").quiet(),
    rule("POST", "/v1/check/source", None).quiet(),
    rule("POST", "/v1/check/destination", None).quiet(),
    rule("GET", "/v1/audit", None).quiet(),
    rule("GET", "/v1/instances", None).quiet(),
    rule("POST", "/v1/instances", None),
    rule("GET", "/v1/instances/{name}", None).quiet(),
    rule("DELETE", "/v1/instances/{name}", None),
    rule("GET", "/v1/instances/{name}/connections", None).quiet(),
    rule("GET", "/v1/instances/{name}/connection-count", None).quiet(),
    rule("GET", "/v1/instances/{name}/log", None).quiet(),
    rule("POST", "/v1/instances/{name}/move", None),
    rule("POST", "/v1/instances/{name}/checkpoint", None),
    rule("POST", "/v1/instances/{name}/abort", None),
    rule("POST", "/v1/instances/{name}/settle", None),
    rule("POST", "/v1/instances/{name}/resume", None),
    agent("POST", "/v1/instances/{name}/resolve"),
    rule("DELETE", "/v1/moves/{id}", None),
    rule("GET", "/v1/moves/{id}/events", None).quiet(),
    rule("GET", "/v1/holders", None).quiet(),
    rule("POST", "/v1/holders", None),
    rule("DELETE", "/v1/holders/{name}", None),
    rule("GET", "/v1/snapshots/{digest}", None),
    rule("DELETE", "/v1/snapshots/{digest}", None),
    agent("GET", "/v1/transfer"),
    agent("GET", "/v1/transfer/{id}/mirror").quiet(),
];

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Who {
    /// Whoever can reach a loopback address or a socket that is not secured.
    Local,
    /// Somebody without a certificate.
    Nobody,
    /// A member.
    Member(Member),
}

/// Why a request is not let through.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what the fields are")]
pub enum Denied {
    #[error("a certificate is needed, and none was shown")]
    NoCertificate,
    #[error("the certificate of {name} is of cluster {found}, this is cluster {expected}")]
    Cluster { name: String, found: String, expected: String },
    #[error("the certificate of {name} has been revoked")]
    Revoked { name: String },
    #[error("{name} has the role {role}; this needs the role {needed}")]
    Role { name: String, role: Role, needed: Role },
    #[error("{name} has the role {role}; no user may do this")]
    NotForUsers { name: String, role: Role },
    #[error("this is not for the agent of node {name}")]
    NotForAgents { name: String },
    #[error("there is no such request")]
    NoRule,
}

/// Whether the members of `cluster` that are not revoked may use this route.
///
/// # Errors
/// Why not.
pub fn decide(
    rule: Option<&Rule>,
    who: &Who,
    cluster: &str,
    revoked: impl Fn(&str) -> bool,
) -> Result<(), Denied> {
    let member = match who {
        Who::Local => return rule.map(|_| ()).ok_or(Denied::NoRule),
        Who::Nobody if rule.is_some_and(|rule| rule.anybody) => return Ok(()),
        Who::Nobody => return Err(Denied::NoCertificate),
        Who::Member(member) => member,
    };
    let name = || member.identity.name.clone();
    let role = member.identity.role;
    if member.identity.cluster != cluster {
        let found = member.identity.cluster.clone();
        return Err(Denied::Cluster { name: name(), found, expected: cluster.to_owned() });
    }
    if revoked(&member.serial) {
        return Err(Denied::Revoked { name: name() });
    }
    let rule = rule.ok_or(Denied::NoRule)?;
    match role {
        _ if rule.anybody => Ok(()),
        Role::Manager => Ok(()),
        Role::Agent if rule.agents => Ok(()),
        Role::Agent => Err(Denied::NotForAgents { name: name() }),
        _ => match rule.users {
            Some(needed) if role >= needed => Ok(()),
            Some(needed) => Err(Denied::Role { name: name(), role, needed }),
            None => Err(Denied::NotForUsers { name: name(), role }),
        },
    }
}

/// The rule for a route.
#[must_use]
pub fn find(table: &'static [Rule], method: &str, path: &str) -> Option<&'static Rule> {
    // A GET route also answers HEAD.
    let method = if method == "HEAD" { "GET" } else { method };
    table.iter().find(|rule| rule.method == method && rule.path == path)
}

#[cfg(test)]
#[path = "access_tests.rs"]
mod tests;
