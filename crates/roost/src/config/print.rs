//! The defaults, as a table to read and as a commented file to print.

use super::flags;
use super::keys::KEYS;

/// The layer below all others.
pub(super) fn defaults() -> toml::Table {
    let mut table = toml::Table::new();
    for key in KEYS {
        if let (_, name) = key.split()
            && let Some(default) = key.default
        {
            let line = format!("{name} = {default}");
            let value = line.parse::<toml::Table>().ok().and_then(|mut parsed| parsed.remove(name));
            // That every default is TOML is a test.
            if let Some(value) = value {
                flags::insert(&mut table, key, value);
            }
        }
        if let (Some(name), _) = key.split() {
            table.entry(name).or_insert_with(|| toml::Value::Table(toml::Table::new()));
        }
    }
    table
}

/// Columns of a line of documentation.
const WIDTH: usize = 100;

/// The commented default file: every setting with its documentation, its flag and its default.
pub(crate) fn default_file() -> String {
    let mut text = String::from(
        "# Configuration of a Roost node. Every setting is shown with its default.\n\
         # Environment variables go over this file, and flags over both.\n",
    );
    let mut current = None;
    for key in KEYS {
        let (table, name) = key.split();
        if let Some(table) = table
            && current != Some(table)
        {
            text.push_str(&format!("\n[{table}]\n"));
            current = Some(table);
        }
        text.push('\n');
        let doc = format!("{} (--{}, {})", key.doc, key.flag(), key.variable());
        for line in wrap(&doc) {
            text.push_str(&format!("# {line}\n"));
        }
        match key.default {
            Some(default) => text.push_str(&format!("{name} = {default}\n")),
            None => text.push_str(&format!("# {name} =\n")),
        }
    }
    text
}

/// Breaks a text into lines of at most [`WIDTH`] columns, between words.
fn wrap(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.len() + 1 + word.len() <= WIDTH => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}
