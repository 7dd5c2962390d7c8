//! What daemons say of what they do, and by whose command.
//!
//! A command makes a trace id, or takes that of `$TRACEPARENT`, and sends it with every request (W3C Trace
//! Context, `traceparent`). Whoever serves the request says what it does under that id and passes it on with
//! what it asks of others, so one id leads from the command through the manager and both agents. Agents
//! tell it to the guests that move, which name it on their consoles.

use std::fmt;
use std::str::FromStr;

use axum::extract::Request;
use axum::http::{HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::Response;
use clap::{Args, ValueEnum};
use tracing::Instrument;

/// The header.
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// The environment variable of a command.
const VARIABLE: &str = "TRACEPARENT";

tokio::task_local! {
    static CURRENT: TraceId;
}

/// Tells what belongs to one command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceId(u128);

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// A text that is no `traceparent`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no traceparent")]
pub struct NoTrace;

/// Lower case only, as the format has it.
fn hex(text: &str, digits: usize) -> Result<u128, NoTrace> {
    let good = |c: u8| c.is_ascii_digit() || (b'a'..=b'f').contains(&c);
    if text.len() != digits || !text.bytes().all(good) {
        return Err(NoTrace);
    }
    u128::from_str_radix(text, 16).map_err(|_| NoTrace)
}

impl FromStr for TraceId {
    type Err = NoTrace;

    /// The trace id of a `traceparent`.
    fn from_str(text: &str) -> Result<Self, NoTrace> {
        let mut parts = text.split('-');
        let mut next = |digits| hex(parts.next().unwrap_or_default(), digits);
        let (version, id, span, _flags) = (next(2)?, next(32)?, next(16)?, next(2)?);
        let more = parts.next().is_some();
        // Later versions may add parts, and version 255 may not be.
        if version == 0xff || (version == 0 && more) || id == 0 || span == 0 {
            return Err(NoTrace);
        }
        Ok(Self(id))
    }
}

impl TraceId {
    /// That of the command that started us, else a new one.
    #[must_use]
    pub fn of_command() -> Self {
        let given = std::env::var(VARIABLE).ok().and_then(|text| text.parse().ok());
        given.unwrap_or_else(|| Self(random().max(1)))
    }

    /// The id as a number. Not 0.
    #[must_use]
    pub fn bits(self) -> u128 {
        self.0
    }

    fn traceparent(self, span: u64) -> String {
        format!("00-{self}-{:016x}-01", span.max(1))
    }
}

/// Random bits; where the system has none, a trace is not told from others, which harms nobody.
fn random() -> u128 {
    let mut bytes = [0; 16];
    let _ = getrandom::fill(&mut bytes);
    u128::from_ne_bytes(bytes)
}

/// The trace under which this is done, if there is one.
#[must_use]
pub fn current() -> Option<TraceId> {
    CURRENT.try_with(|id| *id).ok()
}

/// What a request sends along, if there is a trace.
pub fn header() -> Option<HeaderValue> {
    let id = current()?;
    HeaderValue::from_str(&id.traceparent(random() as u64)).ok()
}

/// Does something under a trace.
pub async fn under<F: Future>(id: TraceId, what: F) -> F::Output {
    let span = tracing::info_span!("trace", id = %id);
    CURRENT.scope(id, what).instrument(span).await
}

/// What is spawned goes on under the trace of whoever spawns it.
pub fn carry<F: Future>(what: F) -> impl Future<Output = F::Output> {
    let id = current();
    async move {
        match id {
            Some(id) => under(id, what).await,
            None => what.await,
        }
    }
}

/// Serves a request under the trace it came with.
pub async fn serve(request: Request, next: Next) -> Response {
    let given = request.headers().get(TRACEPARENT).and_then(|value| value.to_str().ok());
    match given.and_then(|text| text.parse().ok()) {
        Some(id) => under(id, next.run(request)).await,
        None => next.run(request).await,
    }
}

/// How daemons write their log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Lines for people
    #[default]
    Text,
    /// One JSON object a line
    Json,
}

/// The log's options.
#[derive(Clone, Copy, Debug, Args)]
#[expect(missing_docs, reason = "the texts are clap's help")]
pub struct LogArgs {
    #[arg(
        long,
        value_enum,
        default_value_t,
        value_name = "FORMAT",
        help = "How to write the log, on standard error"
    )]
    pub log_format: LogFormat,
}

/// Begins the log of a daemon.
pub fn begin_log(args: LogArgs) {
    use std::io::IsTerminal;
    let log = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_target(false)
        .with_ansi(std::io::stderr().is_terminal());
    let begun = match args.log_format {
        LogFormat::Text => log.try_init(),
        LogFormat::Json => log.json().flatten_event(true).try_init(),
    };
    if let Err(error) = begun {
        // Somebody in this process has begun one: that one is written.
        tracing::debug!("{error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn traceparents() {
        let id: TraceId = PARENT.parse().unwrap();
        assert_eq!(id.to_string(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!(id.traceparent(0x00f0_67aa_0ba9_02b7), PARENT);
        let later = PARENT.replacen("00", "01", 1) + "-more";
        assert_eq!(later.parse(), Ok(id));
        for bad in [
            "",
            "00",
            &PARENT.to_uppercase(),
            &PARENT.replacen("00", "ff", 1),
            &format!("{PARENT}-more"),
            &PARENT.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32)),
            &PARENT.replace("00f067aa0ba902b7", &"0".repeat(16)),
            &PARENT[..54],
            &PARENT.replace("-01", "-+1"),
        ] {
            assert_eq!(bad.parse::<TraceId>(), Err(NoTrace), "{bad}");
        }
    }

    #[tokio::test]
    async fn what_is_spawned_carries_the_trace_on() {
        assert_eq!(header(), None);
        let id: TraceId = PARENT.parse().unwrap();
        let sent = under(id, async { tokio::spawn(carry(async { header() })).await.unwrap() });
        let sent: TraceId = sent.await.unwrap().to_str().unwrap().parse().unwrap();
        assert_eq!(sent, id);
        assert_eq!(tokio::spawn(carry(async { header() })).await.unwrap(), None);
    }
}
