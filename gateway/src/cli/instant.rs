//! Instants as arguments: how long ago (`2h`), a day (`2026-11-24`), or an instant (`2026-11-24T12:00:00Z`).

use jiff::{Timestamp, civil::Date, tz::TimeZone};

use crate::config::duration;

/// For `#[arg(value_parser = instant::parse)]`.
pub(super) fn parse(text: &str) -> Result<Timestamp, NotAnInstant> {
    read(text, Timestamp::now()).ok_or(NotAnInstant)
}

/// What stands in the usage error.
#[derive(Debug, thiserror::Error)]
#[error("neither a time ago (30m, 2h, 7d) nor a day (2026-11-24, UTC) nor an instant (2026-11-24T12:00:00Z)")]
pub(super) struct NotAnInstant;

fn read(text: &str, now: Timestamp) -> Option<Timestamp> {
    if let Ok(ago) = duration::parse(text) {
        return now.checked_sub(ago).ok();
    }
    if let Ok(instant) = text.parse() {
        return Some(instant);
    }
    let day: Date = text.parse().ok()?;
    day.to_zoned_datetime(TimeZone::UTC)
        .ok()
        .map(|midnight| midnight.timestamp())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instant_is_read_in_three_forms() {
        let now: Timestamp = "2026-11-24T12:00:00Z".parse().unwrap();
        for (text, expect) in [
            ("2h", "2026-11-24T10:00:00Z"),
            ("7d", "2026-11-17T12:00:00Z"),
            ("0", "2026-11-24T12:00:00Z"),
            ("2026-11-20", "2026-11-20T00:00:00Z"),
            ("2026-11-20T08:30:00Z", "2026-11-20T08:30:00Z"),
            ("2026-11-20T08:30:00+01:00", "2026-11-20T07:30:00Z"),
        ] {
            assert_eq!(
                read(text, now).map(|at| at.to_string()).as_deref(),
                Some(expect),
                "{text}"
            );
        }
        for text in ["", "yesterday", "2", "12:00", "2026-13-01"] {
            assert_eq!(read(text, now), None, "{text}");
        }
    }
}
