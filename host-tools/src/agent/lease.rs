//! For how long a host runs services without a word from the manager.
//!
//! Every report that a leading manager answers renews the lease, from the instant at which the report was begun. When
//! it has ended, services may belong to somebody else: they are drained, frozen and stopped, and their ports
//! closed; nobody answers for those that sleep. So it stays until a manager answers and says of each whose it is
//! ([`recovery::settle`]). A manager that gives up a host waits as long.
//!
//! The time of the last renewal lies in a file, so that an agent that was killed gives its guests no longer
//! lease by being started again. While no agent runs, nobody watches the lease.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ferry_protocol::control::Order;
use rustix::time::{ClockId, clock_gettime};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::host::Host;
use super::instance::{Instance, ORDER_LIMIT};
use super::{ANSWER_LIMIT, REPORT_INTERVAL, recovery};
use crate::api::{ApiError, InstanceState};
use crate::migration::phase::DRAIN_LIMIT;

/// The shortest lease: several reports fit into it.
pub const LEAST: Duration = Duration::from_secs(3);
/// Longest time from the end of the lease until nothing runs that was not moved or ended just then.
pub const STOP_LIMIT: Duration = Duration::from_secs(15);
/// Longest wait for whoever moves, checkpoints or ends an instance.
const BUSY_LIMIT: Duration = Duration::from_secs(5);
/// Longest sleep while the lease holds.
const WAKE_INTERVAL: Duration = Duration::from_secs(1);
/// Pause between two looks at what runs while the lease has ended.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// Time since the machine was booted, time asleep included.
#[must_use]
pub fn uptime() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    let second = u32::try_from(now.tv_nsec).unwrap_or(0);
    Duration::new(now.tv_sec.unsigned_abs(), second)
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Lease {
    length: Option<Duration>,
    file: PathBuf,
    /// When it was last renewed, as [`uptime`].
    renewed: watch::Sender<Duration>,
}

impl Lease {
    /// A lease of `length`, or one that never ends, as an earlier agent has left it in `file`.
    #[must_use]
    pub fn open(length: Option<Duration>, file: &Path, now: Duration) -> Self {
        let renewed = match std::fs::read_to_string(file) {
            // Nothing has ever run here.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => now,
            // One that cannot be read says nothing: the manager has to.
            text => text.ok().and_then(|text| text.trim().parse().ok()).map_or(
                Duration::ZERO,
                // Before the machine was booted: nothing runs any more.
                |micros| Duration::from_micros(micros).min(now),
            ),
        };
        Self { length, file: file.to_owned(), renewed: watch::channel(renewed).0 }
    }

    /// How long it is.
    #[must_use]
    pub fn length(&self) -> Option<Duration> {
        self.length
    }

    /// Time left at `now`; zero once it has ended.
    #[must_use]
    pub fn left(&self, now: Duration) -> Duration {
        let ends = self
            .length
            .map_or(Duration::MAX, |length| self.renewed.borrow().saturating_add(length));
        ends.saturating_sub(now)
    }

    /// Whether it has not ended.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.left(uptime()) > Duration::ZERO
    }

    /// Renews it from `since`, when the manager was asked. A machine that was booted meanwhile has no guests.
    pub fn renew(&self, since: Duration) {
        self.renewed.send_replace(since);
        if self.length.is_none() {
            return;
        }
        if let Err(error) = std::fs::write(&self.file, since.as_micros().to_string()) {
            tracing::warn!("{}: {error}", self.file.display());
        }
    }

    /// Longest wait for the answer that renews it: one that comes later has left nothing to go on with.
    #[must_use]
    pub fn answer_limit(&self) -> Duration {
        self.length.map_or(ANSWER_LIMIT, |length| ANSWER_LIMIT.min(length * 5 / 6))
    }

    /// Time from an answer at `now` to the next report: time enough is left for that to be answered.
    #[must_use]
    pub fn report_pause(&self, now: Duration) -> Duration {
        REPORT_INTERVAL.min(self.left(now) / 2)
    }

    /// Waits until it has ended.
    async fn ended(&self) {
        loop {
            let left = self.left(uptime());
            if left == Duration::ZERO {
                return;
            }
            // Timers stand still while a machine sleeps, and a lease does not.
            tokio::time::sleep(left.min(WAKE_INTERVAL)).await;
        }
    }

    /// Waits until it holds.
    pub(super) async fn held(&self) {
        let mut renewed = self.renewed.subscribe();
        while !self.holds() {
            // The sender lives as long as the host.
            let _ = renewed.changed().await;
        }
    }
}

