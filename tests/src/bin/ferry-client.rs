//! `ferry-client`: clients of Ferry's services that check every byte and measure every gap.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use ferry_tests::client::transfer::Direction;
use ferry_tests::client::{
    Control, End, Manners, first, hold, note, pingpong, print_line, set_manners, transfer,
};

/// Clients that check every byte and measure every gap.
///
/// A line on standard input is a mark: the client prints what it saw since the mark before. The last
/// line of output is the report. Exit code 0: nothing went wrong; 1: something did.
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    client: Client,
}

#[derive(Subcommand)]
enum Client {
    /// Messages to an echo service, one on the way per connection
    Pingpong {
        #[command(flatten)]
        common: Common,
        /// Bytes of a message
        #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=65536))]
        size: u32,
        /// Time from an answer to the next message of a connection, in milliseconds
        #[arg(long, default_value_t = 0)]
        think_ms: u64,
    },
    /// Connections that say nothing, except one message each at every mark and at the end
    Hold {
        #[command(flatten)]
        common: Common,
    },
    /// Asks an HTTP service for its first page until it answers, and ends; it may not have been started yet
    First {
        #[command(flatten)]
        common: Common,
    },
    /// Types into a document of the service `notes` over one WebSocket, read by another
    Note {
        #[command(flatten)]
        common: Common,
        /// What is typed, over and over
        #[arg(long, default_value = "The ferry crosses the river and nobody gets wet. ")]
        text: String,
        /// Time between two keystrokes, in milliseconds
        #[arg(long, default_value_t = 80)]
        interval_ms: u64,
    },
    /// Standard input to the service, its answers to standard output, until either side ends
    Lines {
        /// Address and port of the service
        #[arg(long, value_name = "IP:PORT")]
        connect: SocketAddr,
    },
    /// Downloads from the service `transfer`
    Download {
        #[command(flatten)]
        common: Common,
        #[command(flatten)]
        transfer: Transfer,
    },
    /// Uploads to the service `transfer`
    Upload {
        #[command(flatten)]
        common: Common,
        #[command(flatten)]
        transfer: Transfer,
    },
}

#[derive(Args)]
struct Common {
    /// Address and port of the service
    #[arg(long, value_name = "IP:PORT")]
    connect: SocketAddr,
    /// Connections side by side
    #[arg(long, default_value_t = 1)]
    connections: usize,
    /// End after this time; else at the end of standard input
    #[arg(long)]
    seconds: Option<f64>,
    /// Give a connection up that makes no progress for so long, in seconds
    #[arg(long, default_value_t = 60)]
    patience: u64,
    /// TCP keep-alive after so many seconds of silence
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=32767))]
    keep_alive: Option<u64>,
}

impl Common {
    /// Says when and how this process ends; also sets how it treats its connections.
    fn control(&self) -> Control {
        set_manners(Manners {
            patience: Duration::from_secs(self.patience),
            keep_alive: self.keep_alive.map(Duration::from_secs),
        });
        Control::new(self.seconds.map(Duration::from_secs_f64))
    }
}

#[derive(Args)]
struct Transfer {
    /// Bytes of each transfer
    #[arg(long)]
    bytes: u64,
    /// Begin again until the end; the last transfers are finished
    #[arg(long)]
    again: bool,
    /// At most this many bytes per second and connection
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    rate: Option<u64>,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    raise_file_limit();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let client = match cli.client {
        Client::Lines { connect } => return lines(connect),
        client => client,
    };
    let end = runtime.block_on(run(client));
    print_line(&end);
    // The thread that waits for standard input is not worth waiting for.
    runtime.shutdown_background();
    if end.flawless() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Ten thousand connections are as many files: more than most shells allow by themselves.
fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    // Where it cannot be raised, the connections beyond it fail and say so.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}

/// Two threads and a blocking socket do.
fn lines(to: SocketAddr) -> ExitCode {
    let talk = || -> std::io::Result<()> {
        let stream = std::net::TcpStream::connect_timeout(&to, Duration::from_secs(20))?;
        stream.set_nodelay(true)?;
        let sending = stream.try_clone()?;
        std::thread::spawn(move || {
            pass_on(&mut std::io::stdin().lock(), &mut &sending)?;
            sending.shutdown(std::net::Shutdown::Write)
        });
        pass_on(&mut &stream, &mut std::io::stdout().lock())
    };
    match talk() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {to}: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Not `std::io::copy`: between a pipe and a socket it lets the kernel wait for much or for the end.
fn pass_on(from: &mut impl Read, to: &mut impl Write) -> std::io::Result<()> {
    let mut buffer = vec![0; 4096];
    loop {
        match from.read(&mut buffer)? {
            0 => return Ok(()),
            len => to.write_all(&buffer[..len]).and_then(|()| to.flush())?,
        }
    }
}

async fn run(client: Client) -> End {
    match client {
        Client::Pingpong { common, size, think_ms } => {
            let control = common.control();
            let plan = pingpong::Plan {
                to: common.connect,
                connections: common.connections,
                size: size as usize,
                think: Duration::from_millis(think_ms),
            };
            pingpong::run(&plan, control).await
        }
        Client::Note { common, text, interval_ms } => {
            let control = common.control();
            let interval = Duration::from_millis(interval_ms);
            note::run(&note::Plan { to: common.connect, text, interval }, control).await
        }
        Client::Lines { .. } => End::new("lines", 0),
        Client::Hold { common } => {
            let control = common.control();
            hold::run(common.connect, common.connections, control).await
        }
        Client::First { common } => {
            // Its end is the answer, not that of standard input.
            let _control = common.control();
            first::run(common.connect).await
        }
        Client::Download { common, transfer } => {
            move_bytes(Direction::Download, common, transfer).await
        }
        Client::Upload { common, transfer } => {
            move_bytes(Direction::Upload, common, transfer).await
        }
    }
}

async fn move_bytes(direction: Direction, common: Common, args: Transfer) -> End {
    let control = common.control();
    let plan = transfer::Plan {
        to: common.connect,
        direction,
        connections: common.connections,
        bytes: args.bytes,
        again: args.again,
        rate: args.rate,
    };
    transfer::run(&plan, control).await
}
