//! What manager and agents tell a monitoring system: OpenMetrics text at `/metrics`.
//!
//! Counters begin at zero when the process does. Times are seconds, sizes are bytes. "Frozen" is the time in
//! which no instance runs, from the order to freeze to the answer that the service runs again; what a client
//! sees of it only a client can measure.
//!
//! | of | metric | type | labels | what |
//! |---|---|---|---|---|
//! | both | `ferry_build_info` | info | `version` | version of the program |
//! | manager | `ferry_moves_total` | counter | `outcome` | moves that have ended |
//! | manager | `ferry_moves_under_way` | gauge | | moves that have not |
//! | manager | `ferry_move_duration_seconds` | histogram | | from request to end, of moves that succeeded |
//! | manager | `ferry_move_frozen_seconds` | histogram | | frozen time of moves that succeeded |
//! | manager | `ferry_move_phase_duration_seconds` | histogram | `phase` | length of each phase, of all moves |
//! | manager | `ferry_move_sent_bytes_total` | counter | | bytes that moves put on the wire |
//! | manager | `ferry_move_sent_pages_total` | counter | | pages that moves sent |
//! | manager | `ferry_move_resumed_connections_total` | counter | | connections that went on after a move |
//! | manager | `ferry_nodes` | gauge | `state` | hosts that are ready, drained, silent |
//! | manager | `ferry_services` | gauge | `state` | services in each state |
//! | manager | `ferry_service_connections` | gauge | `service` | TCP connections of each service |
//! | agent | `ferry_agent_instances` | gauge | `state` | instances on this host in each state |
//! | agent | `ferry_agent_connections` | gauge | `service` | TCP connections of each instance that serves |
//! | agent | `ferry_agent_guest_memory_bytes` | gauge | | memory for guests |
//! | agent | `ferry_agent_guest_memory_free_bytes` | gauge | | memory for guests that is not given out |
//! | agent | `ferry_agent_standby_boots_total` | counter | `result` | standbys started for a move or a restore |
//! | agent | `ferry_agent_standby_boot_seconds` | histogram | | until a standby was ready |
//! | agent | `ferry_agent_refused_frames_total` | counter | `service` | frames of the guest's control port that were refused |
//!
//! 1. [`manager`] and [`agent`]: what is counted, and what is looked up when it is asked for.

pub mod agent;
pub mod manager;

use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use crate::api::ApiError;

/// Content type of OpenMetrics 1.0.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// One label and its value.
type Label = [(&'static str, String); 1];
type Counters = Family<Label, Counter>;
type Gauges = Family<Label, Gauge>;

/// Phases last from a tenth of a millisecond to minutes; users feel those of a few milliseconds.
const SECONDS: [f64; 18] = [
    0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
    5.0, 10.0, 30.0, 120.0,
];

fn seconds() -> Histogram {
    Histogram::new(SECONDS)
}

fn from_us(us: u64) -> f64 {
    us as f64 / 1e6
}

/// A registry that says which version this is.
fn registry() -> Registry {
    let mut registry = Registry::with_prefix("ferry");
    let version = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
    registry.register("build", "Version of the program", version);
    registry
}

/// All that several registries hold.
///
/// # Errors
/// It cannot be written as text.
fn text(registries: &[&Registry]) -> Result<String, ApiError> {
    let mut out = String::new();
    for registry in registries {
        encode_registry(&mut out, registry).map_err(ApiError::failed)?;
    }
    encode_eof(&mut out).map_err(ApiError::failed)?;
    Ok(out)
}

/// The text as an answer.
pub fn answer(text: String) -> Response {
    ([(header::CONTENT_TYPE, HeaderValue::from_static(CONTENT_TYPE))], text).into_response()
}

#[cfg(test)]
pub(crate) mod parsed;
