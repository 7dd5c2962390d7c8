//! Web servers of a Linux guest. Debian's nginx: the program as it is, the libraries it names, and a configuration for one short
//! answer, with one process and without a log of each request, as fast as it can be.

use std::path::Path;
use std::process::Command;

use super::{Assets, Program};

/// The same answer as that of `GET /` of the service `transfer`.
const CONFIGURATION: &str = r#"
daemon off;
master_process off;
user root root;
pid /nginx.pid;
error_log stderr notice;
events { worker_connections 4096; }
http {
    access_log off;
    keepalive_requests 1000000000;
    default_type text/plain;
    server {
        listen 80;
        location / {
            return 200 "GET /bytes/{n}?seed={s}  n bytes of the splitmix64 stream for seed s\nPUT /sink                length and SHA-256 of the body\n";
        }
    }
}
"#;

impl Program {
    /// A bare server in C, `epoll.c`.
    pub fn epoll(assets: &Assets) -> Result<Self, String> {
        let path = assets.unpacked("epoll")?;
        let says = "epoll: listening";
        Ok(Self { path, arguments: Vec::new(), says, files: Vec::new() })
    }

    /// nginx with the libraries of this machine.
    pub fn nginx(assets: &Assets) -> Result<Self, String> {
        let path = assets.unpacked("nginx/usr/sbin/nginx")?;
        let mut files = vec![
            ("etc/nginx.conf".to_owned(), CONFIGURATION.as_bytes().to_vec()),
            ("etc/passwd".to_owned(), b"root:x:0:0::/:/bin/sh\n".to_vec()),
            ("etc/group".to_owned(), b"root:x:0:\n".to_vec()),
            // The directory of what does not fit into memory must be there.
            ("var/lib/nginx/.made".to_owned(), Vec::new()),
        ];
        for library in libraries(&path)? {
            let content = std::fs::read(&library).map_err(|error| format!("{library}: {error}"))?;
            files.push((library.trim_start_matches('/').to_owned(), content));
        }
        let arguments = ["-e", "stderr", "-c", "/etc/nginx.conf"].map(str::to_owned).into();
        Ok(Self { path, arguments, says: "using the \"epoll\" event method", files })
    }
}

/// The libraries that a program is linked with, and its loader.
fn libraries(program: &Path) -> Result<Vec<String>, String> {
    let out = Command::new("ldd").arg(program).output().map_err(|error| format!("ldd: {error}"))?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    if let Some(missing) = text.lines().find(|line| line.contains("not found")) {
        return Err(format!(
            "{}: {}: `apt-get install libpcre2-8-0 libssl3`",
            program.display(),
            missing.trim()
        ));
    }
    Ok(text.lines().filter_map(file).map(str::to_owned).collect())
}

/// The path in a line of ldd, as in `libz.so.1 => /lib/x86_64-linux-gnu/libz.so.1 (0x00007f…)`.
fn file(line: &str) -> Option<&str> {
    let found = line.trim().split_once(" => ").map_or(line.trim(), |(_, path)| path);
    found.split_once(" (").map(|(path, _)| path).filter(|path| path.starts_with('/'))
}
