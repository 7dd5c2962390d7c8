//! One-time tokens, with which a newcomer gets a certificate.
//!
//! A token holds the fingerprint of the cluster's authority, so that the newcomer knows whom it tells its
//! secret, and a secret, of which the manager keeps the digest only.

use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use serde::{Deserialize, Serialize};

use super::identity::{Role, hex};
use super::secret::{self, NoRandom};

const PREFIX: &str = "ferry-";
const ID_LEN: usize = 8;
const SECRET_LEN: usize = 24;

/// What a newcomer is given.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// SHA-256 of the authority's certificate.
    pub fingerprint: [u8; 32],
    id: [u8; ID_LEN],
    secret: [u8; SECRET_LEN],
}

impl Token {
    /// A new token.
    ///
    /// # Errors
    /// The system has no random numbers.
    pub fn new(fingerprint: [u8; 32]) -> Result<Self, NoRandom> {
        Ok(Self { fingerprint, id: secret::random()?, secret: secret::random()? })
    }

    /// The name under which the manager keeps it.
    #[must_use]
    pub fn id(&self) -> String {
        hex(&self.id)
    }

    fn digest(&self) -> String {
        hex(ring::digest::digest(&ring::digest::SHA256, &self.secret).as_ref())
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = [&self.fingerprint[..], &self.id, &self.secret].concat();
        write!(f, "{PREFIX}{}", BASE64.encode(bytes))
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token({})", self.id())
    }
}

/// A text that is no token. It is not shown: it may nearly be one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this is no token: it begins with `{PREFIX}` and has {} characters", PREFIX.len() + 86)]
pub struct NoToken;

impl FromStr for Token {
    type Err = NoToken;

    fn from_str(text: &str) -> Result<Self, NoToken> {
        let text = text.trim().strip_prefix(PREFIX).ok_or(NoToken)?;
        let bytes = BASE64.decode(text).map_err(|_| NoToken)?;
        let (fingerprint, rest) = bytes.split_first_chunk().ok_or(NoToken)?;
        let (id, secret) = rest.split_first_chunk().ok_or(NoToken)?;
        let secret = secret.try_into().map_err(|_| NoToken)?;
        Ok(Self { fingerprint: *fingerprint, id: *id, secret })
    }
}

/// What the manager keeps of a token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptToken {
    /// Name under which it is kept.
    pub id: String,
    /// SHA-256 of its secret.
    pub digest: String,
    /// What its bearer will be.
    pub role: Role,
    /// The name its bearer will have; the bearer's choice if there is none.
    pub name: Option<String>,
    /// When it ends.
    pub expires_us: u64,
    /// Who has used it.
    pub used_by: Option<String>,
}

/// Why a token does not admit its bearer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what the fields are")]
pub enum TokenError {
    #[error("the token is not one of this cluster's")]
    Unknown,
    #[error("the token has been used already, by {by}")]
    Used { by: String },
    #[error("the token expired {seconds} s ago")]
    Expired { seconds: u64 },
    #[error("the token is for the name `{expected}`, not for `{found}`")]
    Name { expected: String, found: String },
}

impl KeptToken {
    /// What to keep of `token`.
    #[must_use]
    pub fn of(token: &Token, role: Role, name: Option<String>, expires_us: u64) -> Self {
        Self { id: token.id(), digest: token.digest(), role, name, expires_us, used_by: None }
    }

    /// Whether the bearer of `token` is admitted now, under this name.
    ///
    /// # Errors
    /// Why not.
    pub fn admit(&self, token: &Token, name: &str, now_us: u64) -> Result<(), TokenError> {
        // The digest of what was said is compared: how long that takes tells nothing about the secret.
        if self.id != token.id() || self.digest != token.digest() {
            return Err(TokenError::Unknown);
        }
        if let Some(by) = &self.used_by {
            return Err(TokenError::Used { by: by.clone() });
        }
        if now_us >= self.expires_us {
            let seconds = (now_us - self.expires_us) / 1_000_000;
            return Err(TokenError::Expired { seconds });
        }
        match &self.name {
            Some(expected) if expected != name => {
                Err(TokenError::Name { expected: expected.clone(), found: name.to_owned() })
            }
            _ => Ok(()),
        }
    }
}

/// A time to live from `90s`, `15m`, `1h` or `7d`, in microseconds.
///
/// # Errors
/// It is none, or longer than 30 days.
pub fn time_to_live(text: &str) -> Result<u64, String> {
    let wrong = || format!("`{text}` is no time to live: write 90s, 15m, 1h or 7d, at most 30d");
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let seconds = match &text[digits.len()..] {
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        _ => return Err(wrong()),
    };
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    let all = number.checked_mul(seconds).filter(|all| (1..=30 * 86_400).contains(all));
    all.map(|all| all * 1_000_000).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_and_read_back() {
        let token = Token::new([7; 32]).unwrap();
        let text = token.to_string();
        assert_eq!(text.parse(), Ok(token.clone()));
        assert_eq!(format!("{text}\n").parse(), Ok(token.clone()));
        assert!(!format!("{token:?}").contains(&hex(&token.secret)));
        for bad in ["", "ferry-", &text[1..], &text[..text.len() - 1], &format!("{text}A")] {
            assert_eq!(bad.parse::<Token>(), Err(NoToken), "{bad}");
        }
    }

    #[test]
    fn admits_once_in_time_and_under_its_name() {
        let token = Token::new([7; 32]).unwrap();
        let mut kept = KeptToken::of(&token, Role::View, None, 5_000_000);
        assert_eq!(kept.admit(&token, "x", 4_999_999), Ok(()));
        assert_eq!(kept.admit(&token, "x", 5_000_000), Err(TokenError::Expired { seconds: 0 }));
        assert_eq!(kept.admit(&token, "x", 9_000_000), Err(TokenError::Expired { seconds: 4 }));
        let mut guessed = token.clone();
        guessed.secret[23] ^= 1;
        assert_eq!(kept.admit(&guessed, "x", 0), Err(TokenError::Unknown));
        kept.name = Some("y".into());
        let (expected, found) = ("y".into(), "x".into());
        assert_eq!(kept.admit(&token, "x", 0), Err(TokenError::Name { expected, found }));
        kept.used_by = Some("y".into());
        assert_eq!(kept.admit(&token, "y", 0), Err(TokenError::Used { by: "y".into() }));
    }

    #[test]
    fn times_to_live() {
        assert_eq!(time_to_live("90s"), Ok(90_000_000));
        assert_eq!(time_to_live("1h"), Ok(3_600_000_000));
        assert_eq!(time_to_live("30d"), Ok(2_592_000_000_000));
        for bad in ["", "0s", "1", "h", "-1h", "31d", "1y", "99999999999999999999d"] {
            assert!(time_to_live(bad).is_err(), "{bad}");
        }
    }
}
