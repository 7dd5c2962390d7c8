//! Ethernet addresses.

use std::fmt;
use std::str::FromStr;

/// An Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MacAddr(pub [u8; 6]);

/// Text that is no Ethernet address.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not a MAC address such as 52:54:00:4d:00:32")]
pub struct MacParseError(pub String);

impl MacAddr {
    /// The address the tap itself gets when its guest has this one: first byte 0xfe, as libvirt does.
    /// It is the highest a bridge can see, so a bridge never takes it for its own, and it differs from
    /// the guest's, which the bridge would otherwise take for a local one.
    #[must_use]
    pub fn of_tap(self) -> Self {
        let mut bytes = self.0;
        bytes[0] = 0xfe;
        Self(bytes)
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for MacAddr {
    type Err = MacParseError;

    fn from_str(text: &str) -> Result<Self, MacParseError> {
        let wrong = || MacParseError(text.to_owned());
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|p| p.len() == 2).ok_or_else(wrong)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| wrong())?;
        }
        if parts.next().is_some() {
            return Err(wrong());
        }
        Ok(Self(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_back() {
        let mac: MacAddr = "52:54:00:4D:00:32".parse().unwrap();
        assert_eq!(mac.0, [0x52, 0x54, 0, 0x4d, 0, 0x32]);
        assert_eq!(mac.to_string(), "52:54:00:4d:00:32");
        assert_eq!(mac.of_tap().to_string(), "fe:54:00:4d:00:32");
        for bad in
            ["", "52:54:00:4d:00", "52:54:00:4d:00:32:01", "52:54:00:4d:00:zz", "525400:4d:00:32"]
        {
            assert!(bad.parse::<MacAddr>().is_err(), "{bad}");
        }
    }
}
