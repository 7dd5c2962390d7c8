//! Which addresses services get.

use std::net::Ipv4Addr;
use std::str::FromStr;

/// A range of addresses in one network: `10.77.0.50-10.77.0.99/24`, or `…/24,10.77.0.1` with a router.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pool {
    /// First address.
    pub first: Ipv4Addr,
    /// Last address.
    pub last: Ipv4Addr,
    /// Length of the network's prefix.
    pub prefix: u8,
    /// Router of the network.
    pub gateway: Option<Ipv4Addr>,
}

/// A text that is no [`Pool`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is no address pool: write FIRST-LAST/PREFIX[,ROUTER], both ends in one network")]
pub struct PoolError {
    /// The text.
    pub text: String,
}

impl FromStr for Pool {
    type Err = PoolError;

    fn from_str(text: &str) -> Result<Self, PoolError> {
        parse(text).ok_or_else(|| PoolError { text: text.to_owned() })
    }
}

fn parse(text: &str) -> Option<Pool> {
    let (range, gateway) = match text.split_once(',') {
        Some((range, gateway)) => (range, Some(gateway.parse().ok()?)),
        None => (text, None),
    };
    let (ends, prefix) = range.split_once('/')?;
    let (first, last) = ends.split_once('-')?;
    let pool = Pool {
        first: first.parse().ok()?,
        last: last.parse().ok()?,
        prefix: prefix.parse().ok().filter(|prefix| (8..=30).contains(prefix))?,
        gateway,
    };
    let ordered = pool.first <= pool.last;
    (ordered && pool.contains_network(pool.last)).then_some(pool)
}

impl Pool {
    fn mask(&self) -> u32 {
        u32::MAX << (32 - u32::from(self.prefix))
    }

    /// Whether an address lies in the network and is neither its own nor its broadcast address.
    #[must_use]
    pub fn contains_network(&self, ip: Ipv4Addr) -> bool {
        let host = ip.to_bits() & !self.mask();
        ip.to_bits() & self.mask() == self.first.to_bits() & self.mask()
            && host != 0
            && host != !self.mask()
    }

    /// The first address of the range that `taken` does not have.
    pub fn free(&self, taken: impl Fn(Ipv4Addr) -> bool) -> Option<Ipv4Addr> {
        (self.first.to_bits()..=self.last.to_bits()).map(Ipv4Addr::from_bits).find(|ip| !taken(*ip))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pools_as_people_write_them() {
        let pool: Pool = "10.77.0.50-10.77.0.52/24".parse().unwrap();
        assert_eq!((pool.prefix, pool.gateway), (24, None));
        let routed: Pool = "10.77.0.50-10.77.0.52/24,10.77.0.1".parse().unwrap();
        assert_eq!(routed.gateway, Some(Ipv4Addr::new(10, 77, 0, 1)));
        for bad in [
            "",
            "10.0.0.1/24",
            "10.0.0.9-10.0.0.1/24",
            "10.0.0.1-10.0.1.9/24",
            "10.0.0.1-10.0.0.9/33",
        ] {
            assert!(bad.parse::<Pool>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_first_free_address_is_taken() {
        let pool: Pool = "10.77.0.50-10.77.0.51/24".parse().unwrap();
        assert_eq!(pool.free(|_| false), Some(Ipv4Addr::new(10, 77, 0, 50)));
        assert_eq!(pool.free(|ip| ip.octets()[3] == 50), Some(Ipv4Addr::new(10, 77, 0, 51)));
        assert_eq!(pool.free(|_| true), None);
        assert!(pool.contains_network(Ipv4Addr::new(10, 77, 0, 200)));
        assert!(!pool.contains_network(Ipv4Addr::new(10, 77, 0, 255)));
        assert!(!pool.contains_network(Ipv4Addr::new(10, 77, 1, 50)));
    }
}
