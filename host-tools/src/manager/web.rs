//! The manager's page and what it reads. The page only looks: everything here is a GET.
//!
//! Its files are part of the program. They load nothing from elsewhere, and the policy sent with them says
//! so to the browser.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::{Path, State};
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};

use super::state::Manager;
use super::watch::{self, Form};
use crate::api::{ApiError, Overview};
use crate::timeline;

/// Nothing but the page's own files, and nobody may frame it. Pictures of moves carry a style of their own.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
    connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
/// A picture that is opened by itself runs and loads nothing.
const PICTURE_POLICY: &str =
    "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; sandbox";

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const JS: &str = "text/javascript; charset=utf-8";
const SVG: &str = "image/svg+xml; charset=utf-8";

/// The page's files: path, kind, content.
const FILES: [(&str, &str, &str); 6] = [
    ("/", HTML, include_str!("../../web/index.html")),
    ("/style.css", CSS, include_str!("../../web/style.css")),
    ("/app.js", JS, include_str!("../../web/app.js")),
    ("/view.js", JS, include_str!("../../web/view.js")),
    ("/dom.js", JS, include_str!("../../web/dom.js")),
    ("/icon.svg", SVG, include_str!("../../web/icon.svg")),
];

/// Whether a path is one that the page asks for. None of them changes anything.
#[must_use]
pub fn is_of_page(path: &str) -> bool {
    let picture = || {
        let id = path.strip_prefix("/v1/migrations/")?.strip_suffix("/timeline.svg")?;
        crate::api::move_number(id)
    };
    FILES.iter().any(|&(file, ..)| file == path)
        || matches!(path, "/v1/overview" | "/v1/watch/sse")
        || picture().is_some()
}

/// The routes of the page.
pub fn routes() -> Router<Arc<Manager>> {
    Router::new()
        .route("/", get(|| own(0)))
        .route("/style.css", get(|| own(1)))
        .route("/app.js", get(|| own(2)))
        .route("/view.js", get(|| own(3)))
        .route("/dom.js", get(|| own(4)))
        .route("/icon.svg", get(|| own(5)))
        .route("/metrics", get(metrics))
        .route("/v1/overview", get(overview))
        .route("/v1/watch", get(|manager| watch(manager, Form::Lines)))
        .route("/v1/watch/sse", get(|manager| watch(manager, Form::Sse)))
        .route("/v1/migrations/{id}/timeline.svg", get(picture))
}

async fn own(index: usize) -> Response {
    let (_, kind, content) = FILES[index];
    file(kind, POLICY, content.into())
}

fn file(kind: &'static str, policy: &'static str, content: String) -> Response {
    let fixed = |name: HeaderName, value| (name, HeaderValue::from_static(value));
    let headers = [
        fixed(header::CONTENT_TYPE, kind),
        fixed(header::CONTENT_SECURITY_POLICY, policy),
        fixed(header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        fixed(header::REFERRER_POLICY, "no-referrer"),
        fixed(HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
        // The files are those of this manager; the next version has others.
        fixed(header::CACHE_CONTROL, "no-cache"),
    ];
    (headers, content).into_response()
}

async fn overview(State(manager): State<Arc<Manager>>) -> Result<Json<Overview>, ApiError> {
    let overview = manager.overview(Instant::now()).await?;
    Ok(Json(Overview::clone(&overview)))
}

async fn metrics(State(manager): State<Arc<Manager>>) -> Result<Response, ApiError> {
    let overview = manager.overview(Instant::now()).await?;
    let under_way = manager.moves.open().len();
    Ok(crate::metrics::answer(manager.metrics.text(&overview, under_way)?))
}

async fn watch(State(manager): State<Arc<Manager>>, form: Form) -> Response {
    watch::answer(watch::follow(&manager), form)
}

async fn picture(
    State(manager): State<Arc<Manager>>,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    let (migration, _) = manager.moves.get(&id)?;
    Ok(file(SVG, PICTURE_POLICY, timeline::rulers(&migration)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values of an attribute in a text of HTML.
    fn attributes<'t>(text: &'t str, name: &str) -> Vec<&'t str> {
        let parts = text.split(name).skip(1);
        parts.filter_map(|part| part.strip_prefix("=\"")?.split('"').next()).collect()
    }

    #[test]
    fn the_page_needs_nothing_but_its_own_files() {
        let page = FILES[0].2;
        for link in [attributes(page, " src"), attributes(page, " href")].concat() {
            let own = FILES.iter().any(|(path, ..)| path[1..] == *link);
            assert!(own || link.starts_with('#'), "{link}");
        }
        for (path, _, content) in FILES {
            assert!(!content.contains("https://"), "{path}");
            let schemes = content.matches("http://").count();
            let namespaces = content.matches("http://www.w3.org/").count();
            assert_eq!(schemes, namespaces, "{path}");
        }
    }

    #[test]
    fn what_the_page_asks_for() {
        for path in ["/", "/app.js", "/v1/watch/sse", "/v1/migrations/m12/timeline.svg"] {
            assert!(is_of_page(path), "{path}");
        }
        for path in [
            "",
            "/v1/services",
            "/metrics",
            "/v1/migrations/m1/commit",
            "/v1/migrations/../x/timeline.svg",
            "/v1/migrations/m1%2f/timeline.svg",
            "//app.js",
        ] {
            assert!(!is_of_page(path), "{path}");
        }
    }

    #[test]
    fn the_page_works_under_its_policy() {
        let page = FILES[0].2;
        assert!(!page.contains("<style") && !page.contains(" style="));
        assert_eq!(
            page.matches("<script").count(),
            page.matches("<script type=\"module\" src=").count()
        );
        assert!(!page.contains(" onclick") && !FILES[3].2.contains("innerHTML"));
    }
}
