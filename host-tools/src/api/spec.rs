//! A service and where it comes from.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::qemu::Machine;

/// A BLAKE3 digest or a build id: 32 bytes, written as 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest32(pub [u8; 32]);

impl Digest32 {
    /// The digest of some bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }

    /// The first twelve digits, as people compare them.
    #[must_use]
    pub fn short(&self) -> String {
        self.to_string()[..12].to_owned()
    }
}

impl fmt::Display for Digest32 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest32 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// A text that is not 64 hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is no digest: 64 hexadecimal digits are expected")]
pub struct DigestError {
    /// The text.
    pub text: String,
}

impl FromStr for Digest32 {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let error = || DigestError { text: text.to_owned() };
        if text.len() != 64 || !text.is_ascii() {
            return Err(error());
        }
        let mut out = [0; 32];
        for (byte, at) in out.iter_mut().zip((0..64).step_by(2)) {
            *byte = u8::from_str_radix(&text[at..at + 2], 16).map_err(|_| error())?;
        }
        Ok(Self(out))
    }
}

impl Serialize for Digest32 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest32 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// An image in the service repository.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRef {
    /// `name:tag`, or the file name it was run from.
    pub name: String,
    /// Digest of the file.
    pub digest: Digest32,
    /// Build id inside it.
    pub build_id: Digest32,
}

/// All that stays the same for a service's whole life, wherever it runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceSpec {
    /// Its name, unique among the services of a manager.
    pub name: String,
    /// Distinguishes it from others that had the name before.
    pub id: String,
    /// What it runs.
    pub image: ImageRef,
    /// Its address.
    pub ip: Ipv4Addr,
    /// Length of its network's prefix.
    pub prefix: u8,
    /// Its router.
    pub gateway: Option<Ipv4Addr>,
    /// Its Ethernet address.
    pub mac: String,
    /// Guest RAM in MiB.
    pub memory_mib: u32,
    /// QEMU's machine type.
    pub machine: Machine,
    /// Arguments of the service.
    pub args: Vec<String>,
}

/// The Ethernet address of a service: locally administered, unicast, from its name and id.
#[must_use]
pub fn mac_of(name: &str, id: &str) -> String {
    let mut hasher = blake3::Hasher::new();
    for part in [name, id] {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part.as_bytes());
    }
    let hash = hasher.finalize();
    let mut bytes = [0; 6];
    bytes.copy_from_slice(&hash.as_bytes()[..6]);
    // IEEE 802: bit 0 of the first byte is group, bit 1 is locally administered. Fixed, so that it is
    // never that of a tap (0xfe), which a bridge would take for its own.
    bytes[0] = 0x52;
    bytes.map(|byte| format!("{byte:02x}")).join(":")
}

/// A name that a service or an image may not have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{name}` is no name: use 1 to 63 of a-z, 0-9, `-`, `_` and `.`, beginning with a letter or digit"
)]
pub struct NameError {
    /// The name.
    pub name: String,
}

/// Checks the name of a service, an image or a node.
///
/// # Errors
/// It is empty, too long, or has other characters.
pub fn check_name(name: &str) -> Result<(), NameError> {
    let letter = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let good = (1..=63).contains(&name.len())
        && name.starts_with(letter)
        && name.chars().all(|c| letter(c) || matches!(c, '-' | '_' | '.'));
    if good { Ok(()) } else { Err(NameError { name: name.to_owned() }) }
}

/// Service arguments travel on the kernel command line, which has no quoting.
///
/// # Errors
/// The first argument that cannot travel.
pub fn check_args(args: &[String]) -> Result<(), String> {
    let bad =
        |arg: &&String| arg.is_empty() || arg.chars().any(|c| c.is_whitespace() || c.is_control());
    match args.iter().find(bad) {
        Some(arg) => Err(arg.clone()),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_64_digits() {
        let digest = Digest32::of(b"x");
        assert_eq!(digest.to_string().parse(), Ok(digest));
        assert_eq!(digest.short().len(), 12);
        for bad in ["", "00", &"g".repeat(64), &"é".repeat(32), &"0".repeat(65)] {
            assert!(bad.parse::<Digest32>().is_err(), "{bad}");
        }
    }

    #[test]
    fn macs_are_local_unicast_and_differ() {
        let mac = mac_of("a", "bc");
        assert_eq!(mac, mac_of("a", "bc"));
        assert_ne!(mac, mac_of("ab", "c"));
        let first = u8::from_str_radix(&mac[..2], 16).unwrap();
        assert_eq!(first & 3, 2);
        assert_eq!(mac.len(), 17);
    }

    #[test]
    fn names() {
        for good in ["a", "ping-pong_2.x", "0"] {
            assert_eq!(check_name(good), Ok(()));
        }
        for bad in ["", "-a", "A", "a/b", "a b", "..", &"a".repeat(64)] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn arguments_that_a_command_line_cannot_carry() {
        assert_eq!(check_args(&["-x".into(), "a=b".into()]), Ok(()));
        assert_eq!(check_args(&["a b".into()]), Err("a b".into()));
        assert_eq!(check_args(&[String::new()]), Err(String::new()));
    }
}
