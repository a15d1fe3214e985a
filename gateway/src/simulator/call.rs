//! Tool calls as raw model text: well formed as Qwen3 writes them, or wrong in one of the ways that models are.
//!
//! Enters: a tool, a draw and a [`CallKind`]. Leaves: the text with its tags. Each kind names the rule (B22 where and in
//! which form a call stands, B23 syntax, B24 shape) that a gateway needs to understand it. A kind that needs something
//! the tool's schema doesn't have (a boolean, an array) leaves the call well formed.
use serde_json::{Map, Value, json};

use super::prompt::spaced;
use super::schema::{self, Optional};

/// A declared tool.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Tool {
    /// Its name.
    pub(super) name: String,
    /// Its description, empty if there is none.
    pub(super) description: String,
    /// Its JSON schema.
    pub(super) parameters: Option<Value>,
}

macro_rules! kinds {
    ($($kind:ident = $name:literal: $doc:literal,)*) => {
        /// How a call is written.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum CallKind { $(#[doc = $doc] $kind,)* }

        impl CallKind {
            /// All kinds with the names that the knob `call` takes and what they do.
            pub const ALL: &'static [(CallKind, &'static str, &'static str)] =
                &[$((CallKind::$kind, $name, $doc),)*];
        }
    };
}

kinds! {
    None = "none": "no call: text, though tools are given",
    Good = "good": "well formed",
    Two = "two": "B22: two blocks",
    TextAround = "text_around": "B22: text before, between and after two blocks",
    NoClose = "no_close": "B22: at the very end, without the closing tag",
    TwoInOne = "two_in_one": "B22: two objects in one block",
    Array = "array": "B22: an array of two calls",
    ParametersKey = "parameters_key": "B22: `parameters` for `arguments`",
    ArgsKey = "args_key": "B22: `args` for `arguments`",
    InputKey = "input_key": "B22: `input` for `arguments`",
    FunctionKey = "function_key": "B22: `function` for `name`",
    OpenaiNested = "openai_nested": "B22: OpenAI's nested form",
    KeyedByName = "keyed_by_name": "B22: the arguments keyed by the function's name",
    Flat = "flat": "B22: arguments beside the name",
    ArgumentsFirst = "arguments_first": "B22: arguments before the name",
    ArgumentsString = "arguments_string": "B22: arguments as a JSON string",
    NoArguments = "no_arguments": "B22: no arguments at all",
    PythonCode = "python_code": "B22: written as code inside the tags",
    UpperTags = "upper_tags": "B22: tags in upper case",
    SpacedTags = "spaced_tags": "B22: tags with spaces",
    PluralTags = "plural_tags": "B22: plural tags",
    NameAttribute = "name_attribute": "B22: the name as an attribute of the tag",
    Xml = "xml": "B22: `<function=…><parameter=…>`",
    TagInString = "tag_in_string": "B22: a closing tag inside a string value",
    InThink = "in_think": "B22: thought only: a call inside the think block, text after it (not a call)",
    BareJson = "bare_json": "B22: bare JSON as the whole content",
    JsonFence = "json_fence": "B22: a json fence as the whole content",
    MissingBrace = "missing_brace": "B23: the last brace is missing",
    ExtraBrace = "extra_brace": "B23: one brace too many",
    MissingQuote = "missing_quote": "B23: a key without its opening quote",
    TrailingComma = "trailing_comma": "B23: commas before closing braces",
    SingleQuotes = "single_quotes": "B23: single quotes",
    PythonLiterals = "python_literals": "B23: True, False, None",
    Comment = "comment": "B23: a comment",
    RawNewline = "raw_newline": "B23: a raw newline in a string",
    BadEscape = "bad_escape": "B23: a bad escape in a string",
    InnerQuotes = "inner_quotes": "B23: unescaped quotes in a string",
    MarkdownFence = "markdown_fence": "B23: a fence inside the tags",
    CutString = "cut_string": "B23: ends in the middle of a string (can't be repaired)",
    NumberAsString = "number_as_string": "B24: a number as string",
    BoolAsString = "bool_as_string": "B24: a boolean as string",
    ScalarForArray = "scalar_for_array": "B24: the element instead of the array",
    StringifiedObject = "stringified_object": "B24: an object or array as JSON string",
    NullOptional = "null_optional": "B24: null for an optional property",
    EnumCase = "enum_case": "B24: an enum value in other case with spaces",
    NumberForString = "number_for_string": "B24: a number for a string",
    NameCase = "name_case": "B24: the function's name in other case and with `-`",
    NamePrefix = "name_prefix": "B24: `functions.` before the name",
    NameTypo = "name_typo": "B24: a name that is one edit away (not to be guessed)",
    KeyTypo = "key_typo": "B24: a key that is one edit away (not to be guessed)",
}

