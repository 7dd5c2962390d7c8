//! One page: a window of its own in a browser context of its own, as if another person had it open.

use std::path::Path;
use std::sync::Arc;

use base64::Engine;
use serde_json::{Value, json};

use crate::BrowserError;
use crate::browser::{Browser, Link, PATIENCE};

/// A picture's size and colours.
#[derive(Clone, Copy, Debug)]
pub struct Look {
    /// CSS pixels.
    pub width: u32,
    /// CSS pixels.
    pub height: u32,
    /// Whether the person prefers a dark page.
    pub dark: bool,
}

/// A desktop's window.
pub const DESKTOP: Look = Look { width: 1200, height: 760, dark: false };

/// A page that is open in a browser.
pub struct Page {
    link: Arc<Link>,
    session: String,
}

impl Page {
    /// Opens `url` as a person whom the page shall know as `name`.
    ///
    /// # Errors
    /// If the browser refuses or is gone.
    pub fn open(browser: &Browser, url: &str, name: &str) -> Result<Self, BrowserError> {
        let link = Arc::clone(browser.link());
        let context = link.call(None, "Target.createBrowserContext", json!({}))?;
        let target = link.call(
            None,
            "Target.createTarget",
            json!({ "url": "about:blank", "browserContextId": context["browserContextId"] }),
        )?;
        let attached = link.call(
            None,
            "Target.attachToTarget",
            json!({ "targetId": target["targetId"], "flatten": true }),
        )?;
        let session = attached["sessionId"].as_str().unwrap_or_default().to_owned();
        let page = Self { link, session };
        for domain in ["Page.enable", "Runtime.enable", "Network.enable", "Log.enable"] {
            page.call(domain, json!({}))?;
        }
        // Both people look at their page at the same time.
        page.call("Emulation.setFocusEmulationEnabled", json!({ "enabled": true }))?;
        page.look(DESKTOP)?;
        let remember = format!("localStorage.setItem('notes.name', {})", json!(name));
        let remember = format!("try {{ {remember} }} catch {{}}");
        page.call("Page.addScriptToEvaluateOnNewDocument", json!({ "source": remember }))?;
        page.go_to(url)?;
        Ok(page)
    }

    /// Goes to `url` and waits until it is loaded.
    ///
    /// # Errors
    /// If it cannot be loaded.
    pub fn go_to(&self, url: &str) -> Result<(), BrowserError> {
        let went = self.call("Page.navigate", json!({ "url": url }))?;
        if let Some(reason) = went["errorText"].as_str() {
            let reason = format!("{url}: {reason}");
            return Err(BrowserError::Refused { method: "Page.navigate".into(), reason });
        }
        self.wait_for(&format!(
            "location.href === {} && document.readyState === 'complete'",
            json!(url)
        ))
    }

    /// The value of a script; a promise is waited for.
    ///
    /// # Errors
    /// If the script throws or the page is gone.
    pub fn value(&self, script: &str) -> Result<Value, BrowserError> {
        let params = json!({ "expression": script, "awaitPromise": true, "returnByValue": true });
        let mut result = self.call("Runtime.evaluate", params)?;
        if let Some(thrown) = result.get("exceptionDetails") {
            let reason = thrown["exception"]["description"]
                .as_str()
                .or(thrown["text"].as_str())
                .unwrap_or_default();
            return Err(BrowserError::Script { script: script.into(), reason: reason.into() });
        }
        Ok(result["result"]["value"].take())
    }

