//! Documents over plain HTTP, and the page's files.

use axum::body::Body;
use axum::http::{HeaderMap, Request, StatusCode};
use notes::Limits;
use serde_json::{Value, json};
use tower::ServiceExt;

async fn call(
    router: &axum::Router,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: impl Into<Body>,
) -> (StatusCode, HeaderMap, String) {
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = router.clone().oneshot(request.body(body.into()).unwrap()).await.unwrap();
    let (head, body) = response.into_parts();
    let bytes = axum::body::to_bytes(body, 1 << 24).await.unwrap();
    (head.status, head.headers, String::from_utf8(bytes.to_vec()).unwrap())
}

async fn get(router: &axum::Router, path: &str) -> (StatusCode, HeaderMap, String) {
    call(router, "GET", path, &[], Body::empty()).await
}

async fn create(router: &axum::Router, document: Value) -> (StatusCode, Value) {
    let json = [("content-type", "application/json")];
    let (status, _, body) = call(router, "POST", "/api/docs", &json, document.to_string()).await;
    (status, serde_json::from_str(&body).unwrap())
}

#[tokio::test]
async fn a_document_is_made_listed_written_to_read_and_deleted() {
    let router = notes::router(Limits::default());
    let (status, made) = create(&router, json!({ "title": " Plan ", "text": "one" })).await;
    assert_eq!(status, StatusCode::CREATED);
    let id = made["id"].as_str().unwrap();
    let text = format!("/api/docs/{id}/text");

    let (_, _, list) = get(&router, "/api/docs").await;
    let list: Value = serde_json::from_str(&list).unwrap();
    assert_eq!(
        list["documents"],
        json!([{ "id": id, "title": "Plan", "characters": 3, "people": 0, "edited_s_ago": 0 }])
    );
    assert_eq!(call(&router, "POST", &text, &[], " two").await.0, StatusCode::OK);
    let (status, headers, body) = get(&router, &text).await;
    assert_eq!((status, body.as_str()), (StatusCode::OK, "one two"));
    assert_eq!(headers["cache-control"], "no-store");

    let path = format!("/api/docs/{id}");
    assert_eq!(call(&router, "DELETE", &path, &[], "").await.0, StatusCode::NO_CONTENT);
    let (status, _, body) = get(&router, &path).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    assert!(body.contains("no document"), "{body}");
}

#[tokio::test]
async fn limits_are_refused_with_their_name() {
    let limits = Limits { documents: 1, document_bytes: 600, ..Limits::default() };
    let router = notes::router(limits);
    let (status, error) = create(&router, json!({ "text": "x".repeat(700) })).await;
    assert_eq!(status, StatusCode::INSUFFICIENT_STORAGE);
    assert!(error["error"].as_str().unwrap().contains("limit of 600 bytes"), "{error}");
    let (status, error) = create(&router, json!({ "title": "x".repeat(401) })).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(error["error"].as_str().unwrap().contains("the limit is 400"), "{error}");
    assert_eq!(create(&router, json!({})).await.0, StatusCode::CREATED);
    let (status, error) = create(&router, json!({})).await;
    assert_eq!(status, StatusCode::INSUFFICIENT_STORAGE);
    assert!(error["error"].as_str().unwrap().starts_with("1 documents is the limit"), "{error}");
}

#[tokio::test]
async fn the_page_is_served_whole_and_only_once() {
    let router = notes::router(Limits::default());
    for (path, kind, part) in [
        ("/", "text/html; charset=utf-8", "<title>Notes</title>"),
        ("/d/0123456789abcdef", "text/html; charset=utf-8", "<textarea"),
        ("/notes.js", "text/javascript; charset=utf-8", "WebSocket"),
        ("/style.css", "text/css; charset=utf-8", "prefers-color-scheme: dark"),
        ("/icon.svg", "image/svg+xml", "<svg"),
    ] {
        let (status, headers, body) = get(&router, path).await;
        assert_eq!(status, StatusCode::OK, "{path}");
        assert_eq!(headers["content-type"], kind, "{path}");
        assert!(body.contains(part), "{path}");
        assert!(headers["content-security-policy"].to_str().unwrap().contains("'none'"));

        let known = [("if-none-match", headers["etag"].to_str().unwrap())];
        let (status, _, body) = call(&router, "GET", path, &known, "").await;
        assert_eq!((status, body.len()), (StatusCode::NOT_MODIFIED, 0), "{path}");
    }
}

#[tokio::test]
async fn the_live_path_takes_websockets_only() {
    let router = notes::router(Limits::default());
    let (_, made) = create(&router, json!({})).await;
    let path = format!("/api/docs/{}/live", made["id"].as_str().unwrap());
    let (status, _, body) = get(&router, &path).await;
    assert_eq!(status, StatusCode::UPGRADE_REQUIRED);
    assert!(body.contains("WebSocket"), "{body}");
}
