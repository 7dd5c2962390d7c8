//! Daemons that are killed in the midst of a command.

use std::process::Stdio;
use std::time::Duration;

use super::random::Random;
use super::world::World;

/// A user's command in whose midst daemons are killed and started again, drawn by lot.
pub struct Mishap {
    victims: Vec<&'static str>,
    delay: u64,
    down: u64,
}

impl Mishap {
    /// Any of the two agents and the manager, at least one.
    pub fn draw(random: &mut Random) -> Self {
        let chosen = 1 + random.below(7);
        let victims = ["a", "b", "manager"]
            .into_iter()
            .enumerate()
            .filter(|(bit, _)| chosen & (1 << bit) != 0)
            .map(|(_, victim)| victim)
            .collect();
        Self { victims, delay: random.below(160_000), down: random.below(60_000) }
    }

    /// Lets the command begin, the mishap happen, and the command end within `limit`, however it does.
    pub async fn befall(&self, world: &mut World, arguments: &[&str], limit: Duration, what: &str) {
        let mut command = world.command(arguments);
        let mut user = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        tokio::time::sleep(Duration::from_micros(self.delay)).await;
        self.victims.iter().for_each(|victim| world.kill(victim));
        tokio::time::sleep(Duration::from_micros(self.down)).await;
        self.victims.iter().for_each(|victim| world.start(victim));
        let ended = tokio::task::spawn_blocking(move || user.wait().unwrap());
        tokio::time::timeout(limit, ended).await.expect(what).unwrap();
    }
}

impl std::fmt::Display for Mishap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} after {} µs", self.victims, self.delay)
    }
}
