//! The etcd of a lab with several managers: one member on a node of its own for each, with certificates of an
//! authority that only this lab knows.

use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};

use super::LabError;
use super::plan::{Node, Role};

/// Port that managers ask a member at.
const CLIENT_PORT: u16 = 2379;
/// Port that members ask each other at.
const PEER_PORT: u16 = 2380;

/// The files that a member or a manager authenticates itself with.
struct Files {
    ca: PathBuf,
    certificate: PathBuf,
    key: PathBuf,
}

impl Files {
    fn of(dir: &Path, node: &str) -> Self {
        let at = |name: &str| dir.join(node).join(name);
        Self { ca: at("etcd-ca.pem"), certificate: at("etcd-cert.pem"), key: at("etcd-key.pem") }
    }
}

fn write(path: &Path, text: &str) -> Result<(), LabError> {
    use std::io::Write;
    let fail = |source| LabError::File { path: path.to_owned(), source };
    let mut file = fs::File::options();
    let file = file.write(true).create(true).truncate(true).mode(0o600).open(path);
    file.and_then(|mut file| file.write_all(text.as_bytes())).map_err(fail)
}

/// Makes an authority, and a certificate from it for each member and each manager among `nodes`.
pub(super) fn make_certificates(dir: &Path, nodes: &[Node]) -> Result<(), LabError> {
    let failed = |error: rcgen::Error| LabError::Certificates { why: error.to_string() };
    let mut ca = CertificateParams::default();
    ca.distinguished_name.push(DnType::CommonName, "etcd of a ferry lab");
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let ca_key = KeyPair::generate().map_err(failed)?;
    let ca_pem = ca.self_signed(&ca_key).map_err(failed)?.pem();
    let issuer = Issuer::new(ca, ca_key);
    for node in nodes.iter().filter(|node| matches!(node.role, Role::Store | Role::Manager)) {
        let directory = dir.join(&node.name);
        fs::create_dir_all(&directory)
            .map_err(|source| LabError::File { path: directory, source })?;
        let mut own = CertificateParams::default();
        own.distinguished_name.push(DnType::CommonName, node.name.as_str());
        own.subject_alt_names =
            node.ip.map(|ip| SanType::IpAddress(ip.into())).into_iter().collect();
        own.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().map_err(failed)?;
        let certificate = own.signed_by(&key, &issuer).map_err(failed)?;
        let files = Files::of(dir, &node.name);
        write(&files.ca, &ca_pem)?;
        write(&files.certificate, &certificate.pem())?;
        write(&files.key, &key.serialize_pem())?;
    }
    Ok(())
}

/// Members among these nodes.
fn members<'n>(nodes: impl Iterator<Item = &'n Node>) -> Vec<(&'n str, Ipv4Addr)> {
    nodes
        .filter(|node| node.role == Role::Store)
        .filter_map(|node| Some((node.name.as_str(), node.ip?)))
        .collect()
}

fn url(ip: Ipv4Addr, port: u16) -> String {
    format!("https://{ip}:{port}")
}

/// Arguments of `etcd` for the member on this node.
pub(super) fn member_arguments<'n>(
    dir: &Path,
    node: &Node,
    all: impl Iterator<Item = &'n Node>,
) -> Vec<String> {
    let ip = node.ip.unwrap_or(Ipv4Addr::LOCALHOST);
    let peers = members(all).into_iter().map(|(name, ip)| format!("{name}={}", url(ip, PEER_PORT)));
    let files = Files::of(dir, &node.name);
    let (ca, certificate, key) =
        (files.ca.display(), files.certificate.display(), files.key.display());
    let mut arguments = vec![
        format!("--name={}", node.name),
        format!("--data-dir={}", dir.join(&node.name).join("data").display()),
        format!("--initial-cluster={}", peers.collect::<Vec<_>>().join(",")),
    ];
    for (kind, port) in [("client", CLIENT_PORT), ("peer", PEER_PORT)] {
        arguments.push(format!("--listen-{kind}-urls={}", url(ip, port)));
        let advertise = if kind == "peer" { "initial-advertise-peer" } else { "advertise-client" };
        arguments.push(format!("--{advertise}-urls={}", url(ip, port)));
        let prefix = if kind == "peer" { "peer-" } else { "" };
        arguments.push(format!("--{prefix}client-cert-auth"));
        arguments.push(format!("--{prefix}trusted-ca-file={ca}"));
        arguments.push(format!("--{prefix}cert-file={certificate}"));
        arguments.push(format!("--{prefix}key-file={key}"));
    }
    arguments
}

/// What the manager on this node is told of etcd; nothing if the lab has none.
pub(super) fn manager_arguments<'n>(
    dir: &Path,
    node: &str,
    all: impl Iterator<Item = &'n Node>,
) -> Vec<String> {
    let urls: Vec<_> = members(all).iter().map(|(_, ip)| url(*ip, CLIENT_PORT)).collect();
    if urls.is_empty() {
        return Vec::new();
    }
    let files = Files::of(dir, node);
    vec![
        format!("--etcd={}", urls.join(",")),
        format!("--etcd-ca={}", files.ca.display()),
        format!("--etcd-cert={}", files.certificate.display()),
        format!("--etcd-key={}", files.key.display()),
    ]
}
