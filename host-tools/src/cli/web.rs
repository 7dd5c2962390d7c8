//! `web`: the manager's page for a browser on this machine.
//!
//! A browser cannot use a unix socket and has no certificate; this command has both. It listens on loopback,
//! asks the manager in the user's name for what the page reads, and for nothing else. Others on this machine
//! can reach the port too, so everything lies below a path that only the printed URL tells.

use std::process::ExitCode;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderName, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use clap::Args;

use super::Done;
use super::output::{print, print_json_line};
use crate::api::{ApiError, Client, Overview};
use crate::manager::web::is_of_page;
use crate::wire::{self, Address};

/// `web`.
#[derive(Clone, Copy, Debug, Args)]
#[expect(missing_docs, reason = "the texts are clap's help")]
pub struct WebArgs {
    #[arg(
        long,
        value_name = "PORT",
        default_value_t = 0,
        help = "Port on 127.0.0.1 [default: a free one]",
        hide_default_value = true
    )]
    pub port: u16,
}

struct Proxy {
    manager: Client,
    /// What paths begin with: `/` and the secret.
    prefix: String,
    /// What a browser that was given the URL calls this server.
    hosts: [String; 2],
}

/// `web`.
///
/// # Errors
/// The manager does not answer, or the port is taken.
pub async fn web(manager: Client, args: WebArgs, json: bool) -> Done {
    // Better now, in the terminal, than later in a browser.
    let _: Overview = manager.get("/v1/overview").await?;
    let mut secret = [0; 16];
    getrandom::fill(&mut secret).map_err(ApiError::failed)?;
    let prefix: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
    let address = Address::Tcp(format!("127.0.0.1:{}", args.port));
    let listener = wire::listen(&address).await.map_err(ApiError::failed)?;
    let port = listener.tcp_address().map_or(args.port, |address| address.port());
    let hosts = [format!("127.0.0.1:{port}"), format!("localhost:{port}")];
    let url = format!("http://127.0.0.1:{port}/{prefix}/");
    let proxy = Arc::new(Proxy { manager, prefix: format!("/{prefix}"), hosts });
    let router = Router::new().fallback(pass).with_state(proxy);
    if json {
        print_json_line(&serde_json::json!({ "url": url }))?;
    } else {
        print(&format!(
            "{url}\nOpen it in a browser on this machine; it shows and changes nothing. Ctrl-C ends it.\n"
        ));
    }
    axum::serve(listener, router).await.map_err(ApiError::failed)?;
    Ok(ExitCode::SUCCESS)
}

async fn pass(State(proxy): State<Arc<Proxy>>, request: Request) -> Response {
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
    let path = match proxy.path(request.method(), host, request.uri().path()) {
        Ok(path) => path,
        Err(status) => return status.into_response(),
    };
    match proxy.manager.send(Method::GET, path, Body::empty()).await {
        Ok(answer) => {
            let (mut parts, body) = answer.into_parts();
            // About the connection to the manager, not about the answer.
            for name in [header::CONNECTION, header::TRANSFER_ENCODING, KEEP_ALIVE] {
                parts.headers.remove(name);
            }
            Response::from_parts(parts, Body::new(body))
        }
        Err(error) => error.into_response(),
    }
}

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");

impl Proxy {
    /// What the manager is asked for, if the asker may.
    fn path<'p>(
        &self,
        method: &Method,
        host: Option<&str>,
        path: &'p str,
    ) -> Result<&'p str, StatusCode> {
        // A page of another server whose name leads here says that name.
        if !host.is_some_and(|host| self.hosts.iter().any(|own| own == host)) {
            return Err(StatusCode::MISDIRECTED_REQUEST);
        }
        let path = path.strip_prefix(&self.prefix).ok_or(StatusCode::NOT_FOUND)?;
        if !is_of_page(path) {
            return Err(StatusCode::NOT_FOUND);
        }
        if method != Method::GET {
            return Err(StatusCode::METHOD_NOT_ALLOWED);
        }
        Ok(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_page_below_the_secret_and_only_to_look() {
        let proxy = Proxy {
            manager: Client::new(Address::Unix("/nowhere".into()), "the manager"),
            prefix: "/s3cret".into(),
            hosts: ["127.0.0.1:7".into(), "localhost:7".into()],
        };
        let ask = |method: Method, host, path| proxy.path(&method, host, path);
        let own = Some("127.0.0.1:7");
        assert_eq!(ask(Method::GET, own, "/s3cret/"), Ok("/"));
        assert_eq!(
            ask(Method::GET, Some("localhost:7"), "/s3cret/v1/watch/sse"),
            Ok("/v1/watch/sse")
        );
        for path in
            ["/", "/app.js", "/S3CRET/", "/s3cret", "/s3cret/v1/services", "/s3cret/v1/images"]
        {
            assert_eq!(ask(Method::GET, own, path), Err(StatusCode::NOT_FOUND), "{path}");
        }
        for host in [None, Some("evil.example"), Some("127.0.0.1")] {
            assert_eq!(ask(Method::GET, host, "/s3cret/"), Err(StatusCode::MISDIRECTED_REQUEST));
        }
        assert_eq!(ask(Method::POST, own, "/s3cret/"), Err(StatusCode::METHOD_NOT_ALLOWED));
    }
}
