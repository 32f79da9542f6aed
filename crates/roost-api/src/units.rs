//! Durations and sizes as people write them: `10s`, `1h30m`, `never`, `256MiB`, `10GiB`.
//!
//! The same text is used on the command line, in `roost.toml` and in the API's idle settings. What `format_*` writes,
//! `parse_*` reads back to the same value; `about_*` rounds for people and is never read back.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use roost_catalog::model::IdleAfter;
use serde::{Deserialize, Serialize};

/// A text that is not a duration or a size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// Not a duration.
    #[error("`{0}` is not a duration: write a number and a unit (ms, s, m, h, d), such as 10s, 5m or 1h30m")]
    Duration(String),
    /// Neither a duration nor `never`.
    #[error("`{0}` is not an idle time: write a duration such as 10s or 5m, or `never`")]
    Idle(String),
    /// Not a size.
    #[error(
        "`{0}` is not a size: write a whole number and a unit (B, KiB, MiB, GiB, TiB), such as 256MiB or 10GiB"
    )]
    Size(String),
    /// Not a number of cores.
    #[error(
        "`{0}` is not a number of cores: write one with at most three decimals, such as 0.5 or 2, or `unlimited`"
    )]
    Cores(String),
}

/// Units of durations, longest first, in milliseconds.
const DURATION_UNITS: [(&str, u64); 5] =
    [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

/// Units of sizes, largest first, in bytes.
const SIZE_UNITS: [(&str, u64); 5] =
    [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

/// Decimal units that are read but never written, in bytes.
const DECIMAL_SIZE_UNITS: [(&str, u64); 4] =
    [("TB", 1_000_000_000_000), ("GB", 1_000_000_000), ("MB", 1_000_000), ("kB", 1_000)];

/// Splits a text after its leading ASCII digits.
fn split_number(text: &str) -> Option<(u64, &str)> {
    let end = text.find(|character: char| !character.is_ascii_digit()).unwrap_or(text.len());
    let (digits, rest) = text.split_at_checked(end)?;
    Some((digits.parse().ok()?, rest))
}

/// Reads a duration: one or more numbers with units (`ms`, `s`, `m`, `h`, `d`), such as `250ms` or `1h30m`.
pub fn parse_duration(text: &str) -> Result<Duration, UnitError> {
    let refuse = || UnitError::Duration(text.to_owned());
    let mut rest = text.trim();
    if rest.is_empty() {
        return Err(refuse());
    }
    let mut total_ms = 0_u64;
    while !rest.is_empty() {
        let (number, after) = split_number(rest).ok_or_else(refuse)?;
        let end = after.find(|character: char| !character.is_ascii_alphabetic()).unwrap_or(after.len());
        let (unit, next) = after.split_at_checked(end).ok_or_else(refuse)?;
        let (_, unit_ms) = DURATION_UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(refuse)?;
        let part = number.checked_mul(*unit_ms).ok_or_else(refuse)?;
        total_ms = total_ms.checked_add(part).ok_or_else(refuse)?;
        rest = next;
    }
    Ok(Duration::from_millis(total_ms))
}

/// Writes a duration exactly, to the millisecond; what is below a millisecond is cut off.
pub fn format_duration(duration: Duration) -> String {
    let mut rest = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    if rest == 0 {
        return "0s".to_owned();
    }
    let mut text = String::new();
    for (unit, unit_ms) in DURATION_UNITS {
        let count = rest / unit_ms;
        if count > 0 {
            text.push_str(&count.to_string());
            text.push_str(unit);
            rest %= unit_ms;
        }
    }
    text
}

/// Writes a duration for people, in its largest sensible unit: `3 s`, `12 min`, `5 h`, `9 d`.
pub fn about_duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0 => format!("{} ms", duration.as_millis()),
        1..60 => format!("{seconds} s"),
        60..3_600 => format!("{} min", seconds / 60),
        3_600..86_400 => format!("{} h", seconds / 3_600),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// Reads a size in bytes: a whole number and a unit (`B`, `KiB`, `MiB`, `GiB`, `TiB`, or decimal `kB` to `TB`).
pub fn parse_size(text: &str) -> Result<u64, UnitError> {
    let refuse = || UnitError::Size(text.to_owned());
    let (number, unit) = split_number(text.trim()).ok_or_else(refuse)?;
    let unit = unit.trim_start();
    let (_, unit_bytes) =
        SIZE_UNITS.iter().chain(&DECIMAL_SIZE_UNITS).find(|(name, _)| *name == unit).ok_or_else(refuse)?;
    number.checked_mul(*unit_bytes).ok_or_else(refuse)
}

/// Writes a size exactly, in the largest unit that divides it.
pub fn format_size(bytes: u64) -> String {
    for (unit, unit_bytes) in SIZE_UNITS {
        if bytes >= unit_bytes && bytes.is_multiple_of(unit_bytes) {
            return format!("{}{unit}", bytes / unit_bytes);
        }
    }
    "0B".to_owned()
}

/// Writes a size for people, rounded to one decimal: `4.2 MiB`.
pub fn about_size(bytes: u64) -> String {
    for (unit, unit_bytes) in SIZE_UNITS {
        if bytes >= unit_bytes && unit_bytes > 1 {
            // A rounded figure for a reader: the lost precision is the point.
            #[expect(clippy::cast_precision_loss)]
            let count = bytes as f64 / unit_bytes as f64;
            return format!("{count:.1} {unit}");
        }
    }
    format!("{bytes} B")
}

/// An idle time: how long until a database goes down a rung, or `never`. Its text form is also its JSON and TOML form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Idle(pub IdleAfter);

impl FromStr for Idle {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        if text == "never" {
            return Ok(Self(IdleAfter::Never));
        }
        parse_duration(text)
            .map(|after| Self(IdleAfter::After(after)))
            .map_err(|_| UnitError::Idle(text.to_owned()))
    }
}

impl TryFrom<String> for Idle {
    type Error = UnitError;

    fn try_from(text: String) -> Result<Self, UnitError> {
        text.parse()
    }
}

impl fmt::Display for Idle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            IdleAfter::After(after) => f.write_str(&format_duration(after)),
            IdleAfter::Never => f.write_str("never"),
        }
    }
}

