//! What the stack tells about itself.

use ferry_protocol::control::{Connection as Line, Role, TcpState};
use smoltcp::socket::tcp::State;

use super::Stack;
use crate::device::Tuple;
use crate::table::connection::Connection;

impl Stack {
    /// Listeners, connections in every state, and what is left in TIME-WAIT.
    pub fn connections(&self) -> impl Iterator<Item = Line> + '_ {
        let local = self.link.ip().octets();
        let listeners = self.bind.iter().map(move |(port, _)| Line {
            local,
            local_port: port,
            remote: [0; 4],
            remote_port: 0,
            state: TcpState::Listen,
            role: Role::Idle,
            recv_queue: 0,
            send_queue: 0,
            send_next: 0,
            recv_next: 0,
        });
        let connections = self.established.iter().map(move |connection| line(local, connection));
        let waiting = self.time_waits.iter().map(move |(tuple, entry)| Line {
            state: TcpState::TimeWait,
            send_next: entry.seq.0.cast_unsigned(),
            recv_next: entry.ack.0.cast_unsigned(),
            ..blank(local, tuple)
        });
        listeners.chain(connections).chain(waiting)
    }

    /// Tells `f` the parts of the connections' buffers that hold no state, as `(address, length)`: they
    /// need not move. True only until the stack is next called.
    pub fn discardable(&mut self, mut f: impl FnMut(usize, usize)) {
        for connection in self.established.iter_mut() {
            connection.discardable(&mut f);
        }
    }
}

fn blank(local: [u8; 4], tuple: &Tuple) -> Line {
    Line {
        local,
        local_port: tuple.local_port,
        remote: tuple.remote_addr().octets(),
        remote_port: tuple.remote_port,
        state: TcpState::Closed,
        role: Role::Idle,
        recv_queue: 0,
        send_queue: 0,
        send_next: 0,
        recv_next: 0,
    }
}

fn line(local: [u8; 4], connection: &Connection) -> Line {
    let socket = connection.socket();
    let (recv_queue, send_queue) = (socket.recv_queue() as u32, socket.send_queue() as u32);
    Line {
        state: match socket.state() {
            State::Closed => TcpState::Closed,
            State::Listen => TcpState::Listen,
            State::SynSent => TcpState::SynSent,
            State::SynReceived => TcpState::SynReceived,
            State::Established => TcpState::Established,
            State::FinWait1 => TcpState::FinWait1,
            State::FinWait2 => TcpState::FinWait2,
            State::CloseWait => TcpState::CloseWait,
            State::Closing => TcpState::Closing,
            State::LastAck => TcpState::LastAck,
            State::TimeWait => TcpState::TimeWait,
        },
        role: match (send_queue > 0, recv_queue > 0) {
            (false, false) => Role::Idle,
            (true, false) => Role::Sending,
            (false, true) => Role::Receiving,
            (true, true) => Role::Both,
        },
        recv_queue,
        send_queue,
        send_next: connection.flow.nxt.0.cast_unsigned(),
        recv_next: connection.flow.rcv_nxt.0.cast_unsigned(),
        ..blank(local, &connection.flow.tuple)
    }
}
