//! Calls that vLLM parsed (engine mode, B19), written back as the model writes them and read by a scanner of their own.
//!
//! Elements of `tool_calls` enter, pieces leave as from the text: so the same judge validates and repairs them, the modes of B20
//! hold for them, and what isn't valid has a text. vLLM tells one call after the other: a call is whole when the next one begins,
//! when content follows, or at the finish. Ids are ours, as for calls that we find.
//!
//! 0.12 streams `{}` as nothing, and both versions stream nothing for arguments under another key. Nothing is `{}` only for a tool
//! that declares no property; else the arguments are lost, and the call isn't one.

use std::sync::Arc;

use crate::protocol::chat::{Malformed, call_deltas, member, unquote};
use crate::tool_call::{Bare, Piece, Scanner, Tool, ToolSet};

/// Calls that one choice may have.
const CALLS_LIMIT: usize = 1024;

/// The calls of one choice that vLLM tells.
#[derive(Debug, Default)]
pub(super) struct WrittenBack {
    open: Option<Box<Open>>,
    begun: usize,
}

#[derive(Debug)]
struct Open {
    /// Upstream index.
    index: u32,
    name: String,
    /// No byte of arguments has come.
    silent: bool,
    scanner: Scanner,
}

impl WrittenBack {
    /// vLLM has told a call.
    pub(super) fn has_begun(&self) -> bool {
        self.begun > 0
    }

    /// A call is being told.
    pub(super) fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// The text of the call that is being told.
    pub(super) fn open_call(&self) -> Option<&str> {
        self.open.as_ref()?.scanner.open_call()
    }

    /// Takes the elements of `array`. In a `whole` message each is a call of its own.
    pub(super) fn read(
        &mut self,
        array: &str,
        whole: bool,
        tools: &Arc<ToolSet>,
        out: &mut Vec<Piece>,
    ) -> Result<(), Malformed> {
        let mut place = 0;
        call_deltas(array, |call| {
            let index = call.index.unwrap_or(place);
            place += 1;
            let goes_on = !whole && self.open.as_ref().is_some_and(|open| open.index == index);
            if !goes_on {
                // Without a name it can't become a call: 0.12 loses it when the choices of `n` call at once.
                let name = call.name.filter(|_| self.begun < CALLS_LIMIT);
                let name = name.ok_or(Malformed { at: call.place.start })?.of(array);
                self.close(tools, out);
                self.begin(index, name, tools, out)?;
            }
            if let (Some(open), Some(arguments)) = (&mut self.open, call.arguments) {
                let arguments = unquote(arguments.of(array))?;
                open.silent &= arguments.trim().is_empty();
                if !open.silent {
                    open.scanner.push(&arguments, out);
                }
            }
            Ok(())
        })
    }

    /// `name` with its quotes.
    fn begin(&mut self, index: u32, name: &str, tools: &Arc<ToolSet>, out: &mut Vec<Piece>) -> Result<(), Malformed> {
        let mut scanner = Scanner::new(Arc::clone(tools), Bare::Text);
        scanner.push("<tool_call>\n{\"name\": ", out);
        scanner.push(name, out);
        scanner.push(", \"arguments\": ", out);
        self.begun += 1;
        self.open = Some(Box::new(Open {
            index,
            name: unquote(name)?.into_owned(),
            silent: true,
            scanner,
        }));
        Ok(())
    }

    /// The open call is whole, as far as vLLM is concerned.
    pub(super) fn close(&mut self, tools: &ToolSet, out: &mut Vec<Piece>) {
        let Some(mut open) = self.open.take() else { return };
        if open.silent && tools.find(&open.name).is_some_and(takes_nothing) {
            open.scanner.push("{}", out);
        }
        open.scanner.push("}\n</tool_call>", out);
        open.scanner.finish(out);
    }

    /// The answer was cut in the open call.
    pub(super) fn cut(&mut self, out: &mut Vec<Piece>) {
        if let Some(mut open) = self.open.take() {
            open.scanner.finish(out);
        }
    }
}

