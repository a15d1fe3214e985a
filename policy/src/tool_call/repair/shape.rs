//! What a tool's schema says, as far as repair needs it: which keys an object declares, and whether arguments have their shape.
//!
//! One place to swap: [`by_shape`] is the oracle until the room's caller hands in another.

use super::Fit;
use crate::tool_call::tools::Tool;
use serde_json::Value;

/// `$ref`s and branches followed in one look-up.
const REF_LIMIT: usize = 8;
/// Deepest look into a value.
const DEPTH_LIMIT: usize = 16;

/// What the schema says of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Declared {
    Yes,
    /// The object declares others.
    No,
    /// The object declares none.
    Open,
}

/// A place in a schema.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place<'a> {
    root: &'a Value,
    here: Option<&'a Value>,
}

impl<'a> Place<'a> {
    pub(super) fn root(root: &'a Value) -> Self {
        Place { root, here: Some(root) }
    }

    /// The schemas that may hold here: this one, or the branches of `anyOf`, `oneOf` and `allOf`, references followed.
    fn branches(self) -> Vec<&'a Value> {
        let mut found = Vec::new();
        let mut open: Vec<&'a Value> = self.here.into_iter().collect();
        while let Some(schema) = open.pop() {
            if found.len() >= REF_LIMIT {
                break;
            }
            found.push(schema);
            if let Some(target) = schema
                .get("$ref")
                .and_then(Value::as_str)
                .and_then(|at| at.strip_prefix('#'))
            {
                open.extend(self.root.pointer(target));
            }
            for key in ["anyOf", "oneOf", "allOf"] {
                open.extend(
                    schema
                        .get(key)
                        .and_then(Value::as_array)
                        .into_iter()
                        .flatten()
                        .take(REF_LIMIT),
                );
            }
        }
        found
    }

    pub(super) fn property(self, key: &str) -> Place<'a> {
        let at = |schema: &&'a Value| schema.get("properties").and_then(|all| all.get(key));
        Place {
            root: self.root,
            here: self.branches().iter().find_map(at),
        }
    }

    pub(super) fn element(self) -> Place<'a> {
        let items = |schema: &&'a Value| schema.get("items").filter(|items| items.is_object());
        Place {
            root: self.root,
            here: self.branches().iter().find_map(items),
        }
    }

    pub(super) fn declares(self, key: &str) -> Declared {
        let mut any = false;
        for schema in self.branches() {
            if let Some(all) = schema.get("properties").and_then(Value::as_object) {
                if all.contains_key(key) {
                    return Declared::Yes;
                }
                any |= !all.is_empty() || std::ptr::eq(schema, self.root);
            }
        }
        if any { Declared::No } else { Declared::Open }
    }

    /// A string may stand here, by a schema that says so.
    pub(super) fn takes_text(self) -> bool {
        self.branches()
            .into_iter()
            .any(|schema| types(schema).any(|kind| kind == "string"))
    }
}

fn types(schema: &Value) -> impl Iterator<Item = &str> {
    let (one, many) = match schema.get("type") {
        Some(Value::String(one)) => (Some(one.as_str()), None),
        Some(Value::Array(many)) => (None, Some(many)),
        _ => (None, None),
    };
    one.into_iter()
        .chain(many.into_iter().flatten().filter_map(Value::as_str))
}

/// Whether arguments have the shape that the tool's schema says: required keys there, known keys only, declared types.
pub(super) fn by_shape(tool: &Tool, arguments: &str) -> Fit {
    let Some(schema) = &tool.parameters else {
        return Fit::Unknown;
    };
    let (Ok(schema), Ok(value)) = (
        serde_json::from_str::<Value>(schema.get()),
        serde_json::from_str::<Value>(arguments),
    ) else {
        return Fit::Unknown;
    };
    fit(Place::root(&schema), &value, DEPTH_LIMIT)
}

fn fit(place: Place<'_>, value: &Value, depth: usize) -> Fit {
    let branches = place.branches();
    if depth == 0 || branches.is_empty() {
        return Fit::Unknown;
    }
    let composed = |key: &str| branches.iter().any(|schema| schema.get(key).is_some());
    let choice = composed("anyOf") || composed("oneOf");
    let mut worst = Fit::Fits;
    let mut known = false;
    if !choice {
        for schema in &branches {
            let said = one(place, schema, value, depth);
            known |= said != Fit::Unknown;
            worst = worst.max(said);
        }
        return if known { worst } else { Fit::Unknown };
    }
    // of alternatives the best counts
    branches
        .iter()
        .filter(|schema| types(schema).next().is_some() || schema.get("properties").is_some())
        .map(|schema| one(place, schema, value, depth))
        .min()
        .unwrap_or(Fit::Unknown)
}

fn one(place: Place<'_>, schema: &Value, value: &Value, depth: usize) -> Fit {
    let mut worst = typed(schema, value);
    if let Some(choices) = schema.get("enum").and_then(Value::as_array) {
        let said = match value {
            _ if choices.contains(value) => Fit::Fits,
            Value::String(_) | Value::Number(_) | Value::Bool(_) => Fit::Mendable,
            _ => Fit::Unfit,
        };
        worst = worst.max(said);
    }
    match value {
        Value::Object(members) => {
            let required = schema.get("required").and_then(Value::as_array);
            let absent = |key: &Value| key.as_str().is_some_and(|key| !members.contains_key(key));
            if required.is_some_and(|keys| keys.iter().any(absent)) {
                return Fit::Unfit;
            }
            for (key, value) in members {
                // a key that isn't declared is allowed unless the schema says otherwise: the search has made it dear
                let closed = schema.get("additionalProperties").and_then(Value::as_bool) == Some(false);
                if closed && place.declares(key) == Declared::No {
                    return Fit::Unfit;
                }
                worst = worst.max(known(fit(place.property(key), value, depth - 1)));
            }
        }
        Value::Array(elements) => {
            for value in elements {
                worst = worst.max(known(fit(place.element(), value, depth - 1)));
            }
        }
        _ => {}
    }
    worst
}

/// What isn't said of a part says nothing against the whole.
fn known(fit: Fit) -> Fit {
    if fit == Fit::Unknown { Fit::Fits } else { fit }
}

fn typed(schema: &Value, value: &Value) -> Fit {
    let mut any = false;
    let mut mendable = false;
    for kind in types(schema) {
        any = true;
        let fits = match (kind, value) {
            ("integer", Value::Number(number)) => number.as_f64().is_some_and(|number| number.fract() == 0.0),
            ("string", Value::String(_))
            | ("number", Value::Number(_))
            | ("boolean", Value::Bool(_))
            | ("null", Value::Null)
            | ("array", Value::Array(_))
            | ("object", Value::Object(_)) => true,
            _ => false,
        };
        if fits {
            return Fit::Fits;
        }
        mendable |= match kind {
            "string" => matches!(value, Value::Number(_) | Value::Bool(_)),
            "array" => !matches!(value, Value::Null | Value::Array(_)),
            "object" => matches!(value, Value::String(_)),
            _ => matches!(value, Value::String(_)),
        } || value.is_null();
    }
    match (any, mendable) {
        (false, _) => Fit::Unknown,
        (true, true) => Fit::Mendable,
        (true, false) => Fit::Unfit,
    }
}
