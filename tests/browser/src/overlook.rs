//! Somebody looks at the manager's page while a service moves: with eyes, with a keyboard, by day and by
//! night, and with a screen reader.

use std::fmt;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::BrowserError;
use crate::browser::Browser;
use crate::page::{DESKTOP, Look, Page};

/// What is to be looked at.
#[derive(Clone, Debug)]
pub struct Overlook {
    /// The page.
    pub url: String,
    /// The browser to start.
    pub chromium: String,
    /// Service that is moved.
    pub service: String,
    /// Where it is.
    pub from: String,
    /// Where it is moved to.
    pub to: String,
    /// Where pictures go.
    pub pictures: PathBuf,
}

/// What was seen. Everything else is an error.
#[derive(Clone, Debug)]
pub struct Report {
    browser: String,
    /// Phases seen as the one under way, in order, and when, in milliseconds since the first.
    active: Vec<(String, f64)>,
    ended_ms: f64,
}

/// Why the page is not as it must be.
#[derive(Debug, thiserror::Error)]
pub enum OverlookError {
    /// The browser failed, or waited for something in vain.
    #[error(transparent)]
    Browser(#[from] BrowserError),
    /// A command failed.
    #[error("{0}")]
    Hook(String),
    /// The move was not seen as it happened.
    #[error(
        "of the move, these phases were seen under way: {active:?}, and its end at {ended_ms} ms"
    )]
    Unseen {
        /// Phase and time.
        active: Vec<(String, f64)>,
        /// Since the first phase.
        ended_ms: f64,
    },
    /// Something that everybody needs is missing.
    #[error("the page has no {what}")]
    Missing {
        /// What.
        what: String,
    },
    /// Text that cannot be read well.
    #[error("too little contrast ({scheme}): {texts}")]
    Contrast {
        /// Colours preferred.
        scheme: &'static str,
        /// Which, with its ratio.
        texts: Value,
    },
    /// The page had errors.
    #[error("the page had errors: {errors:?}")]
    Errors {
        /// Its words.
        errors: Vec<String>,
    },
}

/// Notes each phase that is shown as under way, and the end. It runs in the page and sees every change.
const RECORD: &str = "(() => {
    window.seen = { active: [], ended: null, said: [] }
    let first
    const look = () => {
        const move = document.querySelector('#live .move')
        if (!move) return
        const now = performance.now()
        first ??= now
        for (const part of move.querySelectorAll('.phases [data-state=active]')) {
            const name = part.dataset.key
            if (!seen.active.some(([known]) => known === name)) seen.active.push([name, now - first])
        }
        if (move.dataset.result !== 'running') seen.ended ??= now - first
    }
    new MutationObserver(look).observe(document.getElementById('live'), { subtree: true, childList: true, attributes: true })
    const voice = document.getElementById('announcer')
    new MutationObserver(() => seen.said.push(voice.textContent)).observe(voice, { childList: true, characterData: true, subtree: true })
})()";

/// Texts whose contrast is below WCAG 2.2, 1.4.3 (AA), with the ratio.
const CONTRAST: &str = "(() => {
    const canvas = document.createElement('canvas').getContext('2d', { willReadFrequently: true })
    const rgba = (colour) => {
        canvas.clearRect(0, 0, 1, 1)
        canvas.fillStyle = colour
        canvas.fillRect(0, 0, 1, 1)
        return [...canvas.getImageData(0, 0, 1, 1).data]
    }
    const light = ([r, g, b]) => {
        const part = (c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4
        return 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b)
    }
    const ground = (element) => {
        for (; element; element = element.parentElement) {
            const colour = rgba(getComputedStyle(element).backgroundColor)
            if (colour[3] === 255) return colour
        }
        return [255, 255, 255, 255]
    }
    const bad = []
    for (const element of document.querySelectorAll('body *')) {
        const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim())
        if (!own || !element.checkVisibility() || element.closest('.quiet, .skip')) continue
        const style = getComputedStyle(element)
        const [a, b] = [light(rgba(style.color)), light(ground(element))].sort((x, y) => y - x)
        const ratio = (a + 0.05) / (b + 0.05)
        const size = parseFloat(style.fontSize)
        const large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700)
        if (ratio < (large ? 3 : 4.5)) bad.push([element.textContent.trim().slice(0, 30), element.className, ratio.toFixed(2)])
    }
    return bad
})()";

