//! What anybody on the network may send to a service that sleeps.

use std::time::Duration;

use ferry_fuzz::mend_frame;
use host_tools::holder::{HeldConnection, HeldTable, Holder, OnSyn};
use host_tools::hostnet::MacAddr;

/// Longest frame of the network.
const FRAME: usize = 1514;

pub fn run(input: &[u8]) {
    let Some((&mode, rest)) = input.split_first() else { return };
    let connection = HeldConnection {
        remote: [10, 77, 0, 100].into(),
        remote_port: 40_000,
        local_port: 7,
        send_next: u32::MAX - 1,
        recv_next: 5,
    };
    let table = HeldTable { connections: vec![connection], ports: vec![7] };
    let on_syn = [OnSyn::Hold, OnSyn::Refuse, OnSyn::Wake][usize::from(mode >> 1) % 3];
    let mut holder =
        Holder::new(MacAddr([2, 0, 0, 0, 0, 50]), [10, 77, 0, 50].into(), &table, on_syn);
    // Each frame: its length, the time before it, its bytes.
    let (mut rest, mut now) = (rest, Duration::ZERO);
    while let Some((&[len, pause], after)) = rest.split_first_chunk::<2>() {
        let (frame, after) = after.split_at(usize::from(len).min(after.len()));
        let mut frame = frame.to_vec();
        // Odd: checksums are made right.
        if mode & 1 == 1 {
            mend_frame(&mut frame);
        }
        now += Duration::from_millis(u64::from(pause));
        let reaction = holder.receive(&frame, now);
        assert!(!reaction.wake || on_syn == OnSyn::Wake, "woken by somebody who may not");
        if let Some(answer) = reaction.frame {
            assert!((14..=FRAME).contains(&answer.len()), "{} bytes", answer.len());
            assert!(answer.len() <= frame.len().max(60), "an answer longer than its question");
        }
        rest = after;
    }
    assert!(holder.counts().closed <= 1, "more connections closed than there are");
}
