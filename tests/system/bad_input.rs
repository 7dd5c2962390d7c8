//! Line 7: what is wrong is refused with its reason, and what runs goes on.

use std::io::{Read, Write};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use ferry_protocol::control::{Answer, FromGuest, Order, Request, State};
use ferry_protocol::frame::{Decoder, HEADER_LEN, MAGIC, MAX_FRAME, MAX_PAYLOAD, VERSION, encode};
use ferry_tests::harness::{Client, Service, World};
use rustix::process::{Pid, Signal, kill_process};

use crate::{IP, report, world};

const LIMIT: Duration = Duration::from_secs(60);

/// The service answers, and exactly one guest of it runs.
fn serves_on(world: &World, service: &Service<'_>, client: &mut Client) {
    let seen = client.mark("still there");
    assert_eq!(seen.alive, 10, "{seen:?}");
    let answered = client.mark("and answering");
    assert_eq!(answered.alive, 10, "{answered:?}");
    let guests = world.guests("a").len() + world.guests("b").len();
    assert_eq!(guests, 1, "the service is on {}", service.node());
}

fn client_of(world: &World, service: &Service<'_>) -> Client {
    let arguments =
        ["pingpong", "--connect", &service.at(7), "--connections", "10", "--think-ms", "20"];
    Client::start(world, &arguments)
}

/// Tries to restore these bytes. Returns what was said against it.
fn refusal(world: &World, bytes: &[u8], what: &str) -> String {
    let file = world.files().join("bad.snapshot");
    std::fs::write(&file, bytes).unwrap();
    let path = file.to_string_lossy();
    let arguments = ["restore", "-i", &path, "--on", "b", "--name", "bad"];
    let (code, out, err) = world.try_run(&arguments, LIMIT);
    assert!(code.is_some_and(|c| c != 0 && c != 124), "{what}: exit code {code:?}\n{out}{err}");
    assert!(err.trim().len() > 20, "{what}: no reason is given: `{err}`");
    assert!(!err.contains("panicked"), "{what}: {err}");
    err
}

#[test]
fn snapshots_that_are_damaged_or_of_another_image() {
    let world = world("snapshots");
    let service = world.service("pingpong", "pp", "a", IP, &[]);
    let mut client = client_of(&world, &service);
    let file = world.files().join("good.snapshot");
    let path = file.to_string_lossy().into_owned();
    world.run(&["checkpoint", "pp", "-e", &path, "--leave-running"]);
    let good = std::fs::read(&file).unwrap();
    report(&format!("snapshot under test: {} bytes", good.len()));

    // Every 4 KiB, and inside the header. A large snapshot is cut at most 64 times: each costs a second.
    let step = (good.len() / 64).next_multiple_of(4096).max(4096);
    for cut in (0..good.len()).step_by(step).chain([1, 16, 63, good.len() - 1]) {
        refusal(&world, &good[..cut], &format!("cut at {cut}"));
    }
    // Bits all over: the first 64 bytes more densely.
    let spread = (0..48).map(|i| i * (good.len() * 8 / 48) + i % 8);
    for bit in (0..512).step_by(17).chain(spread) {
        let mut bad = good.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        refusal(&world, &bad, &format!("bit {bit} flipped"));
    }
    // Absurd lengths: every aligned word of the header set to the largest number.
    for at in (0..64.min(good.len() - 8)).step_by(8) {
        let mut bad = good.clone();
        bad[at..at + 8].fill(0xff);
        refusal(&world, &bad, &format!("bytes {at}.. all ones"));
    }
    let mut long = good.clone();
    long.extend([0; 4096]);
    refusal(&world, &long, "4 KiB too long");
    serves_on(&world, &service, &mut client);

    // For an image that neither the repository nor the node has: the one of a service that ran elsewhere.
    world.service("stateful", "other", "a", "10.77.0.60", &[]);
    world.run(&["checkpoint", "other", "-e", &path]);
    let (images, away) = (world.dir().join("manager/images"), world.files().join("away"));
    std::fs::rename(&images, &away).unwrap();
    let said = refusal(&world, &std::fs::read(&file).unwrap(), "another image");
    assert!(said.contains("image"), "{said}");
    std::fs::rename(&away, &images).unwrap();
    serves_on(&world, &service, &mut client);
    let end = client.end(LIMIT);
    assert!(end.flawless(), "{end:?}");
}

