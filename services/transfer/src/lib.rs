//! Down- and uploads of any size over HTTP, in constant memory.
//!
//! - `GET /bytes/{n}?seed={s}`: `n` bytes that anyone can make again from the seed ([`words`]).
//! - `PUT /sink`: answers `{"bytes":…,"sha256":"…"}` of the body.
//!
//! So both ends of a transfer can tell whether every byte arrived, without a file on either side.

mod download;
mod upload;
pub mod words;

use axum::Router;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, put};

/// The port the service listens on.
pub const PORT: u16 = 80;

/// What `GET /` and an unknown path answer.
const USAGE: &str = "GET /bytes/{n}?seed={s}  n bytes of the splitmix64 stream for seed s\n\
                     PUT /sink                length and SHA-256 of the body\n";

/// The service.
pub fn router() -> Router {
    Router::new()
        .route("/", get(USAGE))
        .route("/bytes/{n}", get(download::bytes))
        .route("/sink", put(upload::sink))
        .method_not_allowed_fallback(async || {
            (StatusCode::METHOD_NOT_ALLOWED, format!("method not allowed here; there is\n{USAGE}"))
        })
        .fallback(async || (StatusCode::NOT_FOUND, format!("no such path; there is\n{USAGE}")))
}

/// Why a request is not served.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// `n` is not a number of bytes.
    Length,
    /// `seed` is not a number.
    Seed,
    /// The body broke off.
    Body {
        /// What had arrived.
        received_bytes: u64,
        /// What the HTTP layer says.
        error: axum::Error,
    },
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let max = u64::MAX;
        let message = match self {
            Self::Length => format!("/bytes/{{n}}: n must be a whole number from 0 to {max}\n"),
            Self::Seed => format!("seed must be a whole number from 0 to {max}\n"),
            Self::Body { received_bytes, error } => {
                format!("the body broke off after {received_bytes} bytes: {error}\n")
            }
        };
        (StatusCode::BAD_REQUEST, message).into_response()
    }
}
