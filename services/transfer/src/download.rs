//! `GET /bytes/{n}?seed={s}`: a body of `n` bytes, made while it is sent.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::Body;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query};
use axum::http::header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE};
use axum::http::{HeaderName, HeaderValue};
use bytes::{Bytes, BytesMut};
use http_body::{Frame, SizeHint};
use serde::Deserialize;

use crate::{Refusal, words};

/// Bytes per frame of the body: all that a download holds in memory besides its socket.
/// A multiple of 8, so that only the last frame cuts a word.
const FRAME_BYTES: usize = 16 * 1024;

/// The query of a download.
#[derive(Deserialize)]
pub(crate) struct Seed {
    #[serde(default)]
    seed: u64,
}

/// Answers a download; axum answers HEAD with the same headers and no body.
pub(crate) async fn bytes(
    length: Result<Path<u64>, PathRejection>,
    seed: Result<Query<Seed>, QueryRejection>,
) -> Result<([(HeaderName, HeaderValue); 3], Body), Refusal> {
    let Path(length_bytes) = length.map_err(|_| Refusal::Length)?;
    let Query(Seed { seed }) = seed.map_err(|_| Refusal::Seed)?;
    let headers = [
        (CONTENT_TYPE, HeaderValue::from_static("application/octet-stream")),
        (CONTENT_LENGTH, HeaderValue::from(length_bytes)),
        (CACHE_CONTROL, HeaderValue::from_static("no-store")),
    ];
    Ok((headers, Body::new(WordBody { seed, next_word: 0, left_bytes: length_bytes })))
}

/// A body that makes its next frame when it is asked for it.
struct WordBody {
    seed: u64,
    next_word: u64,
    left_bytes: u64,
}

impl http_body::Body for WordBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let len = self.left_bytes.min(FRAME_BYTES as u64);
        if len == 0 {
            return Poll::Ready(None);
        }
        let mut frame = BytesMut::zeroed(len as usize);
        words::fill(self.seed, self.next_word, &mut frame);
        self.next_word += len / 8;
        self.left_bytes -= len;
        Poll::Ready(Some(Ok(Frame::data(frame.freeze()))))
    }

    fn is_end_stream(&self) -> bool {
        self.left_bytes == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left_bytes)
    }
}
