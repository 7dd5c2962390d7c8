//! The destination's half of a move: it answers what the source asks over the link.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ferry_protocol::control::{Answer, Order, State, TcpState};
use tokio::io::{AsyncRead, AsyncWrite};

use super::control::Outstanding;
use super::host::Host;
use super::instance::Instance;
use super::mirror::Mirror;
use super::{recovery, securing};
use crate::api::{ApiError, InstanceState, Resumed, ServiceSpec};
use crate::hostnet::MacParseError;
use crate::migration::Phase;
use crate::security::Peer;
use crate::transfer::link::Received;
use crate::transfer::{FromDestination, FromSource, Link, LinkError, PageDigest, pages};

/// Longest silence of the source: no phase lasts longer.
const SILENCE_LIMIT: Duration = Duration::from_secs(130);

/// Longest wait, after the boot, for the source's other connection.
const MIRROR_LIMIT: Duration = Duration::from_secs(5);

/// Longest time the guest of a standby may take to say that it is well.
const CHECK_LIMIT: Duration = Duration::from_secs(5);

/// Why the destination gives up.
enum GiveUp {
    /// The source is told.
    Tell(String),
    /// The source asked for it.
    Asked,
    /// The source is gone.
    Silent(LinkError),
}

impl From<LinkError> for GiveUp {
    fn from(error: LinkError) -> Self {
        Self::Silent(error)
    }
}

impl From<ApiError> for GiveUp {
    fn from(error: ApiError) -> Self {
        Self::Tell(error.message)
    }
}

/// Serves one move to its end. A standby that was not given the service is removed, whatever happens; one
/// that may have been given it is kept until the manager has said so.
pub async fn serve<S: AsyncRead + AsyncWrite>(host: Arc<Host>, stream: S, peer: Peer) {
    let mut link = Link::new(stream);
    let mut standby = None;
    let give_up = match receive(&host, &peer, &mut link, &mut standby).await {
        Ok(()) => return,
        Err(give_up) => give_up,
    };
    if let Some(standby) = standby {
        let busy = standby.instance.busy.lock().await;
        if standby.instance.state() == InstanceState::Running {
            // It has taken over; only the tidying up broke off.
            standby.instance.console.without_history();
            note_taken(&standby.instance);
            return;
        }
        if let GiveUp::Silent(error) = &give_up
            && standby.instance.descriptor().verified
        {
            let name = &standby.instance.spec.name;
            tracing::warn!(
                "{name}: the source is gone ({error}); the manager is asked whose it is"
            );
            drop(busy);
            recovery::settle(&host, &standby.instance).await;
            return;
        }
        drop(standby.mirror);
        if let Err(error) = host.end(&standby.instance).await {
            // The source is not told that it is gone: it will ask.
            tracing::warn!("{error}");
            return;
        }
    }
    match give_up {
        GiveUp::Tell(reason) => drop(link.send(&FromDestination::Failed { reason }).await),
        GiveUp::Asked => drop(link.send(&FromDestination::Abandoned).await),
        GiveUp::Silent(error) => tracing::warn!("a move to this node broke off: {error}"),
    }
}

struct Standby {
    instance: Arc<Instance>,
    mirror: Option<Mirror>,
    digest: PageDigest,
    /// Asked when the source began to freeze: is the guest well?
    check: Option<Outstanding>,
}

async fn receive<S: AsyncRead + AsyncWrite>(
    host: &Host,
    peer: &Peer,
    link: &mut Link<S>,
    standby: &mut Option<Standby>,
) -> Result<(), GiveUp> {
    let FromSource::Offer { migration, spec, source } =
        link.message(Phase::Request.row().deadline).await?
    else {
        return Err(GiveUp::Tell("an offer was expected".into()));
    };
    let reservation = host.reserve(&spec)?;
    let kernel = host.ensure_image(&spec).await?;
    let guest = spec.mac.parse().map_err(|error: MacParseError| GiveUp::Tell(error.to_string()))?;
    let mut mirrored = host.mirrors.from(peer, &migration);
    link.send(&FromDestination::Accepted).await?;
    match link.message(Phase::Prepare.row().deadline).await? {
        FromSource::Prepare => {}
        FromSource::Abandon => return Err(GiveUp::Asked),
        _ => return Err(GiveUp::Tell("an order to prepare was expected".into())),
    }
    tracing::info!("{}: a standby is started for move {migration} from {source}", spec.name);
    let begun = Instant::now();
    let instance = host.start(reservation, &spec, kernel, true, 0, Some(migration)).await?;
    instance.guest.trace().await;
    let state = standby.insert(Standby {
        instance,
        mirror: None,
        digest: PageDigest::default(),
        check: None,
    });
    let wire = state.instance.with_port(|port| port.wire())?;
    let Ok(Some(stream)) = tokio::time::timeout(MIRROR_LIMIT, mirrored.stream()).await else {
        return Err(GiveUp::Tell("the source has made no connection for its mirror".into()));
    };
    drop(mirrored);
    state.mirror = Some(Mirror::destination(wire, guest, stream));
    link.send(&FromDestination::Standby { boot_us: micros(begun) }).await?;
    serve_standby(host, peer, link, state, &spec).await
}

