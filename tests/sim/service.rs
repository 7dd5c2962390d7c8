//! The service in the simulation: what the client asks for in the first octets of a connection.

use std::collections::BTreeMap;
use std::task::{Context, Poll, Waker};

use ferry_net::{ConnId, Stack, StreamError};

use crate::client::REQUEST_LEN;
use crate::random::octets;

pub const PORT: u16 = 7;

#[derive(Default)]
struct Session {
    request: Vec<u8>,
    received: u64,
    sent: u64,
    /// Taken from the peer, to be sent back.
    echo: Vec<u8>,
    finished: bool,
}

#[derive(Default)]
pub struct Service {
    sessions: BTreeMap<ConnId, Session>,
}

impl Service {
    /// Lets every session go as far as it comes.
    pub fn run(&mut self, stack: &mut Stack) {
        let cx = &mut Context::from_waker(Waker::noop());
        while let Poll::Ready(id) = stack.poll_accept(cx, PORT) {
            self.sessions.insert(id.expect("the port is bound"), Session::default());
        }
        self.sessions.retain(|&id, session| {
            while session.step(stack, cx, id) {}
            if session.finished {
                stack.close(id);
            }
            !session.finished
        });
    }

    pub fn sessions(&self) -> usize {
        self.sessions.len()
    }
}

impl Session {
    /// `true` if something moved.
    fn step(&mut self, stack: &mut Stack, cx: &mut Context<'_>, id: ConnId) -> bool {
        if self.finished {
            return false;
        }
        let read = self.read(stack, cx, id);
        let wrote = self.write(stack, cx, id);
        read || wrote
    }

    fn read(&mut self, stack: &mut Stack, cx: &mut Context<'_>, id: ConnId) -> bool {
        if self.echo.len() > 8192 {
            return false;
        }
        let mut buf = [0; 1500];
        let want = if self.request.len() < REQUEST_LEN {
            REQUEST_LEN - self.request.len()
        } else {
            buf.len()
        };
        match stack.poll_recv(cx, id, &mut buf[..want]) {
            Poll::Pending => false,
            Poll::Ready(Ok(0)) => {
                self.finished = self.echo.is_empty();
                false
            }
            Poll::Ready(Ok(len)) => {
                self.take(&buf[..len]);
                true
            }
            Poll::Ready(Err(error)) => panic!("{id:?}: {error}, after {} octets", self.received),
        }
    }

    fn take(&mut self, bytes: &[u8]) {
        if self.request.len() < REQUEST_LEN {
            self.request.extend_from_slice(bytes);
            return;
        }
        let (role, stream, _) = self.work().expect("a whole request");
        let expected = octets(stream, self.received, bytes.len());
        if let Some(at) = (0..bytes.len()).find(|&at| bytes[at] != expected[at]) {
            let wrong = (0..bytes.len()).filter(|&at| bytes[at] != expected[at]).count();
            panic!(
                "octet {} is {} and not {}, {wrong} of {} wrong from {} on",
                self.received + at as u64,
                bytes[at],
                expected[at],
                bytes.len(),
                self.received
            );
        }
        self.received += bytes.len() as u64;
        if role != 1 {
            self.echo.extend_from_slice(bytes);
        }
    }

    fn work(&self) -> Option<(u8, u64, u64)> {
        let request: &[u8; REQUEST_LEN] = self.request.as_slice().try_into().ok()?;
        let word =
            |at: usize| u64::from_le_bytes(request[at..at + 8].try_into().expect("8 octets"));
        Some((request[0], word(1), word(9)))
    }

    fn write(&mut self, stack: &mut Stack, cx: &mut Context<'_>, id: ConnId) -> bool {
        let Some((role, stream, len)) = self.work() else { return false };
        let chunk = match role {
            0 | 4 => octets(stream, self.sent, (len - self.sent).min(4096) as usize),
            1 if self.received == len => len.to_le_bytes()[self.sent as usize..].to_vec(),
            1 => Vec::new(),
            _ => core::mem::take(&mut self.echo),
        };
        if chunk.is_empty() {
            return false;
        }
        let written = match stack.poll_send(cx, id, &chunk) {
            Poll::Pending => 0,
            Poll::Ready(Ok(written)) => written,
            Poll::Ready(Err(StreamError::Closed)) => panic!("{id:?} was closed"),
            Poll::Ready(Err(error)) => panic!("{id:?}: {error}"),
        };
        self.sent += written as u64;
        self.finished = role == 4 && self.sent == len;
        if matches!(role, 2 | 3) {
            self.echo = chunk[written..].to_vec();
        }
        written > 0
    }
}
