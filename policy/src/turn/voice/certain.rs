//! What of a call that is still being written can be shown already (B20, `certain`).
//!
//! The text of an open block enters as it grows, arguments leave that no repair can change any more:
//!
//! * the name, and the brace that opens the arguments, once both are written and the name is exactly a declared one;
//! * a declared key with all that stands before it, once its colon is there;
//! * a string value as it comes, if its schema is nothing but a string, up to an escape or a quote that isn't finished;
//! * a number or boolean whose schema is nothing but that, together with the next key.
//!
//! A closing quote leaves with the next key only: alone it might be one that the model forgot to escape. Anything else ends it: the
//! rest is shown when the call is whole. So what is shown is always what was written, and the caller checks that the whole call
//! begins with it. Each byte is read once, but for the head (bounded) and the last word.

use std::collections::{HashMap, HashSet};

use serde_json::Value;

use crate::tool_call::{Tool, ToolSet};

/// Longest text before the arguments: longer, and the call is shown when it is whole.
const HEAD_LIMIT: usize = 1024;
/// Longest key or number.
const WORD_LIMIT: usize = 256;
/// Members of a schema that say nothing of the value.
const NOTES: [&str; 8] = [
    "type",
    "description",
    "title",
    "examples",
    "default",
    "format",
    "$comment",
    "deprecated",
];
/// Members of a tool's schema beside which its properties alone rule their values.
const ROOT: [&str; 9] = [
    "type",
    "properties",
    "required",
    "additionalProperties",
    "description",
    "title",
    "$schema",
    "$comment",
    "strict",
];

/// See the module.
#[derive(Debug)]
pub(super) struct Certain {
    /// How much of the block has been read.
    at: usize,
    /// Where what is certain ends, and where it was last taken.
    certain: usize,
    taken: usize,
    /// Where the arguments begin.
    from: usize,
    name: Option<String>,
    plain: HashMap<String, Plain>,
    keys: HashSet<String>,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Head,
    /// Behind a brace or a comma.
    Key,
    /// In the key that began here.
    InKey(usize),
    /// Behind a key.
    Colon(Plain),
    Value(Plain),
    Text,
    Escape,
    /// In a `\u` escape, with so many digits to come.
    Hex(u8),
    /// In the number or word that began here.
    Word(usize, Plain),
    /// Behind a value.
    After,
    /// Nothing more is certain.
    Over,
}

/// A property whose schema is nothing but a type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Plain {
    Text,
    Integer,
    Number,
    Boolean,
}

impl Certain {
    pub(super) fn new() -> Self {
        Self {
            at: 0,
            certain: 0,
            taken: 0,
            from: 0,
            name: None,
            plain: HashMap::new(),
            keys: HashSet::new(),
            state: State::Head,
        }
    }

    /// The block as far as it is written, from its opening tag on: what was added since is read.
    pub(super) fn read(&mut self, block: &str, tools: &ToolSet) {
        if self.state == State::Head {
            self.head(block, tools);
        }
        if matches!(self.state, State::Head | State::Over) {
            return;
        }
        while let Some(next) = block.get(self.at..).and_then(|rest| rest.chars().next()) {
            self.step(block, next);
            if self.state == State::Over {
                return;
            }
            self.at += next.len_utf8();
            if self.state == State::Text {
                self.certain = self.at;
            }
        }
    }

