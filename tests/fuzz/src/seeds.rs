//! Inputs to begin with, made by the encoders themselves, in a folder for each target.

use std::fs;
use std::path::Path;

use ferry_fuzz::{PAGES, SPEC, ram};
use ferry_protocol::control::{Answer, FromGuest, Hello, Order, Range, Refusal, Request, State};
use ferry_protocol::frame::{MAX_FRAME, encode};
use ferry_protocol::layout::PORTABLE_BASE;
use host_tools::security::seal::SealKey;
use host_tools::security::token::Token;
use host_tools::snapshot::{Meta, write::snapshot};
use host_tools::transfer::{FromDestination, FromSource};

struct Corpus<'a>(&'a Path);

impl Corpus<'_> {
    fn put(&self, target: &str, name: &str, bytes: impl AsRef<[u8]>) {
        let dir = self.0.join(target);
        fs::create_dir_all(&dir).expect("the corpus can be written");
        fs::write(dir.join(name), bytes).expect("the corpus can be written");
    }
}

pub fn write(dir: &Path) {
    let corpus = Corpus(dir);
    control(&corpus);
    link(&corpus);
    files(&corpus);
    requests(&corpus);
    segments(&corpus);
    bodies(&corpus);
    asleep(&corpus);
}

fn control(corpus: &Corpus<'_>) {
    let range = Range { addr: PORTABLE_BASE, len: 4096 };
    let hello = Hello { build_id: [9; 32], state: State::Running, portable: range, epoch: 3 };
    let answers = [
        Answer::Hello(hello),
        Answer::Pages { dirty: range, free: range, count: 7, scan_us: 90 },
        Answer::Resumed { connections: 1, held_frames: 2 },
        Answer::Connections { at: range, count: 3 },
        Answer::Refused(Refusal::State(State::Frozen)),
    ];
    let orders = [
        Order::Hello,
        Order::Scan { full: true },
        Order::CloseQuiet,
        Order::Drain { timeout_us: 500_000 },
        Order::Resume { epoch: 4, wall_ns: 1 << 60 },
        Order::Connections,
    ];
    for (id, answer) in (1..).zip(answers) {
        let message = FromGuest::Answer { id, answer };
        let frame = encode(&message, &mut [0; MAX_FRAME]).expect("short").to_vec();
        corpus.put("control", &format!("answer-{id}"), [&[0], frame.as_slice()].concat());
        let payload = postcard::to_stdvec(&message).expect("plain data");
        corpus.put("control", &format!("answer-{id}-payload"), [&[1], payload.as_slice()].concat());
    }
    for (id, order) in (1..).zip(orders) {
        let payload = postcard::to_stdvec(&Request { id, order }).expect("plain data");
        corpus.put("control", &format!("order-{id}"), [&[3], payload.as_slice()].concat());
    }
}

fn link(corpus: &Corpus<'_>) {
    let offer = FromSource::Offer {
        migration: "m1".into(),
        spec: serde_json::from_str(SPEC).expect("a service"),
        source: "10.77.1.1:7070".into(),
    };
    let log = FromSource::Log { start: 5, bytes: b"a line\n".to_vec(), last: true };
    let source = [
        offer,
        FromSource::Last { digest: [3; 32] },
        FromSource::Resume { epoch: 2, grant: "c2lnbmVk".into() },
        log,
    ];
    for (number, message) in source.iter().enumerate() {
        let payload = postcard::to_stdvec(message).expect("plain data");
        corpus.put("link", &format!("source-{number}"), [&[1], payload.as_slice()].concat());
    }
    let answers = [
        FromDestination::Accepted,
        FromDestination::Resumed { connections: 1, held_frames: 2, port_us: 3, guest_us: 4 },
        FromDestination::Failed { reason: "no memory".into() },
    ];
    for (number, message) in answers.iter().enumerate() {
        let payload = postcard::to_stdvec(message).expect("plain data");
        corpus.put("link", &format!("destination-{number}"), [&[3], payload.as_slice()].concat());
    }
}

