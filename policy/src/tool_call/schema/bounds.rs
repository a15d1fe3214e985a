//! Which schemas are compiled.
//!
//! The raw schema enters, an [`Admitted`] one leaves: bounded in bytes, depth, schemas and patterns, with references that stay
//! inside it. It is walked as a graph of schemas: an edge is either *in place* (`allOf`, `$ref` …: the same value is judged
//! again) or leads to a *child* of the value (`properties`, `items` …). `cost` is computed over that graph, so what can't be
//! followed here (`$dynamicRef`, a `$id` that moves references, another document) isn't compiled either.
//!
//! OpenAPI's `nullable: true` is written as a type, since many tools are generated with it.

use super::cost::Cost;
use serde_json::{Map, Value};
use std::collections::HashMap;

/// Most bytes of a schema.
pub(crate) const SCHEMA_BYTES_LIMIT: usize = 256 << 10;
/// Deepest nesting of a schema's JSON.
const SCHEMA_DEPTH_LIMIT: usize = 64;
/// Most schemas in a schema.
const SCHEMAS_LIMIT: usize = 8192;
/// Most patterns in a schema, property names included.
const PATTERNS_LIMIT: usize = 64;

/// Why a tool's schema isn't compiled, so that nobody checks its calls (B25).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadSchema {
    /// Over `SCHEMA_BYTES_LIMIT` (256 KiB), or behind the schemas of a request that are compiled.
    #[error("it is larger than schemas that are compiled (256 KiB each, 2 MiB in all)")]
    Large,
    /// Over `SCHEMA_DEPTH_LIMIT` (64).
    #[error("it is nested deeper than {SCHEMA_DEPTH_LIMIT} levels")]
    Deep,
    /// Over `SCHEMAS_LIMIT` (8,192).
    #[error("it has more than {SCHEMAS_LIMIT} schemas")]
    Many,
    /// Over `PATTERNS_LIMIT` (64).
    #[error("it has more than {PATTERNS_LIMIT} patterns")]
    Patterns,
    /// A reference out of the schema, to nothing, or of a kind that isn't followed.
    #[error("it has a reference that is not followed: only `#…` inside the schema is")]
    Reference,
    /// Schemas apply themselves, or each other in too long a chain, to one value.
    #[error("it applies schemas to one value without end")]
    Endless,
    /// The validator refused it.
    #[error("it is not a valid JSON schema at {at:?}")]
    Invalid {
        /// JSON pointer into the schema.
        at: String,
    },
    /// A `$schema` that isn't one of the drafts 4 to 2020-12.
    #[error("its $schema is none of the drafts 4 to 2020-12")]
    Draft,
}

/// A schema that may be compiled.
pub(super) struct Admitted {
    pub(super) schema: Value,
    pub(super) cost: Cost,
    /// A subschema has an `id`, which moves references in draft 4 only: that draft isn't tried.
    pub(super) moved_in_draft_4: bool,
}

/// One schema inside of a schema: its own weight and the schemas it applies.
#[derive(Debug, Default)]
pub(super) struct Node {
    /// Visits that it counts for, its lists (`enum`, `required` …) included.
    pub(super) weight: u64,
    /// Patterns that are matched against the value or its keys.
    pub(super) patterns: u64,
    /// Applied to the same value.
    pub(super) in_place: Vec<usize>,
    /// Applied to children, of which each child meets one at most (`properties`).
    pub(super) one_of: Vec<usize>,
    /// Applied to children, of which a child may meet all (`patternProperties`, `items`, `contains` …).
    pub(super) all_of: Vec<usize>,
    /// `unevaluatedProperties` or `unevaluatedItems`: what is applied in place is visited again to learn what it evaluated.
    pub(super) looks_again: bool,
}

