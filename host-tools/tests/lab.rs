//! The lab, bridge ports and the mirror, on the real kernel. Every test makes a lab of its own.
//!
//! Needs root, or a kernel that lets users make user namespaces: then the tests run inside one.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use host_tools::agent::mirror::Mirror;
use host_tools::agent::network::Port;
use host_tools::hostnet::{MacAddr, PortState, Tap, remove_links_with_prefix};
use host_tools::lab::namespace::within_network;
use host_tools::lab::process::readable_within;
use host_tools::lab::state::State;

const GUEST_MAC: MacAddr = MacAddr([0x52, 0x54, 0, 0x4d, 0, 0x32]);
const GUEST_IP: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 50);
/// The virtio-net header in front of every frame of a tap.
const HEADER: usize = 10;
const DEADLINE: Duration = Duration::from_secs(20);

/// The program, which cargo has built beside this test. Not by cargo's variable for it: a shell between
/// cargo and the compiler drops variables with a `-` in their name.
fn program() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    test.parent().and_then(Path::parent).unwrap().join("host-tools")
}

struct Lab {
    dir: tempfile::TempDir,
}

impl Lab {
    fn up(hosts: u8) -> Self {
        let dir = tempfile::Builder::new().prefix("ferry-lab-test").tempdir_in("/tmp").unwrap();
        let lab = Self { dir };
        let out = lab.run(&["lab", "up", "--bare", "--hosts", &hosts.to_string()]);
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        lab
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(program());
        command.args(arguments).env("FERRY_LAB_DIR", self.dir.path());
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).stdin(Stdio::null()).output().unwrap()
    }

    /// Runs a program in a node and returns what it printed.
    fn exec(&self, node: &str, command: &[&str]) -> String {
        let out = self.run(&[&["lab", "exec", node, "--"], command].concat());
        assert!(out.status.success(), "{command:?}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap()
    }

    fn holder(&self, node: &str) -> i32 {
        State::load(self.dir.path()).unwrap().unwrap().node(node).unwrap().holder.pid
    }

    /// Runs code of this test in a node's network.
    fn within<T: Send>(&self, node: &str, run: impl FnOnce() -> T + Send) -> T {
        let pid = self.holder(node);
        std::thread::scope(|s| s.spawn(|| within_network(pid, run).unwrap()).join().unwrap())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let out = self.run(&["lab", "down"]);
        if !std::thread::panicking() {
            assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        }
    }
}

