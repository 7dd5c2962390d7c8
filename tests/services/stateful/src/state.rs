//! State, one counter per place.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Instant, SystemTime};

static IN_STATIC: AtomicU64 = AtomicU64::new(0);

/// Initialised, so it lies in `.data` and not in `.bss`.
static IN_DATA: AtomicU64 = AtomicU64::new(1_000_000);

thread_local! {
    static IN_THREAD_LOCAL: Cell<u64> = const { Cell::new(0) };
    /// With a destructor and made at first use, from the heap.
    static IN_LAZY_THREAD_LOCAL: RefCell<Vec<u64>> = RefCell::new(vec![0]);
}

/// Words of a MiB.
const PIECE_WORDS: usize = (1 << 20) / 8;

/// What is asked.
#[derive(Clone, Copy, Debug)]
pub enum Question {
    /// Count, then show.
    Tick,
    /// Show.
    Look,
    /// Take so much more memory.
    Fill {
        /// In MiB.
        mib: usize,
    },
}

/// The counters that have no name of their own, and the clocks.
#[derive(Debug)]
pub struct Places {
    on_stack: u64,
    in_box: Box<u64>,
    /// Many small pieces of heap, so that a lost page shows.
    in_map: BTreeMap<u64, String>,
    /// Written once, a MiB each.
    bulk: Vec<Vec<u64>>,
    began: Instant,
    last: Instant,
    went_back: u64,
}

impl Places {
    /// All zero; the clock begins now.
    pub fn new() -> Self {
        let now = Instant::now();
        Self {
            on_stack: 0,
            in_box: Box::new(0),
            in_map: BTreeMap::new(),
            bulk: Vec::new(),
            began: now,
            last: now,
            went_back: 0,
        }
    }

    /// One line of JSON.
    pub fn answer(&mut self, question: Question) -> String {
        let now = Instant::now();
        self.went_back += u64::from(now < self.last);
        self.last = now;
        match question {
            Question::Tick => self.tick(),
            Question::Look => {}
            Question::Fill { mib } => return self.fill(mib),
        }
        // The entries say themselves what they should be.
        let broken = self.in_map.iter().filter(|(k, v)| **v != entry(**k)).count();
        format!(
            concat!(
                r#"{{"stack":{},"heap":{},"map":{},"broken":{},"static":{},"data":{},"#,
                r#""thread_local":{},"lazy_thread_local":{},"#,
                r#""monotonic_us":{},"went_back":{},"wall_ms":{}}}"#
            ),
            self.on_stack,
            self.in_box,
            self.in_map.len(),
            broken,
            IN_STATIC.load(Ordering::Relaxed),
            IN_DATA.load(Ordering::Relaxed) - 1_000_000,
            IN_THREAD_LOCAL.get(),
            IN_LAZY_THREAD_LOCAL.with_borrow(|v| v.last().copied().unwrap_or(0)),
            now.saturating_duration_since(self.began).as_micros(),
            self.went_back,
            SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_millis()),
        )
    }

    /// No page is like another, and none is empty: nobody can save the trouble of moving them.
    fn fill(&mut self, mib: usize) -> String {
        for _ in 0..mib {
            let mut piece = Vec::new();
            if piece.try_reserve_exact(PIECE_WORDS).is_err() {
                break;
            }
            let first = (self.bulk.len() * PIECE_WORDS) as u64;
            piece.extend(
                (first + 1..).take(PIECE_WORDS).map(|k| k.wrapping_mul(0x9E37_79B9_7F4A_7C15)),
            );
            self.bulk.push(piece);
        }
        format!(r#"{{"bulk_mib":{}}}"#, self.bulk.len())
    }

    fn tick(&mut self) {
        self.on_stack += 1;
        *self.in_box += 1;
        self.in_map.insert(self.on_stack, entry(self.on_stack));
        IN_STATIC.fetch_add(1, Ordering::Relaxed);
        IN_DATA.fetch_add(1, Ordering::Relaxed);
        IN_THREAD_LOCAL.set(IN_THREAD_LOCAL.get() + 1);
        IN_LAZY_THREAD_LOCAL.with_borrow_mut(|v| v.push(v.len() as u64));
    }
}

fn entry(k: u64) -> String {
    format!("entry {k} {:x}", k.wrapping_mul(0x9E37_79B9_7F4A_7C15))
}

/// Bytes of the machine's entropy, as one line of JSON.
pub fn random() -> String {
    let mut bytes = [0_u8; 32];
    match getrandom::fill(&mut bytes) {
        Ok(()) => {
            let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
            format!(r#"{{"random":"{hex}"}}"#)
        }
        Err(e) => format!(r#"{{"error":"no entropy: {e}"}}"#),
    }
}
