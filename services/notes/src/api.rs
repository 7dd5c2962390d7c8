//! Documents over plain HTTP: the page's list, and scripts.
//!
//! ```text
//! GET    /api/docs             {"documents":[{"id":…,"title":…,"characters":…,"people":…,…}],…}
//! POST   /api/docs             {"title":…,"text":…} (both may be left out) → 201, the document
//! GET    /api/docs/{id}        the document's entry in the list
//! DELETE /api/docs/{id}        204, or 409 while somebody has it open
//! GET    /api/docs/{id}/text   the text as it stands
//! POST   /api/docs/{id}/text   appends the request's body to the text, merged like anyone's typing
//! ```

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::{JsonRejection, StringRejection};
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::http::header::{CACHE_CONTROL, LOCATION};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};

use crate::room::{Refusal, Summary};
use crate::store::{Store, StoreError};

/// Longest title that is taken, in bytes.
const TITLE_BYTES: usize = 400;

/// What a new document starts with.
#[derive(Default, Deserialize)]
#[serde(default)]
pub(crate) struct NewDocument {
    title: String,
    text: String,
}

/// The answer to `GET /api/docs`.
#[derive(Serialize)]
struct List {
    documents: Vec<Summary>,
    limits: PageLimits,
}

/// The limits that the page keeps by itself.
#[derive(Serialize)]
struct PageLimits {
    documents: usize,
    characters: usize,
}

pub(crate) async fn list(State(store): State<Arc<Store>>) -> Response {
    let limits = PageLimits {
        documents: store.limits().documents,
        characters: store.limits().page_characters,
    };
    fresh(Json(List { documents: store.list(), limits }))
}

pub(crate) async fn create(
    State(store): State<Arc<Store>>,
    wanted: Result<Json<NewDocument>, JsonRejection>,
) -> Result<Response, ApiError> {
    let Json(NewDocument { title, text }) = wanted.map_err(ApiError::Json)?;
    if title.len() > TITLE_BYTES {
        return Err(ApiError::TitleTooLong { len_bytes: title.len() });
    }
    let summary = store.create(title.trim(), &text)?.summary();
    let location = format!("/d/{}", summary.id);
    Ok((StatusCode::CREATED, [(LOCATION, location)], Json(summary)).into_response())
}

pub(crate) async fn show(
    State(store): State<Arc<Store>>,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    Ok(fresh(Json(store.find(&id)?.summary())))
}

pub(crate) async fn remove(
    State(store): State<Arc<Store>>,
    Path(id): Path<String>,
) -> Result<StatusCode, ApiError> {
    store.remove(&id)?;
    Ok(StatusCode::NO_CONTENT)
}

pub(crate) async fn text(
    State(store): State<Arc<Store>>,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    Ok(fresh(store.find(&id)?.text()))
}

pub(crate) async fn append(
    State(store): State<Arc<Store>>,
    Path(id): Path<String>,
    addition: Result<String, StringRejection>,
) -> Result<Response, ApiError> {
    let room = store.find(&id)?;
    store.append(&room, "text", &addition.map_err(ApiError::Text)?)?;
    Ok(fresh(Json(room.summary())))
}

/// Documents change all the time: no cache may keep them.
fn fresh(body: impl IntoResponse) -> Response {
    ([(CACHE_CONTROL, "no-store")], body).into_response()
}

/// Why a request is refused.
pub(crate) enum ApiError {
    Store(StoreError),
    Json(JsonRejection),
    Text(StringRejection),
    TitleTooLong { len_bytes: usize },
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let (status, error) = match self {
            Self::Store(error) => (status_of(&error), error.to_string()),
            Self::Json(rejection) => (rejection.status(), rejection.body_text()),
            Self::Text(rejection) => (rejection.status(), rejection.body_text()),
            Self::TitleTooLong { len_bytes } => (
                StatusCode::BAD_REQUEST,
                format!("the title has {len_bytes} bytes, the limit is {TITLE_BYTES}"),
            ),
        };
        (status, Json(serde_json::json!({ "error": error }))).into_response()
    }
}

fn status_of(error: &StoreError) -> StatusCode {
    match error {
        StoreError::NoSuchDocument { .. } => StatusCode::NOT_FOUND,
        StoreError::InUse { .. } => StatusCode::CONFLICT,
        StoreError::TooManyDocuments { .. }
        | StoreError::Document(Refusal::DocumentFull { .. } | Refusal::ServerFull { .. }) => {
            StatusCode::INSUFFICIENT_STORAGE
        }
        StoreError::TooManyPeople { .. } | StoreError::NoEntropy(_) => {
            StatusCode::SERVICE_UNAVAILABLE
        }
        StoreError::Document(_) => StatusCode::BAD_REQUEST,
    }
}
