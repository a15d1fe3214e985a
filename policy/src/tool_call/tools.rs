//! The tools that a request declares.
//!
//! Raw `tools` JSON enters, names and raw parameter schemas stay. Built once per request (or cached by the caller) and shared
//! by the choices of an answer. What isn't a function tool is skipped: vLLM judges the request, we only need to know
//! which names a call may have.

use super::json;
use super::schema::{BadSchema, Judgement, SCHEMA_BYTES_LIMIT, Schema};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::block::CALL_LIMIT;
use std::collections::HashMap;
use std::sync::OnceLock;

/// Most tools of one request.
pub const TOOL_LIMIT: usize = 1024;
/// Most bytes of a request's `tools`.
pub const TOOLS_BYTES_LIMIT: usize = 8 << 20;
/// Most bytes of schemas that are compiled for one request's tools, in order; the rest isn't checked.
pub const SCHEMAS_BYTES_LIMIT: usize = 2 << 20;

/// Prefixes that models put before a name, dropped silently (B24).
const KNOWN_PREFIXES: [&str; 2] = ["functions.", "function."];

/// The declared tools, by name.
#[derive(Debug, Default)]
pub struct ToolSet {
    tools: Vec<Tool>,
    by_name: HashMap<String, usize>,
    /// By name without case, `_` and `-`; `None` where two names fold to the same.
    folded: HashMap<String, Option<usize>>,
    call_limit: Option<usize>,
    /// Bytes of schemas that may be compiled.
    schema_bytes: usize,
}

/// One declared function.
#[derive(Debug)]
pub struct Tool {
    /// As declared.
    pub name: String,
    /// The parameter schema as received; absent if the tool takes none.
    pub parameters: Option<Box<RawValue>>,
    /// `strict: true`: the client counts on the schema.
    pub strict: bool,
    types: HashMap<String, DeclaredType>,
    checks: Checks,
}

/// What a call's arguments are held against.
#[derive(Debug)]
enum Checks {
    /// No schema: whatever they are, they fit.
    Nothing,
    /// Compiled on first use, if it can be.
    Schema(OnceLock<Result<Box<Schema>, BadSchema>>),
}

/// What the schema says of one top-level property.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeclaredType {
    /// `"type": "string"`, or a list of types with string in it.
    Text,
    /// Any other type, or several without string.
    Json,
    /// Declared without a plain `type` (an enum, a `$ref`, `anyOf` …).
    Unsaid,
}

