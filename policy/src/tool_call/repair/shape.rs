//! What a tool's schema says, as far as the search needs it: which keys an object declares, and where strings may stand.

use serde_json::Value;

/// `$ref`s and branches followed in one look-up.
const REF_LIMIT: usize = 8;

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