async fn serve_standby<S: AsyncRead + AsyncWrite>(
    host: &Host,
    peer: &Peer,
    link: &mut Link<S>,
    standby: &mut Standby,
    spec: &ServiceSpec,
) -> Result<(), GiveUp> {
    let mut death = standby.instance.vm.death();
    loop {
        let received = tokio::select! {
            received = tokio::time::timeout(SILENCE_LIMIT, link.receive()) => {
                received.map_err(|_| LinkError::Timeout(SILENCE_LIMIT))??
            }
            end = death.wait_for(Option::is_some) => {
                let reason = end.ok().and_then(|end| end.clone()).map(|end| end.reason);
                let reason = reason.unwrap_or_else(|| "QEMU ended".into());
                return Err(GiveUp::Tell(format!("the standby of `{}` is gone: {reason}", spec.name)));
            }
        };
        let message = match received {
            Received::Pages(payload) => {
                pages::apply(payload, &standby.instance.ram, &mut standby.digest)
                    .map_err(|error| GiveUp::Tell(error.to_string()))?;
                continue;
            }
            Received::Message(message) => message,
        };
        match message {
            FromSource::Round => link.send(&FromDestination::Arrived).await?,
            FromSource::Check => {
                standby.instance.hurry();
                let begun = standby.instance.guest.begin(Order::Hello).await;
                standby.check = Some(begun.map_err(|error| GiveUp::Tell(error.to_string()))?);
            }
            FromSource::Last { digest } => {
                if digest != standby.digest.finish() {
                    let count = standby.digest.count();
                    return Err(GiveUp::Tell(format!(
                        "the {count} pages that arrived are not those that were sent: digests differ"
                    )));
                }
                checked(standby).await.map_err(GiveUp::Tell)?;
                link.send(&FromDestination::Verified).await?;
                // While the source asks for the commit.
                standby.instance.note_verified();
            }
            FromSource::Resume { epoch, grant } => {
                if let Err(error) = securing::check_grant(host, &spec.id, epoch, &grant) {
                    let what = format!("resume `{}`", spec.name);
                    securing::refused(host, peer, what, &error.message);
                    return Err(error.into());
                }
                let (name, running) = (&spec.name, standby.instance.epoch());
                host.epochs.admit(name, &spec.id, running, epoch).map_err(ApiError::from)?;
                resume(link, standby, epoch).await?;
            }
            FromSource::Log { start, bytes, last } => {
                standby.instance.console.put_history(start, &bytes, last);
            }
            FromSource::Finish => {
                standby.instance.console.without_history();
                note_taken(&standby.instance);
                drop(standby.mirror.take());
                return Ok(link.send(&FromDestination::Finished).await?);
            }
            FromSource::Abandon => return Err(GiveUp::Asked),
            FromSource::Offer { .. } | FromSource::Prepare => {
                return Err(GiveUp::Tell("this move is under way already".into()));
            }
        }
    }
}

/// A guest that hangs, or that ended a moment ago, must be known before the commit.
async fn checked(standby: &mut Standby) -> Result<(), String> {
    let Some(check) = standby.check.take() else { return Err("the guest was not asked".into()) };
    match tokio::time::timeout(CHECK_LIMIT, check.answer()).await {
        Ok(Ok(Answer::Hello(hello))) if hello.state == State::Standby => Ok(()),
        Ok(Ok(answer)) => Err(format!("the standby is none: its guest says {answer:?}")),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("the standby did not answer within {} s", CHECK_LIMIT.as_secs())),
    }
}

