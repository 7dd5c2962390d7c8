//! KVM where it really runs guests, else TCG.

use std::fmt;
use std::process::Stdio;
use std::str::FromStr;
use std::time::Duration;

use rustix::thread::disable_transparent_huge_pages;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

/// What executes the guest's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accel {
    /// The processor.
    Kvm,
    /// QEMU's translator.
    Tcg,
}

/// The environment variable that overrides the choice: `kvm` or `tcg`.
pub const VARIABLE: &str = "FERRY_ACCEL";

impl fmt::Display for Accel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        })
    }
}

/// A word that is neither `kvm` nor `tcg`.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{VARIABLE}={found}: use kvm or tcg")]
pub struct AccelError {
    /// The word.
    pub found: String,
}

impl FromStr for Accel {
    type Err = AccelError;

    fn from_str(text: &str) -> Result<Self, AccelError> {
        match text {
            "kvm" => Ok(Self::Kvm),
            "tcg" => Ok(Self::Tcg),
            _ => Err(AccelError { found: text.to_owned() }),
        }
    }
}

impl Accel {
    /// The group whose members may use it, if not everybody.
    #[must_use]
    pub fn group(self) -> Option<u32> {
        use std::os::unix::fs::MetadataExt;
        match self {
            Self::Kvm => std::fs::metadata("/dev/kvm").ok().map(|device| device.gid()),
            Self::Tcg => None,
        }
    }

    /// Where guests are translated: has this process, and all that it starts from now on, use small pages.
    ///
    /// QEMU asks for huge ones for what it translates. The kernel empties each when it is first touched, which takes
    /// 0.3 ms, and 7 to 10 ms where this machine is a guest itself and its host has taken that memory back: in the
    /// middle of a switch as anywhere. Small pages take as long in all, but never so long at once. With KVM nothing is
    /// translated, and a guest has more of its processor with huge pages.
    pub fn settle_pages(self) {
        if self == Self::Tcg
            && let Err(error) = disable_transparent_huge_pages(true)
        {
            tracing::warn!(
                "QEMU uses huge pages, which may cost milliseconds in a switch: {error}"
            );
        }
    }

    /// What to use on this machine.
    ///
    /// `/dev/kvm` alone proves nothing (a software KVM has it, and guests spin on it for ever): the
    /// processor must have `vmx` or `svm` too, and QEMU must come up with it.
    ///
    /// # Errors
    /// The environment variable holds another word.
    pub async fn choose(qemu: &str) -> Result<Self, AccelError> {
        if let Ok(word) = std::env::var(VARIABLE)
            && !word.is_empty()
        {
            return word.parse();
        }
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        if has_virtualisation(&cpuinfo) && qemu_starts_with_kvm(qemu).await {
            Ok(Self::Kvm)
        } else {
            Ok(Self::Tcg)
        }
    }
}

/// Whether `/proc/cpuinfo` shows a processor with virtualisation.
fn has_virtualisation(cpuinfo: &str) -> bool {
    cpuinfo
        .lines()
        .filter(|line| line.starts_with("flags"))
        .flat_map(str::split_whitespace)
        .any(|flag| flag == "vmx" || flag == "svm")
}

/// Whether QEMU makes a machine with KVM and says so on QMP.
async fn qemu_starts_with_kvm(qemu: &str) -> bool {
    const LIMIT: Duration = Duration::from_secs(5);
    let child = tokio::process::Command::new(qemu)
        .args(["-accel", "kvm", "-machine", "none", "-nodefaults", "-display", "none"])
        .args(["-S", "-qmp", "stdio"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn();
    let Ok(mut child) = child else { return false };
    let (Some(mut stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
        return false;
    };
    let probe = async {
        let greeting = BufReader::new(stdout).lines().next_line().await.ok().flatten();
        let up = greeting.is_some_and(|line| line.contains("\"QMP\""));
        let quit = b"{\"execute\":\"qmp_capabilities\"}{\"execute\":\"quit\"}\n";
        up && stdin.write_all(quit).await.is_ok()
            && child.wait().await.is_ok_and(|status| status.success())
    };
    tokio::time::timeout(LIMIT, probe).await.unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flags_decide_not_the_name() {
        assert!(has_virtualisation("processor: 0\nflags\t\t: fpu vmx sse\n"));
        assert!(has_virtualisation("flags : svm"));
        assert!(!has_virtualisation("flags : fpu sse\nmodel name: vmx svm\n"));
        assert!(!has_virtualisation(""));
    }

    #[test]
    fn words() {
        assert_eq!("kvm".parse(), Ok(Accel::Kvm));
        assert_eq!("tcg".parse(), Ok(Accel::Tcg));
        assert_eq!("xen".parse::<Accel>(), Err(AccelError { found: "xen".into() }));
    }

    #[test]
    fn what_an_agent_starts_under_tcg_uses_small_pages() {
        let programs_use_huge_pages = || {
            let status =
                std::process::Command::new("cat").arg("/proc/self/status").output().unwrap();
            let status = String::from_utf8(status.stdout).unwrap();
            status.lines().find_map(|line| line.strip_prefix("THP_enabled:\t")) == Some("1")
        };
        if !programs_use_huge_pages() {
            return;
        }
        Accel::Kvm.settle_pages();
        assert!(programs_use_huge_pages());
        Accel::Tcg.settle_pages();
        assert!(!programs_use_huge_pages());
        disable_transparent_huge_pages(false).unwrap();
    }

    #[tokio::test]
    async fn a_missing_qemu_means_no_kvm() {
        assert!(!qemu_starts_with_kvm("/nonexistent/qemu").await);
    }
}
