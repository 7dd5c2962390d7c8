//! An instance into a snapshot, and one from it.

use std::sync::Arc;
use std::time::Instant;

use ferry_protocol::control::{Answer, Order};

use super::destination::micros;
use super::host::Host;
use super::instance::{Instance, ORDER_LIMIT};
use super::securing;
use crate::api::{
    ApiError, Checkpoint, CheckpointRequest, Digest32, InstanceState, StartRequest, now_us,
};
use crate::holder::HeldTable;
use crate::migration::phase::DRAIN_LIMIT;
use crate::snapshot::{MAX_LOG, Meta, Snapshot, write};

/// Largest snapshot that is fetched, in bytes.
pub const MAX_SNAPSHOT: usize = 2 << 30;

/// Drains, freezes and captures an instance. It then goes on, or stays frozen with its QEMU stopped until
/// the manager, who has the snapshot, ends it or says `abort`. One that is lost hears of the frozen instance
/// by our reports when it is back, and has it settled.
///
/// # Errors
/// What did not work; the service then runs on here, unless the message says otherwise.
pub async fn checkpoint(
    host: &Host,
    instance: &Arc<Instance>,
    request: &CheckpointRequest,
) -> Result<Checkpoint, ApiError> {
    let _busy = instance
        .busy
        .try_lock()
        .map_err(|_| ApiError::conflict("a move, checkpoint or stop of it is under way"))?;
    if instance.state() != InstanceState::Running {
        return Err(ApiError::conflict(format!("`{}` does not run", instance.spec.name)));
    }
    instance.note(|noted| noted.migration = request.id.clone())?;
    let captured = capture(host, instance, request).await;
    match captured {
        Ok(checkpoint) => Ok(checkpoint),
        Err(error) => {
            thaw(instance).await.map_err(|second| {
                ApiError::failed(format!("{error}; and it could not be thawed: {second}"))
            })?;
            instance.note_if_possible(|noted| noted.migration = None);
            Err(ApiError::failed(format!("{error}; the service runs on")))
        }
    }
}

async fn capture(
    host: &Host,
    instance: &Arc<Instance>,
    request: &CheckpointRequest,
) -> Result<Checkpoint, ApiError> {
    instance.guest.trace().await;
    let timeout_us = DRAIN_LIMIT.as_micros() as u32;
    let order = Order::Drain { timeout_us };
    let drained = instance.guest.order(order, DRAIN_LIMIT + ORDER_LIMIT).await;
    let Answer::Drained(drained) = drained.map_err(ApiError::failed)? else {
        return Err(ApiError::failed("the guest answered drain with something else"));
    };
    let begun = Instant::now();
    let frozen = instance.guest.order(Order::Freeze { full: true, mark: 0 }, ORDER_LIMIT).await;
    let Answer::Pages { dirty, .. } = frozen.map_err(ApiError::failed)? else {
        return Err(ApiError::failed("the guest answered freeze with something else"));
    };
    instance.set_state(InstanceState::Frozen);
    let held = match request.hold {
        true => Some(held(instance).await?),
        false => None,
    };
    let (log_start, log) = instance.console.last(MAX_LOG);
    let meta = Meta {
        spec: instance.spec.clone(),
        connections: drained.connections,
        held,
        log_start,
        log,
        made_us: now_us(),
    };
    let (held, epoch) = (Arc::clone(instance), instance.epoch());
    let made = tokio::task::spawn_blocking(move || {
        let pages = held.pages(dirty, true)?;
        write::snapshot(&meta, epoch, &held.ram, &pages)
    });
    let (bytes, pages) = made.await.map_err(ApiError::failed)?.map_err(ApiError::failed)?;
    let mut frozen_us = 0;
    if request.leave_running {
        thaw(instance).await?;
        frozen_us = micros(begun);
    } else {
        instance.vm.stop().await.map_err(ApiError::failed)?;
        instance.set_port_open(false)?;
    }
    let bytes = securing::seal(host, bytes).await?;
    let snapshot = host.snapshots.put(&bytes)?;
    let connections = drained.connections;
    Ok(Checkpoint { snapshot, bytes: bytes.len() as u64, pages, connections, frozen_us })
}

/// What a holder must know of the frozen guest's connections.
async fn held(instance: &Instance) -> Result<HeldTable, ApiError> {
    let explained = |what: &str| format!("its connections cannot be held: {what}");
    let listed = instance
        .connections()
        .await
        .map_err(|error| ApiError { message: explained(&error.message), ..error })?;
    HeldTable::from_guest(instance.spec.ip, &listed)
        .map_err(|error| ApiError::failed(explained(&error.to_string())))
}

/// Lets a frozen instance serve again.
///
/// # Errors
/// The guest or QEMU does not answer.
pub async fn thaw(instance: &Instance) -> Result<(), ApiError> {
    instance.set_port_open(true)?;
    instance.vm.cont().await.map_err(ApiError::failed)?;
    instance.guest.order(Order::Thaw, ORDER_LIMIT).await.map_err(ApiError::failed)?;
    instance.set_state(InstanceState::Running);
    Ok(())
}

/// Boots a standby and fills it from a snapshot that the manager holds. It waits for `resume`.
///
/// # Errors
/// What did not work; nothing is left behind.
pub async fn prepare(
    host: &Host,
    request: &StartRequest,
    digest: Digest32,
) -> Result<Arc<Instance>, ApiError> {
    let spec = &request.spec;
    let reservation = host.reserve(spec)?;
    let kernel = host.ensure_image(spec).await?;
    let bytes = host.manager().download(&format!("/v1/snapshots/{digest}"), MAX_SNAPSHOT).await?;
    if Digest32::of(&bytes) != digest {
        return Err(ApiError::failed("the snapshot that came is not the one asked for"));
    }
    let bytes = securing::open(host, bytes).await?;
    let expected = spec.image.build_id.0;
    let snapshot = tokio::task::spawn_blocking(move || {
        let snapshot = Snapshot::read(&bytes)?;
        snapshot.check_image(&expected)?;
        Ok::<_, crate::snapshot::SnapshotError>(snapshot)
    });
    let snapshot = snapshot
        .await
        .map_err(ApiError::failed)?
        .map_err(|error| ApiError::invalid(error.to_string()))?;
    let instance = host.start(reservation, spec, kernel, true, 0, None).await?;
    instance.console.put_history(snapshot.meta.log_start, snapshot.meta.log.as_bytes(), true);
    if let Err(error) = snapshot.fill(&instance.ram) {
        host.end(&instance).await?;
        return Err(ApiError::failed(error));
    }
    Ok(instance)
}
