//! A text editor for several people at once, on port 80.

use notes::Limits;

/// In the guest.
#[cfg(target_os = "hermit")]
fn main() -> std::process::ExitCode {
    runtime::run(runtime::serve(notes::PORT, notes::router(Limits::default())))
}

/// On the machine at hand, to try it out: `cargo run -p notes [ADDRESS:PORT]`.
#[cfg(not(target_os = "hermit"))]
fn main() -> std::io::Result<()> {
    use axum::serve::ListenerExt;

    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:8080".into());
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let listener = tokio::net::TcpListener::bind(&address).await?;
        println!("notes: http://{}/", listener.local_addr()?);
        let listener = listener.tap_io(|stream| {
            // An error means that the peer has gone already.
            let _ = stream.set_nodelay(true);
        });
        axum::serve(listener, notes::router(Limits::default())).await
    })
}
