//! What `transfer` does, on Hermit as it comes: `std::net` over the kernel's own network stack, a thread for each
//! connection, as Hermit has no way to wait for several that std knows of.
//!
//! - `GET /`: a short text.
//! - `GET /bytes/{n}?seed={s}`: `n` bytes of the stream for a seed.
//! - `PUT /sink`: length and SHA-256 of the body, as JSON.

#[path = "../../../../../services/transfer/src/words.rs"]
mod words;

use std::fmt::Write as _;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;

use sha2::{Digest, Sha256};

/// What `GET /` answers.
const USAGE: &str = "GET /bytes/{n}?seed={s}  n bytes of the splitmix64 stream for seed s\n\
                     PUT /sink                length and SHA-256 of the body\n";
/// Bytes made, or read, at once; a multiple of 8.
const PIECE: usize = 16 * 1024;
/// Bytes of a thread's stack: what a connection needs, with its buffer on the heap.
const STACK: usize = 64 * 1024;

fn main() -> io::Result<()> {
    let listener = TcpListener::bind(("0.0.0.0", 80))?;
    println!("stock hermit: listening on port 80");
    for stream in listener.incoming() {
        // A connection's error is its peer's.
        let Ok(stream) = stream else { continue };
        thread::Builder::new().stack_size(STACK).spawn(move || serve(stream))?;
    }
    Ok(())
}

/// Answers one request after the other until the client closes.
fn serve(mut stream: TcpStream) -> io::Result<()> {
    // In this kernel the option's value goes to "Nagle's algorithm on" as it is: off helps the peer.
    let _ = stream.set_nodelay(false);
    let mut buffer = vec![0; PIECE];
    let mut have = 0;
    loop {
        let end = loop {
            if let Some(at) = buffer[..have].windows(4).position(|four| four == b"\r\n\r\n") {
                break at + 4;
            }
            match stream.read(&mut buffer[have..])? {
                0 => return Ok(()),
                len => have += len,
            }
        };
        let head = String::from_utf8_lossy(&buffer[..end]).into_owned();
        buffer.copy_within(end..have, 0);
        have -= end;
        have = answer(&mut stream, &head, &mut buffer, have)?;
    }
}

/// Answers one request, whose body begins with `have` bytes in `buffer`; returns how many of the next are there.
fn answer(stream: &mut TcpStream, head: &str, buffer: &mut [u8], have: usize) -> io::Result<usize> {
    let mut words = head.split(' ');
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    if let Some(rest) = target.strip_prefix("/bytes/") {
        let (length, seed) = rest.split_once("?seed=").unwrap_or((rest, "0"));
        let (length, seed) = (length.parse().unwrap_or(0), seed.parse().unwrap_or(0));
        download(stream, length, seed)?;
        return Ok(have);
    }
    if method == "PUT" {
        return upload(stream, head, buffer, have);
    }
    respond(stream, "text/plain; charset=utf-8", USAGE)?;
    Ok(have)
}

fn respond(stream: &mut TcpStream, kind: &str, body: &str) -> io::Result<()> {
    let text = format!("HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    stream.write_all(text.as_bytes())
}

fn download(stream: &mut TcpStream, length: u64, seed: u64) -> io::Result<()> {
    let head = format!("HTTP/1.1 200 OK\r\ncontent-type: application/octet-stream\r\ncontent-length: {length}\r\n\r\n");
    stream.write_all(head.as_bytes())?;
    let (mut piece, mut left, mut word) = (vec![0; PIECE], length, 0);
    while left > 0 {
        let len = left.min(PIECE as u64);
        words::fill(seed, word, &mut piece[..len as usize]);
        stream.write_all(&piece[..len as usize])?;
        left -= len;
        word += len / 8;
    }
    Ok(())
}

fn upload(stream: &mut TcpStream, head: &str, buffer: &mut [u8], mut have: usize) -> io::Result<usize> {
    let head = head.to_ascii_lowercase();
    let field = head.lines().find_map(|line| line.strip_prefix("content-length:"));
    let length: u64 = field.and_then(|value| value.trim().parse().ok()).unwrap_or(0);
    let (mut left, mut digest) = (length, Sha256::new());
    loop {
        let of_body = left.min(have as u64) as usize;
        digest.update(&buffer[..of_body]);
        left -= of_body as u64;
        if left == 0 {
            buffer.copy_within(of_body..have, 0);
            have -= of_body;
            break;
        }
        have = stream.read(buffer)?;
        if have == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    let mut hex = String::with_capacity(64);
    for byte in digest.finalize() {
        // Writing into a String cannot fail.
        let _ = write!(hex, "{byte:02x}");
    }
    respond(stream, "application/json", &format!("{{\"bytes\":{length},\"sha256\":\"{hex}\"}}"))?;
    Ok(have)
}