/// The tool's schema declares no property.
fn takes_nothing(tool: &Tool) -> bool {
    let Some(schema) = &tool.parameters else { return true };
    let Ok(properties) = member(schema.get(), "properties") else {
        return false;
    };
    properties.is_none_or(|properties| properties.trim_matches(['{', '}', ' ', '\n', '\r', '\t']).is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOOLS: &str = r#"[{"type":"function","function":{"name":"now","parameters":{"type":"object","properties":{ }}}},
        {"type":"function","function":{"name":"ping"}},
        {"type":"function","function":{"name":"say","parameters":{"type":"object","properties":{"a":{"type":"string"},"n":{"type":"integer"}}}}}]"#;

    /// Calls as `name(arguments) kinds`, what is none as its reason.
    fn check(deltas: &[&str], whole: bool, want: &[&str]) {
        let tools = Arc::new(ToolSet::parse(TOOLS.as_bytes()).unwrap());
        let (mut calls, mut out) = (WrittenBack::default(), Vec::new());
        for delta in deltas {
            calls.read(delta, whole, &tools, &mut out).unwrap();
        }
        calls.close(&tools, &mut out);
        let got: Vec<_> = out
            .iter()
            .map(|piece| match piece {
                Piece::Call(call) => format!(
                    "{}({}) {}",
                    call.name,
                    call.arguments,
                    call.verdict.kinds().collect::<Vec<_>>().join(" ")
                ),
                Piece::Invalid { reason, .. } => reason.name().to_owned(),
                Piece::Text(text) => format!("{text:?}"),
            })
            .collect();
        assert_eq!(got, want, "{deltas:?}");
    }

    #[test]
    fn calls_are_judged_as_ours_are() {
        let one = |arguments: &str| {
            format!(r#"[{{"index":0,"id":"x","type":"function","function":{{"name":"say","arguments":{arguments}}}}}]"#)
        };
        for (arguments, want) in [
            (r#""{\"a\": \"b\"}""#, r#"say({"a": "b"}) "#),
            (r#""{\"a\": \"</tool_call>\"}""#, r#"say({"a": "</tool_call>"}) "#),
            (r#""{\"a\": \"b\", \"n\": \"5\"}""#, r#"say({"a": "b", "n": 5}) number"#),
            (r#""{\"a\": \"b\"""#, r#"say({"a": "b"}) closer"#),
            (r#""{\"a\": \"b\"}}""#, r#"say({"a": "b"}) surplus"#),
            (r#""{'a': 'b'}""#, r#"say({"a": "b"}) quotes"#),
            (r#""\"{\\\"a\\\": \\\"b\\\"}\"""#, r#"say({"a": "b"}) "#),
            (r#""{\"a\": 5}""#, r#"say({"a": "5"}) text"#),
            (r#""{\"n\": \"many\"}""#, "unfit"),
            (r#""[1]""#, "not_an_object"),
        ] {
            check(&[&one(arguments)], true, &[want]);
            check(&[&one(arguments)], false, &[want]);
        }
    }

    #[test]
    fn a_call_ends_where_the_next_begins() {
        check(
            &[
                r#"[{"id":"a","type":"function","index":0,"function":{"name":"say"}}]"#,
                r#"[{"index":0,"function":{"name":null,"arguments":"{\"a\":"}}]"#,
                r#"[{"index":0,"id":null,"type":null,"function":{"name":null}}]"#,
                r#"[{"index":0,"function":{"arguments":" \"b\"}"}},{"index":1,"function":{"name":"now","arguments":"{"}}]"#,
                r#"[{"index":1,"function":{"arguments":"}"}}]"#,
            ],
            false,
            &[r#"say({"a": "b"}) "#, "now({}) "],
        );
        let two = r#"[{"id":"a","type":"function","function":{"name":"now","arguments":"{}"}},{"id":"b","type":"function","function":{"name":"ping","arguments":"{}"}}]"#;
        check(&[two], true, &["now({}) ", "ping({}) "]);
    }

    #[test]
    fn nothing_is_an_empty_object_only_where_nothing_else_can_be_meant() {
        for (name, want) in [
            ("now", "now({}) "),
            ("ping", "ping({}) "),
            ("say", "bad_json"),
            ("other", "bad_json"),
        ] {
            let delta = format!(r#"[{{"index":0,"function":{{"name":"{name}","arguments":""}}}}]"#);
            check(&[&delta], false, &[want]);
        }
        let delta = r#"[{"index":0,"function":{"name":"other","arguments":"{}"}}]"#;
        check(&[delta], false, &["unknown_tool"]);
    }

    #[test]
    fn a_call_without_a_name_is_refused() {
        let tools = Arc::new(ToolSet::parse(TOOLS.as_bytes()).unwrap());
        let array = r#"[{"index":0,"id":"a","type":"function","function":{"arguments":"{"}}]"#;
        assert!(
            WrittenBack::default()
                .read(array, false, &tools, &mut Vec::new())
                .is_err()
        );
    }
}
