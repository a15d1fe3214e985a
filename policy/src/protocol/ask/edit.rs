//! Edits of a body that is never written anew: what stays is a slice of what was received, byte for byte.
//!
//! Removing a member takes its comma along: the one before it, or, at the front of the object, the one after it. A missing member
//! is appended. A repeated key (only keys that nobody judged can be repeated) is edited wherever it stands.

use std::borrow::Cow;
use std::ops::Range;

use bytes::Bytes;

use crate::protocol::fault::Fault;
use crate::protocol::skim::{Cursor, DEPTH_LIMIT_MAX, SkimError, Text};

/// One change of the top-level object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Edit<'a> {
    /// Replaces the member's value by this raw JSON, or appends the member.
    Set(&'static str, Cow<'a, [u8]>),
    /// The same for a member of the member, as `stream_options.include_usage`. A missing or null outer member becomes an object; one
    /// that is something else is left as it is, so that vLLM can refuse it.
    SetIn(&'static str, &'static str, Cow<'a, [u8]>),
    /// Other bytes within the member's value, in order. An edit of the whole member beats it.
    Patch(&'static str, Vec<Patch<'a>>),
    /// Takes the member away.
    Remove(&'static str),
}

/// Bytes in the place of others: offsets of the body, within the member that is patched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Patch<'a> {
    /// What goes; empty where something is put in.
    pub at: Range<usize>,
    /// What comes.
    pub new: Cow<'a, [u8]>,
}

impl Edit<'_> {
    pub(super) fn key(&self) -> &'static str {
        match self {
            Edit::Set(key, _) | Edit::SetIn(key, _, _) | Edit::Patch(key, _) | Edit::Remove(key) => key,
        }
    }
}

/// The members of one object: where edits go.
#[derive(Debug, Clone, Default)]
pub(super) struct Fields {
    members: Vec<Member>,
    /// Both brackets.
    span: Range<usize>,
}

#[derive(Debug, Clone)]
struct Member {
    /// With its quotes.
    key: Range<usize>,
    value: Range<usize>,
}

/// What becomes of one member.
enum Fate<'e, 'a> {
    Stays,
    Goes,
    Becomes(&'e [u8]),
    Patched(&'e [Patch<'a>]),
    Within(Vec<&'e Edit<'a>>),
}

impl Fields {
    /// Room for the members of a usual request.
    pub(super) fn with_room() -> Fields {
        Fields {
            members: Vec::with_capacity(24),
            span: 0..0,
        }
    }

    /// Remembers a member.
    pub(super) fn push(&mut self, key: &Text<'_>, value: Range<usize>, limit: usize) -> Result<(), Fault> {
        if self.members.len() >= limit {
            let message = format!("The request body has more than {limit} members (limit fields).");
            return Err(Fault::new(crate::protocol::fault::FaultKind::BadRequest, message));
        }
        self.members.push(Member { key: key.span(), value });
        Ok(())
    }

    /// The object is whole.
    pub(super) fn close(&mut self, span: Range<usize>) {
        self.span = span;
        // It is kept until the answer ends.
        self.members.shrink_to_fit();
    }

    /// Raw JSON of a member; of the last one if the key is repeated, as readers of JSON have it.
    pub(super) fn value(&self, body: &Bytes, key: &str) -> Option<Bytes> {
        self.members
            .iter()
            .rev()
            .find(|member| member.is(body, key))
            .map(|member| body.slice(member.value.clone()))
    }

    /// The members of an object that has been checked before; none if this isn't one.
    fn of(object: &Bytes) -> Option<Fields> {
        let mut fields = Fields::default();
        let mut cursor = Cursor::new(object, DEPTH_LIMIT_MAX).ok()?;
        let span = cursor.members(|cursor, key| -> Result<(), SkimError> {
            let value = cursor.skip()?;
            fields.members.push(Member { key: key.span(), value });
            Ok(())
        });
        fields.close(span.ok()?);
        Some(fields)
    }
}

impl Member {
    fn is(&self, body: &[u8], key: &str) -> bool {
        let raw = body.get(self.key.clone()).unwrap_or_default();
        let plain = raw.get(1..raw.len().saturating_sub(1)).unwrap_or_default();
        // A key with escapes is longer than what it says.
        if plain.len() <= key.len() {
            return plain == key.as_bytes();
        }
        let says = |text: Result<Text<'_>, SkimError>| text.is_ok_and(|text| text.is(key));
        plain.contains(&b'\\') && says(Cursor::new(raw, 0).and_then(|mut cursor| cursor.string()))
    }
}