    /// Waits until a condition holds, looking at every frame that the page draws.
    ///
    /// # Errors
    /// If it does not hold in time.
    pub fn wait_for(&self, condition: &str) -> Result<(), BrowserError> {
        let patience_ms = PATIENCE.as_millis() - 5000;
        let held = self.value(&format!(
            "new Promise((resolve) => {{
                const end = performance.now() + {patience_ms}
                const look = () => {{
                    if ({condition}) resolve(true)
                    else if (performance.now() > end) resolve(false)
                    else requestAnimationFrame(look)
                }}
                look()
            }})"
        ))?;
        if held == true {
            return Ok(());
        }
        let reason = format!("still not true after {patience_ms} ms");
        Err(BrowserError::Script { script: condition.into(), reason })
    }

    /// Presses and releases the key of a character.
    ///
    /// # Errors
    /// If the page is gone.
    pub fn press(&self, character: char) -> Result<(), BrowserError> {
        let key = match character {
            '\n' => json!({ "key": "Enter", "text": "\r", "windowsVirtualKeyCode": 13 }),
            other => json!({ "key": other.to_string(), "text": other.to_string() }),
        };
        self.press_key(key)
    }

    /// Presses and releases Backspace.
    ///
    /// # Errors
    /// If the page is gone.
    pub fn press_backspace(&self) -> Result<(), BrowserError> {
        self.press_key(json!({ "key": "Backspace", "windowsVirtualKeyCode": 8 }))
    }

    /// Presses and releases Tab.
    ///
    /// # Errors
    /// If the page is gone.
    pub fn press_tab(&self) -> Result<(), BrowserError> {
        self.press_key(json!({ "key": "Tab", "code": "Tab", "windowsVirtualKeyCode": 9 }))
    }

    fn press_key(&self, mut key: Value) -> Result<(), BrowserError> {
        key["type"] = "keyDown".into();
        self.call("Input.dispatchKeyEvent", key.clone())?;
        key["type"] = "keyUp".into();
        if let Some(key) = key.as_object_mut() {
            key.remove("text");
        }
        self.call("Input.dispatchKeyEvent", key).map(drop)
    }

    /// Changes the page's size and colours.
    ///
    /// # Errors
    /// If the page is gone.
    pub fn look(&self, Look { width, height, dark }: Look) -> Result<(), BrowserError> {
        let size =
            json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": false });
        self.call("Emulation.setDeviceMetricsOverride", size)?;
        let scheme = if dark { "dark" } else { "light" };
        let features = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
        self.call("Emulation.setEmulatedMedia", json!({ "features": features })).map(drop)
    }

    /// Writes a picture of the page, as PNG.
    ///
    /// # Errors
    /// If the page is gone or the file cannot be written.
    pub fn picture(&self, path: &Path) -> Result<(), BrowserError> {
        // What the last edit changed is drawn with the frame after the next.
        self.value("new Promise((ok) => requestAnimationFrame(() => requestAnimationFrame(ok)))")?;
        let shot = self.call("Page.captureScreenshot", json!({ "format": "png" }))?;
        let data = shot["data"].as_str().unwrap_or_default();
        let failed = |source| BrowserError::Write { path: path.to_owned(), source };
        let png = base64::engine::general_purpose::STANDARD
            .decode(data)
            .map_err(|error| failed(std::io::Error::other(error)))?;
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(failed)?;
        }
        std::fs::write(path, png).map_err(failed)
    }

    /// WebSockets that the page has opened so far, and that were closed, as the browser counts.
    #[must_use]
    pub fn websockets(&self) -> (usize, usize) {
        let count = |method| self.link.events(&self.session, method).len();
        (count("Network.webSocketCreated"), count("Network.webSocketClosed"))
    }

    /// What scripts of the page threw without catching it.
    #[must_use]
    pub fn exceptions(&self) -> Vec<String> {
        let thrown = self.link.events(&self.session, "Runtime.exceptionThrown");
        let words = |event: &Value| {
            let details = &event["exceptionDetails"];
            let description = details["exception"]["description"].as_str();
            description.or(details["text"].as_str()).unwrap_or_default().to_owned()
        };
        thrown.iter().map(words).collect()
    }

    /// Everything that went wrong in the page: what scripts threw or wrote to the console as an error, what
    /// could not be loaded, what the page's policy forbade.
    #[must_use]
    pub fn errors(&self) -> Vec<String> {
        let mut errors = self.exceptions();
        let written = self.link.events(&self.session, "Runtime.consoleAPICalled");
        let bad = written.iter().filter(|event| event["type"] == "error");
        errors.extend(bad.map(|event| event["args"].to_string()));
        let entries = self.link.events(&self.session, "Log.entryAdded");
        let bad =
            entries.iter().map(|event| &event["entry"]).filter(|entry| entry["level"] == "error");
        errors.extend(bad.map(|entry| format!("{} {}", entry["text"], entry["url"])));
        errors
    }

    /// What a screen reader is told of the page: role and name of each node that it does not skip.
    ///
    /// # Errors
    /// If the page is gone.
    pub fn accessible(&self) -> Result<Vec<(String, String)>, BrowserError> {
        let tree = self.call("Accessibility.getFullAXTree", json!({}))?;
        let word = |value: &Value| value["value"].as_str().unwrap_or_default().to_owned();
        let nodes = tree["nodes"].as_array().map(Vec::as_slice).unwrap_or_default();
        let told = nodes.iter().filter(|node| node["ignored"] != true);
        Ok(told.map(|node| (word(&node["role"]), word(&node["name"]))).collect())
    }

    fn call(&self, method: &str, params: Value) -> Result<Value, BrowserError> {
        self.link.call(Some(&self.session), method, params)
    }
}