#[test]
fn destinations_that_cannot_take_the_service() {
    let world = world("destinations");
    let service = world.service("pingpong", "pp", "a", IP, &[]);
    let mut client = client_of(&world, &service);
    let mut refused = |to: &str, expected: &[&str]| {
        let (code, out, err) = service.try_migrate(to);
        let all = format!("{out}{err}");
        assert!(code.is_some_and(|c| c != 0 && c != 124), "migrate to {to}: {code:?}\n{all}");
        assert!(expected.iter().any(|e| all.to_lowercase().contains(e)), "migrate to {to}: {all}");
        assert!(!all.contains("panicked"), "{all}");
        serves_on(&world, &service, &mut client);
        report(&format!("migrate to {to}: {}", err.lines().next().unwrap_or_default()));
    };
    refused("nowhere", &["no node", "not found", "unknown"]);
    // Where it is already.
    refused("a", &["already"]);
    // A node with less memory than the guest has.
    let tiny = Agent::start(&world, "b", "tiny", &["--memory", "32M"]);
    refused("tiny", &["memory", "mib"]);
    drop(tiny);
    // The repository has lost its images, and this destination never had them.
    let (images, away) = (world.dir().join("manager/images"), world.files().join("away"));
    std::fs::rename(&images, &away).unwrap();
    refused("b", &["image"]);
    std::fs::rename(&away, &images).unwrap();
    // The destination's agent is there, but does not answer: stopped, it keeps its sockets open.
    let agent = agent_of(&world, "b");
    signal(agent, Signal::STOP);
    refused("b", &["cannot be reached", "not answer", "not ready", "no answer"]);
    signal(agent, Signal::CONT);
    service.migrate("b");
    service.migrate("a");
    // And gone.
    signal(agent, Signal::KILL);
    refused("b", &["cannot be reached", "not answer", "not ready", "no answer"]);
    assert!(client.end(LIMIT).flawless());
}

#[test]
fn a_destination_that_dies_in_any_phase_before_the_commit() {
    let world = world("phases");
    let service = world.service("pingpong", "pp", "a", IP, &[]);
    let mut client = client_of(&world, &service);
    for phase in ["prepare", "precopy", "drain", "freeze", "transfer"] {
        let from = service.node();
        let to = if from == "a" { "b" } else { "a" };
        let mut child = world
            .command(&["migrate", "pp", "--to", to, "-o", "json"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let killed = kill_guest_in(&world, to, phase, &mut child);
        let out = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        serves_on(&world, &service, &mut client);
        let now = service.node();
        report(&format!(
            "destination killed at {phase} ({killed}): exit code {:?}, the service is on {now}: {}",
            out.status.code(),
            said.lines().next().unwrap_or_default()
        ));
        assert!(!out.status.success() || now == to, "a failed move must say so");
        assert!(!said.contains("panicked"), "{said}");
    }
    // And it can still move.
    let to = if service.node() == "a" { "b" } else { "a" };
    service.migrate(to);
    let end = client.end(LIMIT);
    assert!(end.flawless(), "{end:?}");
}

/// Kills the standby's QEMU as soon as the move has entered `phase`, as far as its events tell; in
/// `prepare`, as soon as the process exists. From the end of `prepare` on it is stopped: a move is faster
/// than this test may be, and a stopped standby never takes the service over.
fn kill_guest_in(world: &World, node: &str, phase: &str, child: &mut Child) -> &'static str {
    let deadline = Instant::now() + LIMIT;
    let guest = loop {
        if let Some(pid) = world.guests(node).first() {
            break *pid;
        }
        assert!(Instant::now() < deadline, "no standby on {node}");
    };
    if phase == "prepare" {
        signal(guest, Signal::KILL);
        return "killed";
    }
    let lines = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().unwrap()));
    for line in lines.map_while(Result::ok) {
        let Ok(event) = serde_json::from_str::<serde_json::Value>(&line) else { continue };
        if event["event"] != "entered" {
            continue;
        }
        if event["phase"] == "precopy" {
            signal(guest, Signal::STOP);
        }
        if event["phase"] == phase {
            signal(guest, Signal::KILL);
            return "killed";
        }
    }
    "the phase was not seen"
}

