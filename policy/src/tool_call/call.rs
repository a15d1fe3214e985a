//! From the text of a block to calls: name and arguments, in every notation of B22.
//!
//! A block that was recognised enters, one [`Found`] per call leaves. The arguments are spans of what the model wrote, copied
//! byte for byte; only a flat call, arguments inside a JSON string and the XML dialect are put together anew. Nothing is
//! invented: without a name that the request declares there is no call, and arguments that don't fit the tool's schema, mended or
//! not, make none either.

use super::block::{Block, Function};
use super::json::{self, Member, PARTS_LIMIT};
use super::repair;
use super::schema::Judgement;
use super::tools::{Tool, ToolSet, typed_value};
use super::verdict::{Kind, Reason, Verdict};
use serde_json::Value;
use std::ops::Range;

/// One tool call of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// A declared name.
    pub name: String,
    /// The arguments that the client gets: a JSON object.
    pub arguments: String,
    /// What the model wrote, tags included. Calls of one block share it out between them.
    pub raw: String,
    /// What became of it.
    pub verdict: Verdict,
}

/// One call of a block, or why it is none.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Found {
    /// Where its text ends in the block.
    pub(crate) end: usize,
    pub(crate) read: Result<Parsed, Reason>,
}

/// Name and arguments of a call.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Parsed {
    pub(crate) name: String,
    pub(crate) arguments: String,
    /// What was mended so far, in order and each kind once.
    pub(crate) kinds: Vec<Kind>,
    /// The schema was held against the arguments.
    pub(crate) checked: bool,
}

/// Keys that hold the arguments.
pub(crate) const ARGUMENT_KEYS: [&str; 4] = ["arguments", "parameters", "args", "input"];
/// Keys beside name and arguments that carry nothing.
pub(crate) const IDLE_KEYS: [&str; 2] = ["id", "type"];

/// Reads the calls of a complete block; `raw` begins where the block does.
pub(crate) fn read(raw: &str, block: &Block, tools: &ToolSet) -> Vec<Found> {
    let mut found = Vec::new();
    for span in &block.values {
        let text = raw.get(span.clone()).unwrap_or_default();
        read_value(text, span.start, block.named.as_deref(), tools, &mut found);
        if let Some(Found { read, .. }) = found.last_mut().filter(|_| text.starts_with('{'))
            && matches!(read, Err(Reason::NotAnObject))
            && let Some(mended) = in_string(text, tools)
        {
            *read = Ok(mended);
        }
    }
    for function in &block.functions {
        found.push(Found {
            end: function.end,
            read: read_function(raw, function, tools),
        });
    }
    found
}

/// Reads one JSON value that begins at `start`: an object is a call, an array holds calls.
pub(crate) fn read_value(text: &str, start: usize, named: Option<&str>, tools: &ToolSet, found: &mut Vec<Found>) {
    if !text.starts_with('[') {
        found.push(Found {
            end: start + text.len(),
            read: read_object(text, named, tools),
        });
        return;
    }
    let spans = json::elements(text);
    if spans.is_empty() || spans.len() > PARTS_LIMIT {
        let reason = if spans.is_empty() {
            Reason::NoName
        } else {
            Reason::TooMany
        };
        let end = start + text.len();
        return found.push(Found { end, read: Err(reason) });
    }
    for span in spans {
        let element = text.get(span.clone()).unwrap_or_default();
        let read = if element.starts_with('{') {
            read_object(element, named, tools)
        } else {
            Err(Reason::NoName)
        };
        found.push(Found {
            end: start + span.end,
            read,
        });
    }
}

/// A value that stands for itself declares tools rather than calling them: what is under `parameters` is a schema.
pub(crate) fn declares(text: &str) -> bool {
    fn is_one(value: &Value) -> bool {
        match value {
            Value::Array(items) => items.iter().any(is_one),
            Value::Object(members) => match (members.get("function"), members.get("parameters")) {
                (Some(function), _) if function.is_object() => is_one(function),
                (_, Some(Value::Object(schema))) => {
                    let of_objects = schema.get("type").is_some_and(|kind| kind == "object");
                    of_objects && (schema.len() == 1 || schema.contains_key("properties"))
                }
                _ => false,
            },
            _ => false,
        }
    }
    text.contains("\"parameters\"") && serde_json::from_str(text).is_ok_and(|value| is_one(&value))
}