async fn resume<S: AsyncRead + AsyncWrite>(
    link: &mut Link<S>,
    standby: &Standby,
    epoch: u64,
) -> Result<(), GiveUp> {
    let begun = Instant::now();
    let _busy = standby.instance.busy.lock().await;
    standby.instance.set_port_open(true)?;
    let port_us = micros(begun);
    let ordered = Instant::now();
    let outstanding = standby
        .instance
        .guest
        .begin(resume_order(epoch))
        .await
        .map_err(|error| GiveUp::Tell(error.to_string()))?;
    link.send(&FromDestination::Ordered).await?;
    let limit = Phase::Resume.row().deadline;
    let answer = tokio::time::timeout(limit, outstanding.answer()).await;
    let guest_us = micros(ordered);
    match answer {
        Ok(Ok(Answer::Resumed { connections, held_frames })) => {
            standby.instance.set_epoch(epoch);
            standby.instance.set_state(InstanceState::Running);
            let resumed = FromDestination::Resumed { connections, held_frames, port_us, guest_us };
            link.send(&resumed).await?;
            note_taken(&standby.instance);
            Ok(())
        }
        Ok(Ok(_)) => Err(GiveUp::Tell("the guest answered the resume with something else".into())),
        Ok(Err(error)) => Err(GiveUp::Tell(error.to_string())),
        Err(_) => Err(GiveUp::Tell(format!(
            "the guest did not resume within {} s; its console says:\n{}",
            limit.as_secs(),
            standby.instance.console.tail()
        ))),
    }
}

/// Notes that a standby has become the service. Not earlier than the source has been told: it waits.
fn note_taken(instance: &Instance) {
    let (epoch, log_start) = (instance.epoch(), instance.console.extent().borrow().start);
    instance.note_if_possible(|noted| {
        noted.epoch = epoch;
        noted.migration = None;
        noted.verified = false;
        noted.log_start = log_start;
    });
}

/// The order to take over, with the wall clock of this moment.
#[must_use]
pub fn resume_order(epoch: u64) -> Order {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let wall_ns = since.map_or(0, |since| since.as_nanos() as u64);
    Order::Resume { epoch, wall_ns }
}

/// What a guest says when it has taken over.
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "as in ferry_protocol::control::Answer::Resumed")]
pub struct Taken {
    pub connections: u32,
    pub held_frames: u32,
}

/// Lets a standby take over without a source to tell. The caller holds `busy`, and notes it.
///
/// # Errors
/// The guest refused or did not answer. The standby is then to be removed.
pub async fn take_over(instance: &Instance, epoch: u64) -> Result<Taken, ApiError> {
    instance.guest.trace().await;
    instance.hurry();
    instance.set_port_open(true)?;
    let answer = instance.guest.order(resume_order(epoch), Phase::Resume.row().deadline).await;
    match answer.map_err(ApiError::failed)? {
        Answer::Resumed { connections, held_frames } => {
            instance.set_epoch(epoch);
            instance.set_state(InstanceState::Running);
            Ok(Taken { connections, held_frames })
        }
        _ => Err(ApiError::failed("the guest answered the resume with something else")),
    }
}

/// Lets a standby that was filled from a snapshot take over. Doing it twice is harmless.
///
/// # Errors
/// It is no standby, and is not touched; or its guest refused or did not answer, and it was removed.
pub async fn resume_filled(
    host: &Host,
    instance: &Arc<Instance>,
    epoch: u64,
) -> Result<Resumed, ApiError> {
    let _busy = instance.busy.lock().await;
    match instance.state() {
        InstanceState::Standby => {}
        InstanceState::Running if instance.epoch() == epoch => {
            // A manager that did not hear the answer asks again.
            let listed = instance.connections().await?;
            let open = listed.iter().filter(|it| it.state != TcpState::Listen);
            return Ok(Resumed { connections: open.count() as u32, held_frames: 0 });
        }
        // Among others one that was just taken up: it may run.
        _ => {
            let name = &instance.spec.name;
            return Err(ApiError::conflict(format!("`{name}` does not stand by here")));
        }
    }
    match take_over(instance, epoch).await {
        Ok(Taken { connections, held_frames }) => {
            instance.console.without_history();
            note_taken(instance);
            Ok(Resumed { connections, held_frames })
        }
        Err(error) => {
            let tail = instance.console.tail();
            host.end(instance).await?;
            Err(ApiError::failed(format!(
                "{error}; the instance was removed; its console said:\n{tail}"
            )))
        }
    }
}

/// Microseconds since `begun`.
#[must_use]
pub fn micros(begun: Instant) -> u64 {
    begun.elapsed().as_micros() as u64
}
