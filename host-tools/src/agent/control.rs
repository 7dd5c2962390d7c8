//! The control port of a guest. The guest is not trusted: every frame is checked, what is no frame is
//! counted and dropped, and no wait is without a limit.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ferry_protocol::control::{Answer, FromGuest, Hello, Order, Refusal, Request};
use ferry_protocol::frame::{BURST, Decoder, MAX_FRAME, encode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{oneshot, watch};

use crate::trace::{self, TraceId};

/// Why an order was not carried out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what the fields are")]
pub enum OrderError {
    #[error("the guest refused {order}: {}", explain(*refusal))]
    Refused { order: &'static str, refusal: Refusal },
    #[error("the guest did not answer {order} within {} ms", limit.as_millis())]
    Timeout { order: &'static str, limit: Duration },
    #[error("the guest ended before it answered {order}")]
    Gone { order: &'static str },
    #[error("the guest answered {order} with something else")]
    Mismatch { order: &'static str },
}

/// A refusal in words.
#[must_use]
pub fn explain(refusal: Refusal) -> String {
    match refusal {
        Refusal::State(state) => format!("it is {}", format!("{state:?}").to_lowercase()),
        Refusal::Header => "its memory does not begin with a service's header".into(),
        Refusal::BuildId => "the memory was written by another image".into(),
        Refusal::Range => "the memory names addresses outside this guest's RAM".into(),
        Refusal::Epoch => "the memory is not older than the ownership it was given".into(),
        Refusal::Busy => "the service did not come to rest in time".into(),
    }
}

/// The name of an order, for messages.
#[must_use]
pub fn name(order: &Order) -> &'static str {
    match order {
        Order::Hello => "hello",
        Order::Scan { .. } => "scan",
        Order::CloseQuiet => "close the windows of quiet peers",
        Order::Drain { .. } => "drain",
        Order::Freeze { .. } => "freeze",
        Order::Thaw => "thaw",
        Order::Resume { .. } => "resume",
        Order::Connections => "connections",
        Order::Shutdown => "shutdown",
        Order::Trace { .. } => "trace",
    }
}

/// What a guest has said of itself, unasked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Said {
    /// It has booted.
    pub ready: Option<Hello>,
    /// The service ended by itself.
    pub exited: Option<i32>,
    /// The port is closed.
    pub gone: bool,
}

type Pending = Arc<Mutex<HashMap<u32, oneshot::Sender<Answer>>>>;

/// A guest behind its control port.
#[derive(Debug)]
pub struct Guest {
    writer: tokio::sync::Mutex<OwnedWriteHalf>,
    pending: Pending,
    next_id: AtomicU32,
    said: watch::Receiver<Said>,
    refused: Arc<AtomicU64>,
}

/// An order on its way.
#[derive(Debug)]
pub struct Outstanding {
    order: &'static str,
    answer: oneshot::Receiver<Answer>,
}

impl Guest {
    /// Takes over a connected control port. The first order gets the id `first_id`.
    #[must_use]
    pub fn new(stream: UnixStream, first_id: u32) -> Self {
        let (reader, writer) = stream.into_split();
        let pending = Pending::default();
        let refused = Arc::new(AtomicU64::new(0));
        let (sender, said) = watch::channel(Said::default());
        tokio::spawn(listen(reader, Arc::clone(&pending), Arc::clone(&refused), sender));
        Self {
            writer: tokio::sync::Mutex::new(writer),
            pending,
            next_id: AtomicU32::new(first_id),
            said,
            refused,
        }
    }

    /// What it says unasked, as it says it.
    #[must_use]
    pub fn said(&self) -> watch::Receiver<Said> {
        self.said.clone()
    }

    /// Frames that were refused so far.
    #[must_use]
    pub fn refused_frames(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Gives an order and waits for the answer.
    ///
    /// # Errors
    /// The guest refused, ended, or did not answer in time.
    pub async fn order(&self, order: Order, limit: Duration) -> Result<Answer, OrderError> {
        let name = name(&order);
        let exchange = async { self.begin(order).await?.answer().await };
        tokio::time::timeout(limit, exchange)
            .await
            .unwrap_or(Err(OrderError::Timeout { order: name, limit }))
    }

    /// Tells the guest to which trace the next orders belong, or that they belong to none. Nobody waits for
    /// its answer: guests of images that do not know the order refuse it.
    pub async fn trace(&self) {
        let id = trace::current().map_or(0, TraceId::bits);
        let _ = self.begin(Order::Trace { id }).await;
    }

    /// Gives an order; the answer is awaited separately.
    ///
    /// # Errors
    /// The guest has ended.
    pub async fn begin(&self, order: Order) -> Result<Outstanding, OrderError> {
        let name = name(&order);
        let gone = OrderError::Gone { order: name };
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let (sender, answer) = oneshot::channel();
        lock(&self.pending).insert(id, sender);
        let mut buf = [0; MAX_FRAME];
        let frame = encode(&Request { id, order }, &mut buf)
            .map_err(|_| OrderError::Mismatch { order: name })?;
        let mut bursts = frame.to_vec();
        bursts.resize(frame.len().next_multiple_of(BURST), 0);
        let mut writer = self.writer.lock().await;
        writer.write_all(&bursts).await.map_err(|_| gone.clone())?;
        if self.said.borrow().gone {
            // The reader had ended before the order was listed: nobody will answer it.
            lock(&self.pending).remove(&id);
            return Err(gone);
        }
        Ok(Outstanding { order: name, answer })
    }
}

impl Outstanding {
    /// Waits for the answer; the caller sets the limit.
    ///
    /// # Errors
    /// The guest refused or ended.
    pub async fn answer(self) -> Result<Answer, OrderError> {
        match self.answer.await {
            Ok(Answer::Refused(refusal)) => Err(OrderError::Refused { order: self.order, refusal }),
            Ok(answer) => Ok(answer),
            Err(_) => Err(OrderError::Gone { order: self.order }),
        }
    }
}

fn lock(
    pending: &Mutex<HashMap<u32, oneshot::Sender<Answer>>>,
) -> std::sync::MutexGuard<'_, HashMap<u32, oneshot::Sender<Answer>>> {
    pending.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Reads frames until the port closes.
async fn listen(
    mut reader: OwnedReadHalf,
    pending: Pending,
    refused: Arc<AtomicU64>,
    said: watch::Sender<Said>,
) {
    let mut decoder = Decoder::new();
    let mut buf = [0; 2048];
    loop {
        let read = match reader.read(&mut buf).await {
            Ok(0) | Err(_) => break,
            Ok(read) => read,
        };
        for &byte in &buf[..read] {
            match decoder.push::<FromGuest>(byte) {
                None => {}
                Some(Err(_)) => {
                    refused.fetch_add(1, Ordering::Relaxed);
                }
                Some(Ok(FromGuest::Ready(hello))) => {
                    said.send_modify(|said| said.ready = Some(hello));
                }
                Some(Ok(FromGuest::Exited { code })) => {
                    said.send_modify(|said| said.exited = Some(code));
                }
                Some(Ok(FromGuest::Answer { id, answer })) => match lock(&pending).remove(&id) {
                    // Whoever asked may have given up.
                    Some(sender) => drop(sender.send(answer)),
                    None => {
                        refused.fetch_add(1, Ordering::Relaxed);
                    }
                },
            }
        }
    }
    said.send_modify(|said| said.gone = true);
    lock(&pending).clear();
}

#[cfg(test)]
mod tests {
    use super::*;
    use ferry_protocol::control::{Range, State};

    const LIMIT: Duration = Duration::from_secs(2);

    fn hello() -> Hello {
        let portable = Range { addr: 32 << 20, len: 4096 };
        Hello { build_id: [1; 32], state: State::Running, portable, epoch: 1 }
    }

    async fn send(stream: &mut UnixStream, message: &FromGuest) {
        stream.write_all(encode(message, &mut [0; MAX_FRAME]).unwrap()).await.unwrap();
    }

    async fn request(stream: &mut UnixStream) -> Request {
        let mut decoder = Decoder::new();
        loop {
            let byte = stream.read_u8().await.unwrap();
            if let Some(request) = decoder.push(byte) {
                return request.unwrap();
            }
        }
    }

    #[tokio::test]
    async fn answers_find_their_orders_among_garbage() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let guest = Guest::new(ours, 1);
        let script = tokio::spawn(async move {
            let request = request(&mut theirs).await;
            assert_eq!(request.order, Order::Hello);
            theirs.write_all(&[b'F'; 3000]).await.unwrap();
            // A frame whose length is absurd, an answer nobody asked for, then the right one.
            theirs.write_all(b"FY\x01\x00\xff\xff\xff\xff").await.unwrap();
            let stray = FromGuest::Answer { id: 999, answer: Answer::Done };
            send(&mut theirs, &stray).await;
            let answer = FromGuest::Answer { id: request.id, answer: Answer::Hello(hello()) };
            send(&mut theirs, &answer).await;
            theirs
        });
        assert_eq!(guest.order(Order::Hello, LIMIT).await, Ok(Answer::Hello(hello())));
        assert!(guest.refused_frames() >= 3);
        drop(script.await.unwrap());
        let error = guest.order(Order::Thaw, LIMIT).await.unwrap_err();
        assert_eq!(error, OrderError::Gone { order: "thaw" });
    }

    #[tokio::test]
    async fn refusals_silence_and_words_unasked() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let guest = Guest::new(ours, 1);
        send(&mut theirs, &FromGuest::Ready(hello())).await;
        let mut said = guest.said();
        let ready = said.wait_for(|said| said.ready.is_some()).await.unwrap().ready;
        assert_eq!(ready, Some(hello()));
        let short = Duration::from_millis(10);
        let error = guest.order(Order::Thaw, short).await.unwrap_err();
        assert_eq!(error, OrderError::Timeout { order: "thaw", limit: short });
        assert_eq!(request(&mut theirs).await.order, Order::Thaw);
        let script = tokio::spawn(async move {
            let id = request(&mut theirs).await.id;
            let answer = Answer::Refused(Refusal::Busy);
            send(&mut theirs, &FromGuest::Answer { id, answer }).await;
            send(&mut theirs, &FromGuest::Exited { code: 3 }).await;
        });
        let error = guest.order(Order::Freeze { full: true, mark: 0 }, LIMIT).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "the guest refused freeze: the service did not come to rest in time"
        );
        script.await.unwrap();
        assert_eq!(said.wait_for(|said| said.gone).await.unwrap().exited, Some(3));
    }

    #[tokio::test]
    async fn orders_without_a_command_behind_them_end_an_earlier_trace() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let guest = Guest::new(ours, 1);
        let id = TraceId::of_command();
        trace::under(id, guest.trace()).await;
        guest.trace().await;
        assert_eq!(request(&mut theirs).await.order, Order::Trace { id: id.bits() });
        assert_eq!(request(&mut theirs).await.order, Order::Trace { id: 0 });
    }
}
