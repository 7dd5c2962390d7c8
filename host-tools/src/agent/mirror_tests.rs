//! Both ends over a stream in memory, at wires on paper.

use std::collections::VecDeque;
use std::io;
use std::task::{Context, Waker};

use super::*;
use crate::security::access::Who;

const GUEST: MacAddr = MacAddr([2, 0, 0, 0, 0, 50]);

/// What was done to a wire, and what is to be received from it.
#[derive(Debug, Default)]
struct Paper {
    passing: VecDeque<Vec<u8>>,
    reader: Option<Waker>,
    sent: Vec<Vec<u8>>,
    listens: bool,
    full: bool,
    lost: usize,
}

#[derive(Clone, Debug, Default)]
struct PaperWire(Arc<Mutex<Paper>>);

impl PaperWire {
    fn with<T>(&self, f: impl FnOnce(&mut Paper) -> T) -> T {
        f(&mut self.0.lock().unwrap())
    }

    fn pass(&self, frame: &[u8]) {
        let reader = self.with(|wire| {
            wire.passing.push_back(frame.to_vec());
            wire.reader.take()
        });
        if let Some(reader) = reader {
            reader.wake();
        }
    }

    async fn sent(&self, count: usize) -> Vec<Vec<u8>> {
        while self.with(|wire| wire.sent.len()) < count {
            tokio::task::yield_now().await;
        }
        self.with(|wire| std::mem::take(&mut wire.sent))
    }
}

impl Wire for PaperWire {
    fn listen(&self) -> Result<(), HostNetError> {
        self.with(|wire| wire.listens = true);
        Ok(())
    }

    fn poll_receive(&self, cx: &mut Context<'_>, frame: &mut [u8]) -> Poll<io::Result<usize>> {
        self.with(|wire| match wire.passing.pop_front() {
            Some(passed) => {
                let len = passed.len().min(frame.len());
                frame[..len].copy_from_slice(&passed[..len]);
                Poll::Ready(Ok(len))
            }
            None => {
                wire.reader = Some(cx.waker().clone());
                Poll::Pending
            }
        })
    }

    fn send(&self, frame: &[u8]) -> io::Result<()> {
        self.with(|wire| {
            if wire.full {
                wire.lost += 1;
                return Err(io::ErrorKind::WouldBlock.into());
            }
            wire.sent.push(frame.to_vec());
            Ok(())
        })
    }
}

fn ethernet(to: [u8; 6], number: u32, len: usize) -> Vec<u8> {
    let mut frame = [&to[..], &[2, 0, 0, 0, 0, 9, 8, 0], &number.to_le_bytes()].concat();
    frame.resize(len, number as u8);
    frame
}

#[tokio::test]
async fn what_is_for_the_guest_arrives_in_order_and_nothing_else() {
    let (from, to) = (PaperWire::default(), PaperWire::default());
    let (ours, theirs) = tokio::io::duplex(4096);
    let source = Mirror::source(Box::new(from.clone()), GUEST, ours);
    let _destination = Mirror::destination(Box::new(to.clone()), GUEST, theirs);
    assert!(!from.with(|wire| wire.listens));
    source.on(7).unwrap();
    assert!(from.with(|wire| wire.listens));
    assert_eq!(from.sent(1).await, [mark::frame([0; 6], 7)]);

    let frames: Vec<_> =
        (0..500).map(|number| ethernet(GUEST.0, number, 60 + number as usize * 2)).collect();
    for (number, frame) in frames.iter().enumerate() {
        from.pass(frame);
        from.pass(&ethernet([0xff; 6], number as u32, 60));
        from.pass(&ethernet([2, 0, 0, 0, 0, 51], number as u32, 60));
        from.pass(&GUEST.0);
        if number % 100 == 99 {
            tokio::task::yield_now().await;
        }
    }
    assert_eq!(to.sent(frames.len()).await, frames);
}

