//! A service that moves between the hosts a and b of a lab, whatever moves it.

use ferry_tests::harness::{Service, World};
use serde_json::Value;

/// The hosts it moves between; it begins on the first.
pub const NODES: [&str; 2] = ["a", "b"];
/// Address of the service.
pub const IP: std::net::Ipv4Addr = std::net::Ipv4Addr::new(10, 77, 0, 50);

/// A move, as the system that made it reports it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Moved {
    /// How long the service ran nowhere.
    pub downtime_ms: f64,
    /// From the order to the end.
    pub total_ms: f64,
    /// What went from host to host.
    pub bytes: f64,
}

/// A running service that can be moved. It ends when this is dropped.
pub trait Mover {
    /// Gets ready whatever the next move needs and the system could keep ready: it is not measured.
    fn prepare(&mut self) -> Result<(), String>;

    /// Moves it to the other host; it runs there when this returns.
    fn go(&mut self) -> Result<Moved, String>;

    /// An error with what the service said last, if anything.
    fn explain(&mut self, error: &str) -> String {
        error.to_owned()
    }
}

/// Ferry itself.
pub struct Ferry<'w> {
    service: Service<'w>,
    /// Where in [`NODES`] it runs.
    at: usize,
}

impl<'w> Ferry<'w> {
    /// Starts an image of Ferry.
    pub fn start(world: &'w World, image: &str, more: &[&str]) -> Self {
        let service = world.service(image, image, NODES[0], &IP.to_string(), more);
        Self { service, at: 0 }
    }
}

impl Mover for Ferry<'_> {
    fn prepare(&mut self) -> Result<(), String> {
        Ok(())
    }

    fn go(&mut self) -> Result<Moved, String> {
        let to = 1 - self.at;
        let (code, out, error) = self.service.try_migrate(NODES[to]);
        if code != Some(0) {
            return Err(format!("the move failed with exit code {code:?}\n{out}{error}"));
        }
        let last = out.lines().rev().find_map(|line| serde_json::from_str::<Value>(line).ok());
        let answer = serde_json::from_str(&out).ok().or(last).unwrap_or(Value::Null);
        let figure = |name: &str| {
            let value = answer["summary"][name].as_f64();
            value.ok_or_else(|| format!("a move without `{name}`: {out}"))
        };
        self.at = to;
        Ok(Moved {
            downtime_ms: figure("freeze_to_resume_us")? / 1e3,
            total_ms: figure("total_us")? / 1e3,
            bytes: figure("bytes")?,
        })
    }
}

impl Drop for Ferry<'_> {
    fn drop(&mut self) {
        // When something has failed, the end of the lab ends it too.
        if !std::thread::panicking() {
            self.service.stop();
        }
    }
}
