//! Programs and files of the peers. `sh qemu/setup.sh --bench` and `sh tests/bench.sh` put them there.

use std::path::{Path, PathBuf};

/// Where set-up leaves what it unpacks, from the project's directory.
const UNPACKED: &str = "target/ferry/bench";
/// Where the services lie, built for Linux and linked statically, from the directory of all builds.
const STATIC: &str = "static/x86_64-unknown-linux-gnu/release";

/// Where everything lies; absolute.
#[derive(Clone, Debug)]
pub struct Assets {
    /// Debian's kernel for virtual machines.
    pub kernel: PathBuf,
    /// Directory of the kernel's modules that a guest needs for its NIC.
    pub modules: PathBuf,
    /// One static program for all that a guest's `init` calls.
    pub busybox: PathBuf,
    /// A CRIU that works on this kernel. Empty if there is none.
    pub criu: PathBuf,
    services: PathBuf,
}

impl Assets {
    /// Finds them. `scratch` is in the directory of all builds.
    pub fn find(scratch: &Path) -> Result<Self, String> {
        let there = |path: PathBuf| {
            path.canonicalize().map_err(|error| {
                format!("{}: {error}; `sh qemu/setup.sh --bench` unpacks it", path.display())
            })
        };
        let unpacked = Path::new(UNPACKED);
        let builds = scratch.parent().unwrap_or(Path::new("target"));
        Ok(Self {
            kernel: there(unpacked.join("vmlinuz"))?,
            modules: there(unpacked.join("modules"))?,
            busybox: there(unpacked.join("busybox"))?,
            criu: unpacked.join("criu").canonicalize().unwrap_or_default(),
            services: builds.join(STATIC),
        })
    }

    /// Something that set-up has unpacked.
    pub fn unpacked(&self, name: &str) -> Result<PathBuf, String> {
        let path = Path::new(UNPACKED).join(name);
        path.canonicalize().map_err(|error| {
            format!("{}: {error}; `sh qemu/setup.sh --bench` unpacks it", path.display())
        })
    }

    /// A service of Ferry as a static Linux program.
    pub fn service(&self, name: &str) -> Result<PathBuf, String> {
        let path = self.services.join(name);
        path.canonicalize().map_err(|error| {
            format!("{}: {error}; `sh tests/bench.sh` builds it before it measures", path.display())
        })
    }
}
