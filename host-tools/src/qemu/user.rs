//! The users that guests run as: one for each, with nothing of its own on the machine.
//!
//! A QEMU that a guest has broken out of can do what its user may do, within the system calls that QEMU's own
//! sandbox leaves. Its files reach it as open descriptors, so that its user needs no way to any of them.

use std::fmt;

/// How many users there are; guests that run at the same time have different ones.
pub const COUNT: u32 = 1 << 16;
/// The first user id by default: the beginning of a range that neither systems nor containers give out
/// (systemd's UIDS-GIDS document, 1879048192 to 2147483647).
pub const FIRST: u32 = 0x7000_0000;

/// A range of user ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestUsers {
    first: u32,
}

/// Whom one QEMU runs as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub struct User {
    pub uid: u32,
    pub gid: u32,
}

/// Why guests have no users of their own.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoUsers {
    /// Only root may start processes of other users.
    #[error("the agent is not root")]
    NotRoot,
    /// The agent is root in a user namespace only.
    #[error("the user ids from {first} on are not there in the agent's user namespace")]
    NotMapped {
        /// The first.
        first: u32,
    },
}

impl GuestUsers {
    /// The users from `first` on, if this process may start others as them. `uid_map` is the text of
    /// `/proc/self/uid_map` (`user_namespaces(7)`).
    ///
    /// # Errors
    /// It may not.
    pub fn choose(first: u32, is_root: bool, uid_map: &str) -> Result<Self, NoUsers> {
        if !is_root {
            return Err(NoUsers::NotRoot);
        }
        let mapped = uid_map.lines().any(|line| {
            let mut numbers = line.split_whitespace().filter_map(|number| number.parse().ok());
            let (Some(inside), Some(_), Some(count)): (Option<u64>, Option<u64>, Option<u64>) =
                (numbers.next(), numbers.next(), numbers.next())
            else {
                return false;
            };
            inside <= u64::from(first) && u64::from(first) + u64::from(COUNT) <= inside + count
        });
        if mapped { Ok(Self { first }) } else { Err(NoUsers::NotMapped { first }) }
    }

    /// The same for this process.
    ///
    /// # Errors
    /// As [`GuestUsers::choose`].
    pub fn of_this_process(first: u32) -> Result<Self, NoUsers> {
        let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
        Self::choose(first, rustix::process::geteuid().is_root(), &map)
    }

    /// The user of instance `number` of a host. `group` is what it may use, such as that of `/dev/kvm`; by
    /// default it has a group of its own.
    #[must_use]
    pub fn of(&self, number: u64, group: Option<u32>) -> User {
        let uid = self.first + (number % u64::from(COUNT)) as u32;
        User { uid, gid: group.unwrap_or(uid) }
    }
}

impl fmt::Display for GuestUsers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to {}", self.first, self.first + (COUNT - 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_of_the_machine_has_all_users_and_root_of_a_namespace_those_that_are_mapped() {
        let whole = "         0          0 4294967295\n";
        assert!(GuestUsers::choose(FIRST, true, whole).is_ok());
        assert_eq!(GuestUsers::choose(FIRST, false, whole), Err(NoUsers::NotRoot));
        let first = 100_000;
        let mapped = |map: &str| GuestUsers::choose(first, true, map).is_ok();
        assert!(!mapped("0 1000 1\n"));
        assert!(!mapped(""));
        assert!(!mapped("nonsense\n1 2\n"));
        assert!(mapped("0 1000 1\n100000 500000 65536\n"));
        assert!(!mapped("0 1000 1\n100000 500000 65535\n"));
    }

    #[test]
    fn guests_that_run_at_the_same_time_have_different_users() {
        let users = GuestUsers::choose(1000, true, "0 0 4294967295").unwrap();
        assert_eq!(users.of(0, None), User { uid: 1000, gid: 1000 });
        assert_eq!(users.of(65_535, Some(7)), User { uid: 66_535, gid: 7 });
        assert_eq!(users.of(65_536, None), users.of(0, None));
        assert_eq!(users.to_string(), "1000 to 66535");
    }
}
