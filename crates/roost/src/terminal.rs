//! Standard output and standard error: tables, JSON, colours and progress.
//!
//! Answers go to standard output, everything else to standard error. Colours and progress appear only where a person
//! looks: on a terminal, and not with `NO_COLOR` or `--json`. A reader that went away (`roost list | head`) is not an
//! error.

mod pages;

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use anyhow::Result;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use roost_catalog::model::State;
use serde::Serialize;

pub(crate) use pages::Pages;

/// How to speak to whoever started the command.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Terminal {
    /// Answers are JSON.
    pub(crate) json: bool,
    /// Standard output may be coloured.
    colour: bool,
    /// Standard error is a terminal.
    person: bool,
}

/// Colours, by what they mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Colour {
    /// Works.
    Green,
    /// Works, but less than it could.
    Yellow,
    /// Does not work.
    Red,
    /// Asleep.
    Blue,
    /// Less important.
    Dim,
}

impl Colour {
    /// The ANSI sequence (ECMA-48, SGR).
    const fn sequence(self) -> &'static str {
        match self {
            Self::Green => "\x1b[32m",
            Self::Yellow => "\x1b[33m",
            Self::Red => "\x1b[31m",
            Self::Blue => "\x1b[34m",
            Self::Dim => "\x1b[2m",
        }
    }
}

/// A text, and the colour that it has on a terminal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cell {
    text: String,
    colour: Option<Colour>,
}

impl Cell {
    /// A text in a colour.
    pub(crate) fn coloured(text: impl Into<String>, colour: Colour) -> Self {
        Self { text: text.into(), colour: Some(colour) }
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self { text: text.into(), colour: None }
    }
}

/// A state in its colour.
pub(crate) fn state(state: State) -> Cell {
    let colour = match state {
        State::Running => Colour::Green,
        State::Starting | State::Stopping => Colour::Yellow,
        State::Frozen => Colour::Blue,
        State::Stopped => Colour::Dim,
        State::Failed => Colour::Red,
    };
    Cell::coloured(state.as_str(), colour)
}

impl Terminal {
    /// Looks at where the output goes.
    pub(crate) fn new(json: bool) -> Self {
        let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
            || std::env::var_os("TERM").is_some_and(|value| value == "dumb");
        Self {
            json,
            colour: !json && !plain && io::stdout().is_terminal(),
            person: !json && io::stderr().is_terminal(),
        }
    }

    /// One line of an answer.
    pub(crate) fn line(&self, text: impl AsRef<str>) -> Result<()> {
        self.write(&format!("{}\n", text.as_ref())).map(drop)
    }

    /// An answer as JSON, readable.
    pub(crate) fn json(&self, answer: &impl Serialize) -> Result<()> {
        self.line(serde_json::to_string_pretty(answer)?)
    }

    /// A table with aligned columns. Nothing but a note to standard error if it has no rows.
    pub(crate) fn table(&self, headings: &[&str], rows: &[Vec<Cell>], none: &str) -> Result<()> {
        if rows.is_empty() {
            self.note(none);
            return Ok(());
        }
        let mut widths = Vec::new();
        let text = render(&heading(headings), &mut widths, self.colour, rows);
        self.write(&text).map(drop)
    }

    /// Names and values, one a line, the values aligned.
    pub(crate) fn pairs(&self, pairs: &[(&str, Cell)]) -> Result<()> {
        let width = pairs.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        let mut text = String::new();
        for (name, value) in pairs {
            text.push_str(&format!("{name:width$}  {}\n", paint(value, self.colour)));
        }
        self.write(&text).map(drop)
    }

    /// A remark for a person, to standard error; nothing with `--json`.
    pub(crate) fn note(&self, text: &str) {
        if !self.json {
            // A terminal that is gone needs no remarks.
            let _ = writeln!(io::stderr(), "{text}");
        }
    }

    /// An error, to standard error.
    pub(crate) fn complain(&self, message: &str, hint: Option<&str>) {
        let mut stderr = io::stderr();
        let _ = writeln!(stderr, "roost: {message}");
        if let Some(hint) = hint {
            let _ = writeln!(stderr, "roost: {hint}");
        }
    }