#[tokio::test]
async fn a_full_queue_loses_frames_and_ends_nothing() {
    let (from, to) = (PaperWire::default(), PaperWire::default());
    from.with(|wire| wire.full = true);
    let (ours, theirs) = tokio::io::duplex(4096);
    let source = Mirror::source(Box::new(from.clone()), GUEST, ours);
    let _destination = Mirror::destination(Box::new(to.clone()), GUEST, theirs);
    source.on(7).unwrap();
    to.with(|wire| wire.full = true);
    from.pass(&ethernet(GUEST.0, 1, 60));
    while to.with(|wire| wire.lost) == 0 {
        tokio::task::yield_now().await;
    }
    to.with(|wire| wire.full = false);
    let last = ethernet(GUEST.0, 2, 60);
    from.pass(&last);
    assert_eq!(to.sent(1).await, [last]);
    assert_eq!((from.with(|wire| wire.lost), to.with(|wire| wire.lost)), (1, 1));
}

/// What a destination's end makes of `bytes`: the frames it hands over, and why it ends.
async fn receives(bytes: &[u8]) -> (Vec<Vec<u8>>, FrameError) {
    let wire = PaperWire::default();
    let error = receive(&wire, GUEST, bytes).await;
    (wire.with(|wire| std::mem::take(&mut wire.sent)), error)
}

fn framed(kind: Kind, content: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame::begin(&mut bytes);
    bytes.extend_from_slice(content);
    frame::finish(&mut bytes, kind);
    bytes
}

#[tokio::test]
async fn a_source_reaches_its_own_guest_only() {
    let good = ethernet(GUEST.0, 1, 1518);
    let stranger = framed(Kind::Ethernet, &ethernet([2, 0, 0, 0, 0, 51], 1, 60));
    let broadcast = framed(Kind::Ethernet, &ethernet([0xff; 6], 1, 60));
    let bytes = [stranger, broadcast, framed(Kind::Ethernet, &good)].concat();
    let (sent, error) = receives(&bytes).await;
    assert_eq!(sent, [good]);
    assert!(matches!(error, FrameError::Ended), "{error}");
}

#[tokio::test]
async fn what_is_no_ethernet_frame_ends_it() {
    let short = framed(Kind::Ethernet, &GUEST.0);
    let long = framed(Kind::Ethernet, &ethernet(GUEST.0, 1, 1519));
    let pages = framed(Kind::Pages, &ethernet(GUEST.0, 1, 60));
    for bad in [short, long, pages] {
        let after = [bad, framed(Kind::Ethernet, &ethernet(GUEST.0, 2, 60))].concat();
        let (sent, error) = receives(&after).await;
        assert_eq!(sent, [] as [Vec<u8>; 0]);
        assert!(matches!(error, FrameError::Kind { .. }), "{error}");
    }
    let (sent, error) = receives(b"GET / HTTP/1.1\r\n\r\n").await;
    assert!(sent.is_empty() && matches!(error, FrameError::Magic), "{error}");
}

#[tokio::test]
async fn a_standby_waits_for_one_connection_of_its_own_source() {
    let peer = |who| Peer { who, from: "10.77.0.11:9".into() };
    let (source, other) = (peer(Who::Local), peer(Who::Nobody));
    let awaited = Awaited::<u8>::default();
    assert!(!awaited.expects("m1", &source));
    let mut waiting = awaited.from(&source, "m1");
    assert!(awaited.expects("m1", &source));
    assert!(!awaited.expects("m1", &other) && !awaited.expects("m2", &source));
    awaited.arrived("m2", 2);
    awaited.arrived("m1", 1);
    assert_eq!(waiting.stream().await, Some(1));
    assert!(!awaited.expects("m1", &source), "there is one");

    // The first one's end does not take the second one's place.
    let mut first = awaited.from(&source, "m1");
    let mut second = awaited.from(&source, "m1");
    assert_eq!(first.stream().await, None);
    drop(first);
    assert!(awaited.expects("m1", &source));
    awaited.arrived("m1", 3);
    assert_eq!(second.stream().await, Some(3));
    drop(awaited.from(&source, "m1"));
    assert!(!awaited.expects("m1", &source), "nobody waits");
}
