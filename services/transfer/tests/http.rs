//! The service over HTTP: in memory where that shows enough, over loopback where the wire matters.

use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, Method, Request, StatusCode};
use futures_util::StreamExt;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tower::ServiceExt;

const PATIENCE: Duration = Duration::from_secs(60);

async fn call(method: Method, path: &str, body: Body) -> (StatusCode, HeaderMap, Vec<u8>) {
    let request = Request::builder().method(method).uri(path).body(body).unwrap();
    let response = transfer::router().oneshot(request).await.unwrap();
    let (head, body) = response.into_parts();
    let bytes = axum::body::to_bytes(body, 1 << 30).await.unwrap();
    (head.status, head.headers, bytes.to_vec())
}

async fn get(path: &str) -> (StatusCode, HeaderMap, Vec<u8>) {
    call(Method::GET, path, Body::empty()).await
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test]
async fn a_download_is_the_stream_for_its_seed() {
    let (status, headers, body) = get("/bytes/20?seed=0").await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(headers["content-length"], "20");
    assert_eq!(headers["content-type"], "application/octet-stream");
    assert_eq!(hex(&body), "afcd1d7b39a820e2f465b9a16a9e786e4f450980");
}

#[tokio::test]
async fn frames_join_without_a_seam() {
    for length in [0, 1, 7, 8, 16_383, 16_384, 16_385, 100_003] {
        let (_, _, body) = get(&format!("/bytes/{length}?seed=18446744073709551615")).await;
        let mut expected = vec![0; length];
        transfer::words::fill(u64::MAX, 0, &mut expected);
        assert!(body == expected, "the body of {length} bytes is wrong");
    }
}

#[tokio::test]
async fn the_seed_is_0_where_none_is_given() {
    assert_eq!(get("/bytes/64").await.2, get("/bytes/64?seed=0").await.2);
}

#[tokio::test]
async fn head_tells_the_length_of_the_longest_body() {
    let (status, headers, body) =
        call(Method::HEAD, "/bytes/18446744073709551615?seed=1", Body::empty()).await;
    assert_eq!((status, body.len()), (StatusCode::OK, 0));
    assert_eq!(headers["content-length"], "18446744073709551615");
}

#[tokio::test]
async fn wrong_requests_are_told_what_is_wrong() {
    for (path, status, part) in [
        ("/bytes/many", 400, "n must be a whole number"),
        ("/bytes/-1", 400, "n must be a whole number"),
        ("/bytes/18446744073709551616", 400, "n must be a whole number"),
        ("/bytes/8?seed=x", 400, "seed must be a whole number"),
        ("/bytes", 404, "no such path"),
        ("/sink", 405, "method not allowed"),
    ] {
        let (got, _, body) = get(path).await;
        let text = String::from_utf8(body).unwrap();
        assert_eq!(got.as_u16(), status, "{path}: {text}");
        assert!(text.contains(part), "{path}: {text}");
    }
}

#[tokio::test]
async fn an_upload_is_counted_and_digested() {
    let (status, headers, body) = call(Method::PUT, "/sink", Body::from("abc")).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(headers["content-type"], "application/json");
    assert_eq!(
        String::from_utf8(body).unwrap(),
        r#"{"bytes":3,"sha256":"ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"}"#
    );
}

#[tokio::test]
async fn an_upload_may_be_larger_than_any_limit() {
    // axum's default limit for extractors is 2 MiB; the sink has none.
    const FRAMES: u64 = 300;
    let frame = bytes::Bytes::from(vec![7; 65_536]);
    let mut digest = Sha256::new();
    (0..FRAMES).for_each(|_| digest.update(&frame));
    let frames = futures_util::stream::iter(0..FRAMES)
        .map(move |_| Ok::<_, std::convert::Infallible>(frame.clone()));
    let (_, _, body) = call(Method::PUT, "/sink", Body::from_stream(frames)).await;
    let expected =
        format!(r#"{{"bytes":{},"sha256":"{}"}}"#, FRAMES * 65_536, hex(&digest.finalize()));
    assert_eq!(String::from_utf8(body).unwrap(), expected);
}

/// Serves one test on loopback and returns a connection to it.
async fn connect() -> TcpStream {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, transfer::router()).await });
    TcpStream::connect(address).await.unwrap()
}

/// Reads up to the empty line that ends a response's header.
async fn read_header(stream: &mut TcpStream) -> String {
    let mut header = Vec::new();
    while !header.ends_with(b"\r\n\r\n") {
        header.push(timeout(PATIENCE, stream.read_u8()).await.expect("no answer").unwrap());
    }
    String::from_utf8(header).unwrap().to_lowercase()
}

#[tokio::test]
async fn on_the_wire_a_body_has_its_length_and_starts_at_once() {
    // Far more than fits into memory: the first bytes can only come if it is streamed.
    let mut stream = connect().await;
    stream
        .write_all(b"GET /bytes/9223372036854775807?seed=5 HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .unwrap();
    let header = read_header(&mut stream).await;
    assert!(header.starts_with("http/1.1 200"), "{header}");
    assert!(header.contains("content-length: 9223372036854775807"), "{header}");
    let mut got = vec![0; 1 << 20];
    timeout(PATIENCE, stream.read_exact(&mut got)).await.expect("the body stands still").unwrap();
    let mut expected = vec![0; 1 << 20];
    transfer::words::fill(5, 0, &mut expected);
    assert!(got == expected);
}

#[tokio::test]
async fn on_the_wire_head_has_no_body_and_the_connection_goes_on() {
    let mut stream = connect().await;
    stream
        .write_all(
            b"HEAD /bytes/1000 HTTP/1.1\r\nHost: x\r\n\r\n\
              PUT /sink HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n\
              3\r\nabc\r\n0\r\n\r\n",
        )
        .await
        .unwrap();
    let head = read_header(&mut stream).await;
    assert!(head.contains("content-length: 1000"), "{head}");
    let put = read_header(&mut stream).await;
    assert!(put.starts_with("http/1.1 200"), "{put}");
}
