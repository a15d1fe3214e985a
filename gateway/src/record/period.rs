//! Durations in config files, for this room: `"30d"`, `"12h"`, `"5m"`, `"60s"`, `"200ms"`. A whole number and one unit.

use std::time::Duration;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serializer};

/// Units from large to small, in milliseconds.
const UNITS_MS: [(&str, u64); 5] = [
    ("d", 86_400_000),
    ("h", 3_600_000),
    ("m", 60_000),
    ("s", 1_000),
    ("ms", 1),
];

pub(super) fn serialize<S: Serializer>(value: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&format(*value))
}

pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    parse(&text)
        .ok_or_else(|| D::Error::custom(format!("{text:?} is not a duration like \"30d\", \"60s\" or \"200ms\"")))
}

fn parse(text: &str) -> Option<Duration> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(digits);
    let (_, unit_ms) = UNITS_MS.iter().find(|(name, _)| *name == unit.trim())?;
    Some(Duration::from_millis(
        number.parse::<u64>().ok()?.checked_mul(*unit_ms)?,
    ))
}

fn format(value: Duration) -> String {
    let ms = u64::try_from(value.as_millis()).unwrap_or(u64::MAX);
    let whole = UNITS_MS.iter().find(|(_, unit_ms)| ms > 0 && ms % unit_ms == 0);
    whole.map_or_else(
        || format!("{}s", ms / 1_000),
        |(name, unit_ms)| format!("{}{name}", ms / unit_ms),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_numbers_with_a_unit() {
        for (text, secs) in [
            ("30d", 2_592_000),
            ("12h", 43_200),
            ("5m", 300),
            ("60s", 60),
            (" 1 d ", 86_400),
        ] {
            assert_eq!(parse(text), Some(Duration::from_secs(secs)), "{text}");
        }
        assert_eq!(parse("200ms"), Some(Duration::from_millis(200)));
        for text in [
            "",
            "d",
            "10",
            "1.5h",
            "-1s",
            "1w",
            "1 d 2 h",
            "99999999999999999999d",
            "300000000000d",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[test]
    fn what_is_written_reads_back() {
        for ms in [0, 1, 200, 1_000, 90_000, 3_600_000, 2_592_000_000] {
            let value = Duration::from_millis(ms);
            assert_eq!(parse(&format(value)), Some(value), "{ms}");
        }
    }
}