fn signal(pid: i32, signal: Signal) {
    // Whether it still exists is what the test looks at afterwards.
    let _ = Pid::from_raw(pid).map(|pid| kill_process(pid, signal));
}

/// An agent beside the lab's own.
struct Agent(Child);

impl Agent {
    fn start(world: &World, node: &str, name: &str, more: &[&str]) -> Self {
        let (state, ready) = (world.files().join(name), world.files().join("ready"));
        let program = world.command(&[]).get_program().to_string_lossy().into_owned();
        let state = state.to_string_lossy();
        let listen = if node == "a" { "10.77.0.11:7709" } else { "10.77.0.12:7709" };
        let agent = [
            &program,
            "agent",
            "--name",
            name,
            "--listen",
            listen,
            "--manager",
            "10.77.0.2:7700",
            "--bridge",
            "br0",
            "--state-dir",
            &state,
        ];
        let socket = UnixDatagram::bind(&ready).unwrap();
        socket.set_read_timeout(Some(LIMIT)).unwrap();
        let token = world.run(&["token", "create", "--role", "agent", "--name", name]);
        let mut command = world.in_node(node, &[&agent[..], more].concat());
        command.env("FERRY_JOIN_TOKEN", token.trim());
        let child = command.env("NOTIFY_SOCKET", &ready).stdin(Stdio::null()).spawn().unwrap();
        let agent = Self(child);
        let mut said = [0; 64];
        let len = socket.recv(&mut said).expect("the agent does not come up");
        assert_eq!(&said[..len], b"READY=1");
        agent
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn agent_of(world: &World, node: &str) -> i32 {
    let status = world.status();
    let daemons = status["daemons"].as_array().unwrap();
    let daemon = daemons.iter().find(|d| d["node"] == node).unwrap();
    i32::try_from(daemon["pid"].as_i64().unwrap()).unwrap()
}

/// A guest whose control port this test holds itself.
struct Bare {
    guest: Child,
    control: UnixStream,
}

impl Bare {
    fn start(world: &World, console: &Path) -> Self {
        let tap =
            "ip tuntap add t0 mode tap && ip link set t0 address fe:00:00:00:00:01 master br0 up";
        world.exec("a", &["sh", "-c", tap]);
        let socket = world.files().join("ctl");
        let (image, mut line) = (world.image("pingpong"), Vec::new());
        let text = format!(
            "qemu-system-x86_64 -machine q35 -accel tcg -cpu max -smp 1 -m 64M -nodefaults -display none \
             -no-reboot -netdev tap,id=net0,ifname=t0,script=no,downscript=no \
             -device virtio-net-pci,netdev=net0,mac=52:54:00:00:00:50 -serial file:{} \
             -chardev socket,id=ctl,path={},server=off -serial chardev:ctl",
            console.display(),
            socket.display()
        );
        line.extend(text.split_ascii_whitespace().map(str::to_owned));
        line.extend(["-kernel".into(), image.to_string_lossy().into_owned()]);
        line.extend(["-append".into(), format!("ip={IP}/24 --")]);
        let words: Vec<&str> = line.iter().map(String::as_str).collect();
        // Before QEMU starts, so that not a byte of the guest comes too early.
        let listener = UnixListener::bind(&socket).unwrap();
        let guest = world.in_node("a", &words).stdin(Stdio::null()).spawn().unwrap();
        let (connected, connection) = channel();
        std::thread::spawn(move || connected.send(listener.accept()));
        let (control, _) = connection.recv_timeout(LIMIT).expect("QEMU does not connect").unwrap();
        control.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        control.set_write_timeout(Some(Duration::from_secs(20))).unwrap();
        Self { guest, control }
    }

    /// The next message of the guest.
    fn hear(&mut self, decoder: &mut Decoder) -> FromGuest {
        let mut byte = [0];
        loop {
            self.control.read_exact(&mut byte).expect("the guest says nothing");
            if let Some(message) = decoder.push::<FromGuest>(byte[0]) {
                return message.expect("the guest sends frames only");
            }
        }
    }

    /// Asks who it is, and checks the answer.
    fn hello(&mut self, decoder: &mut Decoder, id: u32) {
        let mut buffer = [0; MAX_FRAME];
        let frame = encode(&Request { id, order: Order::Hello }, &mut buffer).unwrap();
        self.control.write_all(frame).unwrap();
        loop {
            match self.hear(decoder) {
                FromGuest::Answer { id: answered, answer: Answer::Hello(hello) }
                    if answered == id =>
                {
                    assert_eq!(hello.state, State::Running);
                    return;
                }
                FromGuest::Answer { .. } | FromGuest::Ready(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        let _ = self.guest.kill();
        let _ = self.guest.wait();
    }
}

fn framed(version: u8, length: u32, checksum: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = MAGIC.to_vec();
    frame.extend([version, 0]);
    frame.extend(length.to_le_bytes());
    frame.extend(checksum.to_le_bytes());
    frame.extend(payload);
    assert!(frame.len() >= HEADER_LEN);
    frame
}

#[test]
fn garbage_on_the_control_port_does_not_harm_the_guest() {
    let world = World::bare(env!("CARGO_TARGET_TMPDIR"), "control", 1);
    let console = world.files().join("console");
    let mut bare = Bare::start(&world, &console);
    let mut decoder = Decoder::new();
    assert!(matches!(bare.hear(&mut decoder), FromGuest::Ready(_)));
    bare.hello(&mut decoder, 1);
    let arguments = ["pingpong", "--connect", &format!("{IP}:7"), "--connections", "10"];
    let client = Client::start(&world, &arguments);

    let noise: Vec<u8> = (0..8192_u64).map(|k| ferry_tests::pattern::word(9, k) as u8).collect();
    let zeros = vec![0; MAX_PAYLOAD];
    let bad: [(&str, Vec<u8>); 7] = [
        ("noise", noise),
        ("magic over and over", MAGIC.repeat(2000)),
        ("another version", framed(VERSION + 1, 4, 0, &[0; 4])),
        ("over-long", framed(VERSION, u32::MAX, 0, &zeros)),
        ("one byte too long", framed(VERSION, MAX_PAYLOAD as u32 + 1, 0, &zeros)),
        ("wrong checksum", framed(VERSION, 4, 0xdead_beef, &[1, 2, 3, 4])),
        ("an unknown order", {
            let payload = [1, 0x7f, 0xff, 0xff, 0xff];
            framed(VERSION, payload.len() as u32, checksum(&payload), &payload)
        }),
    ];
    for (i, (what, bytes)) in bad.iter().enumerate() {
        bare.control.write_all(bytes).unwrap_or_else(|e| panic!("{what}: {e}"));
        // A cut frame may swallow what follows, up to one longest frame: fill it, then ask.
        bare.control.write_all(&vec![b'.'; MAX_FRAME]).unwrap_or_else(|e| panic!("{what}: {e}"));
        bare.hello(&mut decoder, 100 + i as u32);
        assert!(bare.guest.try_wait().unwrap().is_none(), "{what}: QEMU has ended");
    }
    let end = client.end(LIMIT);
    assert!(end.flawless(), "{end:?}\n{}", std::fs::read_to_string(&console).unwrap_or_default());
}

/// CRC-32 of IEEE 802.3, bit by bit: the protocol's, made independently.
fn checksum(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 * (crc & 1)))
    })
}