impl CallKind {
    /// The kind of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL
            .iter()
            .find(|(_, known, _)| *known == name)
            .map(|(kind, ..)| *kind)
    }

    /// One of the malformed or unusual kinds.
    pub(super) fn malformed(dice: u64) -> Self {
        let from = &Self::ALL[2..];
        from[(dice % from.len() as u64) as usize].0
    }
}

/// Stands for a string value whose raw text is put in afterwards.
const SLOT: &str = "SIMULATOR_SLOT";

/// The raw text of a call to `tool`.
pub(super) fn write(tool: &Tool, kind: CallKind, dice: u64) -> String {
    let optional = if matches!(kind, CallKind::Good | CallKind::Two) {
        Optional::Some
    } else {
        Optional::All
    };
    let arguments = schema::arguments(tool.parameters.as_ref(), optional, dice);
    let other = || schema::arguments(tool.parameters.as_ref(), Optional::Some, dice ^ 0x5555);
    let good = |arguments: &Map<String, Value>| object(&tool.name, arguments);
    let text = good(&arguments);
    match kind {
        CallKind::None => String::new(),
        CallKind::Good | CallKind::InThink => block(&text),
        CallKind::Two => format!("{}\n{}", block(&text), block(&good(&other()))),
        CallKind::TextAround => {
            format!(
                "First one thing.\n{}\nThen another.\n{}\nThat is all.",
                block(&text),
                block(&good(&other()))
            )
        }
        CallKind::NoClose => format!("<tool_call>\n{text}"),
        CallKind::TwoInOne => block(&format!("{text}\n{}", good(&other()))),
        CallKind::Array => block(&format!("[{text}, {}]", good(&other()))),
        CallKind::UpperTags => format!("<TOOL_CALL>\n{text}\n</TOOL_CALL>"),
        CallKind::SpacedTags => format!("< tool_call >\n{text}\n< /tool_call >"),
        CallKind::PluralTags => format!("<tool_calls>\n{text}\n</tool_calls>"),
        CallKind::NameAttribute => {
            format!(
                "<tool_call name=\"{}\">\n{}\n</tool_call>",
                tool.name,
                spaced(&Value::Object(arguments))
            )
        }
        CallKind::BareJson => text,
        CallKind::JsonFence => format!("```json\n{text}\n```"),
        CallKind::MarkdownFence => block(&format!("```json\n{text}\n```")),
        CallKind::CutString => cut_string(&text),
        _ => block(&reshaped(tool, kind, arguments, &text)),
    }
}

/// The kinds that change what stands between the tags.
fn reshaped(tool: &Tool, kind: CallKind, arguments: Map<String, Value>, text: &str) -> String {
    let keyed = |name_key: &str, arguments_key: &str, arguments: Value| {
        spaced(&Value::Object(Map::from_iter([
            (name_key.to_owned(), json!(tool.name)),
            (arguments_key.to_owned(), arguments),
        ])))
    };
    let all = Value::Object(arguments.clone());
    match kind {
        CallKind::ParametersKey => keyed("name", "parameters", all),
        CallKind::ArgsKey => keyed("name", "args", all),
        CallKind::InputKey => keyed("name", "input", all),
        CallKind::FunctionKey => keyed("function", "arguments", all),
        CallKind::ArgumentsString => keyed("name", "arguments", json!(spaced(&all))),
        CallKind::NoArguments => spaced(&json!({ "name": tool.name })),
        CallKind::OpenaiNested => {
            spaced(&json!({"type": "function", "function": {"name": tool.name, "arguments": all}}))
        }
        CallKind::KeyedByName => spaced(&Value::Object(Map::from_iter([(tool.name.clone(), all)]))),
        CallKind::ArgumentsFirst => spaced(&json!({"arguments": all, "name": tool.name})),
        CallKind::Flat => {
            let mut flat = Map::from_iter([("name".to_owned(), json!(tool.name))]);
            arguments.into_iter().for_each(|(key, value)| {
                flat.entry(key).or_insert(value);
            });
            spaced(&Value::Object(flat))
        }
        CallKind::PythonCode => {
            let named: Vec<String> = arguments
                .iter()
                .map(|(key, value)| format!("{key}={}", python(value)))
                .collect();
            format!("{}({})", tool.name, named.join(", "))
        }
        CallKind::Xml => {
            let parameter = |(key, value): (&String, &Value)| {
                let value = value.as_str().map_or_else(|| spaced(value), str::to_owned);
                format!("<parameter={key}>\n{value}\n</parameter>\n")
            };
            format!(
                "<function={}>\n{}</function>",
                tool.name,
                arguments.iter().map(parameter).collect::<String>()
            )
        }
        CallKind::MissingBrace => text.strip_suffix('}').unwrap_or(text).to_owned(),
        CallKind::ExtraBrace => format!("{text}}}"),
        CallKind::MissingQuote => text.replacen("\"arguments\"", "arguments\"", 1),
        CallKind::TrailingComma => text.replace('}', ",}").replace("{,", "{"),
        CallKind::SingleQuotes | CallKind::PythonLiterals => {
            let whole = json!({"name": tool.name, "arguments": all});
            if kind == CallKind::SingleQuotes {
                python(&whole)
            } else {
                literals(&whole)
            }
        }
        CallKind::Comment => text.replacen('{', "{ // the call\n", 1),
        CallKind::TagInString => with_string(tool, arguments, "see </tool_call> there"),
        CallKind::RawNewline => with_string(tool, arguments, "first line\nsecond line"),
        CallKind::BadEscape => with_string(tool, arguments, "C:\\tmp\\dir"),
        CallKind::InnerQuotes => with_string(tool, arguments, "say \"hi\" now"),
        CallKind::NameCase => object(&tool.name.to_uppercase().replace('_', "-"), &arguments),
        CallKind::NamePrefix => object(&format!("functions.{}", tool.name), &arguments),
        CallKind::NameTypo => object(&format!("{}x", tool.name), &arguments),
        _ => object(&tool.name, &misshapen(tool, kind, arguments)),
    }
}