/// Runs the test as root of a user namespace if this user is not root already. Returns whether to go on:
/// the outer process only passes on the verdict.
fn as_root(test: &str) -> bool {
    if rustix::process::geteuid().is_root() {
        return true;
    }
    let status = Command::new("unshare")
        .args(["--user", "--map-root-user"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .status()
        .expect("unshare (package util-linux) is needed to run this test without root");
    assert!(status.success(), "failed inside its user namespace, see above");
    false
}

fn read_frame(tap: &mut fs::File, within: Duration) -> Option<Vec<u8>> {
    readable_within(&*tap, within).unwrap().then(|| {
        let mut buffer = vec![0; 70_000];
        let len = tap.read(&mut buffer).unwrap();
        buffer[HEADER..len].to_vec()
    })
}

fn write_frame(tap: &mut fs::File, frame: &[u8]) {
    let mut bytes = vec![0; HEADER];
    bytes.extend_from_slice(frame);
    tap.write_all(&bytes).unwrap();
}

/// A frame to all from the guest, told apart by its last bytes.
fn broadcast(mark: &str) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend(GUEST_MAC.0);
    // "Local experimental" (RFC 9542 §A): no host answers it.
    frame.extend(0x88b5_u16.to_be_bytes());
    frame.resize(60, 0);
    frame.extend(mark.as_bytes());
    frame
}

#[test]
fn up_exec_status_down() {
    if !as_root("up_exec_status_down") {
        return;
    }
    let lab = Lab::up(2);
    let addresses = lab.exec("b", &["ip", "-4", "-o", "address", "show", "dev", "br0"]);
    assert!(addresses.contains("10.77.0.12/24"), "{addresses}");

    // Input, output and exit code are the command's.
    let mut child = lab
        .command(&["lab", "exec", "client", "--", "sh", "-c", "cat; exit 7"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"through\n").unwrap();
    let out = child.wait_with_output().unwrap();
    assert_eq!((out.stdout.as_slice(), out.status.code()), (&b"through\n"[..], Some(7)));
    assert_eq!(lab.run(&["lab", "exec", "z", "--", "true"]).status.code(), Some(125));
    assert_eq!(lab.run(&["lab", "exec", "a", "--", "/nonesuch"]).status.code(), Some(127));

    // The segment carries TCP between any two nodes.
    let listener = lab.within("a", || TcpListener::bind("10.77.0.11:9").unwrap());
    let mut stream = lab.within("client", || TcpStream::connect("10.77.0.11:9").unwrap());
    stream.write_all(b"hello").unwrap();
    let mut got = [0; 5];
    let (mut accepted, peer) = listener.accept().unwrap();
    accepted.read_exact(&mut got).unwrap();
    assert_eq!((&got, peer.ip().to_string().as_str()), (b"hello", "10.77.0.100"));

    // Up again changes nothing; another size is refused; `down` ends what still runs inside.
    assert!(lab.run(&["lab", "up", "--bare"]).status.success());
    let other = lab.run(&["lab", "up", "--bare", "--hosts", "3"]);
    assert!(String::from_utf8_lossy(&other.stderr).contains("already running"));
    let status: serde_json::Value =
        serde_json::from_slice(&lab.run(&["lab", "status", "-o", "json"]).stdout).unwrap();
    assert_eq!(status["up"], true);
    assert_eq!(status["nodes"].as_array().unwrap().len(), 5);
    let mut inside = lab.command(&["lab", "exec", "b", "--", "sleep", "600"]).spawn().unwrap();
    wait_until_in_lab(&lab, "b", &inside);
    assert!(lab.run(&["lab", "down"]).status.success());
    assert!(!inside.wait().unwrap().success());
    assert!(!lab.dir.path().exists());
    assert_eq!(lab.run(&["lab", "status"]).status.code(), Some(1));
}

/// `lab exec` becomes its command: wait for the change of name, watching that it does not end.
fn wait_until_in_lab(lab: &Lab, node: &str, child: &Child) {
    let net = fs::read_link(format!("/proc/{}/ns/net", lab.holder(node))).unwrap();
    let deadline = Instant::now() + DEADLINE;
    let inside = || {
        fs::read_link(format!("/proc/{}/ns/net", child.id())).unwrap() == net
            && fs::read_to_string(format!("/proc/{}/comm", child.id())).unwrap() == "sleep\n"
    };
    while !inside() {
        assert!(Instant::now() < deadline, "lab exec does not start its command");
        std::thread::yield_now();
    }
}

#[test]
fn a_crashed_lab_is_cleared_away() {
    if !as_root("a_crashed_lab_is_cleared_away") {
        return;
    }
    let lab = Lab::up(2);
    let holders: Vec<i32> = ["switch", "a", "client"].map(|n| lab.holder(n)).into();
    // The client's holder dies with somebody still inside; the state file is torn.
    let mut inside = lab.command(&["lab", "exec", "client", "--", "sleep", "600"]).spawn().unwrap();
    wait_until_in_lab(&lab, "client", &inside);
    let pid = rustix::process::Pid::from_raw(holders[2]).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    fs::write(lab.dir.path().join("state.json"), "{ torn").unwrap();

    assert!(lab.run(&["lab", "down"]).status.success());
    assert!(!inside.wait().unwrap().success());
    for holder in &holders {
        assert!(host_tools::lab::process::Process::now(*holder).is_none(), "{holder} still runs");
    }
    // And the next one comes up in the same place.
    let out = lab.run(&["lab", "up", "--bare"]);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
}

#[test]
fn without_root_in_a_user_namespace() {
    // Run as somebody without rights; as root, become nobody.
    let copy = tempfile::Builder::new().prefix("ferry-lab-user").tempdir_in("/tmp").unwrap();
    let program_copy = copy.path().join("host-tools");
    fs::copy(program(), &program_copy).unwrap();
    let lab: PathBuf = copy.path().join("lab");
    let mut permissions = fs::metadata(copy.path()).unwrap().permissions();
    std::os::unix::fs::PermissionsExt::set_mode(&mut permissions, 0o777);
    fs::set_permissions(copy.path(), permissions).unwrap();
    let run = |arguments: &[&str]| {
        let mut command = Command::new(&program_copy);
        command.args(arguments).env("FERRY_LAB_DIR", &lab).current_dir("/");
        if rustix::process::geteuid().is_root() {
            command.uid(65534).gid(65534);
        }
        command.output().unwrap()
    };
    let out = run(&["lab", "up", "--bare"]);
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{said}");
    let out = run(&["lab", "exec", "a", "--", "/bin/sh", "-c", "id -u; ip -o -4 address show br0"]);
    let text = String::from_utf8_lossy(&out.stdout);
    assert!(text.starts_with("0\n") && text.contains("10.77.0.11/24"), "{text}");
    let out =
        run(&["lab", "exec", "a", "--", "/bin/sh", "-c", "ip tuntap add t0 mode tap && ip link"]);
    // Whether users may have taps is the machine's choice; with the right to open the device it works.
    let device = fs::metadata("/dev/net/tun").unwrap();
    let for_all = std::os::unix::fs::PermissionsExt::mode(&device.permissions()) & 0o006 == 0o006;
    assert_eq!(String::from_utf8_lossy(&out.stdout).contains("t0"), for_all, "{out:?}");
    if !for_all {
        let out = run(&["lab", "down"]);
        assert!(out.status.success());
        let out = run(&["lab", "up"]);
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(!out.status.success() && said.contains("/dev/net/tun"), "{said}");
    }
    assert!(run(&["lab", "down"]).status.success());
    assert!(!lab.exists());
}

#[test]
fn a_closed_port_leaks_and_learns_nothing() {
    if !as_root("a_closed_port_leaks_and_learns_nothing") {
        return;
    }
    let lab = Lab::up(2);
    let standby =
        lab.within("b", || Tap::create("t-guest", "br0", GUEST_MAC, PortState::Closed).unwrap());
    let mut guest = lab.within("b", || standby.attach().unwrap());
    let witness_mac = MacAddr([0x52, 0x54, 0, 0, 0, 1]);
    let witness =
        lab.within("a", || Tap::create("t-wit", "br0", witness_mac, PortState::Open).unwrap());
    let mut witness_end = lab.within("a", || witness.attach().unwrap());
    let known = |node: &str| {
        lab.exec(node, &["bridge", "fdb", "show", "br", "br0"]).contains(&GUEST_MAC.to_string())
    };

    write_frame(&mut guest, &broadcast("closed"));
    assert!(!known("b"), "a closed port has learned");
    lab.within("b", || standby.set_port(PortState::Open).unwrap());
    write_frame(&mut guest, &broadcast("open"));
    // What left through the closed port would have arrived first.
    let frame = read_frame(&mut witness_end, DEADLINE).expect("nothing came through the open port");
    assert!(frame.ends_with(b"open"), "the closed port has leaked");
    assert!(known("b") && known("a"), "an open port learns");

    // Closing forgets what was learned there, and frames to the guest still flow.
    lab.within("b", || standby.set_port(PortState::Closed).unwrap());
    assert!(!known("b"), "the closed port's address is still known");
    write_frame(&mut guest, &broadcast("closed again"));
    let mut to_guest = broadcast("to the guest");
    to_guest[..6].copy_from_slice(&GUEST_MAC.0);
    to_guest[6..12].copy_from_slice(&witness_mac.0);
    write_frame(&mut witness_end, &to_guest);
    let frame = read_frame(&mut guest, DEADLINE).expect("a closed port takes nothing to the guest");
    assert!(frame.ends_with(b"to the guest"));
    assert!(!known("b"));
    assert!(read_frame(&mut witness_end, Duration::ZERO).is_none(), "the closed port has leaked");

    lab.within("b", || standby.remove().unwrap());
    assert!(!lab.exec("b", &["ip", "-o", "link"]).contains("t-guest"));
}

#[test]
fn a_tap_of_a_dead_agent_is_replaced_and_swept() {
    if !as_root("a_tap_of_a_dead_agent_is_replaced_and_swept") {
        return;
    }
    let lab = Lab::up(1);
    lab.within("a", || {
        let first = Tap::create("ft-x", "br0", GUEST_MAC, PortState::Open).unwrap();
        let second = Tap::create("ft-x", "br0", GUEST_MAC, PortState::Closed).unwrap();
        assert_ne!(first.index(), second.index());
        assert_eq!(Tap::adopt("ft-x", GUEST_MAC).unwrap(), second);
        assert_eq!(remove_links_with_prefix("ft-").unwrap(), ["ft-x"]);
        first.remove().unwrap();
        assert!(Tap::adopt("ft-x", GUEST_MAC).is_err());
        let error = Tap::create("ft-x", "br9", GUEST_MAC, PortState::Open).unwrap_err();
        assert_eq!(error.to_string(), "there is no link \"br9\" in this network namespace");
        // The bridge keeps its own address whatever is plugged into it.
    });
    assert!(lab.exec("a", &["ip", "link", "show", "br0"]).contains("02:fe:00:00:00:0b"));
}

/// A Linux machine behind a tap of host a's bridge, with the service's addresses. Its frames are carried as QEMU
/// carries them: one at a time, with their checksums.
struct LinuxGuest {
    process: Child,
    ended: Arc<AtomicBool>,
    cables: Vec<JoinHandle<()>>,
}

impl LinuxGuest {
    fn start(lab: &Lab) -> Self {
        let process = Command::new("unshare")
            .args(["--net", "sh", "-c", "echo; cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut guest = Self { process, ended: Arc::default(), cables: Vec::new() };
        guest.process.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        let mac = GUEST_MAC.to_string();
        for line in [
            "tuntap add dev eth0 mode tap vnet_hdr",
            &format!("link set eth0 address {mac} up"),
            "link set lo up",
            "address add 10.77.0.50/24 dev eth0",
        ] {
            let status = Command::new("nsenter")
                .args(["--net", "--target", &guest.process.id().to_string(), "ip"])
                .args(line.split(' '))
                .status()
                .unwrap();
            assert!(status.success(), "{line}");
        }
        let outside = lab.within("a", || {
            Tap::create("g0", "br0", GUEST_MAC, PortState::Open).unwrap().attach().unwrap()
        });
        let inside = guest.within(|| Tap::adopt("eth0", GUEST_MAC).unwrap().attach().unwrap());
        for (from, to) in [(&outside, &inside), (&inside, &outside)] {
            let (mut from, mut to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
            let ended = Arc::clone(&guest.ended);
            guest.cables.push(std::thread::spawn(move || {
                while !ended.load(Ordering::Relaxed) {
                    if let Some(frame) = read_frame(&mut from, Duration::from_millis(20)) {
                        write_frame(&mut to, &frame);
                    }
                }
            }));
        }
        guest
    }

    fn within<T: Send>(&self, run: impl FnOnce() -> T + Send) -> T {
        let pid = self.process.id().cast_signed();
        std::thread::scope(|s| s.spawn(|| within_network(pid, run).unwrap()).join().unwrap())
    }
}

impl Drop for LinuxGuest {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        for cable in self.cables.drain(..) {
            let _ = cable.join();
        }
        drop(self.process.stdin.take());
        let _ = self.process.wait();
    }
}

/// Ones' complement sum (RFC 1071) of a segment with its pseudo header; 0xffff if it is intact.
fn tcp_sum(ip: &[u8], segment: &[u8]) -> u16 {
    let length = u16::try_from(segment.len()).unwrap();
    let mut words: Vec<u8> = ip[12..20].to_vec();
    words.extend([0, 6]);
    words.extend(length.to_be_bytes());
    words.extend(segment);
    words.resize(words.len().next_multiple_of(2), 0);
    let sum: u64 = words.chunks(2).map(|w| u64::from(u16::from_be_bytes([w[0], w[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    ((folded & 0xffff) + (folded >> 16)) as u16
}

/// Sequence number and payload of a frame of the client's stream to the guest's port 7000.
fn payload(frame: &[u8]) -> Option<(u32, Vec<u8>)> {
    let ip = frame.get(14..)?;
    if frame[12..14] != [8, 0] || ip[9] != 6 {
        return None;
    }
    let (header, total) =
        (usize::from(ip[0] & 15) * 4, usize::from(u16::from_be_bytes([ip[2], ip[3]])));
    let segment = &ip[header..total];
    if segment[2..4] != 7000_u16.to_be_bytes() {
        return None;
    }
    assert!(frame.len() <= 1514, "a frame of {} bytes", frame.len());
    assert_eq!(&frame[..6], &GUEST_MAC.0, "a frame for somebody else was copied");
    assert_eq!(tcp_sum(ip, segment), 0xffff, "bad checksum");
    let data = segment[usize::from(segment[12] >> 4) * 4..].to_vec();
    Some((u32::from_be_bytes(segment[4..8].try_into().unwrap()), data))
}

fn pattern(len: usize) -> Vec<u8> {
    let mut x = 1_u32;
    let next = || {
        x ^= x << 13;
        x ^= x >> 17;
        x ^= x << 5;
        x as u8
    };
    std::iter::repeat_with(next).take(len).collect()
}

/// Sends bytes in pieces of 64 KiB, each confirmed by the guest before the next, and by `confirmed`, so
/// that no queue on the way overflows while the machine is busy.
fn stream(
    client: &mut TcpStream,
    guest: &mut TcpStream,
    bytes: &[u8],
    mut confirmed: impl FnMut(usize),
) {
    let mut got = vec![0; 65536];
    for piece in bytes.chunks(65536) {
        client.write_all(piece).unwrap();
        guest.read_exact(&mut got[..piece.len()]).unwrap();
        assert!(got[..piece.len()] == *piece, "the guest itself got something else");
        guest.write_all(&[1]).unwrap();
        client.read_exact(&mut got[..1]).unwrap();
        confirmed(piece.len());
    }
}

#[test]
fn the_mirror_copies_a_stream_byte_by_byte() {
    if !as_root("the_mirror_copies_a_stream_byte_by_byte") {
        return;
    }
    let lab = Lab::up(2);
    let guest = LinuxGuest::start(&lab);
    let source = lab.within("a", || Tap::adopt("g0", GUEST_MAC).unwrap());
    let standby =
        lab.within("b", || Tap::create("t-standby", "br0", GUEST_MAC, PortState::Closed).unwrap());
    let mut ring = lab.within("b", || standby.attach().unwrap());
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_io().build().unwrap();
    let wire = |node, tap: &Tap| {
        lab.within(node, || {
            let _runtime = runtime.enter();
            Port::wire(tap).unwrap()
        })
    };
    let (ours, theirs) = tokio::io::duplex(1 << 20);
    let (from, to) = (wire("a", &source), wire("b", &standby));
    let within = runtime.enter();
    let from = Mirror::source(from, GUEST_MAC, ours);
    let to = Mirror::destination(to, GUEST_MAC, theirs);
    drop(within);

    let listener = guest.within(|| TcpListener::bind((GUEST_IP, 7000)).unwrap());
    let mut client = lab.within("client", || TcpStream::connect((GUEST_IP, 7000)).unwrap());
    let (mut server, _) = listener.accept().unwrap();
    for stream in [&client, &server] {
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.set_write_timeout(Some(DEADLINE)).unwrap();
    }
    let bytes = pattern(8 << 20);

    // Armed but off: nothing is copied.
    stream(&mut client, &mut server, &pattern(100_000), |_| ());
    let began = Instant::now();
    from.on(77).unwrap();
    let switching = began.elapsed();

    // The ring is read while the stream runs, into pieces by sequence number.
    let (stop, stopped) = mpsc::channel::<()>();
    let (copied_bytes, progress) = mpsc::channel();
    let reader = std::thread::spawn(move || {
        let mut pieces = BTreeMap::new();
        let mut frames = 0;
        loop {
            match read_frame(&mut ring, Duration::from_millis(100)) {
                Some(frame) => {
                    if let Some((sequence, data)) = payload(&frame) {
                        frames += 1;
                        if !data.is_empty() {
                            copied_bytes.send(data.len()).unwrap();
                            pieces.insert(sequence, data);
                        }
                    }
                }
                // Everything sent before the mirror's end has been queued by then.
                None if stopped.try_recv().is_ok() => return (ring, pieces, frames),
                None => {}
            }
        }
    });
    let (mut sent, mut arrived) = (0, 0);
    stream(&mut client, &mut server, &bytes, |len| {
        sent += len;
        while arrived < sent {
            arrived += progress.recv_timeout(DEADLINE).expect("the copy has stopped");
        }
    });
    drop(from);
    stream(&mut client, &mut server, &pattern(100_000), |_| ());
    stop.send(()).unwrap();
    let (mut ring, pieces, frames) = reader.join().unwrap();
    println!("mirror switched on in {switching:?}; {frames} frames copied");

    let mut copied = Vec::with_capacity(bytes.len());
    let mut expected = *pieces.first_key_value().expect("nothing was copied").0;
    for (sequence, data) in &pieces {
        assert_eq!(*sequence, expected, "the copy has a hole, or bytes twice");
        expected = expected.wrapping_add(u32::try_from(data.len()).unwrap());
        copied.extend_from_slice(data);
    }
    assert_eq!(copied.len(), bytes.len());
    assert!(copied == bytes, "the copy differs");

    // Its end does not disturb the source, and after it nothing is copied.
    drop(to);
    stream(&mut client, &mut server, &pattern(100_000), |_| ());
    assert!(read_frame(&mut ring, Duration::from_millis(50)).is_none_or(|f| payload(&f).is_none()));
}