fn read_object(text: &str, named: Option<&str>, tools: &ToolSet) -> Result<Parsed, Reason> {
    let object = Object::read(text)?;
    if let Some(name) = named {
        let tool = find(name, tools)?;
        return object.arguments_under(name, tool);
    }
    if let Some(inner) = object.get("function").filter(|value| value.starts_with('{')) {
        // OpenAI's form nests once
        return Object::read(inner)?.named_inside(tools);
    }
    object.named_inside(tools)
}

/// A call whose arguments are a string with a broken object in it: mended like a block (B23).
fn in_string(text: &str, tools: &ToolSet) -> Option<Parsed> {
    let object = Object::read(text).ok()?;
    let name = object.get("name").filter(|value| value.starts_with('"'));
    let tool = find(&name.and_then(json::unquote)?, tools).ok()?;
    let inner = object
        .get(object.argument_key()?)
        .filter(|value| value.starts_with('"'));
    let mut parsed = repair::arguments(&json::unquote(inner?)?, repair::Ending::Closed, &tool.name, tools)?;
    if name.and_then(json::unquote)? != tool.name {
        parsed.kinds.insert(0, Kind::Name);
    }
    Some(parsed)
}

fn find<'a>(name: &str, tools: &'a ToolSet) -> Result<&'a Tool, Reason> {
    tools
        .find(name)
        .ok_or_else(|| Reason::UnknownTool { name: name.to_owned() })
}

/// An object's members with the last of equal keys only.
struct Object<'a> {
    text: &'a str,
    members: Vec<(String, Member)>,
}

impl<'a> Object<'a> {
    fn read(text: &'a str) -> Result<Self, Reason> {
        let mut members: Vec<(String, Member)> = Vec::new();
        for member in json::members(text) {
            let key = text.get(member.key.clone()).and_then(json::unquote).unwrap_or_default();
            members.push((key, member));
        }
        if members.len() > PARTS_LIMIT {
            return Err(Reason::TooMany);
        }
        Ok(Object { text, members })
    }

    /// The call of an object that says its name inside.
    fn named_inside(&self, tools: &ToolSet) -> Result<Parsed, Reason> {
        for key in ["name", "function"] {
            let written = self.get(key).filter(|value| value.starts_with('"'));
            if let Some(name) = written.and_then(json::unquote) {
                return self.of_tool(find(&name, tools)?, &name, key);
            }
        }
        self.keyed_by_name(tools)
    }

    fn get(&self, key: &str) -> Option<&'a str> {
        let (_, member) = self.members.iter().rev().find(|(found, _)| found == key)?;
        self.text.get(member.value.clone())
    }

    fn argument_key(&self) -> Option<&'static str> {
        ARGUMENT_KEYS.into_iter().find(|key| self.get(key).is_some())
    }

    /// The call of `tool`, whose name is under `name_key` as `written`.
    fn of_tool(&self, tool: &Tool, written: &str, name_key: &str) -> Result<Parsed, Reason> {
        let Some(key) = self.argument_key() else {
            return Parsed::of(tool, written, self.flat(name_key, tool));
        };
        let read = arguments_of(self.get(key).unwrap_or_default());
        let read = read.and_then(|arguments| Parsed::of(tool, written, arguments));
        if read.is_err() && tool.declared_type(key).is_some() {
            // a flat call whose tool has a parameter of that name
            return read.or_else(|_| Parsed::of(tool, written, self.flat(name_key, tool)));
        }
        read
    }

    /// The arguments stand beside the name.
    fn flat(&self, name_key: &str, tool: &Tool) -> String {
        let beside = |key: &str| key != name_key && (!IDLE_KEYS.contains(&key) || tool.declared_type(key).is_some());
        let members: Vec<&str> = self
            .members
            .iter()
            .filter(|(key, _)| beside(key))
            .filter_map(|(_, member)| self.text.get(member.key.start..member.value.end))
            .collect();
        if members.is_empty() {
            "{}".to_owned()
        } else {
            format!("{{{}}}", members.join(", "))
        }
    }

    /// The name stands in the tag: the object is the arguments, or holds them as usual.
    fn arguments_under(&self, name: &str, tool: &Tool) -> Result<Parsed, Reason> {
        let usual = |key: &str| key == "name" || ARGUMENT_KEYS.contains(&key) || IDLE_KEYS.contains(&key);
        let wrapped = self.argument_key().filter(|key| tool.declared_type(key).is_none());
        let arguments = match wrapped {
            Some(key) if self.members.iter().all(|(key, _)| usual(key)) => {
                arguments_of(self.get(key).unwrap_or_default())?
            }
            _ => self.text.to_owned(),
        };
        Parsed::of(tool, name, arguments)
    }

    /// `{"search": {…}}`.
    fn keyed_by_name(&self, tools: &ToolSet) -> Result<Parsed, Reason> {
        let mut keys = self
            .members
            .iter()
            .filter(|(key, _)| !IDLE_KEYS.contains(&key.as_str()));
        let (Some((key, member)), None) = (keys.next(), keys.next()) else {
            return Err(Reason::NoName);
        };
        let tool = tools.exact(key).ok_or(Reason::NoName)?;
        let arguments = arguments_of(self.text.get(member.value.clone()).unwrap_or_default())?;
        Parsed::of(tool, key, arguments)
    }
}

