//! A flag and an environment variable for every setting, made from the table of keys.

use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};
use toml::Value;

use super::keys::{KEYS, Key, Kind, RUN};

/// What flags and environment variables set, in the shape of the file.
#[derive(Debug, Clone, Default)]
pub(crate) struct ConfigFlags {
    table: toml::Table,
}

impl ConfigFlags {
    /// The layer that goes over the file.
    pub(crate) fn table(&self) -> &toml::Table {
        &self.table
    }
}

impl Args for ConfigFlags {
    fn augment_args(command: Command) -> Command {
        own_keys().fold(command, |command, key| command.arg(argument(key)))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

/// All settings but the one whose flag every command has.
fn own_keys() -> impl Iterator<Item = &'static Key> {
    KEYS.iter().filter(|key| key.path != RUN)
}

/// The flag of one setting.
fn argument(key: &Key) -> Arg {
    let flag = key.flag();
    let help = match key.default {
        Some(default) => format!("{} [default: {}]", key.doc, default.trim_matches('"')),
        None => key.doc.to_owned(),
    };
    let heading = match key.split().0 {
        Some(table) => format!("Settings of [{table}]"),
        None => "Settings".to_owned(),
    };
    let argument =
        Arg::new(key.path).long(flag).env(key.variable()).hide_env(true).help(help).help_heading(heading);
    match key.kind {
        Kind::List => argument.value_name("VALUE").action(ArgAction::Append).value_delimiter(','),
        Kind::Integer => argument.value_name("NUMBER").value_parser(clap::value_parser!(i64)),
        Kind::Text | Kind::IntegerOrAuto | Kind::BooleanOrAuto => argument.value_name("VALUE"),
    }
}

impl FromArgMatches for ConfigFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut flags = Self::default();
        flags.update_from_arg_matches(matches)?;
        Ok(flags)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        for key in own_keys() {
            if !matches!(
                matches.value_source(key.path),
                Some(ValueSource::CommandLine | ValueSource::EnvVariable)
            ) {
                continue;
            }
            if let Some(value) = value(key, matches) {
                insert(&mut self.table, key, value);
            }
        }
        Ok(())
    }
}

/// A setting's value as the file would have it.
fn value(key: &Key, matches: &ArgMatches) -> Option<Value> {
    let text = || matches.get_one::<String>(key.path).cloned();
    match key.kind {
        Kind::Text => text().map(Value::String),
        Kind::IntegerOrAuto => {
            text().map(|text| text.parse().map_or_else(|_| Value::String(text), Value::Integer))
        }
        Kind::Integer => matches.get_one::<i64>(key.path).map(|number| Value::Integer(*number)),
        Kind::BooleanOrAuto => {
            text().map(|text| text.parse().map_or_else(|_| Value::String(text), Value::Boolean))
        }
        Kind::List => {
            let items = matches.get_many::<String>(key.path)?;
            Some(Value::Array(items.filter(|item| !item.is_empty()).cloned().map(Value::String).collect()))
        }
    }
}

/// Puts a value in its place.
pub(super) fn insert(table: &mut toml::Table, key: &Key, value: Value) {
    match key.split() {
        (None, name) => {
            table.insert(name.to_owned(), value);
        }
        (Some(inner), name) => {
            let inner = table.entry(inner).or_insert_with(|| Value::Table(toml::Table::new()));
            if let Value::Table(inner) = inner {
                inner.insert(name.to_owned(), value);
            }
        }
    }
}