/// Stops what runs here whenever the lease ends.
pub async fn watch(host: Arc<Host>) {
    loop {
        host.lease.ended().await;
        host.holders.end_all().await;
        let mut stopping = JoinSet::new();
        for instance in host.instances() {
            let host = Arc::clone(&host);
            stopping.spawn(async move { stop(&host, instance).await });
        }
        stopping.join_all().await;
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

async fn stop(host: &Arc<Host>, instance: Arc<Instance>) {
    let name = &instance.spec.name;
    // One that an earlier agent has left has not been asked yet where it stands.
    let may_run = || matches!(instance.state(), InstanceState::Running | InstanceState::Booting);
    if !may_run() {
        return;
    }
    // A move cannot commit without the manager.
    if let Some(moves) = instance.descriptor().migration.and_then(|id| host.moves.get(&id)) {
        moves.cancel("the source's host has had no answer of a manager for as long as its lease");
    }
    let Ok(_busy) = tokio::time::timeout(BUSY_LIMIT, instance.busy.lock()).await else { return };
    if instance.state() == InstanceState::Booting {
        recovery::probe(&instance).await;
    }
    if !may_run() || host.lease.holds() {
        return;
    }
    match freeze(&instance).await {
        Ok(()) => {
            let seconds = host.lease.length().unwrap_or_default().as_secs();
            tracing::warn!(
                "{name}: frozen, because no manager has answered for {seconds} s; it goes on when one does"
            );
        }
        Err(error) => tracing::warn!("{name}: it has to stop, and does not: {error}"),
    }
    let (host, instance) = (Arc::clone(host), Arc::clone(&instance));
    tokio::spawn(async move { recovery::settle(&host, &instance).await });
}

/// Clients are told to wait, and no frame of the guest leaves this host any more.
async fn freeze(instance: &Instance) -> Result<(), ApiError> {
    instance.guest.trace().await;
    let drain = Order::Drain { timeout_us: DRAIN_LIMIT.as_micros() as u32 };
    let drained = instance.guest.order(drain, DRAIN_LIMIT + ORDER_LIMIT).await;
    let frozen = match drained {
        Ok(_) => instance.guest.order(Order::Freeze { full: false, mark: 0 }, ORDER_LIMIT).await,
        refused => refused,
    };
    // A guest that does not do what it is told is stopped nevertheless.
    let stopped = instance.vm.stop().await;
    instance.set_port_open(false)?;
    instance.set_state(InstanceState::Frozen);
    stopped.map_err(ApiError::failed)?;
    frozen.map(drop).map_err(ApiError::failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn opened(file: &Path, now: u32) -> Lease {
        Lease::open(Some(10 * SECOND), file, now * SECOND)
    }

    #[test]
    fn it_ends_its_length_after_the_last_renewal_also_for_the_next_agent() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("lease");
        let lease = opened(&file, 100);
        assert_eq!(lease.left(100 * SECOND), 10 * SECOND);
        lease.renew(105 * SECOND);
        assert_eq!(lease.left(114 * SECOND), SECOND);
        assert_eq!(lease.left(115 * SECOND), Duration::ZERO);
        assert_eq!(opened(&file, 110).left(110 * SECOND), 5 * SECOND);
        assert_eq!(opened(&file, 120).left(120 * SECOND), Duration::ZERO);
        // Booted since: nothing of that time runs.
        assert_eq!(opened(&file, 7).left(7 * SECOND), 10 * SECOND);
    }

    #[test]
    fn an_answer_that_came_late_is_followed_by_a_report_while_the_lease_still_holds() {
        let dir = tempfile::tempdir().unwrap();
        let lease = Lease::open(Some(3 * SECOND), &dir.path().join("lease"), 100 * SECOND);
        // Begun at 100 s, answered at 102.4 s, and the lease ends at 103 s.
        assert_eq!(lease.answer_limit(), Duration::from_millis(2500));
        assert_eq!(lease.report_pause(Duration::from_millis(102_400)), Duration::from_millis(300));
        assert_eq!(lease.report_pause(100 * SECOND), Duration::from_millis(1500));
        assert_eq!(lease.report_pause(104 * SECOND), Duration::ZERO);
        let long = opened(&dir.path().join("long"), 100);
        assert_eq!(
            (long.answer_limit(), long.report_pause(100 * SECOND)),
            (ANSWER_LIMIT, REPORT_INTERVAL)
        );
    }

    #[test]
    fn a_file_that_says_nothing_ends_it() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("lease");
        for text in ["", "-1", "later", "99999999999999999999999"] {
            std::fs::write(&file, text).unwrap();
            assert_eq!(opened(&file, 100).left(100 * SECOND), Duration::ZERO, "{text}");
        }
        // On a machine that was booted a moment ago no guest is old enough.
        assert_eq!(opened(&file, 4).left(4 * SECOND), 6 * SECOND);
    }

    #[test]
    fn without_a_length_it_never_ends() {
        let dir = tempfile::tempdir().unwrap();
        let lease = Lease::open(None, &dir.path().join("lease"), SECOND);
        assert!(lease.left(Duration::from_secs(1 << 40)) > Duration::ZERO);
    }
}