/// Reads a tool's schema.
///
/// # Errors
/// It is over a bound, or has references that aren't followed.
pub(super) fn admit(raw: &str) -> Result<Admitted, BadSchema> {
    if raw.len() > SCHEMA_BYTES_LIMIT {
        return Err(BadSchema::Large);
    }
    // it was read as JSON before: what is left to fail is its depth
    let mut schema: Value = serde_json::from_str(raw).map_err(|_| BadSchema::Deep)?;
    if !is_shallow(&schema, SCHEMA_DEPTH_LIMIT) {
        return Err(BadSchema::Deep);
    }
    write_nullable(&mut schema);
    let graph = Graph::walk(&schema)?;
    let cost = Cost::of(&graph.nodes).ok_or(BadSchema::Endless)?;
    let moved_in_draft_4 = graph.refers && graph.has_old_ids;
    Ok(Admitted {
        schema,
        cost,
        moved_in_draft_4,
    })
}

fn is_shallow(value: &Value, depth: usize) -> bool {
    match value {
        Value::Array(_) | Value::Object(_) if depth == 0 => false,
        Value::Array(items) => items.iter().all(|item| is_shallow(item, depth - 1)),
        Value::Object(members) => members.values().all(|member| is_shallow(member, depth - 1)),
        _ => true,
    }
}

/// `{"type": "string", "nullable": true}` as JSON Schema says it. The depth is bounded by then.
fn write_nullable(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(write_nullable),
        Value::Object(members) => {
            members.values_mut().for_each(write_nullable);
            if members.get("nullable") == Some(&Value::Bool(true)) {
                if let Some(kind) = members.get_mut("type").filter(|kind| kind.is_string()) {
                    *kind = Value::Array(if kind == "null" {
                        vec![kind.take()]
                    } else {
                        vec![kind.take(), Value::from("null")]
                    });
                }
                if let Some(Value::Array(options)) = members.get_mut("enum")
                    && !options.contains(&Value::Null)
                {
                    options.push(Value::Null);
                }
            }
        }
        _ => {}
    }
}

/// The schemas of a document, found from the root along what applies them.
struct Graph<'a> {
    root: &'a Value,
    nodes: Vec<Node>,
    /// The schema of each node.
    schemas: Vec<&'a Value>,
    /// Nodes by the address of their schema.
    known: HashMap<*const Value, usize>,
    anchors: HashMap<&'a str, Option<&'a Value>>,
    /// A subschema has a `$id` of its own.
    moved: bool,
    /// One has an `id`.
    has_old_ids: bool,
    refers: bool,
    patterns: usize,
}

impl<'a> Graph<'a> {
    fn walk(root: &'a Value) -> Result<Self, BadSchema> {
        let mut graph = Graph {
            root,
            nodes: Vec::new(),
            schemas: Vec::new(),
            known: HashMap::new(),
            anchors: HashMap::new(),
            moved: false,
            has_old_ids: false,
            refers: false,
            patterns: 0,
        };
        graph.note_names(root, true);
        graph.node(root)?;
        let mut at = 0;
        while let Some(schema) = graph.schemas.get(at).copied() {
            if let Value::Object(members) = schema {
                let read = graph.read(members)?;
                if let Some(node) = graph.nodes.get_mut(at) {
                    *node = read;
                }
            }
            at += 1;
        }
        if graph.moved && graph.refers {
            return Err(BadSchema::Reference);
        }
        Ok(graph)
    }

    /// Anchors and ids, wherever they stand.
    fn note_names(&mut self, value: &'a Value, is_root: bool) {
        match value {
            Value::Array(items) => items.iter().for_each(|item| self.note_names(item, false)),
            Value::Object(members) => {
                for key in ["$anchor", "$id", "id"] {
                    let Some(Value::String(name)) = members.get(key) else {
                        continue;
                    };
                    let anchor = match name.strip_prefix('#') {
                        _ if key == "$anchor" => Some(name.as_str()),
                        anchor => anchor,
                    };
                    match anchor {
                        Some(anchor) => {
                            let known = self.anchors.entry(anchor);
                            known.and_modify(|found| *found = None).or_insert(Some(value));
                        }
                        None if is_root => {}
                        None if key == "$id" => self.moved = true,
                        None => self.has_old_ids = true,
                    }
                }
                members.values().for_each(|member| self.note_names(member, false));
            }
            _ => {}
        }
    }

