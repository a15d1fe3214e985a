//! A call written as code: `get_weather(city="Oslo", days=3)`, Python's literals, keyword arguments only.
//!
//! ```text
//! calls = "[" call {"," call} "]" | call {[";"|","] call}     call = name "(" [word "=" value {"," word "=" value} [","]] ")"
//! value = string | number | True | False | None | true | false | null | "[" values "]" | "(" values ")" | "{" members "}"
//! ```
//! A value without its name is not given one: such a call is asked again.

use super::text::{self, Quote};
use super::{Mended, Task};
use crate::tool_call::call::Parsed;
use crate::tool_call::json::{DEPTH_LIMIT, PARTS_LIMIT, space};
use crate::tool_call::verdict::Kind;

/// All calls of the text, or none.
pub(super) fn calls(task: &Task<'_>) -> Option<Vec<Mended>> {
    let mut reader = Reader { text: task.text, at: 0 };
    let mut found = Vec::new();
    let listed = reader.eat('[');
    loop {
        let (name, arguments) = reader.call()?;
        let tool = task.tools.find(name)?;
        if found.len() >= PARTS_LIMIT {
            return None;
        }
        let mut parsed = Parsed::of(tool, name, arguments).ok()?;
        parsed.kinds.insert(0, Kind::Code);
        let more = reader.eat(',') || (!listed && reader.eat(';'));
        let end = reader.at;
        found.push(Mended { end, parsed });
        if listed && reader.eat(']') {
            return reader.is_done().then_some(found);
        }
        if reader.is_done() {
            return (!listed).then_some(found);
        }
        if listed && !more {
            return None;
        }
    }
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Reader<'a> {
    fn rest(&mut self) -> &'a str {
        let rest = self.text.get(self.at..).unwrap_or_default();
        let body = rest.trim_start_matches(space);
        self.at = self.text.len() - body.len();
        body
    }

    fn is_done(&mut self) -> bool {
        self.rest().is_empty()
    }

    fn eat(&mut self, wanted: char) -> bool {
        let found = self.rest().starts_with(wanted);
        self.at += if found { wanted.len_utf8() } else { 0 };
        found
    }

    fn word(&mut self) -> Option<&'a str> {
        let rest = self.rest();
        let len = rest
            .find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-')))
            .unwrap_or(rest.len());
        self.at += len;
        rest.get(..len).filter(|word| !word.is_empty())
    }

    fn call(&mut self) -> Option<(&'a str, String)> {
        let name = self.word()?;
        let mut out = String::from("{");
        let mut keys: Vec<&str> = Vec::new();
        if !self.eat('(') {
            return None;
        }
        while !self.eat(')') {
            let key = self.word()?;
            if !self.eat('=') || keys.contains(&key) || keys.len() >= PARTS_LIMIT {
                return None;
            }
            out.push_str(if keys.is_empty() { "\"" } else { ", \"" });
            keys.push(key);
            out.push_str(key);
            out.push_str("\": ");
            self.value(&mut out, 0)?;
            if !self.eat(',') && !self.rest().starts_with(')') {
                return None;
            }
        }
        out.push('}');
        Some((name, out))
    }

    fn value(&mut self, out: &mut String, depth: usize) -> Option<()> {
        if depth > DEPTH_LIMIT {
            return None;
        }
        let rest = self.rest();
        if let Some((quote, len)) = Quote::opens(rest) {
            let triple = rest.starts_with("\"\"\"") || rest.starts_with("'''");
            let from = len;
            let end = quote.find(rest, from)?;
            // longer strings than one line, in three quotes, are left to the re-ask
            if triple || quote == Quote::Smart {
                return None;
            }
            let inside = rest.get(from..end)?;
            if inside.contains('\n') {
                return None;
            }
            out.push('"');
            // Python's escapes are those of single quotes, whichever quotes stand there
            text::append(inside, Quote::Single, out)?;
            out.push('"');
            self.at += end + quote.len();
            return Some(());
        }
        let (open, close, shut) = match rest.chars().next()? {
            '[' => ('[', ']', ']'),
            '(' => ('[', ')', ']'),
            '{' => ('{', '}', '}'),
            _ => return self.scalar(out),
        };
        self.at += 1;
        out.push(open);
        let mut count = 0;
        while !self.eat(close) {
            if count > 0 {
                out.push_str(", ");
            }
            count += 1;
            if count > PARTS_LIMIT {
                return None;
            }
            if open == '{' {
                if !self.rest().starts_with(['"', '\'']) {
                    return None;
                }
                self.value(out, depth + 1)?;
                if !self.eat(':') {
                    return None;
                }
                out.push_str(": ");
            }
            self.value(out, depth + 1)?;
            if !self.eat(',') && !self.rest().starts_with(close) {
                return None;
            }
        }
        out.push(shut);
        Some(())
    }

    fn scalar(&mut self, out: &mut String) -> Option<()> {
        let rest = self.rest();
        let len = rest
            .find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '+')))
            .unwrap_or(rest.len());
        let word = rest.get(..len)?;
        let literal = match word {
            "True" | "true" => "true",
            "False" | "false" => "false",
            "None" | "null" => "null",
            number if serde_json::from_str::<serde_json::Number>(number).is_ok() => number,
            _ => return None,
        };
        self.at += len;
        out.push_str(literal);
        Some(())
    }
}
