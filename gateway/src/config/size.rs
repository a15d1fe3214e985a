//! Sizes in the file: bytes as an integer, or a text with a unit, `"64 MiB"`.
//!
//! Binary units only (`KiB`, `MiB`, `GiB`): `"64 MB"` is refused with the two things it could mean, because a limit that is
//! 5 % off is found on the worst day. Use as `#[serde(with = "size")]`.

use std::fmt;

use serde::{Deserializer, Serializer, de};

const UNITS: [(&str, u64); 5] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("B", 1),
];

/// Why a text is not a size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// No number at the start.
    #[error("expected a size such as \"64 MiB\", or a number of bytes, found \"{0}\"")]
    NotASize(String),
    /// A unit that isn't one of ours.
    #[error("\"{0}\" is no unit of size; the units are B, KiB, MiB, GiB, TiB{1}")]
    Unit(String, &'static str),
    /// Above `i64::MAX` bytes, the largest integer of TOML.
    #[error("this size is out of range")]
    TooLarge,
}

/// Reads `"64 MiB"`, `"64MiB"`, `"65536"`.
///
/// # Errors
/// See [`SizeError`].
pub fn parse(text: &str) -> Result<u64, SizeError> {
    let trimmed = text.trim();
    let digits = trimmed.len() - trimmed.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = trimmed.split_at(digits);
    if number.is_empty() {
        return Err(SizeError::NotASize(text.to_owned()));
    }
    let number: u64 = number.parse().map_err(|_| SizeError::TooLarge)?;
    let unit = unit.trim_start();
    let scale = match UNITS.iter().find(|(name, _)| *name == unit) {
        Some((_, scale)) => *scale,
        None if unit.is_empty() => 1,
        None => return Err(SizeError::Unit(unit.to_owned(), hint(unit))),
    };
    number
        .checked_mul(scale)
        .filter(|bytes| i64::try_from(*bytes).is_ok())
        .ok_or(SizeError::TooLarge)
}

/// What the writer of a wrong unit probably meant.
fn hint(unit: &str) -> &'static str {
    match unit.to_ascii_lowercase().as_str() {
        "k" | "kb" | "kib" => " (did you mean KiB?)",
        "m" | "mb" | "mib" => " (did you mean MiB?)",
        "g" | "gb" | "gib" => " (did you mean GiB?)",
        "t" | "tb" | "tib" => " (did you mean TiB?)",
        _ => "",
    }
}

/// Writes the shortest form that [`parse`] reads back.
pub fn format(bytes: u64) -> String {
    let (unit, scale) = UNITS
        .iter()
        .find(|(_, scale)| bytes.is_multiple_of(*scale))
        .copied()
        .unwrap_or(("B", 1));
    if bytes == 0 {
        "0 B".to_owned()
    } else {
        format!("{} {unit}", bytes / scale)
    }
}

/// For `#[serde(with = "size")]`.
///
/// # Errors
/// What [`parse`] refuses, and negative numbers.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    deserializer.deserialize_any(Text)
}

/// For `#[serde(with = "size")]`.
///
/// # Errors
/// Those of the serializer.
pub fn serialize<S: Serializer>(bytes: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&format(*bytes))
}

struct Text;

impl de::Visitor<'_> for Text {
    type Value = u64;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a size such as \"64 MiB\", or a number of bytes")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<u64, E> {
        parse(text).map_err(E::custom)
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<u64, E> {
        u64::try_from(number).map_err(|_| E::custom(SizeError::NotASize(number.to_string())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_and_without_a_unit() {
        for (text, expect) in [
            ("64 MiB", 64 << 20),
            ("64MiB", 64 << 20),
            ("65536", 65_536),
            ("0", 0),
            ("7 B", 7),
            (" 1 GiB ", 1 << 30),
        ] {
            assert_eq!(parse(text), Ok(expect), "{text:?}");
        }
    }

    #[test]
    fn what_is_no_size_is_named() {
        let error = parse("64 MB").unwrap_err().to_string();
        assert_eq!(
            error,
            "\"MB\" is no unit of size; the units are B, KiB, MiB, GiB, TiB (did you mean MiB?)"
        );
        assert_eq!(parse("9223372036854775808"), Err(SizeError::TooLarge));
        assert_eq!(parse("99999999 TiB"), Err(SizeError::TooLarge));
        assert_eq!(parse("99999999999999999999"), Err(SizeError::TooLarge));
        for text in ["", "MiB", "-1", "1.5 MiB", "many"] {
            assert!(parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn what_is_written_reads_back() {
        for bytes in [0, 1, 1_000, 1_024, 65_536, 64 << 20, 1 << 30, 3 << 40, (1 << 30) + 1] {
            assert_eq!(parse(&format(bytes)), Ok(bytes));
        }
        assert_eq!(format(64 << 20), "64 MiB");
    }
}
