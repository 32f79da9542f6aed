//! Types of settings whose text form is one of people: durations, sizes, cores, `auto`.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

use roost_api::units;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A duration, written `10s`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span(pub(crate) Duration);

/// A size in bytes, written `256MiB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Size(pub(crate) u64);

/// Thousandths of a core, written `0.5`; `None` is `unlimited`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cores(pub(crate) Option<u32>);

/// An address, or `off`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct HttpAddress(pub(crate) Option<SocketAddr>);

impl FromStr for Span {
    type Err = units::UnitError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        units::parse_duration(text).map(Self)
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&units::format_duration(self.0))
    }
}

impl FromStr for Size {
    type Err = units::UnitError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        units::parse_size(text).map(Self)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&units::format_size(self.0))
    }
}

impl FromStr for Cores {
    type Err = units::UnitError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        units::parse_cores(text).map(Self)
    }
}

impl fmt::Display for Cores {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&units::format_cores(self.0))
    }
}

impl FromStr for HttpAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "off" {
            return Ok(Self(None));
        }
        let address =
            text.parse().map_err(|_| format!("`{text}` is not an address with a port, nor \"off\""))?;
        Ok(Self(Some(address)))
    }
}

impl fmt::Display for HttpAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(address) => address.fmt(f),
            None => f.write_str("off"),
        }
    }
}

/// How often something may happen, written `60/1s`: so many at once, and one more each time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rate {
    /// So many at once.
    pub(crate) burst: u32,
    /// One more each time this passes.
    pub(crate) every: Duration,
}

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refuse = || {
            format!("`{text}` is not a rate: write how many at once, and how often one more, such as 60/1s")
        };
        let (burst, every) = text.split_once('/').ok_or_else(refuse)?;
        let (burst, every) =
            (burst.parse().map_err(|_| refuse())?, units::parse_duration(every).map_err(|_| refuse())?);
        if burst == 0 || every.is_zero() { Err(refuse()) } else { Ok(Self { burst, every }) }
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.burst, units::format_duration(self.every))
    }
}

macro_rules! as_text {
    ($($name:ident),*) => {$(
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}

as_text!(Span, Size, Cores, HttpAddress, Rate);

/// A value, or `auto`: Roost chooses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Auto<T> {
    /// Roost chooses.
    Auto,
    /// The operator chose.
    Value(T),
}

impl<T: Copy> Auto<T> {
    /// What the operator chose.
    pub(crate) fn value(&self) -> Option<T> {
        match self {
            Self::Auto => None,
            Self::Value(value) => Some(*value),
        }
    }
}

impl<T: Serialize> Serialize for Auto<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => serializer.serialize_str("auto"),
            Self::Value(value) => value.serialize(serializer),
        }
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Auto<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        /// `auto` is tried first: a size is a text too.
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Either<T> {
            Word(AutoWord),
            Value(T),
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "lowercase")]
        enum AutoWord {
            Auto,
        }
        match Either::deserialize(deserializer) {
            Ok(Either::Word(AutoWord::Auto)) => Ok(Self::Auto),
            Ok(Either::Value(value)) => Ok(Self::Value(value)),
            Err(_) => Err(serde::de::Error::custom("expected a value of the documented form, or \"auto\"")),
        }
    }
}

/// How the node logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object a line.
    Json,
}