/// Why the `tools` of a request can't be read.
#[derive(Debug, thiserror::Error)]
pub enum ToolSetError {
    /// More than [`TOOL_LIMIT`].
    #[error("{count} tools are more than the limit of {TOOL_LIMIT}")]
    TooMany {
        /// How many were declared.
        count: usize,
    },
    /// More than [`TOOLS_BYTES_LIMIT`].
    #[error("tools of {bytes} bytes are more than the limit of {TOOLS_BYTES_LIMIT}")]
    TooLarge {
        /// Their size.
        bytes: usize,
    },
    /// Not an array of tools.
    #[error("tools can't be read: {0}")]
    Malformed(#[from] serde_json::Error),
}

#[derive(Deserialize)]
struct WireTool {
    #[serde(default)]
    function: Option<WireFunction>,
}

#[derive(Deserialize)]
struct WireFunction {
    name: String,
    #[serde(default)]
    strict: Option<Box<RawValue>>,
    #[serde(default)]
    parameters: Option<Box<RawValue>>,
}

#[derive(Deserialize)]
struct WireSchema {
    #[serde(default)]
    properties: HashMap<String, WireProperty>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum WireProperty {
    Typed {
        #[serde(rename = "type")]
        kind: WireType,
    },
    Other(serde::de::IgnoredAny),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum WireType {
    One(String),
    Many(Vec<String>),
}

impl ToolSet {
    /// Reads the `tools` of a request as they came.
    ///
    /// # Errors
    /// Over a limit, or not an array of tools with named functions.
    pub fn parse(raw: &[u8]) -> Result<Self, ToolSetError> {
        if raw.len() > TOOLS_BYTES_LIMIT {
            return Err(ToolSetError::TooLarge { bytes: raw.len() });
        }
        let wire: Vec<WireTool> = serde_json::from_slice(raw)?;
        if wire.len() > TOOL_LIMIT {
            return Err(ToolSetError::TooMany { count: wire.len() });
        }
        let mut set = ToolSet::default();
        for function in wire.into_iter().filter_map(|tool| tool.function) {
            set.add(function);
        }
        Ok(set)
    }

    /// With another limit of one held call than [`CALL_LIMIT`], in bytes.
    #[must_use]
    pub fn with_call_limit(mut self, bytes: usize) -> Self {
        self.call_limit = Some(bytes);
        self
    }

    /// Longest text of one call that is held, in bytes; above it the call is text.
    pub fn call_limit(&self) -> usize {
        self.call_limit.unwrap_or(CALL_LIMIT)
    }

    /// No function is declared: no text can be a call.
    pub fn is_empty(&self) -> bool {
        self.tools.is_empty()
    }

    /// The declared functions, in order.
    pub fn tools(&self) -> &[Tool] {
        &self.tools
    }

    /// The tool of exactly this name.
    pub fn exact(&self, name: &str) -> Option<&Tool> {
        self.by_name.get(name).and_then(|at| self.tools.get(*at))
    }

    /// The tool that a model means: exact, else without a known prefix, else by case, `_` and `-` if only one fits (B24).
    pub fn find(&self, name: &str) -> Option<&Tool> {
        if let Some(tool) = self.exact(name) {
            return Some(tool);
        }
        let bare = KNOWN_PREFIXES
            .iter()
            .find_map(|prefix| name.strip_prefix(prefix))
            .unwrap_or(name);
        if let Some(tool) = self.exact(bare) {
            return Some(tool);
        }
        let at = (*self.folded.get(&fold(bare))?)?;
        self.tools.get(at)
    }

    /// What tool `name` declares of its property `key`; `None` if it declares no such property.
    pub fn declared_type(&self, name: &str, key: &str) -> Option<DeclaredType> {
        self.exact(name)?.declared_type(key)
    }

    fn add(&mut self, function: WireFunction) {
        let at = self.tools.len();
        let types = function.parameters.as_deref().map(property_types).unwrap_or_default();
        if self.by_name.insert(function.name.clone(), at).is_none() {
            self.folded
                .entry(fold(&function.name))
                .and_modify(|found| *found = None)
                .or_insert(Some(at));
        }
        let bytes = function.parameters.as_deref().map_or(0, |raw| raw.get().len());
        let checks = match &function.parameters {
            None => Checks::Nothing,
            Some(_) if bytes > SCHEMA_BYTES_LIMIT || self.schema_bytes + bytes > SCHEMAS_BYTES_LIMIT => {
                Checks::Schema(OnceLock::from(Err(BadSchema::Large)))
            }
            Some(_) => {
                self.schema_bytes += bytes;
                Checks::Schema(OnceLock::new())
            }
        };
        self.tools.push(Tool {
            name: function.name,
            parameters: function.parameters,
            strict: function.strict.is_some_and(|strict| strict.get() == "true"),
            types,
            checks,
        });
    }
}

impl Tool {
    /// What the schema says of the top-level property `key`; `None` if it isn't declared.
    pub fn declared_type(&self, key: &str) -> Option<DeclaredType> {
        self.types.get(key).copied()
    }

    /// Judges the arguments of a call, a strict JSON object, and mends their shape where the schema says how (B24, B25). The
    /// first call compiles the schema.
    pub(crate) fn judge(&self, arguments: &str) -> Judgement {
        match self.schema() {
            None => Judgement::Fits,
            Some(Err(_)) => Judgement::Unchecked,
            Some(Ok(schema)) => schema.judge(arguments),
        }
    }

    /// Why calls of it can't be checked, if they can't (B25). Compiles the schema.
    pub fn unchecked(&self) -> Option<&BadSchema> {
        self.schema()?.err()
    }

    /// `None`: there is none, and whatever the arguments are, they fit.
    fn schema(&self) -> Option<Result<&Schema, &BadSchema>> {
        let Checks::Schema(compiled) = &self.checks else {
            return None;
        };
        let raw = self.parameters.as_deref()?.get();
        let compiled = compiled.get_or_init(|| Schema::compile(raw).map(Box::new));
        Some(compiled.as_deref())
    }
}

fn fold(name: &str) -> String {
    name.chars()
        .filter(|c| !matches!(c, '_' | '-'))
        .flat_map(char::to_lowercase)
        .collect()
}

/// Types of the top-level properties; a schema of another form just has none.
fn property_types(schema: &RawValue) -> HashMap<String, DeclaredType> {
    let Ok(schema) = serde_json::from_str::<WireSchema>(schema.get()) else {
        return HashMap::new();
    };
    let declared = |property: WireProperty| match property {
        WireProperty::Typed {
            kind: WireType::One(one),
        } if one == "string" => DeclaredType::Text,
        WireProperty::Typed {
            kind: WireType::Many(many),
        } if many.iter().any(|one| one == "string") => DeclaredType::Text,
        WireProperty::Typed { .. } => DeclaredType::Json,
        WireProperty::Other(_) => DeclaredType::Unsaid,
    };
    schema
        .properties
        .into_iter()
        .map(|(key, property)| (key, declared(property)))
        .collect()
}

/// The value of an XML parameter as JSON, by its declared type: text stays text, the rest is JSON where it is valid JSON.
pub(crate) fn typed_value(tool: &Tool, key: &str, text: &str) -> String {
    let trimmed = text.trim_matches(json::space);
    let as_json = match tool.declared_type(key) {
        Some(DeclaredType::Json | DeclaredType::Unsaid) => serde_json::from_str::<&RawValue>(trimmed).is_ok(),
        Some(DeclaredType::Text) | None => false,
    };
    if as_json {
        trimmed.to_owned()
    } else {
        serde_json::Value::from(text).to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set() -> ToolSet {
        let raw = br#"[
            {"type":"function","function":{"name":"get_weather","parameters":{"type":"object","properties":
                {"city":{"type":"string"},"days":{"type":"integer"},"unit":{"enum":["c"]},"note":{"type":["null","string"]}}}}},
            {"type":"function","function":{"name":"now"}},
            {"type":"function","function":{"name":"do-it"}},
            {"type":"function","function":{"name":"Do_It"}},
            {"type":"web_search"}
        ]"#;
        ToolSet::parse(raw).unwrap()
    }

    #[test]
    fn finds_the_name_a_model_means() {
        let set = set();
        for (name, found) in [
            ("get_weather", Some("get_weather")),
            ("Get-Weather", Some("get_weather")),
            ("functions.now", Some("now")),
            ("functions.GetWeather", Some("get_weather")),
            ("get_weathe", None),
            ("do-it", Some("do-it")),
            ("doit", None), // two names fold to it
            ("", None),
        ] {
            assert_eq!(set.find(name).map(|tool| tool.name.as_str()), found, "{name}");
        }
        assert_eq!(set.tools().len(), 4);
    }

    #[test]
    fn knows_declared_types() {
        let set = set();
        assert_eq!(set.declared_type("get_weather", "city"), Some(DeclaredType::Text));
        assert_eq!(set.declared_type("get_weather", "note"), Some(DeclaredType::Text));
        assert_eq!(set.declared_type("get_weather", "days"), Some(DeclaredType::Json));
        assert_eq!(set.declared_type("get_weather", "unit"), Some(DeclaredType::Unsaid));
        assert_eq!(set.declared_type("get_weather", "x"), None);
        let tool = set.exact("get_weather").unwrap();
        assert_eq!(typed_value(tool, "city", "12"), "\"12\"");
        assert_eq!(typed_value(tool, "days", " 12\n"), "12");
        assert_eq!(typed_value(tool, "days", "a \"few\""), "\"a \\\"few\\\"\"");
        assert_eq!(typed_value(tool, "x", "1"), "\"1\"");
    }

    #[test]
    fn limits_and_malformed_tools_are_named() {
        let many = format!("[{}{{}}]", "{},".repeat(TOOL_LIMIT));
        assert!(matches!(
            ToolSet::parse(many.as_bytes()),
            Err(ToolSetError::TooMany { count: 1025 })
        ));
        let large = vec![b' '; TOOLS_BYTES_LIMIT + 1];
        assert!(matches!(ToolSet::parse(&large), Err(ToolSetError::TooLarge { .. })));
        assert!(matches!(ToolSet::parse(b"{}"), Err(ToolSetError::Malformed(_))));
        assert!(ToolSet::parse(b"[]").unwrap().is_empty());
    }
}
