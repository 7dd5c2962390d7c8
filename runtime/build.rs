//! Builds the host-bound unit (`machine/`, with the Hermit kernel in it) and hands it to the linker as
//! one object whose symbols are its own.
//!
//! 1. cargo compiles `machine/` for `x86_64-unknown-none` into a static library.
//! 2. The linker makes one relocatable object of it.
//! 3. objcopy gives its sections a `.host` prefix (runtime/link.ld places them), renames the kernel
//!    calls that the runtime puts itself in front of, and makes everything local but the calls between
//!    the two sides and the kernel's.
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

/// Kernel calls that must not reach the kernel: `runtime/src/syscalls/` defines them.
const INTERPOSED: &[&str] = &[
    "sys_abort",
    "sys_clock_getres",
    "sys_clock_gettime",
    "sys_clock_nanosleep",
    "sys_exit",
    "sys_futex_wait",
    "sys_futex_wake",
    "sys_getaddrinfo",
    "sys_mkdir",
    "sys_nanosleep",
    "sys_open",
    "sys_opendir",
    "sys_read_entropy",
    "sys_rand",
    "sys_rmdir",
    "sys_secure_rand32",
    "sys_secure_rand64",
    "sys_socket",
    "sys_spawn",
    "sys_spawn2",
    "sys_srand",
    "sys_unlink",
    "sys_usleep",
    "sys_yield",
];

fn main() {
    for path in ["build.rs", "link.ld", "machine", "abi/src", "protocol/src", "kernel"] {
        println!("cargo::rerun-if-changed={path}");
    }
    if env::var("CARGO_CFG_TARGET_OS").as_deref() != Ok("hermit") {
        return;
    }
    let here = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("set by cargo"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("set by cargo"));
    let ferry = here.join("../target/ferry");
    println!("cargo::rerun-if-changed={}", ferry.join("toolchain/env").display());
    let tools = toolchain(&ferry.join("toolchain/env"));
    let library = compile_machine(&here, &ferry);

    let object = out.join("ferry-host.o");
    let merged = out.join("merged.o");
    let mut link = Command::new(&tools["FERRY_LLD"]);
    link.args(["-flavor", "gnu", "-r", "--whole-archive"]).arg(&library).arg("-o").arg(&merged);
    run(&mut link);

    let renamed = out.join("renamed.o");
    let mut rename = Command::new(&tools["FERRY_OBJCOPY"]);
    rename.args(["--prefix-alloc-sections=.host", "--redefine-sym", "runtime_entry=host_entry"]);
    for name in INTERPOSED {
        rename.arg("--redefine-sym").arg(format!("{name}=kernel_{name}"));
    }
    run(rename.arg(&merged).arg(&renamed));

    let mut localise = Command::new(&tools["FERRY_OBJCOPY"]);
    localise.arg("-w");
    for pattern in ["sys_*", "host_*", "ferry_pvh_start"] {
        localise.arg(format!("--keep-global-symbol={pattern}"));
    }
    run(localise.arg("--strip-debug").arg(&renamed).arg(&object));

    let archive = out.join("libferry_host.a");
    write_archive(&archive, &object);
    println!("cargo::rustc-link-search=native={}", out.display());
    println!("cargo::rustc-link-lib=static:+whole-archive,-bundle=ferry_host");
}

/// The tools that `sh qemu/setup.sh` has found.
fn toolchain(file: &Path) -> HashMap<String, String> {
    let text = fs::read_to_string(file).unwrap_or_else(|error| {
        panic!("{}: {error}; run `sh qemu/setup.sh` first", file.display())
    });
    text.lines()
        .filter_map(|line| line.split_once('='))
        .map(|(key, value)| (key.to_owned(), value.trim_matches(['"', '\'']).to_owned()))
        .collect()
}

fn compile_machine(here: &Path, ferry: &Path) -> PathBuf {
    let target = ferry.join("machine");
    let mut cargo = Command::new(env::var_os("CARGO").expect("set by cargo"));
    cargo
        .current_dir(here.join("machine"))
        .args(["build", "--release", "--locked", "--target", "x86_64-unknown-none"])
        .arg("--target-dir")
        .arg(&target)
        .env("HERMIT_LOG_LEVEL_FILTER", "warn");
    // What cargo tells this script of the image's build is not meant for the other target.
    for (name, _) in env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        let of_cargo = name.starts_with("CARGO_") && name != "CARGO_HOME";
        if of_cargo || name.starts_with("RUSTC") || name == "RUSTFLAGS" || name == "RUSTDOC" {
            cargo.env_remove(name);
        }
    }
    run(&mut cargo);
    target.join("x86_64-unknown-none/release/libferry_machine.a")
}

/// A static library of one member, in the System V format that linkers read; it needs no symbol
/// table, because it is linked whole.
fn write_archive(archive: &Path, member: &Path) {
    let content = fs::read(member).expect("objcopy wrote it");
    let mut bytes = b"!<arch>\n".to_vec();
    let header =
        format!("{:<16}{:<12}{:<6}{:<6}{:<8}{:<10}`\n", "host.o/", 0, 0, 0, 644, content.len());
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend_from_slice(&content);
    if content.len() % 2 == 1 {
        bytes.push(b'\n');
    }
    fs::write(archive, bytes).expect("OUT_DIR is writable");
}

fn run(command: &mut Command) {
    let status = command.status().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(status.success(), "{command:?}: {status}");
}
