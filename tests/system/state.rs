//! Line 5: state of every kind goes on right after ten moves.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use ferry_tests::harness::{Client, World, output_within};
use serde_json::Value;

use crate::{IP, world};

/// Time in which the service answers, also in a move.
const LIMIT: Duration = Duration::from_secs(30);

/// One connection to the service `stateful` from the client's namespace: lines there and back.
pub struct Talk {
    child: Child,
    input: ChildStdin,
    lines: Receiver<String>,
}

impl Talk {
    /// Opens a connection from the client's namespace.
    pub fn open(world: &World, ip: &str, port: u16) -> Self {
        let mut child = Client::command(world, &["lines", "--connect", &format!("{ip}:{port}")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (input, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let (send, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if send.send(line).is_err() {
                    break;
                }
            }
        });
        Self { child, input, lines }
    }

    /// Sends a line without waiting for the answer.
    pub fn say(&mut self, line: &str) {
        writeln!(self.input, "{line}").and_then(|()| self.input.flush()).unwrap();
    }

    /// The next answer.
    pub fn hear(&mut self) -> Value {
        let line = self.lines.recv_timeout(LIMIT).expect("the service does not answer");
        serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line}"))
    }

    /// A question and its answer.
    pub fn ask(&mut self, line: &str) -> Value {
        self.say(line);
        self.hear()
    }
}

impl Drop for Talk {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Every counter stands at `count`, and the service's own checks found nothing.
pub fn counts(answer: &Value, count: u64) {
    for place in ["stack", "heap", "map", "static", "data", "thread_local", "lazy_thread_local"] {
        assert_eq!(answer[place], count, "{place} in {answer}");
    }
    assert_eq!(answer["broken"], 0, "{answer}");
    assert_eq!(answer["went_back"], 0, "the monotonic clock went back: {answer}");
}

fn micros(answer: &Value, field: &str) -> u64 {
    answer[field].as_u64().unwrap_or_else(|| panic!("no {field} in {answer}"))
}

#[test]
fn of_every_kind_after_ten_moves() {
    let world = world("state");
    let service = world.service("stateful", "st", "a", IP, &[]);
    let mut talk = Talk::open(&world, IP, 7000);
    let mut sleeper = Talk::open(&world, IP, 7000);
    counts(&talk.ask("state"), 0);
    let mut count = 0;
    let (began, first) = (Instant::now(), micros(&talk.ask("state"), "monotonic_us"));
    let mut last = first;
    service.move_to_and_fro(10, |number, _| {
        // A timer that was set before each move fires after it.
        if number > 1 {
            let woken = sleeper.hear();
            let slept = micros(&woken, "slept_us");
            assert!(slept >= 1_500_000, "woken too early: {woken}");
        }
        for _ in 0..100 {
            count += 1;
            talk.say("tick");
        }
        for tick in count - 99..=count {
            let answer = talk.hear();
            counts(&answer, tick);
            let now = micros(&answer, "monotonic_us");
            assert!(now >= last, "move {number}: the clock went back from {last} to {now} µs");
            last = now;
        }
        sleeper.say("sleep 1500");
    });
    sleeper.hear();
    let (passed, state) = (began.elapsed(), talk.ask("state"));
    counts(&state, count);
    // One second of the service is one second here, ten moves or not: within what a clock in an emulator
    // may lose or gain.
    let service_passed = Duration::from_micros(micros(&state, "monotonic_us") - first);
    let off = service_passed.as_secs_f64() / passed.as_secs_f64();
    assert!((0.97..1.03).contains(&off), "{service_passed:?} in the service, {passed:?} outside");
    let wall = Duration::from_millis(micros(&state, "wall_ms"));
    let here = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let off = wall.abs_diff(here);
    assert!(off < Duration::from_millis(1500), "wall clock off by {off:?}");
}

/// One trace id leads from the command through the daemons into both guests.
#[test]
fn the_guests_name_the_trace_of_a_move() {
    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    let world = world("trace");
    let _service = world.service("pingpong", "traced", "a", IP, &[]);
    let mut command = world.command(&["migrate", "traced", "--to", "b"]);
    command.env("TRACEPARENT", format!("00-{TRACE}-00f067aa0ba902b7-01"));
    let out = output_within(&command, LIMIT);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let of_trace = |logs: &str| -> Vec<String> {
        let begin = format!("ferry: trace {TRACE}: ");
        logs.lines().filter_map(|line| Some(line.split_once(&begin)?.1.to_owned())).collect()
    };
    let wanted = [
        "its orders begin, the guest is running",
        "its orders begin, the guest is in standby",
        "the service was taken over with 0 connections, 0 frames were held",
    ];
    // The last is said when the guest has nothing else to do.
    let begun = Instant::now();
    loop {
        let said = of_trace(&world.run(&["logs", "traced"]));
        if said == wanted {
            break;
        }
        assert!(said.len() < wanted.len() && begun.elapsed() < LIMIT, "{said:#?}");
    }
}

/// A thousand connections that end at once need more of the card's ring than there is; when all is sent the guest
/// halts again.
#[test]
fn a_guest_is_idle_after_a_full_ring() {
    const WATCH: Duration = Duration::from_secs(2);
    let world = world("idle");
    let _service = world.service("pingpong", "idle", "a", IP, &[]);
    let to = format!("{IP}:7");
    let client = Client::start(&world, &["hold", "--connect", &to, "--connections", "1000"]);
    assert!(client.end(LIMIT).flawless());
    let qemu = world.guests("a")[0];
    let begun = Instant::now();
    loop {
        let before = processor_time(qemu);
        // What it needs in a time is what is asked.
        std::thread::sleep(WATCH);
        let used = processor_time(qemu) - before;
        if used < WATCH / 4 {
            break;
        }
        assert!(begun.elapsed() < LIMIT, "{used:?} of {WATCH:?}");
    }
}

/// What a process has had of the processors (`proc_pid_stat(5)`, in hundredths of a second).
fn processor_time(pid: i32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    Duration::from_millis(ticks * 10)
}