/// The body with its edits, as segments in order.
pub(super) fn splice(body: &Bytes, fields: &Fields, edits: &[&Edit<'_>]) -> Vec<Bytes> {
    if fields.span.is_empty() {
        return vec![body.clone()];
    }
    let mut segments = Segments {
        body,
        done: 0,
        out: Vec::with_capacity(edits.len() * 3 + 1),
    };
    let mut kept = false;
    let mut previous_end = fields.span.start + 1;
    for (index, member) in fields.members.iter().enumerate() {
        match fate(body, member, edits) {
            Fate::Goes if kept => segments.cut(previous_end..member.value.end),
            Fate::Goes => {
                let next = fields
                    .members
                    .get(index + 1)
                    .map_or(member.value.end, |next| next.key.start);
                segments.cut(member.key.start..next);
            }
            fate => {
                kept = true;
                segments.change(&member.value, fate);
            }
        }
        previous_end = member.value.end;
    }
    for (key, value) in missing(body, fields, edits) {
        segments.upto(previous_end);
        segments.insert(member_text(kept, key, &value));
        kept = true;
    }
    segments.upto(body.len());
    segments.out
}

/// The value that one edit patches, alone.
pub(super) fn patched(body: &Bytes, fields: &Fields, edit: &Edit<'_>) -> Vec<Bytes> {
    let Some(member) = fields.members.iter().rfind(|member| member.is(body, edit.key())) else {
        return Vec::new();
    };
    let value = member.value.clone();
    let mut segments = Segments {
        body,
        done: value.start,
        out: Vec::new(),
    };
    segments.change(&value, fate(body, member, &[edit]));
    segments.upto(value.end);
    segments.out
}

/// What the edits make of a member. The last edit of the whole member counts; without one, all edits within it do.
fn fate<'e, 'a>(body: &[u8], member: &Member, edits: &[&'e Edit<'a>]) -> Fate<'e, 'a> {
    let of_member = || edits.iter().copied().filter(|edit| member.is(body, edit.key()));
    if of_member().next().is_none() {
        return Fate::Stays;
    }
    match of_member().rfind(|edit| !matches!(edit, Edit::SetIn(..) | Edit::Patch(..))) {
        Some(Edit::Set(_, value)) => return Fate::Becomes(value),
        Some(_) => return Fate::Goes,
        None => {}
    }
    if let Some(Edit::Patch(_, patches)) = of_member().rfind(|edit| matches!(edit, Edit::Patch(..))) {
        return Fate::Patched(patches);
    }
    Fate::Within(of_member().collect())
}

/// Members to append, in the order of their edits: each key once.
fn missing<'e>(body: &[u8], fields: &Fields, edits: &[&'e Edit<'_>]) -> Vec<(&'static str, Cow<'e, [u8]>)> {
    let mut appended: Vec<(&'static str, Cow<'e, [u8]>)> = Vec::new();
    for edit in edits {
        let key = edit.key();
        let settled = appended.iter().any(|(known, _)| *known == key);
        if settled || fields.members.iter().any(|member| member.is(body, key)) {
            continue;
        }
        let of_key = || edits.iter().copied().filter(|edit| edit.key() == key);
        match of_key().rfind(|edit| !matches!(edit, Edit::SetIn(..))) {
            // What isn't there can't be patched.
            Some(Edit::Set(_, value)) => appended.push((key, Cow::Borrowed(value.as_ref()))),
            Some(_) => {}
            None => appended.push((key, Cow::Owned(object_of(&of_key().collect::<Vec<_>>())))),
        }
    }
    appended
}

