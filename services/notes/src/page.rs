//! The page and what belongs to it, from inside the image.

use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, IF_NONE_MATCH,
    X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get};
use sha2::{Digest, Sha256};

/// The page loads nothing from elsewhere, and no text of a document can make it.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
                      connect-src 'self'; base-uri 'none'; form-action 'none'; \
                      frame-ancestors 'none'";

/// One file of the page.
#[derive(Clone, Copy)]
pub(crate) struct Asset {
    content_type: &'static str,
    bytes: &'static [u8],
}

pub(crate) const INDEX: Asset =
    Asset { content_type: "text/html; charset=utf-8", bytes: include_bytes!("../web/index.html") };
pub(crate) const STYLE: Asset =
    Asset { content_type: "text/css; charset=utf-8", bytes: include_bytes!("../web/style.css") };
pub(crate) const SCRIPT: Asset = Asset {
    content_type: "text/javascript; charset=utf-8",
    bytes: include_bytes!("../web/dist/notes.js"),
};
pub(crate) const ICON: Asset =
    Asset { content_type: "image/svg+xml", bytes: include_bytes!("../web/icon.svg") };

impl Asset {
    /// Serves the file; a browser that has it asks and is told so.
    pub(crate) fn route<S: Clone + Send + Sync + 'static>(self) -> MethodRouter<S> {
        let digest = Sha256::digest(self.bytes);
        let tag = u64::from_le_bytes(std::array::from_fn(|i| digest[i]));
        let tag = format!("\"{tag:016x}\"");
        get(async move |headers: HeaderMap| self.answer(&tag, &headers))
    }

    fn answer(self, tag: &str, headers: &HeaderMap) -> Response {
        let common = [
            (ETAG, tag.to_owned()),
            (CACHE_CONTROL, "no-cache".to_owned()),
            (CONTENT_SECURITY_POLICY, POLICY.to_owned()),
        ];
        if headers.get(IF_NONE_MATCH).is_some_and(|known| known == tag) {
            return (StatusCode::NOT_MODIFIED, common).into_response();
        }
        let kind = [
            (CONTENT_TYPE, HeaderValue::from_static(self.content_type)),
            (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        ];
        (common, kind, self.bytes).into_response()
    }
}
