//! Two people type into one document without a pause, while a hook moves the service under them.

use std::path::PathBuf;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::json;

use crate::BrowserError;
use crate::browser::Browser;
use crate::page::{DESKTOP, Look, Page};
use crate::people::{Key, Person};

/// How long the people may need for the keys between two moves.
const TYPING: Duration = Duration::from_secs(180);

/// A fast typist's time from key to key. Without it, keys would come as fast as the browser can take
/// them, and it takes them before all else: answers from the service would wait in the browser.
const KEY_EVERY: Duration = Duration::from_millis(60);

/// What stands between the two people's texts.
const BETWEEN: &str = "\n\n";

/// What is to be done.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// Where the service is, `http://address:port` without a path.
    pub url: String,
    /// The browser to start.
    pub chromium: String,
    /// How often the hook is run.
    pub moves: usize,
    /// Keys that each person presses before, between and after the moves.
    pub keys: usize,
    /// Where pictures go; none are taken without.
    pub pictures: Option<PathBuf>,
}

/// What was seen. Everything else is an error.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Name and version of the browser.
    pub browser: String,
    /// What each person saw.
    pub people: Vec<PersonReport>,
    /// How long each run of the hook took.
    pub moves_ms: Vec<u64>,
    /// Characters in the document in the end.
    pub characters: usize,
}

/// What one person saw.
#[derive(Clone, Debug, Serialize)]
pub struct PersonReport {
    /// Who.
    pub name: String,
    /// Keys pressed, every one of which counts in the text.
    pub keys: usize,
    /// Longest time from an edit to the server's confirmation, before the first move.
    pub longest_answer_before_ms: f64,
    /// The same, from the first move on.
    pub longest_answer_ms: f64,
}

/// Why it did not go as it must.
#[derive(Debug, thiserror::Error)]
pub enum ScenarioError {
    /// The browser failed.
    #[error(transparent)]
    Browser(#[from] BrowserError),
    /// The hook failed.
    #[error("move {number}: {reason}")]
    Hook {
        /// Which run of it, from 1.
        number: usize,
        /// Its words.
        reason: String,
    },
    /// The people came to a stop.
    #[error("only {pressed} of {wanted} keys were pressed within {TYPING:?}")]
    Stuck {
        /// Keys of the slower person.
        pressed: usize,
        /// Keys wanted of each.
        wanted: usize,
    },
    /// The live connection did not last.
    #[error(
        "{name}'s live connection was reopened: {opened} WebSockets opened, {closed} closed, \
         {reopened} reopened by the page's own count"
    )]
    Reopened {
        /// Whose.
        name: String,
        /// WebSockets opened, as the browser counts.
        opened: usize,
        /// WebSockets closed, as the browser counts.
        closed: usize,
        /// Reopened, as the page counts.
        reopened: u64,
    },
    /// A text is not what was typed.
    #[error("{place} has {found:?}, but {expected:?} was typed")]
    Text {
        /// Whose page, or the server.
        place: String,
        /// What is there.
        found: String,
        /// What has to be there.
        expected: String,
    },
    /// A page's script failed.
    #[error("{name}'s page threw: {exceptions:?}")]
    Threw {
        /// Whose.
        name: String,
        /// What.
        exceptions: Vec<String>,
    },
}

/// The two people's counts of keys, and where they are waited for.
struct Progress {
    counts: Mutex<Counts>,
    changed: Condvar,
}

#[derive(Default)]
struct Counts {
    keys: [usize; 2],
    enough: bool,
    failed: bool,
}

