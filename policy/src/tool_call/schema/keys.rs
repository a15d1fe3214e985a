//! Keys that are a slip of the pen away from a declared one.
//!
//! JSON Schema takes any key that isn't forbidden, so arguments with `"regoin"` for an optional `"region"` are valid and not what
//! was meant. Such a key is never renamed (`delete_user2` is not `delete_user1`), but the call goes to the re-ask (B24). A key
//! counts as a slip if its object's schema does not declare it, says nothing of other keys, and declares one that is absent and
//! the same but for case, `_`, `-` and white space, or for one letter put in, left out, changed or swapped with its neighbour.
//! Only `properties` and `items` are followed: behind a choice or a reference nobody knows which keys are declared.

use serde_json::{Map, Value};
use std::collections::HashMap;

/// What of a schema takes other keys, or declares some elsewhere.
const OPENS: [&str; 11] = [
    "additionalProperties",
    "patternProperties",
    "unevaluatedProperties",
    "propertyNames",
    "dependentSchemas",
    "$ref",
    "allOf",
    "anyOf",
    "oneOf",
    "if",
    "dependencies",
];

/// The declared keys of an object and of what is inside.
#[derive(Debug, Default)]
pub(super) struct Keys {
    members: HashMap<String, Keys>,
    items: Option<Box<Keys>>,
    /// Other keys are as good.
    open: bool,
}

impl Keys {
    /// Of a schema, whose depth is bounded.
    pub(super) fn of(schema: &Value) -> Self {
        let Value::Object(schema) = schema else {
            return Keys::default();
        };
        let properties = schema.get("properties").and_then(Value::as_object);
        let members = properties.into_iter().flatten();
        Keys {
            members: members.map(|(key, schema)| (key.clone(), Keys::of(schema))).collect(),
            items: schema.get("items").map(|items| Box::new(Keys::of(items))),
            open: OPENS.iter().any(|key| schema.contains_key(*key)),
        }
    }

    /// The JSON pointer of the first slip.
    pub(super) fn slip(&self, value: &Value) -> Option<String> {
        match value {
            Value::Object(object) => self.slip_of(object),
            Value::Array(array) => {
                let items = self.items.as_ref()?;
                let mut slips = array.iter().enumerate();
                slips.find_map(|(at, item)| Some(format!("/{at}{}", items.slip(item)?)))
            }
            _ => None,
        }
    }

    fn slip_of(&self, object: &Map<String, Value>) -> Option<String> {
        object.iter().find_map(|(key, value)| {
            let inner = match self.members.get(key) {
                Some(declared) => declared.slip(value)?,
                None if self.open => return None,
                None => {
                    let mut absent = self.members.keys().filter(|name| !object.contains_key(*name));
                    absent.find(|name| is_slip(key, name)).map(|_| String::new())?
                }
            };
            Some(format!("/{}{inner}", key.replace('~', "~0").replace('/', "~1")))
        })
    }
}

/// `written` may be a slip for `meant`.
fn is_slip(written: &str, meant: &str) -> bool {
    is_one_edit(written, meant) || fold(written).eq(fold(meant))
}

fn fold(text: &str) -> impl Iterator<Item = char> {
    let letters = text.chars().filter(|c| !matches!(c, '_' | '-') && !c.is_whitespace());
    letters.flat_map(char::to_lowercase)
}

/// One letter put in, left out or changed, or two neighbours swapped.
fn is_one_edit(a: &str, b: &str) -> bool {
    let same = |(a, b): &(char, char)| a == b;
    let begin = a.chars().zip(b.chars()).take_while(same).count();
    let a: Vec<char> = a.chars().skip(begin).collect();
    let b: Vec<char> = b.chars().skip(begin).collect();
    match (a.as_slice(), b.as_slice()) {
        ([], []) => false,
        ([first, second, a @ ..], [other_first, other_second, b @ ..])
            if a == b && first == other_second && second == other_first =>
        {
            true
        }
        ([_, a @ ..], [_, b @ ..]) if a == b => true,
        ([_, rest @ ..], b) if rest == b => true,
        (a, [_, rest @ ..]) => a == rest,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn one_edit_is_one_edit() {
        for (a, b) in [
            ("city", "cty"),
            ("cty", "city"),
            ("city", "cite"),
            ("city", "ctiy"),
            ("", "a"),
            ("a", ""),
            ("x", "y"),
            ("é", "e"),
        ] {
            assert!(is_one_edit(a, b), "{a} {b}");
        }
        for (a, b) in [
            ("city", "city"),
            ("city", "cy"),
            ("city", "ytic"),
            ("", ""),
            ("ab", "cd"),
            ("", "ab"),
            ("abcd", "badc"),
        ] {
            assert!(!is_one_edit(a, b), "{a} {b}");
        }
        assert!(is_slip("userId", "user_id") && is_slip("FILE PATH", "filePath") && !is_slip("file", "path"));
    }

    #[test]
    fn slips_are_found_where_only_declared_keys_are_meant() {
        let schema = json!({"properties": {
            "city": {}, "days": {}, "a/b": {"properties": {"line": {}}},
            "edits": {"items": {"properties": {"text": {}}}},
            "open": {"properties": {"text": {}}, "additionalProperties": true}
        }});
        let keys = Keys::of(&schema);
        for (value, slip) in [
            (json!({"city": 1, "dais": 1}), Some("/dais")),
            (json!({"City": 1}), Some("/City")),
            (json!({"city": 1, "cty": 1}), None), // the declared one is there
            (json!({"country": 1}), None),
            (json!({"a/b": {"lin": 1}}), Some("/a~1b/lin")),
            (json!({"edits": [{"text": 1}, {"txt": 1}]}), Some("/edits/1/txt")),
            (json!({"open": {"txt": 1}}), None),
            (json!({"edits": {"txt": 1}}), None),
        ] {
            assert_eq!(keys.slip(&value).as_deref(), slip, "{value}");
        }
    }
}