impl Overlook {
    /// Looks. `hook` moves the service, `restart` ends the manager and starts it again.
    ///
    /// # Errors
    /// If anything is not as it must be; see [`OverlookError`].
    pub fn run(
        &self,
        hook: impl FnOnce() -> Result<(), String> + Send,
        restart: impl FnOnce() -> Result<(), String>,
    ) -> Result<Report, OverlookError> {
        let browser = Browser::start(&self.chromium)?;
        let page = Page::open(&browser, &self.url, "somebody")?;
        let look = Look { height: 1000, ..DESKTOP };
        page.look(look)?;
        page.wait_for(&self.shown_at(&self.from))?;
        page.wait_for("document.getElementById('link').dataset.state === 'live'")?;
        page.value(RECORD)?;

        let hooked = std::thread::scope(|scope| {
            let hooked = scope.spawn(hook);
            let seen = self.see_it_move(&page);
            let hooked = hooked.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            seen.map(|()| hooked)
        });
        hooked?.map_err(OverlookError::Hook)?;
        page.wait_for("seen.ended !== null")?;
        page.wait_for(&self.shown_at(&self.to))?;
        page.picture(&self.pictures.join("manager-moved.png"))?;
        let report = self.report(&page, &browser)?;
        page.wait_for(&format!(
            "seen.said.some((words) => words.startsWith({}))",
            json!(format!("{} runs on {}", self.service, self.to))
        ))?;

        self.past_move(&page)?;
        self.keyboard(&page)?;
        screen_reader(&page)?;
        self.by_day_and_night(&page, look)?;
        let errors = page.errors();
        if !errors.is_empty() {
            return Err(OverlookError::Errors { errors });
        }

        // The page outlives the manager. What the browser then logs of broken connections is no error.
        restart().map_err(OverlookError::Hook)?;
        page.wait_for("document.getElementById('link').dataset.state === 'live'")?;
        page.wait_for(&self.shown_at(&self.to))?;
        Ok(report)
    }

