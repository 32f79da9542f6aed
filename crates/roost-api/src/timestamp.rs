//! Points in time as the API writes them: ISO 8601 in UTC with milliseconds, `2026-03-21T08:05:30.250Z`.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Writes a point in time. One before 1970 is written as the epoch, one after the year 9999 as its last second.
pub fn format(time: SystemTime) -> String {
    let since_epoch = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let seconds = since_epoch.as_secs().min(LAST_SECOND);
    let (year, month, day) = civil_date(seconds / SECONDS_PER_DAY);
    let of_day = seconds % SECONDS_PER_DAY;
    let (hour, minute, second) = (of_day / 3_600, of_day / 60 % 60, of_day % 60);
    let millis = since_epoch.subsec_millis();
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z")
}

/// Reads what [`format`] writes; `None` for anything else.
pub fn parse(text: &str) -> Option<SystemTime> {
    let field = |from: usize, to: usize| -> Option<u64> {
        let digits = text.get(from..to)?;
        digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())?
    };
    let separators = [(4, '-'), (7, '-'), (10, 'T'), (13, ':'), (16, ':'), (19, '.'), (23, 'Z')];
    if text.len() != 24
        || !separators.iter().all(|(at, c)| text.get(*at..).is_some_and(|rest| rest.starts_with(*c)))
    {
        return None;
    }
    let (year, month, day) = (field(0, 4)?, field(5, 7)?, field(8, 10)?);
    let (hour, minute, second, millis) = (field(11, 13)?, field(14, 16)?, field(17, 19)?, field(20, 23)?);
    if year < 1970 || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let days = days_since_epoch(year, month, day)?;
    if civil_date(days) != (year, month, day) {
        return None;
    }
    let seconds = days * SECONDS_PER_DAY + hour * 3_600 + minute * 60 + second;
    Some(UNIX_EPOCH + Duration::from_secs(seconds) + Duration::from_millis(millis))
}

const SECONDS_PER_DAY: u64 = 86_400;
/// 9999-12-31T23:59:59Z.
const LAST_SECOND: u64 = 253_402_300_799;
/// Days from 0000-03-01 to 1970-01-01 in the proleptic Gregorian calendar.
const DAYS_BEFORE_EPOCH: u64 = 719_468;
/// Days in 400 Gregorian years, after which the calendar repeats.
const DAYS_PER_ERA: u64 = 146_097;

/// Year, month and day of a number of days since 1970-01-01. Years are counted from March, so that a leap day is the
/// last day of its year.
fn civil_date(days: u64) -> (u64, u64, u64) {
    let days = days + DAYS_BEFORE_EPOCH;
    let era = days / DAYS_PER_ERA;
    let day_of_era = days % DAYS_PER_ERA;
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    (year, month, day)
}

/// Days since 1970-01-01 of a date; `None` when month or day is out of any month's range.
fn days_since_epoch(year: u64, month: u64, day: u64) -> Option<u64> {
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    let year = year - u64::from(month <= 2);
    let era = year / 400;
    let year_of_era = year % 400;
    let month_from_march = if month > 2 { month - 3 } else { month + 9 };
    let day_of_year = (153 * month_from_march + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    (era * DAYS_PER_ERA + day_of_era).checked_sub(DAYS_BEFORE_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_moments_are_written_as_iso_8601() {
        let at = |seconds, millis| UNIX_EPOCH + Duration::from_secs(seconds) + Duration::from_millis(millis);
        assert_eq!(format(at(0, 0)), "1970-01-01T00:00:00.000Z");
        assert_eq!(format(at(951_827_696, 789)), "2000-02-29T12:34:56.789Z");
        assert_eq!(format(at(1_767_225_599, 1)), "2025-12-31T23:59:59.001Z");
        assert_eq!(format(UNIX_EPOCH - Duration::from_secs(5)), "1970-01-01T00:00:00.000Z");
    }

    #[test]
    fn what_is_no_moment_is_not_read() {
        for text in [
            "",
            "2025-02-29T00:00:00.000Z",
            "2025-01-01 00:00:00.000Z",
            "2025-13-01T00:00:00.000Z",
            "2025-01-01T24:00:00.000Z",
            "+025-01-01T00:00:00.000Z",
            "１９７０-01-01T00:00:00.0",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn every_moment_survives_its_text_form(ms in 0..LAST_SECOND * 1_000) {
            let time = UNIX_EPOCH + Duration::from_millis(ms);
            prop_assert_eq!(parse(&format(time)), Some(time));
        }

        #[test]
        fn no_text_makes_the_reader_panic(text in ".{0,30}") {
            let _ = parse(&text);
        }
    }
}
