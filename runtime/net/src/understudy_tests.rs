use core::task::{Context, Poll, Waker};

use super::*;
use crate::{Config, DrainStatus, Duration, Instant, Nic, Stack, Storage};

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];

/// Both directions of a wire without delay.
#[derive(Default)]
struct Wire {
    to_service: VecDeque<Vec<u8>>,
    to_peer: VecDeque<Vec<u8>>,
}

impl Nic for Wire {
    fn receive<R>(&mut self, f: impl FnOnce(&[u8]) -> R) -> Option<R> {
        self.to_service.pop_front().map(|frame| f(&frame))
    }

    fn transmit_ready(&mut self) -> bool {
        true
    }

    fn transmit(&mut self, len: usize, fill: impl FnOnce(&mut [u8])) -> bool {
        let mut frame = vec![0; len];
        fill(&mut frame);
        self.to_peer.push_back(frame);
        true
    }

    fn flush(&mut self) {}
}

impl Wire {
    /// Lets the peer answer; whether there was anything to answer.
    fn answers(&mut self, peer: &mut Peer) -> bool {
        let sent = core::mem::take(&mut self.to_peer);
        sent.iter().for_each(|frame| peer.answer(frame, &mut self.to_service));
        !sent.is_empty()
    }
}

#[test]
fn a_whole_rehearsal_needs_no_time() {
    let now = Instant::from_millis(5);
    let config =
        Config { mac: MAC, ip: [10, 0, 0, 2].into(), prefix: 24, gateway: None, seed: [7; 4] };
    let buffers = |_| Some(Storage { rx: vec![0; 65535], tx: vec![0; 65535] });
    let mut stack = Stack::new(&config, buffers, now);
    stack.listen(7, 16).unwrap();
    let (mut wire, mut peer) = (Wire::default(), Peer::new(MAC, [10, 0, 0, 2]));
    for _ in 0..3 {
        peer.connect(7, &mut wire.to_service);
    }
    let mut accepted = Vec::new();
    let mut serve = |stack: &mut Stack, wire: &mut Wire, peer: &mut Peer| {
        for _ in 0..100 {
            stack.poll(now, wire);
            let cx = &mut Context::from_waker(Waker::noop());
            while let Poll::Ready(id) = stack.poll_accept(cx, 7) {
                accepted.push(id.unwrap());
            }
            for &id in &accepted {
                let mut buf = [0; 2048];
                while let Poll::Ready(read) = stack.poll_recv(cx, id, &mut buf) {
                    let len = read.unwrap();
                    assert!(stack.poll_send(cx, id, &buf[..len]).is_ready());
                }
            }
            if !wire.answers(peer) && wire.to_service.is_empty() {
                return;
            }
        }
        panic!("they never come to rest");
    };
    serve(&mut stack, &mut wire, &mut peer);
    assert_eq!(peer.open(), 3);
    peer.say(7, &[1; 4000], &mut wire.to_service);
    serve(&mut stack, &mut wire, &mut peer);
    assert_eq!(peer.received(), 12_000);

    stack.drain_begin(now, now + Duration::from_millis(500));
    let mut status = stack.drain_poll(now, &mut wire);
    while let DrainStatus::Pending(_) = status {
        assert!(wire.answers(&mut peer), "the drain waits for time to pass");
        status = stack.drain_poll(now, &mut wire);
    }
    let DrainStatus::Done(drained) = status else { unreachable!() };
    assert_eq!((drained.connections, drained.settled, drained.timed_out), (3, 3, false));

    wire.to_peer.clear();
    peer.say(7, &[2; 100], &mut wire.to_service);
    let resumed = stack.resume(now, [8; 4], &mut wire);
    assert_eq!((resumed.connections, resumed.held_frames), (3, 3));
    serve(&mut stack, &mut wire, &mut peer);
    assert_eq!(peer.received(), 12_300);
}