    /// The service is shown on this host, in the picture and in the table.
    fn shown_at(&self, host: &str) -> String {
        let (service, host) = (json!(self.service), json!(host));
        format!(
            "(() => {{
                const tile = document.querySelector(`#hosts .tile[data-service=${{CSS.escape({service})}}]`)
                const row = document.querySelector(`#services tr[data-service=${{CSS.escape({service})}}]`)
                return tile?.closest('.host').dataset.key === {host} && row?.cells[2].textContent === {host}
            }})()"
        )
    }

    fn see_it_move(&self, page: &Page) -> Result<(), OverlookError> {
        page.wait_for("document.querySelector('#live .move[data-result=running] [data-state=active]') !== null")?;
        page.wait_for("document.querySelector('#hosts .ghost') !== null")?;
        Ok(page.picture(&self.pictures.join("manager-moving.png"))?)
    }

    fn report(&self, page: &Page, browser: &Browser) -> Result<Report, OverlookError> {
        let seen = page.value("seen")?;
        let ended_ms = seen["ended"].as_f64().unwrap_or_default();
        let active = seen["active"].as_array().map(Vec::as_slice).unwrap_or_default();
        let active: Vec<(String, f64)> = active
            .iter()
            .map(|pair| {
                let name = pair[0].as_str().unwrap_or_default();
                (name.to_owned(), pair[1].as_f64().unwrap_or_default())
            })
            .collect();
        let before_the_end =
            |name: &str| active.iter().any(|(phase, at)| phase == name && *at < ended_ms);
        if !before_the_end("prepare") || active.len() < 2 {
            return Err(OverlookError::Unseen { active, ended_ms });
        }
        Ok(Report { browser: browser.version()?, active, ended_ms })
    }

    /// The timeline of the move is there, and says the same as a table.
    fn past_move(&self, page: &Page) -> Result<(), OverlookError> {
        page.value("document.querySelector('#past details').open = true")?;
        page.wait_for("document.querySelector('#past tbody tr:nth-child(10)') !== null")?;
        page.value("document.querySelector('#past').scrollIntoView()")?;
        page.wait_for(
            "(() => { const picture = document.querySelector('#past img.timeline')
                return picture.complete && picture.naturalWidth > 0 })()",
        )?;
        let moved = page.value("document.querySelector('#past > li').dataset.result")?;
        if moved != "moved" {
            return Err(OverlookError::Missing {
                what: format!("move that is `moved`, but {moved}"),
            });
        }
        Ok(page.picture(&self.pictures.join("manager-timeline.png"))?)
    }

    /// From the top of the page, Tab leads to a service and Enter opens it; what has the focus shows it.
    fn keyboard(&self, page: &Page) -> Result<(), OverlookError> {
        page.value(
            "scrollTo(0, 0); document.activeElement.blur(); getSelection().removeAllRanges()",
        )?;
        page.go_to(&self.url)?;
        page.wait_for(&self.shown_at(&self.to))?;
        page.press_tab()?;
        let first = page.value("document.activeElement.textContent")?;
        if first != "Skip to content" {
            return Err(OverlookError::Missing { what: format!("skip link before {first}") });
        }
        let on_tile = format!(
            "document.activeElement.matches('summary') && \
             document.activeElement.closest('.tile')?.dataset.service === {}",
            json!(self.service)
        );
        for _ in 0..40 {
            page.press_tab()?;
            if page.value(&on_tile)? == true {
                break;
            }
        }
        let visible = page.value(&format!(
            "{on_tile} && getComputedStyle(document.activeElement).outlineStyle !== 'none'"
        ))?;
        if visible != true {
            return Err(OverlookError::Missing { what: "way to a service by keyboard".into() });
        }
        page.press('\n')?;
        page.wait_for("document.activeElement.parentElement.open === true")?;
        Ok(page.picture(&self.pictures.join("manager-keyboard.png"))?)
    }

    fn by_day_and_night(&self, page: &Page, look: Look) -> Result<(), OverlookError> {
        page.value("document.querySelector('#past details').open = true; document.activeElement.blur(); scrollTo(0, 0)")?;
        page.wait_for("document.querySelector('#past tbody tr:nth-child(10)') !== null")?;
        for (scheme, dark) in [("light", false), ("dark", true)] {
            page.look(Look { dark, height: 1700, ..look })?;
            page.wait_for(&format!("matchMedia('(prefers-color-scheme: {scheme})').matches"))?;
            page.picture(&self.pictures.join(format!("manager-{scheme}.png")))?;
            let texts = page.value(CONTRAST)?;
            if texts.as_array().is_none_or(|texts| !texts.is_empty()) {
                return Err(OverlookError::Contrast { scheme, texts });
            }
        }
        page.look(Look { width: 390, height: 1700, dark: false })?;
        page.picture(&self.pictures.join("manager-phone.png"))?;
        if page.value("document.documentElement.scrollWidth > innerWidth")? == true {
            return Err(OverlookError::Missing {
                what: "room on a phone: it scrolls sideways".into(),
            });
        }
        Ok(page.look(look)?)
    }
}

/// What a screen reader needs: landmarks, one first heading, named tables and meters.
fn screen_reader(page: &Page) -> Result<(), OverlookError> {
    let told = page.accessible()?;
    for (role, name) in [
        ("banner", ""),
        ("main", ""),
        ("contentinfo", ""),
        ("status", ""),
        ("heading", "Ferry"),
        ("heading", "Hosts"),
        ("heading", "Moves under way"),
        ("heading", "Past moves"),
        ("table", "All services"),
        ("columnheader", "Connections"),
        ("rowheader", ""),
        ("meter", "Memory"),
    ] {
        let known = |(found, called): &(String, String)| found == role && called.starts_with(name);
        if !told.iter().any(known) {
            return Err(OverlookError::Missing { what: format!("{role} `{name}`") });
        }
    }
    let nameless = |(role, name): &&(String, String)| {
        matches!(
            role.as_str(),
            "button" | "link" | "DisclosureTriangle" | "img" | "table" | "meter"
        ) && name.trim().is_empty()
    };
    match told.iter().find(nameless) {
        Some((role, _)) => Err(OverlookError::Missing { what: format!("name for a {role}") }),
        None => Ok(()),
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.browser)?;
        for (phase, at) in &self.active {
            writeln!(f, "{phase} was seen under way {at:.0} ms after the first")?;
        }
        write!(f, "the end was seen after {:.0} ms; the page had no errors", self.ended_ms)
    }
}
