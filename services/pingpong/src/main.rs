//! The paper's workload: a server on TCP port 7 that echoes every byte.

/// In the guest.
#[cfg(target_os = "hermit")]
fn main() -> std::process::ExitCode {
    runtime::run(async {
        let listener = runtime::net::TcpListener::bind(pingpong::PORT).await?;
        println!("pingpong: echoing on port {}", pingpong::PORT);
        loop {
            // A connection's error is its peer's: reset or gone. The others go on.
            let Ok((stream, _peer)) = listener.accept().await else { continue };
            stream.set_nodelay(true)?;
            tokio::spawn(async move { pingpong::echo(stream).await.ok() });
        }
    })
}

/// On the machine at hand, to try it out: `cargo run -p pingpong [ADDRESS:PORT]`.
#[cfg(not(target_os = "hermit"))]
fn main() -> std::io::Result<()> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:8007".into());
    tokio::runtime::Builder::new_current_thread().enable_io().build()?.block_on(async {
        let listener = tokio::net::TcpListener::bind(&address).await?;
        println!("pingpong: echoing on {}", listener.local_addr()?);
        loop {
            let (stream, _peer) = listener.accept().await?;
            stream.set_nodelay(true)?;
            tokio::spawn(async move { pingpong::echo(stream).await.ok() });
        }
    })
}