impl From<Idle> for String {
    fn from(idle: Idle) -> Self {
        idle.to_string()
    }
}

/// Reads a number of cores with at most three decimals as thousandths of a core; `unlimited` is `None`.
pub fn parse_cores(text: &str) -> Result<Option<u32>, UnitError> {
    let refuse = || UnitError::Cores(text.to_owned());
    if text == "unlimited" {
        return Ok(None);
    }
    let (whole, decimals) = text.split_once('.').unwrap_or((text, "0"));
    let digits_only = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    if !digits_only(whole) || !digits_only(decimals) || decimals.len() > 3 {
        return Err(refuse());
    }
    let whole: u32 = whole.parse().map_err(|_| refuse())?;
    let thousandths: u32 = format!("{decimals:0<3}").parse().map_err(|_| refuse())?;
    let millicores =
        whole.checked_mul(1_000).and_then(|cores| cores.checked_add(thousandths)).ok_or_else(refuse)?;
    if millicores == 0 { Err(refuse()) } else { Ok(Some(millicores)) }
}

/// Writes thousandths of a core as a number of cores; `None` is `unlimited`.
pub fn format_cores(millicores: Option<u32>) -> String {
    match millicores {
        None => "unlimited".to_owned(),
        Some(millicores) if millicores.is_multiple_of(1_000) => (millicores / 1_000).to_string(),
        Some(millicores) => {
            format!("{}.{:03}", millicores / 1_000, millicores % 1_000).trim_end_matches('0').to_owned()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn durations_are_read_in_every_unit_and_compound() {
        for (text, ms) in
            [("10s", 10_000), ("250ms", 250), ("5m", 300_000), ("1h30m", 5_400_000), ("7d", 604_800_000)]
        {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
    }

    #[test]
    fn a_duration_without_a_unit_or_out_of_range_is_refused() {
        for text in [
            "",
            "10",
            "s",
            "10 s",
            "-1s",
            "1.5h",
            "10parsecs",
            "99999999999999999999s",
            "18446744073709551615d",
        ] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_are_read_in_binary_and_decimal_units() {
        for (text, bytes) in [
            ("256MiB", 268_435_456),
            ("10GiB", 10_737_418_240),
            ("1 KiB", 1_024),
            ("5MB", 5_000_000),
            ("0B", 0),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in ["", "10", "MiB", "-1MiB", "1.5GiB", "17592186044416TiB"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn cores_have_at_most_three_decimals_and_are_not_zero() {
        assert_eq!(parse_cores("0.5"), Ok(Some(500)));
        assert_eq!(parse_cores("2"), Ok(Some(2_000)));
        assert_eq!(parse_cores("unlimited"), Ok(None));
        for text in ["", "0", "0.0", ".5", "1.", "1.2345", "-1", "x", "99999999999"] {
            assert!(parse_cores(text).is_err(), "{text}");
        }
    }

    #[test]
    fn figures_for_people_are_rounded() {
        assert_eq!(about_size(0), "0 B");
        assert_eq!(about_size(4_404_019), "4.2 MiB");
        assert_eq!(about_duration(Duration::from_secs(125)), "2 min");
        assert_eq!(about_duration(Duration::from_millis(7)), "7 ms");
    }

    proptest! {
        #[test]
        fn every_duration_survives_its_text_form(ms in any::<u64>()) {
            let duration = Duration::from_millis(ms);
            prop_assert_eq!(parse_duration(&format_duration(duration)), Ok(duration));
        }

        #[test]
        fn every_size_survives_its_text_form(bytes in any::<u64>()) {
            prop_assert_eq!(parse_size(&format_size(bytes)), Ok(bytes));
        }

        #[test]
        fn every_number_of_cores_survives_its_text_form(millicores in 1..u32::MAX) {
            prop_assert_eq!(parse_cores(&format_cores(Some(millicores))), Ok(Some(millicores)));
        }

        #[test]
        fn no_text_makes_a_parser_panic(text in ".*") {
            let _ = parse_duration(&text);
            let _ = parse_size(&text);
            let _ = parse_cores(&text);
            let _ = text.parse::<Idle>();
        }
    }
}
