//! `PUT /sink`: takes a body of any size and answers with its length and digest.

use std::fmt::Write;
use std::future::poll_fn;
use std::pin::Pin;

use axum::Json;
use axum::body::{Body, HttpBody};
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::Refusal;

/// The answer to an upload.
#[derive(Serialize)]
pub(crate) struct Receipt {
    bytes: u64,
    sha256: String,
}

/// Reads the body frame by frame; nothing of it is kept.
pub(crate) async fn sink(mut body: Body) -> Result<Json<Receipt>, Refusal> {
    let mut bytes = 0;
    let mut digest = Sha256::new();
    while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        let frame = frame.map_err(|error| Refusal::Body { received_bytes: bytes, error })?;
        if let Some(data) = frame.data_ref() {
            bytes += data.len() as u64;
            digest.update(data);
        }
    }
    let mut sha256 = String::with_capacity(64);
    for byte in digest.finalize() {
        // Writing into a String cannot fail.
        let _ = write!(sha256, "{byte:02x}");
    }
    Ok(Json(Receipt { bytes, sha256 }))
}