impl Scenario {
    /// Plays it. `hook` is called once for every move, with its number from 1, while both type.
    ///
    /// # Errors
    /// If anything is not as it must be; see [`ScenarioError`].
    pub fn run(
        &self,
        mut hook: impl FnMut(usize) -> Result<(), String>,
    ) -> Result<Report, ScenarioError> {
        let browser = Browser::start(&self.chromium)?;
        let url = self.url.trim_end_matches('/');
        let mut people = [Person::ada(), Person::bo()];
        let first = Page::open(&browser, &format!("{url}/"), people[0].name)?;
        let new = json!({ "title": "Harbour log", "text": BETWEEN }).to_string();
        let id = first.value(&format!(
            "fetch('/api/docs', {{ method: 'POST', headers: {{ 'Content-Type': 'application/json' }},
             body: {} }}).then((answer) => answer.json()).then(({{ id }}) => id)",
            json!(new)
        ))?;
        let id = id.as_str().unwrap_or_default();
        let document = format!("{url}/d/{id}");
        first.go_to(&document)?;
        let pages = [first, Page::open(&browser, &document, people[1].name)?];
        for page in &pages {
            page.wait_for(
                "document.documentElement.dataset.synced === 'true' && notes.others().length === 1",
            )?;
        }
        // Ada types above the empty line, Bo below it.
        for (page, caret) in pages.iter().zip([0, BETWEEN.len()]) {
            page.value(&format!(
                "(() => {{ const field = document.getElementById('text')
                    field.focus(); field.setSelectionRange({caret}, {caret}) }})()"
            ))?;
        }

        let (before, moves_ms) = self.type_and_move(&pages, &mut people, &mut hook)?;
        let expected = format!("{}{BETWEEN}{}", people[0].text(), people[1].text());
        for (page, person) in pages.iter().zip(&people) {
            page.wait_for("notes.connection.pending === 0")?;
            page.wait_for(&format!("notes.text.length === {}", expected.len()))
                .or_else(|_| check_text(page, person.name, &expected))?;
            check(page, person, &expected)?;
        }
        let stored =
            pages[0].value(&format!("fetch('/api/docs/{id}/text').then((text) => text.text())"))?;
        same("the server", stored.as_str().unwrap_or_default(), &expected)?;

        let mut seen = Vec::new();
        for ((page, person), longest_answer_before_ms) in pages.iter().zip(&people).zip(before) {
            let longest = page.value("notes.connection.longestAnswerMs")?;
            seen.push(PersonReport {
                name: person.name.to_owned(),
                keys: person.keys(),
                longest_answer_before_ms,
                longest_answer_ms: longest.as_f64().unwrap_or_default(),
            });
        }
        self.take_pictures(&pages, url)?;
        Ok(Report {
            browser: browser.version()?,
            people: seen,
            moves_ms,
            characters: expected.chars().count(),
        })
    }

    /// Both type until the last move is done and as many keys again were pressed. Returns the longest
    /// answers before the first move, and the times of the moves.
    fn type_and_move(
        &self,
        pages: &[Page; 2],
        people: &mut [Person; 2],
        hook: &mut impl FnMut(usize) -> Result<(), String>,
    ) -> Result<(Vec<f64>, Vec<u64>), ScenarioError> {
        let progress = Progress { counts: Mutex::default(), changed: Condvar::new() };
        std::thread::scope(|scope| {
            let progress = &progress;
            let typists: Vec<_> = pages
                .iter()
                .zip(people)
                .enumerate()
                .map(|(who, (page, person))| {
                    scope.spawn(move || type_on(page, person, who, progress))
                })
                .collect();
            let moved = self.move_on(pages, progress, hook);
            progress.update(|counts| counts.enough = true);
            for typist in typists {
                match typist.join() {
                    Ok(typed) => typed?,
                    Err(panic) => std::panic::resume_unwind(panic),
                }
            }
            moved
        })
    }

    fn move_on(
        &self,
        pages: &[Page; 2],
        progress: &Progress,
        hook: &mut impl FnMut(usize) -> Result<(), String>,
    ) -> Result<(Vec<f64>, Vec<u64>), ScenarioError> {
        progress.wait_for_keys(self.keys)?;
        let mut before = Vec::new();
        for page in pages {
            let longest = page.value(
                "(() => { const longest = notes.connection.longestAnswerMs
                    notes.connection.longestAnswerMs = 0; return longest })()",
            )?;
            before.push(longest.as_f64().unwrap_or_default());
        }
        let mut times = Vec::new();
        for number in 1..=self.moves {
            let started = Instant::now();
            hook(number).map_err(|reason| ScenarioError::Hook { number, reason })?;
            times.push(started.elapsed().as_millis() as u64);
            progress.wait_for_keys(self.keys)?;
        }
        Ok((before, times))
    }

    fn take_pictures(&self, pages: &[Page; 2], url: &str) -> Result<(), BrowserError> {
        let Some(folder) = &self.pictures else { return Ok(()) };
        let page = &pages[0];
        page.value("scrollTo(0, 0)")?;
        page.picture(&folder.join("notes.png"))?;
        page.look(Look { dark: true, ..DESKTOP })?;
        page.value("document.getElementById('connection').open = true")?;
        page.picture(&folder.join("notes-dark.png"))?;
        page.value("document.getElementById('connection').open = false")?;
        page.look(Look { width: 390, height: 780, dark: false })?;
        page.picture(&folder.join("notes-phone.png"))?;
        page.look(DESKTOP)?;
        page.go_to(&format!("{url}/"))?;
        page.wait_for("document.querySelector('#documents li') !== null")?;
        page.picture(&folder.join("notes-list.png"))
    }
}

