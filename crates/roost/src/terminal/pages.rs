//! A list that is written page by page as it is read, so that it may be longer than memory and begins at once: a table, or
//! one JSON array.

use anyhow::Result;
use serde_json::Value;

use super::{Cell, Terminal, heading, render};

/// A list that is being written.
pub(crate) struct Pages<'a> {
    terminal: &'a Terminal,
    headings: &'a [&'a str],
    /// Of the table's columns. Columns of a later page may be wider, never narrower.
    widths: Vec<usize>,
    is_empty: bool,
}

impl<'a> Pages<'a> {
    /// Begins a list; `headings` are those of the table.
    pub(crate) fn begin(terminal: &'a Terminal, headings: &'a [&'a str]) -> Self {
        Self { terminal, headings, widths: Vec::new(), is_empty: true }
    }

    /// Writes a page of a table. False when nobody reads on.
    pub(crate) fn rows(&mut self, rows: &[Vec<Cell>]) -> Result<bool> {
        if rows.is_empty() {
            return Ok(true);
        }
        let heading = if self.is_empty { heading(self.headings) } else { Vec::new() };
        self.is_empty = false;
        self.terminal.write(&render(&heading, &mut self.widths, self.terminal.colour, rows))
    }

    /// Writes a page of a JSON array. False when nobody reads on.
    pub(crate) fn values(&mut self, values: &[Value]) -> Result<bool> {
        let mut text = String::new();
        for value in values {
            text.push_str(if self.is_empty { "[\n  " } else { ",\n  " });
            self.is_empty = false;
            // A line break inside of a JSON text is escaped: those that are there are the layout's own.
            text.push_str(&serde_json::to_string_pretty(value)?.replace('\n', "\n  "));
        }
        self.terminal.write(&text)
    }

    /// Ends the list; `none` is said to a person when it had no items.
    pub(crate) fn end(self, none: &str) -> Result<()> {
        match (self.terminal.json, self.is_empty) {
            (true, true) => self.terminal.line("[]"),
            (true, false) => self.terminal.line("\n]"),
            (false, true) => {
                self.terminal.note(none);
                Ok(())
            }
            (false, false) => Ok(()),
        }
    }
}
