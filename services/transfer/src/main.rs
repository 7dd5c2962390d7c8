//! Down- and uploads of any size over HTTP on port 80.

/// In the guest.
#[cfg(target_os = "hermit")]
fn main() -> std::process::ExitCode {
    runtime::run(runtime::serve(transfer::PORT, transfer::router()))
}

/// On the machine at hand, to try it out: `cargo run -p transfer [ADDRESS:PORT]`.
#[cfg(not(target_os = "hermit"))]
fn main() -> std::io::Result<()> {
    use axum::serve::ListenerExt;

    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:8080".into());
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let listener = tokio::net::TcpListener::bind(&address).await?;
        println!("transfer: http://{}/", listener.local_addr()?);
        let listener = listener.tap_io(|stream| {
            // An error means that the peer has gone already.
            let _ = stream.set_nodelay(true);
        });
        axum::serve(listener, transfer::router()).await
    })
}
