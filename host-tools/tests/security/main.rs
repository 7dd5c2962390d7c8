//! Who is refused, with which reason, and that the audit log has it: manager and agents as they are, the real
//! command, certificates on every connection.

#[path = "../moves/scripted/mod.rs"]
#[expect(dead_code, reason = "the world has more to it than these tests need")]
mod scripted;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use host_tools::agent::http::TRANSFER_PROTOCOL;
use host_tools::agent::mirror;
use host_tools::api::{
    ApiError, Client, CommitAnswer, CommitRequest, ImageRef, Instance, NodeReport, Problem,
    ReportAnswer, ServiceState, StartRequest, now_us,
};
use host_tools::manager::Members;
use host_tools::manager::members::{Certificate, TokenRequest};
use host_tools::security::audit::{Entry, Result as Outcome};
use host_tools::security::enrol::{self, RenewRequest};
use host_tools::security::identity::Member;
use host_tools::security::signature::Grant;
use host_tools::security::{Authority, Credentials, Party, Role};
use host_tools::store::EmbeddedStore;
use host_tools::transfer::{FromDestination, FromSource, Link, PageDigest};
use host_tools::wire::Address;
use hyper::Method;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use scripted::qemu::{ARGUMENTS, play};
use scripted::world::{AGENT, World, image_file, run_agent, security};
use time::OffsetDateTime;

const LIMIT: Duration = Duration::from_secs(10);

/// In a process that an agent has started this is the guest; else there is nothing to do.
#[test]
fn scripted_guest() {
    if let Ok(arguments) = std::env::var(ARGUMENTS) {
        play(&arguments);
    }
}

/// In a process that a world has started this is an agent.
#[test]
fn scripted_agent() {
    if let Ok(directory) = std::env::var(AGENT) {
        run_agent(&directory);
    }
}

