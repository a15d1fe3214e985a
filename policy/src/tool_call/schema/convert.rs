//! One value brought into the shape that a schema asks for.
//!
//! The text of a value and what is wrong with it enter, the text to put in its place leaves. Each new text is made of the old
//! one: unquoted, quoted, put in brackets, or the option of an enum that it spells.
//!
//! | it is | the schema asks for | it becomes |
//! | --- | --- | --- |
//! | `"5"` | a number | `5` |
//! | `"true"`, `"True"` | a boolean | `true` |
//! | `"null"` | null | `null` |
//! | `"{…}"`, `"[…]"` | an object, an array | what the string holds |
//! | `5`, `true` | a string | `"5"`, `"true"` |
//! | `"a"`, `5`, `{…}` | an array | `["a"]`, `[5]`, `[{…}]` |
//! | `"Celsius "` | one of `"celsius"`, … | `"celsius"` |
//! | null | anything else, of a member | nothing: `plan` removes it |

use crate::tool_call::json;
use crate::tool_call::verdict::Kind;
use jsonschema::JsonType;
use jsonschema::error::{TypeKind, ValidationErrorKind};
use serde_json::Value;

/// A new text for a value that a check of this kind refused; `None` if there is none.
pub(super) fn convert(raw: &str, wrong: &ValidationErrorKind) -> Option<(String, Kind)> {
    match wrong {
        ValidationErrorKind::Enum { options } => match options.as_ref() {
            Value::Array(options) => option(raw, options),
            _ => None,
        },
        ValidationErrorKind::Constant { expected_value } => option(raw, std::slice::from_ref(expected_value)),
        ValidationErrorKind::Type { kind } => of_type(raw, kind),
        _ => None,
    }
}

fn asks_for(kind: &TypeKind, wanted: JsonType) -> bool {
    match kind {
        TypeKind::Single(one) => *one == wanted,
        TypeKind::Multiple(many) => many.contains(wanted),
    }
}

fn of_type(raw: &str, kind: &TypeKind) -> Option<(String, Kind)> {
    let wants = |wanted| asks_for(kind, wanted);
    let unpacked = match raw.as_bytes().first()? {
        b'"' => {
            let text = json::unquote(raw)?;
            let text = text.trim_matches(json::space);
            if text.is_empty() {
                return None;
            }
            let number = (wants(JsonType::Number) && is_number(text)) || (wants(JsonType::Integer) && is_integer(text));
            let (open, close) = (text.starts_with('{'), text.starts_with('['));
            if number {
                return Some((text.to_owned(), Kind::Number));
            }
            if wants(JsonType::Boolean)
                && let Some(word) = ["true", "false"]
                    .into_iter()
                    .find(|word| text.eq_ignore_ascii_case(word))
            {
                return Some((word.to_owned(), Kind::Boolean));
            }
            if wants(JsonType::Null) && text == "null" {
                return Some((text.to_owned(), Kind::Unpacked));
            }
            let holds = (open && wants(JsonType::Object)) || (close && wants(JsonType::Array));
            if holds {
                // a broken one is for the syntax repair, not to be wrapped
                return json::is_container(text).then(|| (text.to_owned(), Kind::Unpacked));
            }
            // the element of an array may itself be in a string
            !close
        }
        b'-' | b'0'..=b'9' | b't' | b'f' if wants(JsonType::String) => {
            return Some((format!("\"{raw}\""), Kind::Text));
        }
        b'[' | b'n' => false,
        _ => true,
    };
    (unpacked && wants(JsonType::Array)).then(|| (format!("[{raw}]"), Kind::Array))
}

fn is_number(text: &str) -> bool {
    let begins = text.starts_with(|c: char| c == '-' || c.is_ascii_digit());
    begins && serde_json::from_str::<serde_json::Number>(text).is_ok()
}

/// `5`, `5.0` and `5e1` are integers, `5.5` is none.
fn is_integer(text: &str) -> bool {
    is_number(text)
        && (text.bytes().all(|byte| byte == b'-' || byte.is_ascii_digit())
            || text.parse::<f64>().is_ok_and(|number| number.fract() == 0.0))
}

/// The one option that a value spells but for case, white space and quotes.
fn option(raw: &str, options: &[Value]) -> Option<(String, Kind)> {
    let (written, quoted) = match raw.as_bytes().first()? {
        b'"' => (json::unquote(raw)?, true),
        b'{' | b'[' | b'n' => return None,
        _ => (raw.to_owned(), false),
    };
    let folded = fold(&written);
    if folded.is_empty() {
        return None;
    }
    let mut spelt = options.iter().filter(|option| match option {
        Value::String(option) => fold(option) == folded,
        Value::Number(_) | Value::Bool(_) => quoted && fold(&option.to_string()) == folded,
        _ => false,
    });
    let (found, None) = (spelt.next()?, spelt.next()) else {
        return None;
    };
    let kind = match found {
        Value::String(_) if quoted => Kind::Enum,
        Value::String(_) => Kind::Text,
        Value::Bool(_) => Kind::Boolean,
        _ => Kind::Number,
    };
    Some((found.to_string(), kind))
}

/// Without case and white space.
fn fold(text: &str) -> String {
    text.chars()
        .filter(|c| !c.is_whitespace())
        .flat_map(char::to_lowercase)
        .collect()
}
