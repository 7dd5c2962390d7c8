//! Tables, JSON, and words for errors.

use std::io::{IsTerminal, Write};

use serde::Serialize;

use crate::api::ApiError;

/// A table whose columns are as wide as they must be.
#[derive(Debug)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these headings.
    #[must_use]
    pub fn new(headings: &[&str]) -> Self {
        Self { rows: vec![headings.iter().map(|&heading| heading.to_owned()).collect()] }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// The text.
    #[must_use]
    pub fn render(&self) -> String {
        let columns = self.rows[0].len();
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut out = String::new();
        for row in &self.rows {
            let cells: Vec<String> =
                row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
            out.push_str(cells.join("  ").trim_end());
            out.push('\n');
        }
        out
    }

    /// Prints it.
    pub fn print(&self) {
        print(&self.render());
    }
}

/// Prints text; a reader that has gone away is not an error.
pub fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes());
    let _ = out.flush();
}

/// Prints a value as JSON with indentation.
///
/// # Errors
/// The value cannot be JSON.
pub fn print_json(value: &impl Serialize) -> Result<(), ApiError> {
    let text = serde_json::to_string_pretty(value).map_err(ApiError::failed)?;
    print(&(text + "\n"));
    Ok(())
}

/// Prints a value as one line of JSON.
///
/// # Errors
/// The value cannot be JSON.
pub fn print_json_line(value: &impl Serialize) -> Result<(), ApiError> {
    let text = serde_json::to_string(value).map_err(ApiError::failed)?;
    print(&(text + "\n"));
    Ok(())
}

/// Prints what happened, what still runs where, and what to do next.
pub fn print_error(error: &ApiError) {
    eprintln!("error: {}", error.message);
    if let Some(hint) = &error.hint {
        eprintln!("hint: {hint}");
    }
}

/// A line at the terminal that says what is under way; silent where no terminal is.
#[derive(Debug)]
pub struct Progress {
    shown: bool,
    terminal: bool,
}

impl Progress {
    /// Nothing shown yet.
    #[must_use]
    pub fn new(wanted: bool) -> Self {
        Self { shown: false, terminal: wanted && std::io::stderr().is_terminal() }
    }

    /// Shows `text` in place of what was shown.
    pub fn show(&mut self, text: &str) {
        if self.terminal {
            eprint!("\r\x1b[2K{text} …");
            self.shown = true;
        }
    }

    /// Takes the line away.
    pub fn clear(&mut self) {
        if self.shown {
            eprint!("\r\x1b[2K");
            self.shown = false;
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}

/// How long ago, in the largest unit that fits.
#[must_use]
pub fn age(since_us: u64, now_us: u64) -> String {
    let seconds = now_us.saturating_sub(since_us) / 1_000_000;
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7_200 => format!("{}m", seconds / 60),
        7_200..172_800 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let mut table = Table::new(&["NAME", "NODE"]);
        table.row(["pingpong".into(), "a".into()]);
        table.row(["µ".into(), String::new()]);
        assert_eq!(table.render(), "NAME      NODE\npingpong  a\nµ\n");
    }

    #[test]
    fn ages() {
        let ages = [0, 119, 120, 7_200, 172_800].map(|seconds| age(0, seconds * 1_000_000));
        assert_eq!(ages, ["0s", "119s", "2m", "2h", "2d"]);
    }
}