/// The manager's log, or that of a node's agent.
async fn audit(world: &World, node: Option<&str>) -> Vec<Entry> {
    let of_node: &[&str] = match &node {
        Some(node) => &["--node", node],
        None => &[],
    };
    let ls = ["audit", "ls", "-n", "200", "-o", "json"];
    let lines = world.good(&[&ls[..], of_node].concat()).await;
    lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The log has a refusal of `what` by `who`, for a reason with these words.
fn assert_refused(log: &[Entry], who: &str, what: &str, words: &str) {
    let found = log.iter().any(|entry| {
        let reason = entry.reason.as_deref().unwrap_or_default();
        entry.result != Outcome::Done
            && entry.who == who
            && entry.what == what
            && reason.contains(words)
    });
    assert!(found, "no refusal of `{what}` by {who} because of `{words}` in {log:#?}");
}

/// The manager, asked with these credentials.
fn asked_by(world: &World, credentials: Credentials) -> Client {
    Client::new(Address::Unix(world.manager()), "the manager")
        .secured(&security(credentials), Party::Manager)
}

fn authority(world: &World) -> Authority {
    let path = world.path("manager").join("authority.json");
    Authority::open(&path, OffsetDateTime::now_utc()).unwrap()
}

/// Another cluster's keys.
fn stranger(dir: &Path) -> Authority {
    Authority::open(&dir.join("stranger.json"), OffsetDateTime::now_utc()).unwrap()
}

/// What the manager itself could say to a node's agent.
fn as_manager(world: &World, node: &str) -> Client {
    let now = OffsetDateTime::now_utc();
    let (own, _) = authority(world).credentials(Role::Manager, "manager", now).unwrap();
    let address = std::fs::read_to_string(world.path(node).join("address")).unwrap();
    Client::new(address.parse::<Address>().unwrap(), "the node")
        .secured(&security(own), Party::Node(node.into()))
}

async fn enrol(world: &World, role: &str, name: &str) -> String {
    let token = world.good(&["token", "create", "--role", role, "--name", name]).await;
    let file = world.path(&format!("{name}.json")).to_str().unwrap().to_owned();
    world.good(&["enrol", "--token", token.trim(), "--credentials", &file]).await;
    file
}

fn refused<T: std::fmt::Debug>(answer: Result<T, ApiError>) -> String {
    let error = answer.unwrap_err();
    assert_eq!(error.problem, Problem::Denied, "{error}");
    error.message
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_moves_under_certificates_and_the_log_tells_who_did_it() {
    let world = World::secured().await;
    world.good(&["run", "svc", "--name", "p", "--on", "a"]).await;
    world.good(&["migrate", "p", "--to", "b"]).await;
    let service = world.service("p").await;
    assert_eq!((service.state, service.epoch), (ServiceState::Running, 2));
    assert_eq!(service.node.as_deref(), Some("b"));
    world.assert_one_at_a_time();
    let log = audit(&world, None).await;
    for (who, role, what) in [
        ("admin", "admin", "POST /v1/services"),
        ("admin", "admin", "POST /v1/services/p/migrate"),
        ("a", "agent", "POST /v1/migrations/m1/commit"),
    ] {
        let done = |entry: &&Entry| entry.what == what && entry.result == Outcome::Done;
        let entry = log.iter().find(done).unwrap_or_else(|| panic!("{what}: {log:#?}"));
        assert_eq!((entry.who.as_str(), entry.role.as_str()), (who, role));
    }
    let log = audit(&world, Some("b")).await;
    let transfer = log.iter().find(|entry| entry.what == "GET /v1/transfer").unwrap();
    assert_eq!((transfer.who.as_str(), transfer.role.as_str()), ("a", "agent"));
    for file in ["manager/authority.json", "manager/admin.json", "a/credentials.json"] {
        let mode = std::fs::metadata(world.path(file)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_certificate_is_refused() {
    let world = World::secured().await;
    let (ours, now) = (authority(&world), OffsetDateTime::now_utc());
    let (theirs, _) = stranger(&world.path("")).credentials(Role::Admin, "eve", now).unwrap();
    // It trusts our manager, and still has a certificate of another authority.
    let theirs = Credentials { ca: ours.certificate().to_owned(), ..theirs };
    let said = refused(asked_by(&world, theirs).get::<serde_json::Value>("/v1/nodes").await);
    assert!(said.contains("it does not know our certificate"), "{said}");
    assert_refused(&audit(&world, None).await, "-", "connect", "not of our cluster");
    // Without any certificate.
    let newcomer = Client::newcomer(Address::Unix(world.manager()), ours.fingerprint());
    let said = refused(newcomer.get::<serde_json::Value>("/v1/nodes").await);
    assert!(said.contains("a certificate is needed"), "{said}");
    let log = audit(&world, None).await;
    assert_refused(&log, "-", "GET /v1/nodes", "a certificate is needed");
    // Another cluster's manager is not told anything.
    let other = Client::newcomer(Address::Unix(world.manager()), [1; 32]);
    let said = refused(other.get::<serde_json::Value>("/v1/nodes").await);
    assert!(said.contains("its certificate is not of our cluster"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_that_are_used_or_expired_are_refused() {
    let mut world = World::secured().await;
    let token = world.good(&["token", "create", "--role", "view"]).await;
    let file = world.path("eve.json").to_str().unwrap().to_owned();
    let enrol = |token: &str| {
        ["enrol", "--token", token.trim(), "--name", "eve", "--credentials", &file]
            .map(str::to_owned)
    };
    let said = world.good(&enrol(&token).each_ref().map(String::as_str)).await;
    assert!(said.starts_with("enrolled as eve with the role view"), "{said}");
    let said = world.bad(&enrol(&token).each_ref().map(String::as_str), 8).await;
    assert!(said.contains("the token has been used already, by eve"), "{said}");
    assert_refused(&audit(&world, None).await, "-", "POST /v1/enrol", "used already");
    // One that was made two hours ago for one hour.
    world.kill("manager");
    let dir = world.path("manager");
    let expired = {
        let store = Arc::new(EmbeddedStore::open(&dir.join("store.redb")).unwrap());
        let members = Members::open(store, &dir, &dir).unwrap();
        let hour = 3_600_000_000;
        let request = TokenRequest { role: Role::Admin, name: None, ttl_us: hour };
        members.create_token(request, now_us() - 2 * hour).await.unwrap().token
    };
    world.start("manager");
    world
        .until("the manager answers", async |world: &World| {
            world.client().get::<serde_json::Value>("/v1/nodes").await.is_ok()
        })
        .await;
    let said = world.bad(&enrol(&expired).each_ref().map(String::as_str), 8).await;
    assert!(said.contains("the token expired 3600 s ago"), "{said}");
    assert_refused(&audit(&world, None).await, "-", "POST /v1/enrol", "expired 3600 s ago");
}

#[tokio::test(flavor = "multi_thread")]
async fn roles_allow_what_they_say_until_they_are_revoked() {
    let world = World::secured().await;
    world.good(&["run", "svc", "--name", "p", "--on", "a"]).await;
    let view = enrol(&world, "view", "vera").await;
    let operate = enrol(&world, "operate", "otto").await;
    let by = |file: &str, line: &str| {
        let words = line.split(' ').map(str::to_owned);
        words.chain(["--credentials".into(), file.to_owned()]).collect::<Vec<String>>()
    };
    for (file, line, needed) in [
        (&view, "migrate p --to b", "operate"),
        (&view, "stop p", "operate"),
        (&view, "audit ls", "admin"),
        (&operate, "token create --role admin", "admin"),
        (&operate, "image rm svc", "admin"),
        (&operate, "node drain a", "admin"),
    ] {
        let words = by(file, line);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let said = world.bad(&words, 8).await;
        assert!(said.contains(&format!("this needs the role {needed}")), "{line}: {said}");
    }
    let service = world.service("p").await;
    assert_eq!((service.node.as_deref(), service.epoch), (Some("a"), 1));
    let log = audit(&world, None).await;
    assert_refused(&log, "vera", "POST /v1/services/p/migrate", "has the role view");
    assert_refused(&log, "otto", "POST /v1/tokens", "has the role operate");
    for (file, line) in [(&view, "ps"), (&operate, "migrate p --to b")] {
        let words = by(file, line);
        world.good(&words.iter().map(String::as_str).collect::<Vec<_>>()).await;
    }
    world.good(&["user", "revoke", "vera"]).await;
    let words = by(&view, "ps");
    let said = world.bad(&words.iter().map(String::as_str).collect::<Vec<_>>(), 8).await;
    assert!(said.contains("the certificate of vera has been revoked"), "{said}");
    assert_refused(&audit(&world, None).await, "vera", "GET /v1/services", "revoked");
}

/// Numbers of a member's certificates, the oldest first, and whether each was revoked.
async fn certificates(world: &World, name: &str) -> Vec<(String, bool)> {
    let all = world.good(&["user", "ls", "-o", "json"]).await;
    let all: Vec<Certificate> = serde_json::from_str(&all).unwrap();
    let of = all.into_iter().filter(|certificate| certificate.name == name);
    of.map(|certificate| (certificate.serial, certificate.revoked_us.is_some())).collect()
}

fn serial(credentials: &Credentials) -> String {
    let der = CertificateDer::from_pem_slice(credentials.certificate.as_bytes()).unwrap();
    Member::read(&der).unwrap().serial
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_renews_a_certificate_and_loses_all_of_them_at_once() {
    let world = World::secured().await;
    let file = enrol(&world, "view", "vera").await;
    let first = Credentials::load(Path::new(&file)).unwrap();
    world.good(&["renew", "--credentials", &file]).await;
    let second = Credentials::load(Path::new(&file)).unwrap();
    assert_eq!((&first.identity, &first.ca), (&second.identity, &second.ca));
    assert_ne!(first.key, second.key);
    let both = [(serial(&first), false), (serial(&second), false)];
    assert_eq!(certificates(&world, "vera").await, both);
    for credentials in [&first, &second] {
        asked_by(&world, credentials.clone()).get::<serde_json::Value>("/v1/nodes").await.unwrap();
    }
    let renewed = audit(&world, None).await.into_iter().find(|it| it.what == "POST /v1/renew");
    let renewed = renewed.expect("the log has it");
    assert_eq!((renewed.who.as_str(), renewed.result), ("vera", Outcome::Done));
    // Somebody without a certificate gets none this way.
    let fingerprint = authority(&world).fingerprint();
    let nobody = Client::newcomer(Address::Unix(world.manager()), fingerprint);
    let asked = RenewRequest { request: String::new() };
    let answer = nobody.json::<serde_json::Value>(Method::POST, "/v1/renew", &asked, LIMIT).await;
    assert!(refused(answer).contains("a certificate is needed"));
    world.good(&["user", "revoke", "vera"]).await;
    for credentials in [first, second] {
        let said =
            refused(enrol::renew(&asked_by(&world, credentials.clone()), &credentials).await);
        assert!(said.contains("has been revoked"), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_renews_its_certificate_before_it_ends() {
    let mut world = World::secured().await;
    world.good(&["run", "svc", "--name", "p", "--on", "a"]).await;
    let file = world.path("a/credentials.json");
    let first = Credentials::load(&file).unwrap();
    assert!(!enrol::is_due(first.expires_us, now_us()), "a new one is not renewed");
    world.kill("a");
    let hour_us = now_us() + 3_600_000_000;
    Credentials { expires_us: Some(hour_us), ..first.clone() }.store(&file).unwrap();
    world.start("a");
    world
        .until("the certificate is renewed", async |_: &World| {
            Credentials::load(&file).unwrap().certificate != first.certificate
        })
        .await;
    let second = Credentials::load(&file).unwrap();
    assert_eq!((&first.identity, &first.seal_key), (&second.identity, &second.seal_key));
    assert!(!enrol::is_due(second.expires_us, now_us()));
    let both = [(serial(&first), false), (serial(&second), false)];
    assert_eq!(certificates(&world, "a").await, both);
    world.good(&["migrate", "p", "--to", "b"]).await;
    world.good(&["migrate", "p", "--to", "a"]).await;
    let service = world.service("p").await;
    assert_eq!((service.node.as_deref(), service.epoch), (Some("a"), 3));
}

#[tokio::test(flavor = "multi_thread")]
async fn old_epochs_and_strange_agents_are_refused() {
    let world = World::secured().await;
    world.good(&["run", "svc", "--name", "p", "--on", "a"]).await;
    world.good(&["migrate", "p", "--to", "b"]).await;
    world.good(&["migrate", "p", "--to", "a"]).await;
    // The agent of a says once more what it said when it gave the service away.
    let agent = |name: &str| {
        let path = world.path(name).join("credentials.json");
        asked_by(&world, Credentials::load(&path).unwrap())
    };
    let request = CommitRequest { epoch: 1 };
    let path = "/v1/migrations/m1/commit";
    let answer: CommitAnswer = agent("a").json(Method::POST, path, &request, LIMIT).await.unwrap();
    let CommitAnswer::Refused { reason } = answer else { panic!("{answer:?}") };
    assert!(reason.contains("`p` is at epoch 3, not 1"), "{reason}");
    assert_refused(&audit(&world, None).await, "a", "POST /v1/migrations/m1/commit", "epoch 3");
    // An agent speaks for its own node only.
    let said = refused(agent("b").json::<CommitAnswer>(Method::POST, path, &request, LIMIT).await);
    assert!(said.contains("the agent of node b cannot speak for node a"), "{said}");
    let nodes: Vec<host_tools::api::Node> = world.client().get("/v1/nodes").await.unwrap();
    let report = NodeReport { address: "127.0.0.1:1".into(), ..nodes[0].report.clone() };
    let said =
        refused(agent("b").json::<ReportAnswer>(Method::POST, "/v1/nodes", &report, LIMIT).await);
    assert!(said.contains("cannot speak for node a"), "{said}");
    // The manager's own order of back then, said again: b has had epoch 2, and gave it away.
    let spec = world.service("p").await.spec;
    for epoch in [1, 2] {
        let start = StartRequest { spec: spec.clone(), epoch, snapshot: None };
        let answer = as_manager(&world, "b")
            .json::<Instance>(Method::POST, "/v1/instances", &start, LIMIT)
            .await;
        let error = answer.unwrap_err();
        assert_eq!(error.problem, Problem::Conflict);
        assert!(error.message.contains("the order is an old one"), "{error}");
    }
    let log = audit(&world, Some("b")).await;
    assert_refused(&log, "manager", "POST /v1/instances", "epoch 2 is not newer");
    // Users and other agents cannot order an agent about.
    let address = std::fs::read_to_string(world.path("b").join("address")).unwrap();
    for file in ["manager/admin.json", "a/credentials.json"] {
        let own = Credentials::load(&world.path(file)).unwrap();
        let client = Client::new(address.parse::<Address>().unwrap(), "the node")
            .secured(&security(own), Party::Node("b".into()));
        refused(client.get::<serde_json::Value>("/v1/instances").await);
    }
    let log = audit(&world, Some("b")).await;
    assert_refused(&log, "admin", "GET /v1/instances", "no user may do this");
    assert_refused(&log, "a", "GET /v1/instances", "not for the agent of node a");
    world.assert_one_at_a_time();
}

/// An agent that is no better than its node: it says that the service was given to node b, and it was not.
#[tokio::test(flavor = "multi_thread")]
async fn a_source_cannot_give_what_the_manager_has_not_given() {
    let world = World::secured().await;
    world.good(&["run", "svc", "--name", "p", "--on", "a"]).await;
    let spec = world.service("p").await.spec;
    let address_of =
        |node: &str| std::fs::read_to_string(world.path(node).join("address")).unwrap();
    let agent = |name| {
        let own = Credentials::load(&world.path(name).join("credentials.json")).unwrap();
        Client::new(address_of("b").parse::<Address>().unwrap(), "the node")
            .secured(&security(own), Party::Node("b".into()))
    };
    let (client, strange) = (agent("a"), agent("b"));
    let (ours, theirs) = (authority(&world), stranger(&world.path("")));
    let granted = Grant { service: &spec.id, node: "b", epoch: 2 };
    let by_us = |grant: Grant<'_>| grant.sign(ours.image_key(), ours.cluster());
    for grant in [
        String::new(),
        granted.sign(theirs.image_key(), ours.cluster()),
        by_us(Grant { node: "a", ..granted }),
        by_us(Grant { epoch: 1, ..granted }),
        by_us(Grant { service: "another", ..granted }),
    ] {
        let stream = client.upgrade("/v1/transfer", TRANSFER_PROTOCOL).await.unwrap();
        let mut link = Link::new(stream);
        let offer = FromSource::Offer {
            migration: "m9".into(),
            spec: Box::new(spec.clone()),
            source: address_of("a"),
        };
        link.send(&offer).await.unwrap();
        assert_eq!(
            link.message::<FromDestination>(LIMIT).await.unwrap(),
            FromDestination::Accepted
        );
        link.send(&FromSource::Prepare).await.unwrap();
        // Frames for the standby are taken from the source of its move only.
        let path = "/v1/transfer/m9/mirror";
        let said = strange.upgrade(path, mirror::PROTOCOL).await.unwrap_err();
        assert_eq!(said.message, "no standby waits for a mirror of move m9 by you");
        let _mirror = client.upgrade(path, mirror::PROTOCOL).await.unwrap();
        let answer = link.message(LIMIT).await.unwrap();
        assert!(matches!(answer, FromDestination::Standby { .. }), "{answer:?}");
        let digest = PageDigest::default().finish();
        for message in [FromSource::Check, FromSource::Last { digest }] {
            link.send(&message).await.unwrap();
        }
        assert_eq!(
            link.message::<FromDestination>(LIMIT).await.unwrap(),
            FromDestination::Verified
        );
        link.send(&FromSource::Resume { epoch: 2, grant }).await.unwrap();
        let answer = link.message(LIMIT).await.unwrap();
        let FromDestination::Failed { reason } = answer else { panic!("{answer:?}") };
        assert!(reason.contains("has not signed that"), "{reason}");
        let left: Vec<Instance> = as_manager(&world, "b").get("/v1/instances").await.unwrap();
        assert_eq!(left, [], "the standby is left");
    }
    let log = audit(&world, Some("b")).await;
    assert_refused(&log, "a", "resume `p`", "node b's under epoch 2");
    let service = world.service("p").await;
    assert_eq!((service.node.as_deref(), service.epoch), (Some("a"), 1));
    world.assert_one_at_a_time();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_of_another_cluster_is_refused() {
    let world = World::secured().await;
    world.good(&["run", "svc", "--name", "p", "--on", "a"]).await;
    let file = world.path("p.snapshot");
    let name = file.to_str().unwrap();
    world.good(&["checkpoint", "p", "-e", name]).await;
    let sealed = std::fs::read(&file).unwrap();
    let plain = authority(&world).seal_key().open(&sealed).unwrap();
    let theirs = stranger(&world.path(""));
    let reason = format!("the snapshot is of cluster {}", theirs.cluster());
    for (bytes, reason) in [
        (theirs.seal_key().seal(&plain).unwrap(), reason.as_str()),
        (plain, "the snapshot is not sealed"),
        ([&sealed[..sealed.len() - 1], b"x"].concat(), "the snapshot was changed"),
    ] {
        std::fs::write(&file, bytes).unwrap();
        let said = world.bad(&["restore", "-i", name, "--on", "b"], 5).await;
        assert!(said.contains(reason), "{said}");
        assert_refused(&audit(&world, None).await, "admin", "POST /v1/restore", reason);
    }
    std::fs::write(&file, sealed).unwrap();
    let said = world.good(&["restore", "-i", name, "--on", "b"]).await;
    assert!(said.contains("2 connections go on"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tampered_image_is_refused() {
    let mut world = World::secured().await;
    // Somebody with the manager's disk, but not its key, puts another file behind the name.
    world.kill("manager");
    let dir = world.path("manager");
    let index = dir.join("images/names.json");
    let text = std::fs::read_to_string(&index).unwrap();
    let names: serde_json::Value = serde_json::from_str(&text).unwrap();
    let old: ImageRef = serde_json::from_value(names["svc:latest"].clone()).unwrap();
    let forged = [image_file(7), b"evil".to_vec()].concat();
    let digest = host_tools::api::Digest32::of(&forged);
    std::fs::write(dir.join("images").join(digest.to_string()), &forged).unwrap();
    let text = text.replace(&old.digest.to_string(), &digest.to_string());
    std::fs::write(&index, text).unwrap();
    world.start("manager");
    let signatures = dir.join("signatures");
    for (with_old_signature, reason) in [(false, "has no signature"), (true, "is not signed")] {
        if with_old_signature {
            let signature = std::fs::read(signatures.join(old.digest.to_string())).unwrap();
            std::fs::write(signatures.join(digest.to_string()), signature).unwrap();
        }
        let ready = async |world: &World| {
            let nodes: Vec<host_tools::api::Node> =
                world.client().get("/v1/nodes").await.unwrap_or_default();
            nodes.len() == 2 && nodes.iter().all(|node| node.ready)
        };
        world.until("both nodes are ready", ready).await;
        let run = ["run", "svc", "--name", "p", "--on", "a"];
        let said = world.bad(&run, if with_old_signature { 8 } else { 3 }).await;
        assert!(said.contains(reason) && said.contains("nothing was started"), "{said}");
        assert_refused(&audit(&world, None).await, "admin", "POST /v1/services", reason);
        let log = audit(&world, Some("a")).await;
        assert_refused(&log, "manager", "POST /v1/instances", reason);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_listens_where_others_reach_it_without_tls() {
    let world = World::new().await;
    let state = world.path("other").to_str().unwrap().to_owned();
    let insecure = "--insecure-loopback";
    let manager = ["manager", insecure, "--listen", "0.0.0.0:0", "--state-dir", &state];
    let said = world.bad(&manager, 5).await;
    assert!(said.contains("does not listen on 0.0.0.0:0 without TLS"), "{said}");
    let agent = ["agent", insecure, "--name", "x", "--listen", "0.0.0.0:0"];
    let agent = [&agent[..], &["--bridge", "br0", "--state-dir", &state]].concat();
    let said = world.bad(&agent, 5).await;
    assert!(said.contains("does not listen on 0.0.0.0:0 without TLS"), "{said}");
    let agent = ["agent", "--name", "x", "--listen", "127.0.0.1:0", "--bridge", "br0"];
    let agent = [&agent[..], &["--state-dir", &state]].concat();
    let said = world.bad(&agent, 8).await;
    assert!(said.contains("this agent has no certificate"), "{said}");
    assert!(said.contains("token create --role agent --name x"), "{said}");
    // Nor is anything said to others without it.
    let said = world.bad(&["ps", "--manager", "192.0.2.1:7700"], 8).await;
    assert!(said.contains("there are no credentials to ask it with"), "{said}");
}