/// The kinds of B24 that change one property.
fn misshapen(tool: &Tool, kind: CallKind, mut arguments: Map<String, Value>) -> Map<String, Value> {
    let property = |key: &str| tool.parameters.as_ref()?.get("properties")?.get(key);
    let has_enum = |key: &str| property(key).is_some_and(|schema| schema.get("enum").is_some());
    let required: Vec<&str> = tool
        .parameters
        .as_ref()
        .and_then(|schema| schema.get("required")?.as_array())
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    if kind == CallKind::KeyTypo {
        return arguments
            .into_iter()
            .enumerate()
            .map(|(n, (key, value))| (if n == 0 { key + "s" } else { key }, value))
            .collect();
    }
    for (key, value) in &mut arguments {
        let changed = match (kind, &*value) {
            (CallKind::NumberAsString, Value::Number(number)) => json!(number.to_string()),
            (CallKind::BoolAsString, Value::Bool(truth)) => json!(truth.to_string()),
            (CallKind::ScalarForArray, Value::Array(items)) if !items.is_empty() => items[0].clone(),
            (CallKind::StringifiedObject, Value::Object(_) | Value::Array(_)) => json!(spaced(value)),
            (CallKind::NullOptional, _) if !required.contains(&key.as_str()) => Value::Null,
            (CallKind::EnumCase, Value::String(text)) if has_enum(key) => json!(format!(" {} ", text.to_uppercase())),
            (CallKind::NumberForString, Value::String(_)) if !has_enum(key) => json!(42),
            _ => continue,
        };
        *value = changed;
        break;
    }
    arguments
}

fn block(inside: &str) -> String {
    format!("<tool_call>\n{inside}\n</tool_call>")
}

fn object(name: &str, arguments: &Map<String, Value>) -> String {
    spaced(&json!({"name": name, "arguments": arguments}))
}

/// The call with `raw` as the unescaped inside of its first free string.
fn with_string(tool: &Tool, mut arguments: Map<String, Value>, raw: &str) -> String {
    let properties = tool.parameters.as_ref().and_then(|schema| schema.get("properties"));
    let is_free = |key: &str| {
        properties.and_then(|all| all.get(key)).is_none_or(|schema| {
            ["enum", "const", "pattern", "format", "maxLength"]
                .iter()
                .all(|bound| schema.get(*bound).is_none())
        })
    };
    if let Some((_, value)) = arguments
        .iter_mut()
        .find(|(key, value)| value.is_string() && is_free(key))
    {
        *value = json!(SLOT);
    }
    object(&tool.name, &arguments).replacen(SLOT, raw, 1)
}

/// The text up to the middle of its last string value, without a closing tag.
fn cut_string(text: &str) -> String {
    let close = text.rfind('"').unwrap_or(text.len());
    let open = text[..close].rfind('"').map_or(0, |at| at + 1);
    let mut middle = open + (close - open) / 2;
    while !text.is_char_boundary(middle) {
        middle -= 1;
    }
    format!("<tool_call>\n{}", &text[..middle])
}