/// Presses one key after another until it is enough.
fn type_on(
    page: &Page,
    person: &mut Person,
    who: usize,
    progress: &Progress,
) -> Result<(), BrowserError> {
    loop {
        let next = Instant::now() + KEY_EVERY;
        let pressed = match person.next_key() {
            Key::Types(character) => page.press(character),
            Key::Backspace => page.press_backspace(),
        };
        let enough = progress.update(|counts| {
            counts.keys[who] += 1;
            counts.failed |= pressed.is_err();
            counts.enough
        });
        pressed?;
        if enough {
            return Ok(());
        }
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
}

impl Progress {
    fn update<R>(&self, change: impl FnOnce(&mut Counts) -> R) -> R {
        let result = change(&mut self.counts.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_all();
        result
    }

    /// Waits until both have pressed `more` keys from now on, or one of them failed.
    fn wait_for_keys(&self, more: usize) -> Result<(), ScenarioError> {
        let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted = counts.keys.map(|keys| keys + more);
        let typing = |counts: &mut Counts| {
            !counts.failed && counts.keys.iter().zip(wanted).any(|(keys, wanted)| *keys < wanted)
        };
        let (counts, late) = self
            .changed
            .wait_timeout_while(counts, TYPING, typing)
            .unwrap_or_else(PoisonError::into_inner);
        if late.timed_out() {
            let pressed = counts.keys.iter().zip(wanted).map(|(keys, wanted)| keys + more - wanted);
            return Err(ScenarioError::Stuck { pressed: pressed.min().unwrap_or(0), wanted: more });
        }
        Ok(())
    }
}

/// Whether a page went through all of it as it must.
fn check(page: &Page, person: &Person, expected: &str) -> Result<(), ScenarioError> {
    let name = person.name.to_owned();
    let exceptions = page.exceptions();
    if !exceptions.is_empty() {
        return Err(ScenarioError::Threw { name, exceptions });
    }
    let reopened = page.value("notes.connection.reopened")?.as_u64().unwrap_or(u64::MAX);
    let (opened, closed) = page.websockets();
    if (opened, closed, reopened) != (1, 0, 0) {
        return Err(ScenarioError::Reopened { name, opened, closed, reopened });
    }
    check_text(page, person.name, expected)
}

/// Whether both the shared text and the field that shows it are as expected.
fn check_text(page: &Page, name: &str, expected: &str) -> Result<(), ScenarioError> {
    let shared = page.value("notes.text.toString()")?;
    same(&format!("{name}'s document"), shared.as_str().unwrap_or_default(), expected)?;
    let shown = page.value("document.getElementById('text').value")?;
    same(&format!("{name}'s text area"), shown.as_str().unwrap_or_default(), expected)
}

fn same(place: &str, found: &str, expected: &str) -> Result<(), ScenarioError> {
    if found == expected {
        return Ok(());
    }
    let (found, expected) = (found.to_owned(), expected.to_owned());
    Err(ScenarioError::Text { place: place.to_owned(), found, expected })
}
