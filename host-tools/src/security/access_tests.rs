use std::collections::BTreeSet;

use super::*;
use crate::security::Identity;

/// Method and path of all routes that a router's source adds.
fn routes(source: &'static str) -> BTreeSet<(String, String)> {
    let mut found = BTreeSet::new();
    for part in source.split(".route(").skip(1) {
        let mut quoted = part.split('"');
        let (_, Some(path), Some(rest)) = (quoted.next(), quoted.next(), quoted.next()) else {
            panic!("a route without a path: {part}")
        };
        // To the end of the call: parentheses are balanced there.
        let mut depth = 1;
        let end = rest.find(|c: char| {
            depth += i32::from(c == '(') - i32::from(c == ')');
            depth == 0
        });
        for method in ["get", "post", "put", "delete", "patch", "any"] {
            let call = format!("{method}(");
            let text = &rest[..end.unwrap()];
            let mut at = text.match_indices(&call);
            let word = |at: usize| {
                at == 0
                    || !text.as_bytes()[at - 1].is_ascii_alphanumeric()
                        && text.as_bytes()[at - 1] != b'_'
            };
            if at.any(|(at, _)| word(at)) {
                found.insert((method.to_uppercase(), path.to_owned()));
            }
        }
    }
    found
}

fn covered(table: &[Rule]) -> BTreeSet<(String, String)> {
    let all: BTreeSet<_> =
        table.iter().map(|rule| (rule.method.to_owned(), rule.path.to_owned())).collect();
    assert_eq!(all.len(), table.len(), "a route is in the table twice");
    all
}

#[test]
fn the_tables_cover_every_route_and_nothing_else() {
    let mut manager = routes(include_str!("../manager/http.rs"));
    manager.extend(routes(include_str!("../manager/members_http.rs")));
    manager.extend(routes(include_str!("../manager/web.rs")));
    assert!(manager.len() > 20);
    assert_eq!(covered(MANAGER), manager);
    let mut agent = routes(include_str!("../agent/http.rs"));
    agent.extend(routes(include_str!("../agent/seeing.rs")));
    assert!(agent.len() > 10);
    assert_eq!(covered(AGENT), agent);
}

fn who(role: Role) -> Who {
    let identity = Identity { cluster: "c".into(), role, name: "n".into() };
    Who::Member(Member { identity, serial: "01".into() })
}

fn allowed(table: &'static [Rule], who: &Who) -> Vec<(&'static str, &'static str)> {
    table
        .iter()
        .filter(|rule| decide(Some(rule), who, "c", |_| false).is_ok())
        .map(|rule| (rule.method, rule.path))
        .collect()
}

#[test]
fn each_role_may_do_what_it_says_on_every_route() {
    for rule in MANAGER {
        let may = |role| decide(Some(rule), &who(role), "c", |_| false).is_ok();
        let text = format!("{} {}", rule.method, rule.path);
        assert!(!may(Role::View) || may(Role::Operate), "{text}");
        assert!(!may(Role::Operate) || may(Role::Admin), "{text}");
        let looks = rule.method == "GET"
            || ["/v1/enrol", "/v1/renew", "/v1/services/{name}/check"].contains(&rule.path);
        assert!(!may(Role::View) || looks, "{text} changes something");
    }
    for role in [Role::View, Role::Operate, Role::Admin] {
        let said = "users ask the manager; a monitoring system asks all";
        assert_eq!(allowed(AGENT, &who(role)), [("GET", "/metrics")], "{said}");
    }
    assert_eq!(allowed(AGENT, &who(Role::Manager)).len(), AGENT.len());
    assert_eq!(
        allowed(AGENT, &who(Role::Agent)),
        [
            ("GET", "/v1/node"),
            ("POST", "/v1/instances/{name}/resolve"),
            ("GET", "/v1/transfer"),
            ("GET", "/v1/transfer/{id}/mirror")
        ]
    );
    assert_eq!(allowed(MANAGER, &Who::Nobody), [("POST", "/v1/enrol")]);
    assert_eq!(allowed(AGENT, &Who::Nobody), []);
    let migrate = find(MANAGER, "POST", "/v1/services/{name}/migrate");
    let denied = decide(migrate, &who(Role::View), "c", |_| false).unwrap_err();
    assert_eq!(denied.to_string(), "n has the role view; this needs the role operate");
}

#[test]
fn strangers_the_revoked_and_unknown_requests_are_refused() {
    let rule = find(MANAGER, "GET", "/v1/nodes");
    let admin = who(Role::Admin);
    assert_eq!(decide(rule, &admin, "c", |_| false), Ok(()));
    let denied = decide(rule, &admin, "d", |_| false).unwrap_err();
    assert_eq!(denied.to_string(), "the certificate of n is of cluster c, this is cluster d");
    let denied = decide(rule, &admin, "c", |serial| serial == "01").unwrap_err();
    assert_eq!(denied, Denied::Revoked { name: "n".into() });
    assert_eq!(find(MANAGER, "PATCH", "/v1/nodes"), None);
    assert_eq!(decide(None, &admin, "c", |_| false), Err(Denied::NoRule));
    assert_eq!(decide(None, &Who::Nobody, "c", |_| false), Err(Denied::NoCertificate));
    assert_eq!(find(MANAGER, "HEAD", "/v1/nodes"), rule);
}