    fn node(&mut self, schema: &'a Value) -> Result<usize, BadSchema> {
        if let Some(at) = self.known.get(&std::ptr::from_ref(schema)) {
            return Ok(*at);
        }
        let at = self.nodes.len();
        if at >= SCHEMAS_LIMIT {
            return Err(BadSchema::Many);
        }
        self.known.insert(std::ptr::from_ref(schema), at);
        self.schemas.push(schema);
        self.nodes.push(Node {
            weight: 1,
            ..Node::default()
        });
        Ok(at)
    }

    fn all(&mut self, schemas: impl IntoIterator<Item = &'a Value>, into: &mut Vec<usize>) -> Result<(), BadSchema> {
        for schema in schemas {
            into.push(self.node(schema)?);
        }
        Ok(())
    }

    fn read(&mut self, members: &'a Map<String, Value>) -> Result<Node, BadSchema> {
        let mut node = Node {
            weight: 1,
            ..Node::default()
        };
        for (key, value) in members {
            match (key.as_str(), value) {
                ("$dynamicRef" | "$recursiveRef", Value::String(_)) => return Err(BadSchema::Reference),
                ("$ref", Value::String(reference)) => {
                    self.refers = true;
                    let target = self.target(reference).ok_or(BadSchema::Reference)?;
                    node.in_place.push(self.node(target)?);
                }
                ("allOf" | "anyOf" | "oneOf", Value::Array(schemas)) => self.all(schemas, &mut node.in_place)?,
                ("not" | "if" | "then" | "else", schema) => node.in_place.push(self.node(schema)?),
                ("dependentSchemas" | "dependencies", Value::Object(schemas)) => {
                    let schemas = schemas.values().filter(|schema| !schema.is_array());
                    self.all(schemas, &mut node.in_place)?;
                }
                ("properties", Value::Object(schemas)) => self.all(schemas.values(), &mut node.one_of)?,
                ("prefixItems", Value::Array(schemas)) | ("items", Value::Array(schemas)) => {
                    self.all(schemas, &mut node.one_of)?;
                }
                ("patternProperties", Value::Object(schemas)) => {
                    self.patterns += schemas.len();
                    node.patterns += schemas.len() as u64;
                    self.all(schemas.values(), &mut node.all_of)?;
                }
                ("additionalProperties" | "propertyNames" | "items" | "additionalItems" | "contains", schema) => {
                    node.all_of.push(self.node(schema)?);
                }
                ("unevaluatedProperties" | "unevaluatedItems", schema) => {
                    node.looks_again = true;
                    node.all_of.push(self.node(schema)?);
                }
                ("pattern", Value::String(_)) => {
                    self.patterns += 1;
                    node.patterns += 1;
                }
                ("uniqueItems", Value::Bool(true)) => node.patterns += 1,
                ("enum" | "required" | "const" | "dependentRequired", value) => node.weight += size(value),
                _ => {}
            }
        }
        if self.patterns > PATTERNS_LIMIT {
            return Err(BadSchema::Patterns);
        }
        Ok(node)
    }

    /// What a reference inside the document means.
    fn target(&self, reference: &str) -> Option<&'a Value> {
        let fragment = reference.strip_prefix('#')?;
        if fragment.is_empty() {
            return Some(self.root);
        }
        if !fragment.starts_with('/') {
            return self.anchors.get(fragment).copied().flatten();
        }
        let pointer = percent_decoded(fragment)?;
        self.root.pointer(&pointer)
    }
}

/// Values in a value: what it costs to compare with it.
fn size(value: &Value) -> u64 {
    match value {
        Value::Array(items) => items.iter().map(size).sum(),
        Value::Object(members) => members.values().map(size).sum(),
        _ => 1,
    }
}

fn percent_decoded(text: &str) -> Option<String> {
    if !text.contains('%') {
        return Some(text.to_owned());
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
            let code = digit(rest.next())? * 16 + digit(rest.next())?;
            bytes.push(u8::try_from(code).ok()?);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok()
}