fn files(corpus: &Corpus<'_>) {
    let mut runs = Vec::new();
    for (first, count, flags) in
        [(0_u32, 2_u16, 0_u16), (1, 1, 2), (5, 3, 1), (PAGES, 1, 0), (1, u16::MAX, 1)]
    {
        runs.extend(first.to_le_bytes());
        runs.extend(count.to_le_bytes());
        runs.extend(flags.to_le_bytes());
    }
    corpus.put("pages", "runs", runs);

    let meta =
        format!(r#"{{"spec":{SPEC},"connections":2,"log_start":0,"log":"a line\n","made_us":1}}"#);
    let meta: Meta = serde_json::from_str(&meta).expect("metadata");
    let memory = ram();
    memory.write_pages(3, &[0x11; 8192]).expect("two pages");
    let (file, _) = snapshot(&meta, 2, &memory, &[1, 3, 4]).expect("a snapshot");
    corpus.put("snapshot", "whole", [&[0], file.as_slice()].concat());
    corpus.put("snapshot", "mended", [&[1], file.as_slice()].concat());

    let mut memory = PORTABLE_BASE.to_le_bytes().to_vec();
    memory.extend(8_u64.to_le_bytes());
    memory.extend([0b1010_0001; 64]);
    corpus.put("memory", "bitmap", memory);

    corpus.put("image", "elf", elf());

    let owner = r#""owner":{"node":{"name":"a"}}"#;
    let record = format!(r#"{{"spec":{SPEC},{owner},"epoch":3,"migration":"m1","created_us":1}}"#);
    corpus.put("records", "service", [b"\0", record.as_bytes()].concat());
    let kept = r#"{"id":"m1","service":"pingpong","source":"a","destination":"b","began_us":1,"phases":[],"phase":"drain","result":null,"summary":null,"epoch":3,"events":[{"event":"begun","migration":"m1","service":"pingpong","source":"a","destination":"b"},{"event":"entered","phase":"request"},{"event":"waiting","reason":"a host"}]}"#;
    corpus.put("records", "move", [b"\x01", kept.as_bytes()].concat());
    corpus.put("records", "drain", b"\x02{\"node\":\"a\",\"drained\":true}");
    corpus.put(
        "records",
        "node",
        b"\x03{\"name\":\"a\",\"address\":\"10.77.1.1:7070\",\"instances\":1,\"memory_mib\":1024,\"free_mib\":960,\"accel\":\"tcg\"}",
    );
    let descriptor = format!(
        r#"{{"version":1,"spec":{SPEC},"number":1,"accel":"tcg","tap":"ft5f3a9c-1","ram_file":"/dev/shm/x","process":{{"pid":1,"start":2}},"portable_len":262144,"epoch":3,"migration":"m1","log_start":0}}"#
    );
    corpus.put("records", "instance", [b"\x04", descriptor.as_bytes()].concat());
}

/// The headers of an image: one segment, one note segment.
fn elf() -> Vec<u8> {
    let mut notes = Vec::new();
    for (name, kind, descriptor) in [(b"GNU\0", 3_u32, vec![9_u8; 20]), (b"Xen\0", 18, vec![0; 4])]
    {
        notes.extend(4_u32.to_le_bytes());
        notes.extend((descriptor.len() as u32).to_le_bytes());
        notes.extend(kind.to_le_bytes());
        notes.extend(name);
        notes.extend(descriptor);
    }
    let mut file = vec![0; 64 + 2 * 56];
    file[..6].copy_from_slice(b"\x7fELF\x02\x01");
    file[18..20].copy_from_slice(&62_u16.to_le_bytes());
    file[32..40].copy_from_slice(&64_u64.to_le_bytes());
    file[54..56].copy_from_slice(&56_u16.to_le_bytes());
    file[56..58].copy_from_slice(&2_u16.to_le_bytes());
    let notes_at = file.len() as u64;
    let len = notes.len() as u64;
    for (at, kind, fields) in [
        (64, 1_u32, [(8, 0), (16, 2 << 20), (32, 64), (40, 40 << 20)]),
        (120, 4, [(8, notes_at), (16, 0), (32, len), (40, len)]),
    ] {
        file[at..at + 4].copy_from_slice(&kind.to_le_bytes());
        for (field, value) in fields {
            let value: u64 = value;
            file[at + field..at + field + 8].copy_from_slice(&value.to_le_bytes());
        }
    }
    file.extend(notes);
    file
}

fn requests(corpus: &Corpus<'_>) {
    let run = r#"{"image":"pingpong:1","name":"p","node":null,"ip":"10.77.0.60","memory_mib":64,"machine":"q35","args":["--port","7"]}"#;
    let commit = r#"{"epoch":3}"#;
    let requests = [
        (0_u8, "/v1/nodes", ""),
        (0, "/v1/services", ""),
        (1, "/v1/services", run),
        (0, "/v1/services/p", ""),
        (3, "/v1/services/p", ""),
        (0, "/v1/services/p/connections", ""),
        (1, "/v1/services/p/migrate", r#"{"to":"b"}"#),
        (1, "/v1/services/p/ownership", r#"{"id":"5f3a9c","settle":"m1"}"#),
        (1, "/v1/services/p/checkpoint", r#"{"leave_running":true}"#),
        (1, "/v1/nodes/a/drain", r#"{"dry_run":true,"parallel":2}"#),
        (1, "/v1/nodes/a/undrain", ""),
        (1, "/v1/rebalance", r#"{"dry_run":true,"parallel":2}"#),
        (1, "/v1/restore?on=a&name=p", "FERRYSNP"),
        (1, "/v1/migrations/m1/commit", commit),
        (1, "/v1/migrations/m1/settle", commit),
        (1, "/v1/migrations/m1/take-back", commit),
        (0, "/v1/migrations/m1/events", ""),
        (2, "/v1/images/pingpong:1", "\x7fELF"),
        (3, "/v1/images/pingpong:1", ""),
    ];
    for (number, (method, path, body)) in requests.into_iter().enumerate() {
        corpus.put(
            "requests",
            &format!("{number}"),
            [&[method], path.as_bytes(), b"\n", body.as_bytes()].concat(),
        );
    }
}

fn segments(corpus: &Corpus<'_>) {
    // SYN; ACK; accept; data; read; write; time; FIN; close.
    let handshake = [0x49, 0x30, 1, 1, 0, 1, 5, 0, 0];
    let data = [1, 1, 0, 6, 0, 0, 6, 0, 1, 4, 18, 0];
    let end = [0x11, 0, 0, 6, 0, 3, 4, 26, 0];
    let moved = [7, 0, 0, 7, 1, 0, 1, 2, 0, 7, 2, 0];
    corpus.put("segments", "open", handshake);
    corpus.put("segments", "talk", [handshake.as_slice(), &data, &end].concat());
    corpus.put("segments", "move", [handshake.as_slice(), &data, &moved, &data, &end].concat());
}

fn bodies(corpus: &Corpus<'_>) {
    let bodies = [
        format!(r#"{{"spec":{SPEC},"epoch":3,"snapshot":null}}"#),
        r#"{"migration":"m1","destination":"10.77.1.2:7701","destination_name":"b","limits":{"max_downtime_us":5,"timeout_us":null,"on_timeout":"force"}}"#.into(),
        r#"{"leave_running":false,"id":"c1","hold":true}"#.into(),
        r#"{"epoch":3}"#.into(),
        format!(
            r#"{{"spec":{SPEC},"epoch":3,"on_syn":"wake","table":{{"connections":[["10.77.0.100",40000,7,1,2]],"ports":[7]}}}}"#
        ),
        r#"{"id":"5f3a9c","below":4}"#.into(),
        r#"{"name":"pingpong","destination":"10.77.1.2:7701"}"#.into(),
        format!(r#"{{"spec":{SPEC}}}"#),
        Token::new([3; 32]).expect("random numbers").to_string(),
    ];
    for (kind, body) in (0_u8..).zip(&bodies) {
        corpus.put("bodies", &format!("{kind}"), [&[kind], body.as_bytes()].concat());
    }
    let sealed = SealKey::new("c1".into(), [7; 32]).seal(&[0x5A; 256]).expect("a seal");
    corpus.put("bodies", "sealed", [&[9], sealed.as_slice()].concat());
}

/// A zero-window probe, a SYN, an echo request and an ARP request, with headers as Linux writes them.
fn asleep(corpus: &Corpus<'_>) {
    let ip = |protocol: u8, len: u8| {
        let mut frame = vec![2, 0, 0, 0, 0, 50, 2, 0, 0, 0, 0, 100, 8, 0];
        frame.extend([0x45, 0, 0, 20 + len, 0, 1, 0x40, 0, 64, protocol, 0, 0]);
        frame.extend([10, 77, 0, 100, 10, 77, 0, 50]);
        frame
    };
    let tcp = |port: [u8; 2], sequence: u8, flags: u8| {
        let mut frame = ip(6, 20);
        frame.extend([port[0], port[1], 0, 7, 0, 0, 0, sequence, 0xff, 0xff, 0xff, 0xfe]);
        frame.extend([0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
        frame
    };
    let mut echo = ip(1, 8);
    echo.extend([8, 0, 0, 0, 0, 1, 0, 1]);
    let mut arp = vec![0xff; 6];
    arp.extend([2, 0, 0, 0, 0, 100, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 100]);
    arp.extend([10, 77, 0, 100, 0, 0, 0, 0, 0, 0, 10, 77, 0, 50]);
    let frames = [tcp([0x9c, 0x40], 4, 0x10), tcp([0x9c, 0x41], 9, 0x02), echo, arp];
    for mode in [1_u8, 3, 5] {
        let mut input = vec![mode];
        for frame in &frames {
            input.extend([frame.len() as u8, 200]);
            input.extend(frame);
        }
        corpus.put("asleep", &format!("{mode}"), input);
    }
}