/// Python's `repr`.
fn python(value: &Value) -> String {
    match value {
        Value::String(text) => format!(
            "'{}'",
            text.replace('\\', "\\\\").replace('\'', "\\'").replace('\n', "\\n")
        ),
        Value::Array(items) => format!("[{}]", items.iter().map(python).collect::<Vec<_>>().join(", ")),
        Value::Object(map) => {
            let pairs: Vec<String> = map
                .iter()
                .map(|(key, value)| format!("'{key}': {}", python(value)))
                .collect();
            format!("{{{}}}", pairs.join(", "))
        }
        other => literal(other),
    }
}

/// JSON but for Python's literals.
fn literals(value: &Value) -> String {
    match value {
        Value::Array(items) => format!("[{}]", items.iter().map(literals).collect::<Vec<_>>().join(", ")),
        Value::Object(map) => {
            let pairs: Vec<String> = map
                .iter()
                .map(|(key, value)| format!("{}: {}", json!(key), literals(value)))
                .collect();
            format!("{{{}}}", pairs.join(", "))
        }
        other => literal(other),
    }
}

fn literal(value: &Value) -> String {
    match value {
        Value::Bool(true) => "True".to_owned(),
        Value::Bool(false) => "False".to_owned(),
        Value::Null => "None".to_owned(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tool() -> Tool {
        Tool {
            name: "get_weather".into(),
            description: String::new(),
            parameters: Some(json!({
                "type": "object",
                "properties": {
                    "city": {"type": "string"},
                    "unit": {"type": "string", "enum": ["celsius", "kelvin"]},
                    "days": {"type": "integer"},
                    "hourly": {"type": "boolean"},
                    "tags": {"type": "array", "items": {"type": "string"}},
                },
                "required": ["city"],
            })),
        }
    }

    /// The parsed call between well-formed tags.
    fn parsed(text: &str) -> Option<Value> {
        let inside = text.strip_prefix("<tool_call>\n")?.strip_suffix("\n</tool_call>")?;
        serde_json::from_str(inside).ok()
    }

    #[test]
    fn a_good_call_is_what_hermes_expects() {
        let call = parsed(&write(&tool(), CallKind::Good, 5)).unwrap();
        assert_eq!(call["name"], "get_weather");
        assert!(call["arguments"]["city"].is_string());
    }

    #[test]
    fn every_other_kind_differs_from_the_good_call() {
        let good = {
            let arguments = schema::arguments(tool().parameters.as_ref(), Optional::All, 5);
            block(&object("get_weather", &arguments))
        };
        for (kind, name, _) in CallKind::ALL {
            let text = write(&tool(), *kind, 5);
            let is_same_text = matches!(kind, CallKind::Good | CallKind::InThink);
            assert!(is_same_text || text != good, "{name}: {text}");
            assert_eq!(CallKind::named(name), Some(*kind));
        }
    }

    #[test]
    fn kinds_of_syntax_do_not_parse_and_kinds_of_shape_do() {
        use CallKind::{
            BadEscape, BoolAsString, Comment, CutString, EnumCase, ExtraBrace, InnerQuotes, KeyTypo, MarkdownFence,
            MissingBrace, MissingQuote, NullOptional, NumberAsString, NumberForString, PythonLiterals, RawNewline,
            ScalarForArray, SingleQuotes, StringifiedObject, TrailingComma,
        };
        for kind in [
            MissingBrace,
            ExtraBrace,
            MissingQuote,
            TrailingComma,
            SingleQuotes,
            PythonLiterals,
            Comment,
            RawNewline,
            BadEscape,
            InnerQuotes,
            MarkdownFence,
            CutString,
        ] {
            assert_eq!(parsed(&write(&tool(), kind, 5)), None, "{kind:?}");
        }
        let argument = |kind, key: &str| parsed(&write(&tool(), kind, 5)).unwrap()["arguments"][key].clone();
        assert!(argument(NumberAsString, "days").is_string());
        assert!(argument(BoolAsString, "hourly").is_string());
        assert!(argument(ScalarForArray, "tags").is_string());
        assert!(argument(StringifiedObject, "tags").as_str().unwrap().starts_with('['));
        assert!(argument(NullOptional, "unit").is_null());
        assert!(argument(EnumCase, "unit").as_str().unwrap().starts_with(' '));
        assert_eq!(argument(NumberForString, "city"), 42);
        assert!(argument(KeyTypo, "citys").is_string());
    }

    #[test]
    fn a_tool_without_parameters_gets_no_arguments() {
        let bare = Tool {
            name: "now".into(),
            description: String::new(),
            parameters: None,
        };
        for (kind, name, _) in CallKind::ALL {
            let text = write(&bare, *kind, 5);
            assert!(*kind == CallKind::None || text.to_lowercase().contains("now"), "{name}");
        }
        assert_eq!(
            parsed(&write(&bare, CallKind::Good, 5)).unwrap(),
            json!({"name": "now", "arguments": {}})
        );
    }
}
