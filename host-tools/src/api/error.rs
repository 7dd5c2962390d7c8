//! The one form in which a request fails.

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};

/// Kind of a failure; it decides the HTTP status and the commands' exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Problem {
    /// There is no such service, node, image, or move.
    NotFound,
    /// The name, the address or the service is in use.
    Conflict,
    /// The request makes no sense as it is.
    Invalid,
    /// A node or the manager cannot be reached.
    Unreachable,
    /// Another manager leads; nothing was done.
    NotLeading,
    /// The certificate or its role does not allow it.
    Denied,
    /// It was tried and did not work.
    Failed,
}

impl Problem {
    /// The HTTP status it travels with.
    #[must_use]
    pub fn status(self) -> StatusCode {
        match self {
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::Conflict => StatusCode::CONFLICT,
            Self::Invalid => StatusCode::BAD_REQUEST,
            Self::Unreachable => StatusCode::BAD_GATEWAY,
            Self::NotLeading => StatusCode::MISDIRECTED_REQUEST,
            Self::Denied => StatusCode::FORBIDDEN,
            Self::Failed => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

/// What happened, what still runs where, and what to do next.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// Its kind.
    pub problem: Problem,
    /// What happened, and what still runs where.
    pub message: String,
    /// What to do next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl ApiError {
    /// A failure without a hint.
    pub fn new(problem: Problem, message: impl Into<String>) -> Self {
        Self { problem, message: message.into(), hint: None }
    }

    /// The same with a hint.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Something that is not there.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(Problem::NotFound, message)
    }

    /// Something that is in the way.
    pub fn conflict(message: impl Into<String>) -> Self {
        Self::new(Problem::Conflict, message)
    }

    /// Something that makes no sense.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(Problem::Invalid, message)
    }

    /// Something that is not allowed.
    pub fn denied(message: impl Into<String>) -> Self {
        Self::new(Problem::Denied, message)
    }

    /// Something that did not work.
    pub fn failed(error: impl std::fmt::Display) -> Self {
        Self::new(Problem::Failed, error.to_string())
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let reason = crate::security::Reason(self.message.clone());
        (self.problem.status(), axum::Extension(reason), axum::Json(self)).into_response()
    }
}