    /// An error as JSON, to standard error.
    pub(crate) fn complain_json(&self, error: &impl Serialize) {
        if let Ok(text) = serde_json::to_string(error) {
            let _ = writeln!(io::stderr(), "{text}");
        }
    }

    /// A spinner for something of unknown length; it is gone when this is dropped.
    pub(crate) fn spinner(&self, what: impl Into<String>) -> Progress {
        let bar = ProgressBar::with_draw_target(None, self.target());
        bar.set_style(
            ProgressStyle::with_template("{spinner} {msg} {elapsed}")
                .unwrap_or(ProgressStyle::default_spinner()),
        );
        bar.set_message(what.into());
        if self.person {
            bar.enable_steady_tick(Duration::from_millis(100));
        }
        Progress(bar)
    }

    /// A counter of bytes of a stream; with `length` if that is known.
    pub(crate) fn bytes(&self, what: impl Into<String>, length: Option<u64>) -> Progress {
        let template = match length {
            Some(_) => {
                "{spinner} {msg} [{bar:30}] {binary_bytes} of {binary_total_bytes}, {binary_bytes_per_sec}"
            }
            None => "{spinner} {msg} {binary_bytes}, {binary_bytes_per_sec}",
        };
        let bar = ProgressBar::with_draw_target(length, self.target());
        bar.set_style(ProgressStyle::with_template(template).unwrap_or(ProgressStyle::default_bar()));
        bar.set_message(what.into());
        if self.person {
            bar.enable_steady_tick(Duration::from_millis(100));
        }
        Progress(bar)
    }

    fn target(&self) -> ProgressDrawTarget {
        if self.person { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() }
    }

    /// Writes to standard output. False when nobody reads it any more.
    fn write(&self, text: &str) -> Result<bool> {
        let mut stdout = io::stdout().lock();
        match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

/// Something under way, shown on standard error until it is dropped.
#[derive(Debug)]
pub(crate) struct Progress(ProgressBar);

impl Progress {
    /// So much more is done.
    pub(crate) fn advance(&self, by: usize) {
        self.0.inc(by as u64);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

fn paint(cell: &Cell, colours: bool) -> String {
    match cell.colour {
        Some(colour) if colours => format!("{}{}\x1b[0m", colour.sequence(), cell.text),
        _ => cell.text.clone(),
    }
}

/// The first row of a table.
fn heading(headings: &[&str]) -> Vec<Vec<Cell>> {
    vec![headings.iter().map(|text| Cell::coloured(*text, Colour::Dim)).collect()]
}

/// Rows below a heading, with columns at least as wide as `widths`, which grow with them.
fn render(heading: &[Vec<Cell>], widths: &mut Vec<usize>, colours: bool, rows: &[Vec<Cell>]) -> String {
    let all = || heading.iter().chain(rows);
    for row in all() {
        widths.resize(widths.len().max(row.len()), 0);
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.text.chars().count());
        }
    }
    let mut text = String::new();
    for row in all() {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&*widths) {
            line.push_str(&paint(cell, colours));
            line.extend(std::iter::repeat_n(' ', width.saturating_sub(cell.text.chars().count()) + 2));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_whatever_their_colours() {
        let rows = vec![
            vec!["shop".into(), state(State::Running), "1".into()],
            vec!["a".into(), state(State::Frozen), "22".into()],
        ];
        let render = |colours| render(&heading(&["NAME", "STATE", "N"]), &mut Vec::new(), colours, &rows);
        assert_eq!(render(false), "NAME  STATE    N\nshop  running  1\na     frozen   22\n");
        let coloured = render(true);
        assert!(coloured.contains("\x1b[32mrunning\x1b[0m  1"), "{coloured:?}");
    }

    #[test]
    fn width_is_counted_in_characters_and_not_in_bytes() {
        let rows = vec![vec!["é".into(), "x".into()], vec!["ab".into(), "y".into()]];
        let text = render(&heading(&["A", "B"]), &mut Vec::new(), false, &rows);
        assert_eq!(text, "A   B\né   x\nab  y\n");
    }
}
