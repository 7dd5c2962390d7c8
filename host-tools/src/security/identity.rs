//! What a certificate says: cluster, role and name, as one URI among its subject's names (RFC 5280 §4.2.1.6).

use std::fmt;
use std::str::FromStr;

use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};

use crate::api::spec::check_name;

/// What somebody may do. Users' roles contain the ones before them.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum,
)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Look.
    View,
    /// Run, move and end services.
    Operate,
    /// Everything: tokens, users, nodes.
    Admin,
    /// A QEMU host's agent.
    Agent,
    /// The manager itself.
    #[value(skip)]
    Manager,
}

impl Role {
    /// Whether people have it.
    #[must_use]
    pub fn is_users(self) -> bool {
        matches!(self, Self::View | Self::Operate | Self::Admin)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::View => "view",
            Self::Operate => "operate",
            Self::Admin => "admin",
            Self::Agent => "agent",
            Self::Manager => "manager",
        })
    }
}

/// A member of a cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Id of the cluster.
    pub cluster: String,
    /// What it may do.
    pub role: Role,
    /// Its name.
    pub name: String,
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ferry://{}/{}/{}", self.cluster, self.role, self.name)
    }
}

impl FromStr for Identity {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, IdentityError> {
        let wrong = || IdentityError::Uri { found: text.to_owned() };
        let mut parts = text.strip_prefix("ferry://").ok_or_else(wrong)?.split('/');
        let (Some(cluster), Some(role), Some(name), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(wrong());
        };
        let roles = [Role::View, Role::Operate, Role::Admin, Role::Agent, Role::Manager];
        let role = roles.into_iter().find(|known| known.to_string() == role).ok_or_else(wrong)?;
        check_name(cluster).map_err(|_| wrong())?;
        check_name(name).map_err(|_| wrong())?;
        Ok(Self { cluster: cluster.to_owned(), role, name: name.to_owned() })
    }
}

/// Why a certificate names no member.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[expect(missing_docs, reason = "the messages say what the fields are")]
pub enum IdentityError {
    #[error("the certificate cannot be read")]
    Unreadable,
    #[error("the certificate names nobody")]
    Nobody,
    #[error("the certificate names `{found}`, which is no member of a cluster")]
    Uri { found: String },
}

/// A member and the certificate that it showed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Who.
    pub identity: Identity,
    /// Number of the certificate, in hexadecimal digits.
    pub serial: String,
}

impl Member {
    /// Reads a certificate that has been verified.
    ///
    /// # Errors
    /// It names nobody.
    pub fn read(certificate: &CertificateDer<'_>) -> Result<Self, IdentityError> {
        let certificate =
            webpki::EndEntityCert::try_from(certificate).map_err(|_| IdentityError::Unreadable)?;
        let serial = hex(certificate.serial());
        let uri = certificate.valid_uri_names().next().ok_or(IdentityError::Nobody)?;
        Ok(Self { identity: uri.parse()?, serial })
    }
}

/// Bytes as hexadecimal digits.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_and_read_back() {
        for role in [Role::View, Role::Operate, Role::Admin, Role::Agent, Role::Manager] {
            let identity = Identity { cluster: "c0ffee".into(), role, name: "x.y-1".into() };
            assert_eq!(identity.to_string().parse(), Ok(identity));
        }
        for bad in [
            "",
            "https://c/view/x",
            "ferry://c/view",
            "ferry://c/view/x/y",
            "ferry://c/root/x",
            "ferry:///view/x",
            "ferry://c/view/",
            "ferry://c/view/A",
        ] {
            assert_eq!(bad.parse::<Identity>(), Err(IdentityError::Uri { found: bad.into() }));
        }
    }

    #[test]
    fn higher_roles_contain_lower_ones() {
        assert!(Role::View < Role::Operate && Role::Operate < Role::Admin);
        assert!(!Role::Agent.is_users() && !Role::Manager.is_users());
    }
}
