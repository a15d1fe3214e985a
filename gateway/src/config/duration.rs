//! Durations in the file: a number with its unit, `"60s"`, `"250ms"`, `"1h30m"`.
//!
//! A bare number has no unit and is refused, because `idle = 4000` would be read as hours of waiting by one reader and as
//! four seconds by another; only `0` needs none. Use as `#[serde(with = "duration")]`; the command line and the key file
//! read the same form through [`parse`].

use std::{fmt, time::Duration};

use serde::{Deserializer, Serializer, de};

/// The units, longest first. A unit is the whole word after the number.
const UNITS: [(&str, u64); 5] = [
    ("d", 86_400_000),
    ("h", 3_600_000),
    ("m", 60_000),
    ("s", 1_000),
    ("ms", 1),
];

/// The longest duration that the file may name: ten years. Longer ones are slips, and overflow timers.
pub const MAX: Duration = Duration::from_secs(10 * 365 * 86_400);

/// Why a text is not a duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DurationError {
    /// No number at the start of a part.
    #[error("expected a duration such as \"250ms\", \"60s\", \"5m\", \"2h\" or \"30d\", found \"{0}\"")]
    NotADuration(String),
    /// A number without a unit.
    #[error("a duration needs a unit: \"{0}ms\", \"{0}s\", \"{0}m\", \"{0}h\" or \"{0}d\"")]
    NoUnit(u64),
    /// A unit that isn't one of ours.
    #[error("\"{0}\" is no unit of time; the units are ms, s, m, h, d")]
    Unit(String),
    /// Above [`MAX`].
    #[error("a duration may be ten years at most")]
    TooLong,
}

/// Reads `"60s"`, `"250ms"`, `"1h30m"`, `"1 h"`, `"0"`.
///
/// # Errors
/// See [`DurationError`].
pub fn parse(text: &str) -> Result<Duration, DurationError> {
    let not_one = || DurationError::NotADuration(text.to_owned());
    let mut rest = text.trim();
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    if rest.is_empty() {
        return Err(not_one());
    }
    let mut millis = 0u64;
    while !rest.is_empty() {
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, after) = rest.split_at(digits);
        if number.is_empty() {
            return Err(not_one());
        }
        let number: u64 = number.parse().map_err(|_| DurationError::TooLong)?;
        let after = after.trim_start();
        let letters = after.len()
            - after
                .trim_start_matches(|c: char| !c.is_ascii_digit() && !c.is_whitespace())
                .len();
        let (unit, after) = after.split_at(letters);
        if unit.is_empty() {
            return Err(DurationError::NoUnit(number));
        }
        let (_, scale) = UNITS
            .iter()
            .find(|(name, _)| *name == unit)
            .ok_or_else(|| DurationError::Unit(unit.to_owned()))?;
        millis = number
            .checked_mul(*scale)
            .and_then(|ms| ms.checked_add(millis))
            .ok_or(DurationError::TooLong)?;
        rest = after.trim_start();
    }
    let duration = Duration::from_millis(millis);
    if duration > MAX {
        Err(DurationError::TooLong)
    } else {
        Ok(duration)
    }
}

/// Writes the shortest form that [`parse`] reads back: one unit, the largest that divides the value.
pub fn format(duration: Duration) -> String {
    let millis = duration.as_millis();
    let (unit, scale) = UNITS
        .iter()
        .find(|(_, scale)| millis.is_multiple_of(u128::from(*scale)))
        .copied()
        .unwrap_or(("ms", 1));
    if millis == 0 {
        "0s".to_owned()
    } else {
        format!("{}{unit}", millis / u128::from(scale))
    }
}

/// For `#[serde(with = "duration")]`.
///
/// # Errors
/// What [`parse`] refuses, and every number but `0`.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    deserializer.deserialize_any(Text)
}

/// For `#[serde(with = "duration")]`.
///
/// # Errors
/// Those of the serializer.
pub fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&format(*duration))
}

struct Text;

impl de::Visitor<'_> for Text {
    type Value = Duration;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a duration such as \"250ms\", \"60s\", \"5m\", \"2h\" or \"30d\"")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Duration, E> {
        parse(text).map_err(E::custom)
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<Duration, E> {
        match u64::try_from(number) {
            Ok(0) => Ok(Duration::ZERO),
            Ok(number) => Err(E::custom(DurationError::NoUnit(number))),
            Err(_) => Err(E::custom(DurationError::NotADuration(number.to_string()))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expect: Result<u64, &str>) {
        let got = parse(text).map(|d| d.as_millis() as u64).map_err(|e| e.to_string());
        assert_eq!(got, expect.map_err(str::to_owned), "{text:?}");
    }

    #[test]
    fn durations_are_read_with_their_unit() {
        check("60s", Ok(60_000));
        check("250ms", Ok(250));
        check("5m", Ok(300_000));
        check("2h", Ok(7_200_000));
        check("30d", Ok(30 * 86_400_000));
        check("1h30m", Ok(5_400_000));
        check("1h 30m", Ok(5_400_000));
        check(" 4 s ", Ok(4_000));
        check("0", Ok(0));
        check("0s", Ok(0));
    }

    #[test]
    fn what_is_no_duration_is_named() {
        check(
            "60",
            Err("a duration needs a unit: \"60ms\", \"60s\", \"60m\", \"60h\" or \"60d\""),
        );
        check("60sec", Err("\"sec\" is no unit of time; the units are ms, s, m, h, d"));
        check("60 S", Err("\"S\" is no unit of time; the units are ms, s, m, h, d"));
        check("99999999999999999999s", Err("a duration may be ten years at most"));
        check("9999999999999999d", Err("a duration may be ten years at most"));
        check("3651d", Err("a duration may be ten years at most"));
        for text in ["", " ", "soon", "-5s", "s", "1s,2s", "1.5s"] {
            assert!(parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn what_is_written_reads_back() {
        for text in ["0s", "1ms", "250ms", "60s", "61s", "5m", "90m", "2h", "30d", "1001ms"] {
            let duration = parse(text).unwrap();
            assert_eq!(parse(&format(duration)).unwrap(), duration, "{text}");
        }
        assert_eq!(format(Duration::from_secs(60)), "1m");
        assert_eq!(format(Duration::from_millis(1_500)), "1500ms");
    }
}