    /// The function, once it is certain.
    pub(super) fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// Arguments that became certain since this was last asked.
    pub(super) fn take<'a>(&mut self, block: &'a str) -> &'a str {
        let new = block.get(self.taken..self.certain).unwrap_or_default();
        self.taken = self.certain.max(self.taken);
        new
    }

    /// All arguments that were taken.
    pub(super) fn taken<'a>(&self, block: &'a str) -> &'a str {
        block.get(self.from..self.taken).unwrap_or_default()
    }

    /// `<tool_call>{"name": "…", "arguments": {`.
    fn head(&mut self, block: &str, tools: &ToolSet) {
        match head(block) {
            Head::Other => self.state = State::Over,
            Head::Short if block.len() > HEAD_LIMIT => self.state = State::Over,
            Head::Short => {}
            Head::Whole { name, from } => {
                let tool = tools.exact(&name);
                let Some((tool, plain)) = tool.and_then(|tool| Some((tool, plain(tool)?))) else {
                    self.state = State::Over;
                    return;
                };
                self.name = Some(tool.name.clone());
                self.plain = plain;
                (self.from, self.taken) = (from, from);
                (self.at, self.certain) = (from + 1, from + 1);
                self.state = State::Key;
            }
        }
    }

    /// What `next`, at `self.at`, makes of the state.
    fn step(&mut self, block: &str, next: char) {
        let space = matches!(next, ' ' | '\t' | '\n' | '\r');
        self.state = match self.state {
            State::Key | State::Colon(_) | State::Value(_) | State::After if space => self.state,
            State::Key if next == '"' => State::InKey(self.at + 1),
            State::InKey(from) if next == '"' => self.key(block.get(from..self.at).unwrap_or_default()),
            State::InKey(from) if next != '\\' && !next.is_control() && self.at - from < WORD_LIMIT => self.state,
            State::Colon(plain) if next == ':' => State::Value(plain),
            State::Value(Plain::Text) if next == '"' => State::Text,
            State::Value(plain) if plain != Plain::Text && !matches!(next, '"' | '{' | '[' | ',' | '}') => {
                State::Word(self.at, plain)
            }
            State::Text => match next {
                '"' => State::After,
                '\\' => State::Escape,
                next if next.is_control() => State::Over,
                _ => State::Text,
            },
            State::Escape => match next {
                '"' | '\\' | '/' | 'b' | 'f' | 'n' | 'r' | 't' => State::Text,
                'u' => State::Hex(4),
                _ => State::Over,
            },
            State::Hex(1) if next.is_ascii_hexdigit() => match block.get(self.at - 3..self.at - 1) {
                // Half of a pair: what it is, the other half decides.
                Some(half) if half.starts_with(['d', 'D']) && !half.ends_with(|c: char| c < '8') => State::Over,
                _ => State::Text,
            },
            State::Hex(more) if next.is_ascii_hexdigit() => State::Hex(more - 1),
            State::Word(from, plain) if space || next == ',' => {
                if !is_whole(block.get(from..self.at).unwrap_or_default(), plain) {
                    State::Over
                } else if space {
                    State::After
                } else {
                    State::Key
                }
            }
            State::Word(from, _) if next.is_ascii() && self.at - from < WORD_LIMIT => self.state,
            State::After if next == ',' => State::Key,
            _ => State::Over,
        };
        if let State::Value(_) = self.state
            && next == ':'
        {
            self.certain = self.at + 1;
        }
    }

    fn key(&mut self, key: &str) -> State {
        match self.plain.get(key) {
            Some(plain) if self.keys.insert(key.to_owned()) => State::Colon(*plain),
            _ => State::Over,
        }
    }
}

enum Head {
    Short,
    Other,
    Whole { name: String, from: usize },
}

fn head(block: &str) -> Head {
    let mut rest = block;
    for word in ["<tool_call>", "{", "\"name\"", ":"] {
        rest = match after(rest, word) {
            Ok(rest) => rest,
            Err(head) => return head,
        };
    }
    let rest = rest.trim_start();
    let Some(inner) = rest.strip_prefix('"') else {
        return if rest.is_empty() { Head::Short } else { Head::Other };
    };
    let Some((name, mut rest)) = inner.split_once('"') else {
        return Head::Short;
    };
    if name.contains('\\') {
        return Head::Other;
    }
    for word in [",", "\"arguments\"", ":", "{"] {
        rest = match after(rest, word) {
            Ok(rest) => rest,
            Err(head) => return head,
        };
    }
    Head::Whole {
        name: name.to_owned(),
        from: block.len() - rest.len() - 1,
    }
}

/// What follows `word`, which white space may come before.
fn after<'a>(text: &'a str, word: &str) -> Result<&'a str, Head> {
    let text = text.trim_start();
    match text.strip_prefix(word) {
        Some(rest) => Ok(rest),
        None if word.starts_with(text) => Err(Head::Short),
        None => Err(Head::Other),
    }
}

/// The properties of `tool` that a type alone rules; `None` if something else in its schema may rule them too.
fn plain(tool: &Tool) -> Option<HashMap<String, Plain>> {
    let schema: Value = serde_json::from_str(tool.parameters.as_ref()?.get()).ok()?;
    let schema = schema.as_object()?;
    if !schema.keys().all(|key| ROOT.contains(&key.as_str())) {
        return None;
    }
    let properties = schema.get("properties")?.as_object()?;
    let plain = properties.iter().filter_map(|(key, property)| {
        let property = property.as_object()?;
        let alone = property.keys().all(|key| NOTES.contains(&key.as_str()));
        let kind = match property.get("type")?.as_str()? {
            "string" => Plain::Text,
            "integer" => Plain::Integer,
            "number" => Plain::Number,
            "boolean" => Plain::Boolean,
            _ => return None,
        };
        alone.then(|| (key.clone(), kind))
    });
    Some(plain.collect())
}