/// A new object with what is to be within it.
fn object_of(within: &[&Edit<'_>]) -> Vec<u8> {
    let empty = Bytes::from_static(b"{}");
    Fields::of(&empty)
        .map(|fields| splice_within(&empty, &fields, within).concat())
        .unwrap_or_default()
}

fn splice_within(object: &Bytes, fields: &Fields, within: &[&Edit<'_>]) -> Vec<Bytes> {
    let sets = within.iter().filter_map(|edit| match edit {
        Edit::SetIn(_, key, value) => Some(Edit::Set(key, Cow::Borrowed(value.as_ref()))),
        Edit::Set(..) | Edit::Patch(..) | Edit::Remove(_) => None,
    });
    let sets: Vec<Edit<'_>> = sets.collect();
    splice(object, fields, &sets.iter().collect::<Vec<_>>())
}

fn member_text(comma: bool, key: &str, value: &[u8]) -> Bytes {
    let key = serde_json::Value::from(key).to_string();
    let mut text = Vec::with_capacity(key.len() + value.len() + 2);
    text.extend_from_slice(if comma { b"," } else { b"" });
    text.extend_from_slice(key.as_bytes());
    text.extend_from_slice(b":");
    text.extend_from_slice(value);
    Bytes::from(text)
}

/// The new body as it grows: slices of the old one up to `done`, and what was put between.
struct Segments<'b> {
    body: &'b Bytes,
    done: usize,
    out: Vec<Bytes>,
}

impl Segments<'_> {
    /// Takes the received bytes up to here.
    fn upto(&mut self, at: usize) {
        if at > self.done {
            self.out.push(self.body.slice(self.done..at));
            self.done = at;
        }
    }

    /// Leaves received bytes out.
    fn cut(&mut self, span: Range<usize>) {
        self.upto(span.start);
        self.done = self.done.max(span.end);
    }

    fn insert(&mut self, bytes: Bytes) {
        self.out.push(bytes);
    }

    /// Gives a member its new value.
    fn change(&mut self, value: &Range<usize>, fate: Fate<'_, '_>) {
        match fate {
            Fate::Stays | Fate::Goes => {}
            Fate::Becomes(new) => {
                self.cut(value.clone());
                self.insert(Bytes::copy_from_slice(new));
            }
            Fate::Patched(patches) => {
                let inside = |patch: &&Patch<'_>| value.start <= patch.at.start && patch.at.end <= value.end;
                for Patch { at, new } in patches.iter().filter(inside) {
                    self.cut(at.clone());
                    if !new.is_empty() {
                        self.insert(Bytes::copy_from_slice(new));
                    }
                }
            }
            Fate::Within(within) => {
                let old = self.body.slice(value.clone());
                if let Some(fields) = Fields::of(&old) {
                    self.cut(value.clone());
                    self.out.extend(splice_within(&old, &fields, &within));
                } else if old == b"null".as_slice() {
                    self.cut(value.clone());
                    self.insert(Bytes::from(object_of(&within)));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Map, Value};

    use super::*;
    use crate::protocol::ask::{Ask, AskLimits, Endpoint, Grants, read};

    fn ask(body: &str) -> Ask {
        let body = Bytes::copy_from_slice(body.as_bytes());
        read(&Endpoint::Completions, body, &AskLimits::default(), &Grants::ALL).unwrap()
    }

    fn edited(body: &str, edits: &[Edit<'_>]) -> String {
        String::from_utf8(ask(body).upstream_body(edits).concat()).unwrap()
    }

    fn set(key: &'static str, value: &'static str) -> Edit<'static> {
        Edit::Set(key, Cow::Borrowed(value.as_bytes()))
    }

    fn set_in(outer: &'static str, key: &'static str, value: &'static str) -> Edit<'static> {
        Edit::SetIn(outer, key, Cow::Borrowed(value.as_bytes()))
    }

    #[test]
    fn commas_come_out_right() {
        let gone = |key| Edit::Remove(key);
        for (body, edits, wanted) in [
            (r#"{"a":1,"b":2,"c":3}"#, vec![gone("a")], r#"{"b":2,"c":3}"#),
            (r#"{"a":1,"b":2,"c":3}"#, vec![gone("b")], r#"{"a":1,"c":3}"#),
            (r#"{"a":1,"b":2,"c":3}"#, vec![gone("c")], r#"{"a":1,"b":2}"#),
            (r#"{"a":1,"b":2,"c":3}"#, vec![gone("a"), gone("b")], r#"{"c":3}"#),
            (r#"{"a":1,"b":2,"c":3}"#, vec![gone("c"), gone("b")], r#"{"a":1}"#),
            (r#"{"a":1,"b":2,"c":3}"#, vec![gone("a"), gone("c")], r#"{"b":2}"#),
            (r#"{"a":1,"b":2}"#, vec![gone("a"), gone("b")], "{}"),
            (r#"{"a":1}"#, vec![gone("a")], "{}"),
            (r#"{"a":1}"#, vec![gone("a"), set("b", "2")], r#"{"b":2}"#),
            (r#"{"a":1}"#, vec![gone("x")], r#"{"a":1}"#),
            ("{}", vec![set("a", "1"), set("b", "2")], r#"{"a":1,"b":2}"#),
            ("{ }", vec![set("a", "1")], r#"{"a":1 }"#),
            (r#" { "a" : 1 , "b" : 2 } "#, vec![gone("a")], r#" { "b" : 2 } "#),
            (r#" { "a" : 1 , "b" : 2 } "#, vec![gone("b")], r#" { "a" : 1 } "#),
            (
                r#" { "a" : 1 } "#,
                vec![set("a", "9"), set("b", "2")],
                r#" { "a" : 9,"b":2 } "#,
            ),
            (
                r#"{"a":1,"x":0}"#,
                vec![set("a", "2"), set("a", "3")],
                r#"{"a":3,"x":0}"#,
            ),
            (r#"{"a":1}"#, vec![set("a", "2"), gone("a")], "{}"),
            (r#"{"a":1}"#, vec![gone("a"), set("a", "2")], r#"{"a":2}"#),
            (r#"{"\u0061":1,"b":2}"#, vec![gone("a")], r#"{"b":2}"#),
            (r#"{"\u0061":1}"#, vec![set("a", "2")], r#"{"\u0061":2}"#),
            // Nobody judges `x`, so it may be repeated; no copy survives an edit.
            (r#"{"x":1,"b":2,"x":3}"#, vec![gone("x")], r#"{"b":2}"#),
            (r#"{"x":1,"b":2,"x":3}"#, vec![set("x", "9")], r#"{"x":9,"b":2,"x":9}"#),
        ] {
            assert_eq!(edited(body, &edits), wanted, "{body} {edits:?}");
        }
    }

    #[test]
    fn members_of_members_are_set() {
        let usage = || set_in("stream_options", "include_usage", "true");
        for (body, edits, wanted) in [
            ("{}", vec![usage()], r#"{"stream_options":{"include_usage":true}}"#),
            (
                r#"{"stream_options":null}"#,
                vec![usage()],
                r#"{"stream_options":{"include_usage":true}}"#,
            ),
            (
                r#"{"stream_options":{}}"#,
                vec![usage()],
                r#"{"stream_options":{"include_usage":true}}"#,
            ),
            (
                r#"{"stream_options":{"include_usage":false, "z":1},"a":1}"#,
                vec![usage()],
                r#"{"stream_options":{"include_usage":true, "z":1},"a":1}"#,
            ),
            (
                r#"{"stream_options": {"priority":1}}"#,
                vec![usage(), set_in("stream_options", "continuous_usage_stats", "false")],
                r#"{"stream_options": {"priority":1,"include_usage":true,"continuous_usage_stats":false}}"#,
            ),
            (
                "{}",
                vec![
                    usage(),
                    set_in("stream_options", "b", "1"),
                    set_in("stream_options", "include_usage", "false"),
                ],
                r#"{"stream_options":{"include_usage":false,"b":1}}"#,
            ),
            // What isn't an object stays, for vLLM to refuse.
            (r#"{"stream_options":[1]}"#, vec![usage()], r#"{"stream_options":[1]}"#),
            // An edit of the whole member beats those within it.
            (
                r#"{"stream_options":{}}"#,
                vec![set("stream_options", "{}"), usage()],
                r#"{"stream_options":{}}"#,
            ),
            (
                r#"{"stream_options":{}}"#,
                vec![usage(), Edit::Remove("stream_options")],
                "{}",
            ),
        ] {
            assert_eq!(edited(body, &edits), wanted, "{body} {edits:?}");
        }
    }

    #[test]
    fn priority_is_the_gateways() {
        assert_eq!(edited(r#"{"priority":-5,"a":1}"#, &[]), r#"{"a":1}"#);
        assert_eq!(edited(r#"{"a":1,"prior\u0069ty":-5}"#, &[]), r#"{"a":1}"#);
        assert_eq!(
            edited(r#"{"priority":-5}"#, &[set("priority", "2")]),
            r#"{"priority":2}"#
        );
        assert_eq!(edited(r#"{"a":{"priority":1}}"#, &[]), r#"{"a":{"priority":1}}"#);
    }

    #[test]
    fn a_body_without_edits_is_the_received_one() {
        let ask = ask(r#"{"prompt":"x"}"#);
        let segments = ask.upstream_body(&[]);
        assert_eq!(segments.len(), 1);
        assert_eq!(segments[0].as_ptr(), ask.body.as_ptr());
        assert_eq!(segments[0], ask.body);
    }

    /// Where the slices of an edited body lie in the received one; others are new.
    fn slices(ask: &Ask, segments: &[Bytes]) -> usize {
        let body = ask.body.as_ptr_range();
        segments
            .iter()
            .filter(|segment| body.contains(&segment.as_ptr()))
            .map(Bytes::len)
            .sum()
    }

    #[test]
    fn received_bytes_are_never_copied() {
        let long = "x".repeat(100_000);
        let ask = ask(&format!(r#"{{"model":"a","prompt":"{long}","stream":true}}"#));
        let segments = ask.upstream_body(&[
            set("model", "\"b\""),
            set_in("stream_options", "include_usage", "true"),
            Edit::Remove("stream"),
        ]);
        let copied = segments.concat().len() - slices(&ask, &segments);
        assert_eq!(
            copied,
            "\"b\"".len() + ",\"stream_options\":{\"include_usage\":true}".len()
        );
    }

    const KEYS: [&str; 6] = ["a", "b", "stream_options", "q", "model2", "z"];

    fn edit() -> impl Strategy<Value = Edit<'static>> {
        let key = || prop::sample::select(&KEYS[..]);
        let value = || prop::sample::select(vec!["1", "null", "\"x\"", "[1, 2]", "{\"k\":{\"m\":1}}"]);
        prop_oneof![
            (key(), value()).prop_map(|(key, value)| set(key, value)),
            (key(), key(), value()).prop_map(|(outer, key, value)| set_in(outer, key, value)),
            key().prop_map(Edit::Remove),
        ]
    }

    /// A member's text: key (sometimes escaped) and value, with white space.
    fn body() -> impl Strategy<Value = Vec<(String, bool, String)>> {
        let value = crate::protocol::skim::tests::json();
        let objects =
            prop::collection::btree_map(prop::sample::select(&KEYS[..]), "1|null|\\{\\}", 0..4).prop_map(|map| {
                let members: Vec<String> = map.iter().map(|(key, value)| format!(" \"{key}\" : {value}")).collect();
                format!("{{{} }}", members.join(","))
            });
        let key = prop_oneof![prop::sample::select(&KEYS[..]).prop_map(str::to_owned), "[C-P]{1,3}"];
        let value = prop_oneof![2 => value, 1 => objects, 1 => Just("null".to_owned())];
        prop::collection::btree_map(key, (any::<bool>(), value), 0..8)
            .prop_map(|map| {
                map.into_iter()
                    .map(|(key, (escaped, value))| (key, escaped, value))
                    .collect::<Vec<_>>()
            })
            .prop_shuffle()
    }

    /// The same edits by the book.
    fn by_serde(object: &mut Map<String, Value>, edits: &[Edit<'_>]) {
        for key in KEYS {
            let of_key: Vec<_> = edits.iter().filter(|edit| edit.key() == key).collect();
            let parse = |value: &[u8]| serde_json::from_slice::<Value>(value).unwrap();
            match of_key.iter().rfind(|edit| !matches!(edit, Edit::SetIn(..))) {
                Some(Edit::Set(_, value)) => drop(object.insert(key.to_owned(), parse(value))),
                Some(_) => drop(object.shift_remove(key)),
                None => {
                    for edit in of_key {
                        let Edit::SetIn(_, inner, value) = edit else { continue };
                        let outer = object.entry(key.to_owned()).or_insert(Value::Null);
                        if outer.is_null() {
                            *outer = Value::Object(Map::new());
                        }
                        if let Value::Object(outer) = outer {
                            outer.insert((*inner).to_owned(), parse(value));
                        }
                    }
                }
            }
        }
    }

    proptest! {
        #[test]
        fn edits_mean_what_they_mean_to_serde(
            members in body(),
            edits in prop::collection::vec(edit(), 0..6),
            white in "[ \n\t]{0,2}",
        ) {
            let member = |(key, escaped, value): &(String, bool, String)| {
                let key = match escaped {
                    true => format!("\\u{:04x}{}", u32::from(key.as_bytes()[0]), &key[1..]),
                    false => key.clone(),
                };
                format!("{white}\"{key}\"{white}:{white}{value}")
            };
            let text = format!("{white}{{{}{white}}}{white}", members.iter().map(member).collect::<Vec<_>>().join(","));
            // Repeated keys and lone surrogates inside values: serde has its own mind about those.
            let Ok(Value::Object(mut wanted)) = serde_json::from_str::<Value>(&text) else { return Ok(()) };
            let ask = ask(&text);
            let edited = String::from_utf8(ask.upstream_body(&edits).concat()).unwrap();
            by_serde(&mut wanted, &edits);
            let got: Value = serde_json::from_str(&edited).unwrap();
            prop_assert_eq!(&got, &Value::Object(wanted), "{} -> {}", text, edited);
            // What no edit names stands there as it was.
            for (key, _, value) in &members {
                if !edits.iter().any(|edit| edit.key() == key) {
                    let again = super::super::read(&Endpoint::Completions, Bytes::from(edited.clone()), &AskLimits::default(), &Grants::ALL).unwrap();
                    let value = value.trim();
                    let raw = again.raw(key);
                    prop_assert_eq!(raw.as_deref(), Some(value.as_bytes()));
                }
            }
        }
    }
}
