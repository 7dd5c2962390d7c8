//! The scenario against the service as a program of this machine. Between browser and service lies a
//! relay that stands still for a while, which is what a browser sees of a move.

use std::net::SocketAddr;
use std::time::Duration;

use axum::serve::ListenerExt;
use ferry_browser::browser::CHROMIUM;
use ferry_browser::scenario::Scenario;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

/// Much longer than a move's.
const PAUSE: Duration = Duration::from_millis(400);

/// Passes bytes on, but none before the instant in `resume`.
async fn relay(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    resume: watch::Receiver<Instant>,
) -> std::io::Result<()> {
    let mut bytes = vec![0; 16 << 10];
    loop {
        let len = from.read(&mut bytes).await?;
        let until = *resume.borrow();
        sleep_until(until).await;
        if len == 0 {
            return to.shutdown().await;
        }
        to.write_all(&bytes[..len]).await?;
    }
}

/// Service and relay, on a thread of their own for as long as the test runs.
fn serve(resume: watch::Receiver<Instant>) -> SocketAddr {
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let service = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = service.local_addr().unwrap();
            let service = service.tap_io(|stream| stream.set_nodelay(true).unwrap());
            let router = notes::router(notes::Limits::default());
            tokio::spawn(async move { axum::serve(service, router).await });
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            tell.send(listener.local_addr().unwrap()).unwrap();
            loop {
                let (near, _) = listener.accept().await.unwrap();
                let far = TcpStream::connect(address).await.unwrap();
                far.set_nodelay(true).unwrap();
                near.set_nodelay(true).unwrap();
                let ((near_in, near_out), (far_in, far_out)) =
                    (near.into_split(), far.into_split());
                tokio::spawn(relay(near_in, far_out, resume.clone()));
                tokio::spawn(relay(far_in, near_out, resume.clone()));
            }
        });
    });
    told.recv().unwrap()
}

#[test]
fn typing_goes_on_through_pauses() {
    let (pause, resume) = watch::channel(Instant::now());
    let address = serve(resume);
    let scenario = Scenario {
        url: format!("http://{address}"),
        chromium: CHROMIUM.to_owned(),
        moves: 3,
        keys: 60,
        pictures: None,
    };
    let report = scenario
        .run(|_| pause.send(Instant::now() + PAUSE).map_err(|error| error.to_string()))
        .unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(report.moves_ms.len(), 3);
    for person in &report.people {
        assert!(person.keys >= 4 * 60);
        assert!(
            person.longest_answer_ms >= PAUSE.as_millis() as f64 / 2.0,
            "{} did not see the pauses: {report:?}",
            person.name
        );
    }
}