/// `word` is a whole JSON value of this type.
fn is_whole(word: &str, plain: Plain) -> bool {
    match serde_json::from_str(word) {
        Ok(Value::Bool(_)) => plain == Plain::Boolean,
        Ok(Value::Number(_)) => plain == Plain::Number || (plain == Plain::Integer && !word.contains(['.', 'e', 'E'])),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOOLS: &str = r#"[{"type":"function","function":{"name":"write","parameters":{"type":"object","required":["path"],"properties":{
        "path":{"type":"string","description":"where"},"text":{"type":"string"},"mode":{"type":"integer"},"force":{"type":"boolean"},
        "kind":{"type":"string","enum":["a"]},"short":{"type":"string","maxLength":3}}}}},
        {"type":"function","function":{"name":"any","parameters":{"type":"object","properties":{"path":{"type":"string"}},"anyOf":[{}]}}}]"#;

    /// What is certain when `block` has been written so far, read in every split into two.
    fn check(block: &str, name: Option<&str>, want: &str) {
        let tools = ToolSet::parse(TOOLS.as_bytes()).unwrap();
        for cut in (0..=block.len()).filter(|cut| block.is_char_boundary(*cut)) {
            let mut certain = Certain::new();
            let mut shown = String::new();
            for text in [&block[..cut], block] {
                certain.read(text, &tools);
                shown.push_str(certain.take(text));
                assert_eq!(certain.taken(text), shown);
            }
            assert_eq!((certain.name(), &*shown), (name, want), "{block} cut at {cut}");
        }
    }

    #[test]
    fn the_head_must_be_the_usual_one() {
        let write = Some("write");
        check("<tool_call>\n{\"name\": \"write\", \"arguments\": ", None, "");
        check("<tool_call>\n{\"name\": \"write\", \"arguments\": {", write, "{");
        check("<tool_call>{\"name\":\"write\",\"arguments\":{ \n", write, "{");
        for other in [
            "<tool_call>\n{\"name\": \"Write\", \"arguments\": {\"path\": \"a",
            "<tool_call>\n{\"name\": \"any\", \"arguments\": {\"path\": \"a",
            "<tool_call>\n{\"arguments\": {\"path\": \"a",
            "<tool_call>\n{\"name\": \"write\", \"arguments\": \"{\\\"path",
            "<tool_calls>{\"name\": \"write\", \"arguments\": {\"path\": \"a",
        ] {
            check(other, None, "");
        }
    }

    #[test]
    fn values_come_as_no_repair_can_change_them() {
        for (arguments, want) in [
            (r#"{"path"#, "{"),
            (r#"{"path": "#, r#"{"path":"#),
            (r#"{"path": "a/ä"#, r#"{"path": "a/ä"#),
            // A closing quote may be an inner one.
            (r#"{"path": "a""#, r#"{"path": "a"#),
            (r#"{"path": "a", "#, r#"{"path": "a"#),
            (r#"{"path": "a", "text""#, r#"{"path": "a"#),
            (r#"{"path": "a", "text": "b"#, r#"{"path": "a", "text": "b"#),
            (r#"{"path": "say "hi", "text": "b"#, r#"{"path": "say "#),
            (r#"{"path": "a"}}"#, r#"{"path": "a"#),
            // Escapes as a whole.
            (r#"{"path": "a\"#, r#"{"path": "a"#),
            (r#"{"path": "a\n"#, r#"{"path": "a\n"#),
            (r#"{"path": "a\u00e"#, r#"{"path": "a"#),
            (r#"{"path": "a\u00e9b"#, r#"{"path": "a\u00e9b"#),
            (r#"{"path": "a\ud83d\ude00"#, r#"{"path": "a"#),
            (r#"{"path": "C:\dir"#, r#"{"path": "C:"#),
            ("{\"path\": \"a\nb", "{\"path\": \"a"),
            // Numbers and booleans with the next key.
            (r#"{"mode": 12"#, r#"{"mode":"#),
            (r#"{"mode": 12, "path": "a"#, r#"{"mode": 12, "path": "a"#),
            (r#"{"mode": 1.5, "path": "a"#, r#"{"mode":"#),
            (r#"{"mode": "12", "path": "a"#, r#"{"mode":"#),
            (r#"{"force": true , "path": "a"#, r#"{"force": true , "path": "a"#),
            (r#"{"force": True, "path": "a"#, r#"{"force":"#),
            // Not a plain string, not declared, said twice.
            (r#"{"kind": "a"#, "{"),
            (r#"{"short": "a"#, "{"),
            (r#"{"paht": "a"#, "{"),
            (r#"{"path": "a", "path": "b"#, r#"{"path": "a"#),
            (r#"{'path': "a"#, "{"),
        ] {
            let block = format!("<tool_call>\n{{\"name\": \"write\", \"arguments\": {arguments}");
            check(&block, Some("write"), want);
        }
    }
}