/// The value under an argument key: an object as written, a string that holds one, or nothing.
fn arguments_of(value: &str) -> Result<String, Reason> {
    match value.as_bytes().first() {
        Some(b'{') => Ok(value.to_owned()),
        Some(b'n') => Ok("{}".to_owned()),
        Some(b'"') => {
            let inner = json::unquote(value).ok_or(Reason::NotAnObject)?;
            let inner = inner.trim_matches(json::space);
            match inner {
                "" => Ok("{}".to_owned()),
                _ if inner.starts_with('{') && json::is_container(inner) => Ok(inner.to_owned()),
                _ => Err(Reason::NotAnObject),
            }
        }
        _ => Err(Reason::NotAnObject),
    }
}

fn read_function(raw: &str, function: &Function, tools: &ToolSet) -> Result<Parsed, Reason> {
    let tool = find(&function.name, tools)?;
    let mut members: Vec<String> = Vec::new();
    for (at, (key, span)) in function.parameters.iter().enumerate() {
        let again = function.parameters.iter().skip(at + 1).any(|(other, _)| other == key);
        if !again {
            let value = typed_value(tool, key, one_line_less(raw, span.clone()));
            members.push(format!("{}: {value}", serde_json::Value::from(key.as_str())));
        }
    }
    Parsed::of(tool, &function.name, format!("{{{}}}", members.join(", ")))
}

/// A parameter's value without the line breaks that belong to its tags.
fn one_line_less(raw: &str, span: Range<usize>) -> &str {
    let text = raw.get(span).unwrap_or_default();
    let text = text.strip_prefix('\n').unwrap_or(text);
    text.strip_suffix('\n').unwrap_or(text)
}

impl Parsed {
    /// A call of `tool`, which the model called `written`, with its arguments judged.
    pub(crate) fn of(tool: &Tool, written: &str, arguments: String) -> Result<Self, Reason> {
        let mut parsed = Parsed {
            name: tool.name.clone(),
            arguments,
            kinds: Vec::new(),
            checked: true,
        };
        if tool.name != written {
            parsed.kinds.push(Kind::Name);
        }
        match tool.judge(&parsed.arguments) {
            Judgement::Fits => {}
            Judgement::Unchecked => parsed.checked = false,
            Judgement::Mended { arguments, kinds } => {
                parsed.arguments = arguments;
                parsed.kinds.extend(kinds);
            }
            Judgement::Unfit { at } => return Err(Reason::Unfit { at }),
        }
        Ok(parsed)
    }

    /// The call, with its text and what was done to it.
    pub(crate) fn into_call(self, raw: String, surplus: bool) -> Call {
        let mut kinds = self.kinds;
        if surplus {
            kinds.push(Kind::Surplus);
        }
        let verdict = match (kinds.is_empty(), self.checked) {
            (false, _) => Verdict::Repaired(kinds),
            (true, true) => Verdict::Passed,
            (true, false) => Verdict::PassedUnchecked,
        };
        Call {
            name: self.name,
            arguments: self.arguments,
            raw,
            verdict,
        }
    }
}
