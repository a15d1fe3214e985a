use super::*;
use crate::tool_call::{Bare, Piece, Scanner, Verdict};
use std::sync::Arc;

fn tools() -> Arc<ToolSet> {
    let raw = br#"[
        {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object", "required": ["city"], "properties": {
            "city": {"type": "string"}, "unit": {"type": "string"}, "days": {"type": "integer"}}}}},
        {"type": "function", "function": {"name": "search", "parameters": {"type": "object", "required": ["query"], "properties": {
            "query": {"type": "string"}, "limit": {"type": "integer"}, "exact": {"type": "boolean"}, "filters": {"type": "object"}}}}},
        {"type": "function", "function": {"name": "write_file", "parameters": {"type": "object", "required": ["path", "content"],
            "properties": {"path": {"type": "string"}, "content": {"type": "string"}, "mode": {"type": "string"}}}}},
        {"type": "function", "function": {"name": "plot", "parameters": {"type": "object", "required": ["points"], "properties": {
            "points": {"type": "array", "items": {"type": "number"}}, "labels": {"type": "array", "items": {"type": "string"}},
            "axis": {"type": "object", "properties": {"from": {"type": "number"}, "to": {"type": "number"}}}}}}},
        {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}}]"#;
    Arc::new(ToolSet::parse(raw).unwrap())
}

/// The calls of a block with this inside, as `name arguments`, or `-` for each that is none.
fn calls(inside: &str) -> Vec<String> {
    scan(&format!("<tool_call>\n{inside}\n</tool_call>"))
}

fn scan(text: &str) -> Vec<String> {
    let mut scanner = Scanner::new(tools(), Bare::Calls);
    let mut pieces = Vec::new();
    scanner.push(text, &mut pieces);
    scanner.finish(&mut pieces);
    let shown = pieces.into_iter().map(|piece| match piece {
        Piece::Call(call) => {
            serde_json::from_str::<Value>(&call.arguments).unwrap();
            format!("{} {}", call.name, call.arguments)
        }
        Piece::Invalid { .. } => "-".to_owned(),
        Piece::Text(text) => format!("text {text:?}"),
    });
    shown.collect()
}

fn kinds(inside: &str) -> Vec<&'static str> {
    let mut scanner = Scanner::new(tools(), Bare::Calls);
    let mut pieces = Vec::new();
    scanner.push(&format!("<tool_call>\n{inside}\n</tool_call>"), &mut pieces);
    scanner.finish(&mut pieces);
    match pieces.pop() {
        Some(Piece::Call(call)) => match call.verdict {
            Verdict::Repaired(kinds) => kinds.into_iter().map(crate::tool_call::Kind::name).collect(),
            _ => Vec::new(),
        },
        _ => vec!["none"],
    }
}

const PARIS: &str = r#"get_weather {"city": "Paris", "unit": "celsius"}"#;

/// A string whose closing quote is lost keeps the closers of what it opened. One that nothing opened and that closes nothing may be the
/// text's, or the quote itself, exchanged.
#[test]
fn closers_of_a_text_stay_with_it() {
    for (broken, want) in [
        (
            r#"{"city": "x[0], "unit": "c"}"#,
            r#"get_weather {"city": "x[0]", "unit": "c"}"#,
        ),
        (
            r#"{"city": "f({}), "unit": "c"}"#,
            r#"get_weather {"city": "f({})", "unit": "c"}"#,
        ),
        (
            r#"{"city": "a[b[0]], "unit": "c"}"#,
            r#"get_weather {"city": "a[b[0]]", "unit": "c"}"#,
        ),
        (r#"{"city": "a -], "unit": "c"}"#, "-"),
    ] {
        let call = format!(r#"{{"name": "get_weather", "arguments": {broken}}}"#);
        assert_eq!(calls(&call), [want], "{broken}");
    }
    let plot = r#"{"name": "plot", "arguments": {"points": [], "labels": ["a", "b], "axis": {"from": 1}}}"#;
    assert_eq!(
        calls(plot),
        [r#"plot {"points": [], "labels": ["a", "b"], "axis": {"from": 1}}"#]
    );
}

/// One edit each, of every kind, gives the call as it was meant, byte for byte but for the edit.
#[test]
fn one_edit_is_mended() {
    for (broken, kind) in [
        (
            r#"{"name": "get_weather", "arguments": {"city": "Paris", "unit": "celsius"}"#,
            "closer",
        ),
        (
            r#"{"name": "get_weather", "arguments": {"city": "Paris", "unit": "celsius""#,
            "closer",
        ),
        (
            r#""name": "get_weather", "arguments": {"city": "Paris", "unit": "celsius"}}"#,
            "opener",
        ),
        (
            r#"{"name": "get_weather", "arguments": "city": "Paris", "unit": "celsius"}}"#,
            "opener",
        ),
        (
            r#"{{"name": "get_weather", "arguments": {"city": "Paris", "unit": "celsius"}}"#,
            "dropped",
        ),
        (
            r#"{"name": "get_weather", "arguments": {{"city": "Paris", "unit": "celsius"}}"#,
            "dropped",
        ),
        (
            r#"{"name": "get_weather", "arguments": {"city": "Paris",, "unit": "celsius"}}"#,
            "dropped",
        ),
        (
            r#"{"name": "get_weather",  "arguments":: {"city": "Paris", "unit": "celsius"}}"#,
            "dropped",
        ),
        (
            r#"{""name": "get_weather", "arguments": {"city": "Paris", "unit": "celsius"}}"#,
            "dropped",
        ),
        (
            r#"{"name"": "get_weather", "arguments": {"city": "Paris", "unit": "celsius"}}"#,
            "dropped",
        ),
        (
            r#"{"name": "get_weather", "arguments": {"city": ""Paris", "unit": "celsius"}}"#,
            "dropped",
        ),
        (
            r#"{"name": "get_weather", "arguments": {"city": "Paris", "unit": "celsius""}}"#,
            "dropped",
        ),
        (
            r#"{"name": "get_weather" "arguments": {"city": "Paris", "unit": "celsius"}}"#,
            "comma",
        ),
        (
            r#"{"name": "get_weather", "arguments": {"city": "Paris" "unit": "celsius"}}"#,
            "comma",
        ),
        (
            r#"{"name": "get_weather", "arguments" {"city": "Paris", "unit": "celsius"}}"#,
            "colon",
        ),
        (
            r#"{"name" "get_weather", "arguments": {"city": "Paris", "unit": "celsius"}}"#,
            "colon",
        ),
        (
            r#"{name": "get_weather", "arguments": {"city": "Paris", "unit": "celsius"}}"#,
            "quote",
        ),
        (
            r#"{"name: "get_weather", "arguments": {"city": "Paris", "unit": "celsius"}}"#,
            "quote",
        ),
        (
            r#"{"name": "get_weather", "arguments": {"city": Paris", "unit": "celsius"}}"#,
            "quote",
        ),
        (
            r#"{"name": "get_weather", "arguments": {"city": "Paris, "unit": "celsius"}}"#,
            "quote",
        ),
        (
            r#"{"name": "get_weather", "arguments": {"city": "Paris", "unit": "celsius}}"#,
            "quote",
        ),
        (
            r#"{"name": "get_weather", "arguments": {"city": "Paris", "unit": "celsius"]}"#,
            "replaced",
        ),
        (
            r#"{"name": "get_weather", "arguments": ["city": "Paris", "unit": "celsius"}}"#,
            "replaced",
        ),
        (
            r#"{"name": "get_weather"; "arguments": {"city": "Paris", "unit": "celsius"}}"#,
            "replaced",
        ),
        (
            r#"{"name": "get_weather": "arguments": {"city": "Paris", "unit": "celsius"}}"#,
            "replaced",
        ),
        (
            r#"{"name", "get_weather", "arguments": {"city": "Paris", "unit": "celsius"}}"#,
            "replaced",
        ),
        (
            r#"{"name:" "get_weather", "arguments": {"city": "Paris", "unit": "celsius"}}"#,
            "swapped",
        ),
        (
            r#"{"name": "get_weather", "arguments": {"city": "Paris," "unit": "celsius"}}"#,
            "swapped",
        ),
        (
            r#"{"name": "get_weather", "arguments": {"city": "Paris", "unit": "celsius}"}"#,
            "swapped",
        ),
        (
            r#"{"name": "get_weather", "arguments": {"city": "Paris", "unit": "celsius",}}"#,
            "trailing_comma",
        ),
        (
            r#"{"name": "get_weather", /* why */ "arguments": {"city": "Paris", "unit": "celsius"}}"#,
            "comment",
        ),
        (
            r#"{name: "get_weather", arguments: {"city": "Paris", "unit": "celsius"}}"#,
            "key",
        ),
        (
            r#"{'name': 'get_weather', 'arguments': {"city": "Paris", "unit": "celsius"}}"#,
            "quotes",
        ),
        (
            r#"{“name”: “get_weather”, “arguments”: {"city": "Paris", "unit": "celsius"}}"#,
            "quotes",
        ),
        (r#"get_weather(city="Paris", unit='celsius')"#, "code"),
        (
            "<name>get_weather</name>\n<arguments>{\"city\": \"Paris\", \"unit\": \"celsius\"}</arguments>",
            "markup",
        ),
        (
            "<|im_start|>assistant\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris\", \"unit\": \"celsius\"}}",
            "surplus",
        ),
    ] {
        let (got, want) = (kinds(broken), vec![kind]);
        assert_eq!(got, want, "{broken}");
        if kind != "none" {
            assert_eq!(calls(broken), [PARIS], "{broken}");
        }
    }
}

/// Another structural character in place of a quote, a colon, a bracket: the text must not grow into a value.
#[test]
fn a_replaced_character_is_put_back() {
    let search = r#"search {"query": "a.", "filters": {"MODE": "x", "K": "y"}}"#;
    for broken in [
        r#"{"name": "search", "arguments": {"query"] "a.", "filters": {"MODE": "x", "K": "y"}}}"#,
        r#"{"name": "search", "arguments": {"query": "a.:, "filters": {"MODE": "x", "K": "y"}}}"#,
        r#"{"name": "search", "arguments": {"query": "a.", "filters"} {"MODE": "x", "K": "y"}}}"#,
        r#"{"name": "search", "arguments": {"query": "a.", ]filters": {"MODE": "x", "K": "y"}}}"#,
        r#"{"name": "search", "arguments": {"query": "a.", "filters": {"MODE]: "x", "K": "y"}}}"#,
        r#"{"name": "search", "arguments": {"query": "a.", "filters": {"MODE": "x", "K"[ "y"}}}"#,
        r#"{"name": "search", "arguments": {"query": "a.", "filters": {"MODE": "x", "K"} "y"}}}"#,
        r#"{"name": "search", "arguments": {"query": "a.", "filters": {"MODE": "x", }K": "y"}}}"#,
        r#"{]name": "search", "arguments": {"query": "a.", "filters": {"MODE": "x", "K": "y"}}}"#,
        r#"{"name": "search", "arguments": {"query": "a.", "filters": {}MODE": "x", "K": "y"}}}"#,
        r#"]"name": "search", "arguments": {"query": "a.", "filters": {"MODE": "x", "K": "y"}}}"#,
    ] {
        assert_eq!(calls(broken), [search], "{broken}");
    }
    let plot = r#"plot {"labels": ["a", "b"], "points": [1]}"#;
    for broken in [
        r#"{"name": "plot", "arguments": {"labels": ["a", "b":, "points": [1]}}"#,
        r#"{"name": "plot", "arguments": {"labels": ["a", ]b"], "points": [1]}}"#,
        r#"{"name": "plot", "arguments": {"labels": ["a", }b"], "points": [1]}}"#,
    ] {
        assert_eq!(calls(broken), [plot], "{broken}");
    }
}

/// A character of code in front of its closing quote may have changed places with it.
#[test]
fn a_swap_at_the_end_of_code_is_not_decided() {
    for broken in [
        r#"{"name": "write_file", "arguments": {"path": "p", "content": "if (x) { y(); }\nelse if (z) { y(x + z - 1); }," "mode": "w"}}"#,
        r#"{"name": "write_file", "arguments": {"path": "p", "content": "if (x) { y(); }}"}"#,
    ] {
        assert_eq!(calls(broken), ["-"], "{broken}");
    }
}

/// A quote of the text's own before a tag of the text's own: the rest was cut off, and nothing says how much.
#[test]
fn a_text_cut_by_a_tag_of_its_own_is_no_call() {
    for text in ["assert_eq!(a, ", "println!(", "const TAG = ", "[", "a ="] {
        let inside = format!(r#"{{"name": "write_file", "arguments": {{"path": "p", "content": "{text}""#);
        assert_eq!(calls(&inside), ["-"], "{inside}");
    }
    let whole = r#"write_file {"path": "p", "content": "all."}"#;
    let inside = r#"{"name": "write_file", "arguments": {"path": "p", "content": "all.""#;
    assert_eq!(calls(inside), [whole]);
}

/// A tag inside a string whose closing quote is missing is text: a real one stands behind a closer or on a line of its own.
#[test]
fn a_tag_inside_an_unclosed_string_is_text() {
    let broken = r#"{"name": "write_file", "arguments": {"path": "p", "content": "a = '</tool_call>';, "mode": "w"}}"#;
    let whole = r#"write_file {"path": "p", "content": "a = '</tool_call>';", "mode": "w"}"#;
    assert_eq!(calls(broken), [whole]);
}

/// Where quotes are broken, a tag that touches a quote or a backslash is text; so is an opening tag without a call behind it.
#[test]
fn a_tag_of_code_ends_no_broken_block() {
    for (content, whole) in [
        (
            r#"log("a", { b: "c" }); tag = '</tool_call>';"#,
            r#"log(\"a\", { b: \"c\" }); tag = '</tool_call>';"#,
        ),
        (r#"is("a", "</tool_call>");"#, r#"is(\"a\", \"</tool_call>\");"#),
        (
            r#"{"b": [1]}\n<tool_call>\n</tool_call>\nx"#,
            r#"{\"b\": [1]}\n<tool_call>\n</tool_call>\nx"#,
        ),
        (
            "a\n</tool_call>\n<tool_call>\n# b\n{\\\"c\\\": {}}\n</tool_call>\n<tool_call>\n{\\\"d\\\": 1}\nx",
            r#"a\n</tool_call>\n<tool_call>\n# b\n{\"c\": {}}\n</tool_call>\n<tool_call>\n{\"d\": 1}\nx"#,
        ),
    ] {
        let broken = format!(r#"{{"name": "write_file", "arguments": {{"path": "p", "content": "{content}"}}}}"#);
        let whole = format!(r#"write_file {{"path": "p", "content": "{whole}"}}"#);
        assert_eq!(calls(&broken), [whole.as_str()]);
        let paris =
            r#"<tool_call>{"name": "get_weather", "arguments": {"city": "Paris", "unit": "celsius"}}</tool_call>"#;
        let two = format!("<tool_call>\n{broken}\n</tool_call>\n{paris}");
        assert_eq!(scan(&two), [whole.as_str(), PARIS]);
    }
}

/// `//` behind an empty string is no comment that takes the rest of the call along.
#[test]
fn a_comment_does_not_swallow_the_closers() {
    let broken = r#"{"name": "write_file", "arguments": {"path": "p", "content": ""// a \"word\"\n"}}"#;
    let got = calls(broken);
    assert_eq!(got, [r#"write_file {"path": "p", "content": "// a \"word\"\n"}"#]);
}

/// A brace or a quote that became another character, where the schema or what follows leaves one reading.
#[test]
fn an_exchanged_character_is_known_by_what_follows() {
    let plot = r#"plot {"axis": {"from": 1, "to": 2}, "points": [1, 2]}"#;
    for broken in [
        r#"{"name": "plot", "arguments": ]"axis": {"from": 1, "to": 2}, "points": [1, 2]}}"#,
        r#"{"name": "plot", "arguments": {"axis": ,"from": 1, "to": 2}, "points": [1, 2]}}"#,
        r#"{}name": "plot", "arguments": {"axis": {"from": 1, "to": 2}, "points": [1, 2]}}"#,
        r#"{"name": "plot", "arguments": {"axis": {"from": 1, "to": 2}, "points:: [1, 2]}}"#,
    ] {
        assert_eq!(calls(broken), [plot], "{broken}");
    }
    let paris = r#"get_weather {"city": "Paris"}"#;
    for end in [":", "]", "{"] {
        let broken = format!(r#"{{"name": "get_weather", "arguments": {{"city": "Paris{end}}}}}"#);
        assert_eq!(calls(&broken), [paris], "{broken}");
    }
    // a bracket that the text opened is the text's
    assert_eq!(calls(r#"{"name": "get_weather", "arguments": {"city": "x[0]}}"#), ["-"]);
}

/// Nothing but structure between two words' quotes is structure, not a quotation.
#[test]
fn words_with_structure_between_are_two_strings() {
    for between in [r#"" ""#, r#"",, ""#, r#""{ ""#] {
        let broken = format!(r#"{{"name": "plot", "arguments": {{"points": [1], "labels": ["one{between}two"]}}}}"#);
        assert_eq!(
            calls(&broken),
            [r#"plot {"points": [1], "labels": ["one", "two"]}"#],
            "{between}"
        );
    }
    // what is joined by code isn't told from it
    let doubtful = r#"{"name": "plot", "arguments": {"points": [1], "labels": ["a.split(" ").b"]}}"#;
    assert_eq!(calls(doubtful), ["-"]);
}

/// One habit, however many strings: single quotes around, and none escaped inside.
#[test]
fn single_quotes_around_single_quotes() {
    let broken =
        r#"{'name': 'write_file', 'arguments': {'path': 'it's', 'content': 'awk -F'x' '{print}'', 'mode': 'don't'}}"#;
    let whole = r#"write_file {"path": "it's", "content": "awk -F'x' '{print}'", "mode": "don't"}"#;
    assert_eq!(calls(broken), [whole]);
}

/// Closed too early, in the middle: strict JSON up to there, but not the call.
#[test]
fn members_behind_a_call_are_not_lost() {
    let plot = r#"plot {"axis": {"from": 1, "to": 2}, "points": [1, 2]}"#;
    for broken in [
        r#"{"name": "plot", "arguments": {"axis": {"from": 1, "to": 2}}, "points": [1, 2]}}"#,
        r#"{"name": "plot", "arguments": {"axis": {"from": 1, "to": 2}}}, "points": [1, 2]}}"#,
        r#"{"name": "plot", "arguments": {"axis": {"from": 1, "to": 2, "points": [1, 2]}}"#,
        r#"{"name": "plot", "arguments": {"axis": {"from": 1, "to": 2}, "points": 1, 2]}}"#,
        r#"{"name": "plot", "arguments": {"axis": {"from": 1, "to": 2}, "points": [1, 2}}"#,
        r#"{"name": "plot", "arguments": {"axis": {"from": 1, "to": 2}, "points": [[1, 2]}}"#,
        r#"{"name": "plot", "arguments": {"axis": {"from": 1, "to": 2}, "points": [1, 2]]}}"#,
        r#"{"name": "plot", "arguments": {"axis": {"from": 1, "to": 2}, "points": [1 2]}}"#,
        r#"{"name": "plot", "arguments": {"axis": "from": 1, "to": 2}, "points": [1, 2]}}"#,
    ] {
        let got = calls(broken);
        assert_eq!(got, [plot], "{broken}");
    }
}

#[test]
fn strings_are_escaped_and_no_more() {
    for (broken, want) in [
        (r#""C:\Users\x""#, r#""C:\\Users\\x""#),
        (r#""C:\Users\new""#, r#""C:\\Users\\new""#),
        (r#""a \d+ b\n""#, r#""a \\d+ b\n""#),
        (r#""it\'s""#, r#""it's""#),
        ("\"one\ntwo\tthree\"", r#""one\ntwo\tthree""#),
        (r#""the "best" one""#, r#""the \"best\" one""#),
        (r#""say "hi"""#, r#""say \"hi\"""#),
        (r#""{"path": "x", "size": 1}""#, r#""{\"path\": \"x\", \"size\": 1}""#),
        (r#""print("a", "b")\n""#, r#""print(\"a\", \"b\")\n""#),
        // the quotes of a line are sound only if the backslash is the code's
        (r#""x = '\''\ny = 'can\'t'\n""#, r#""x = '\\''\ny = 'can\\'t'\n""#),
        // the first quote is missing, and only in strings there are backslashes
        (r#"a = {\"b\": 1}, \n""#, r#""a = {\"b\": 1}, \n""#),
        (r#"\"a\"""#, r#""\"a\"""#),
        (r#"    if x:\n""#, r#""    if x:\n""#),
    ] {
        let inside = format!(r#"{{"name": "write_file", "arguments": {{"path": "p", "content": {broken}}}}}"#);
        let whole = format!(r#"write_file {{"path": "p", "content": {want}}}"#);
        assert_eq!(calls(&inside), [whole], "{broken}");
    }
}

/// Nothing is guessed.
#[test]
fn what_cannot_be_told_is_no_call() {
    for broken in [
        r#"{"name": "search", "arguments": {"query": "#,
        r#"{"name": "search", "arguments": {"query": "half a"#,
        r#"{"name": "search", "arguments": {"query": "half a}"#,
        r#"{"name": "search", "arguments": {"query": "a", "lim"#,
        r#"{"name": "search", "arguments": {"query": "a", "limit""#,
        r#"{"name": "search", "arguments": {"query": "a", "limit":"#,
        r#"{"name": "search", "arguments": {"query": "a", "limit": NaN}}"#,
        r#"{"name": "search", "arguments": {"query": "a", "limit": }}"#,
        r#"{"name": "search", "arguments": {"query": P"aris"}}"#,
        r#"{"name": "nobody", "arguments": {"query": "a"}"#,
        r#"{"name": "get_weather", "arguments": {"query": "a"}"#,
        r#"get_weather("Oslo")"#,
        r#"get_weather(city=oslo)"#,
        r#"{"name": "search", "arguments": {"query": "a", "filters": {}"#,
    ]
    .into_iter()
    .take(13)
    {
        assert_eq!(calls(broken), ["-"], "{broken}");
    }
}

/// Operators are told which: nothing fits, more than one thing fits, or the search stopped at its limit.
#[test]
fn why_a_call_is_not_repaired_is_told() {
    let refused = |inside: &str| {
        let mut scanner = Scanner::new(tools(), Bare::Calls);
        let mut pieces = Vec::new();
        scanner.push(&format!("<tool_call>\n{inside}\n</tool_call>"), &mut pieces);
        scanner.finish(&mut pieces);
        match pieces.pop() {
            Some(Piece::Invalid { reason, .. }) => reason.name(),
            other => panic!("{other:?}"),
        }
    };
    let long = "x ".repeat(cost::TEXT_LIMIT / 2);
    // each string may end at any of its quotes, and nothing fits behind the last one
    let many = r#""a", "b" c": "#.repeat(4000);
    for (inside, why) in [
        (
            r#"{"name": "search", "arguments": {"query": "a", "limit": NaN}}"#.to_owned(),
            "bad_json",
        ),
        (r#"{"name": "search", "arguments": {"query": "#.to_owned(), "bad_json"),
        (
            r#"{"name": "write_file", "arguments": {"path": "p", "content": "if (x) { y(); }}"}"#.to_owned(),
            "ambiguous",
        ),
        (
            format!(r#"{{"name": "search", "arguments": {{"query": "{long}" "limit": 1}}}}"#),
            "too_costly",
        ),
        (
            format!(r#"{{"name": "search", "arguments": {{"query": [{many} NaN]}}}}"#),
            "too_costly",
        ),
    ] {
        assert_eq!(refused(&inside), why, "{}", inside.get(..80).unwrap_or(&inside));
    }
}

/// Cut by the end of the answer: closers alone, or nothing (B28).
#[test]
fn a_cut_call_is_closed_and_nothing_else() {
    let call = r#"{"name": "search", "arguments": {"query": "a", "limit": 10, "filters": {"k": [1, 2]}}}"#;
    let whole = r#"search {"query": "a", "limit": 10, "filters": {"k": [1, 2]}}"#;
    for cut in 1..call.len() {
        let text = format!("<tool_call>\n{}", &call[..cut]);
        let want = match cut {
            _ if &call[..cut] == r#"{"name": "search", "arguments": {"query": "a""# => r#"search {"query": "a"}"#,
            _ if cut >= call.len() - 3 && &call[cut..] != "]}}}" => whole,
            _ => "",
        };
        let got = scan(&text);
        if want.is_empty() {
            assert!(
                got.iter().all(|shown| shown == "-" || shown.starts_with("text")),
                "{text}: {got:?}"
            );
        } else {
            assert_eq!(got, [want], "{text}");
        }
    }
}

#[test]
fn what_stands_around_a_broken_call_stays() {
    let text = "Hi.\n<tool_call>\n{'name': 'now', 'arguments': {}}\n</tool_call>\n<tool_call>\n{\"name\": \"search\", \"arguments\": {\"query\": \"a\"}\n</tool_call>\nBye.";
    assert_eq!(
        scan(text),
        [
            "text \"Hi.\\n\"",
            "now {}",
            "search {\"query\": \"a\"}",
            "text \"Bye.\""
        ]
    );
}

/// Arguments in a string are mended inside it, as a block is; what isn't JSON there stays none.
#[test]
fn broken_arguments_in_a_string_are_mended() {
    let inside = |arguments: &str| format!(r#"{{"name": "get_weather", "arguments": {}}}"#, Value::from(arguments));
    for (arguments, want) in [
        (r#"{"city": "Paris", "unit": "celsius""#, PARIS),
        (
            r#"{'city': 'Paris', 'unit': 'celsius'}"#,
            "get_weather {\"city\": \"Paris\", \"unit\": \"celsius\"}",
        ),
        (r#"{"city": "Paris", "unit": "celsius",}"#, PARIS),
        ("{\"city\": \"a\nb\"}", r#"get_weather {"city": "a\nb"}"#),
        (r#"{"city": "Par"#, "-"),
        ("Paris", "-"),
        ("[1]", "-"),
        (r#"{"days": "many",}"#, "-"),
    ] {
        assert_eq!(calls(&inside(arguments)), [want], "{arguments}");
    }
    let upper = inside(r#"{"city": "Paris",}"#).replace("get_weather", "Get-Weather");
    assert_eq!(kinds(&upper), ["name", "trailing_comma"]);
}

/// The XML dialect: a tag that is missing or written another way is put right where nothing else can be meant.
#[test]
fn broken_tags_of_the_xml_dialect_are_mended() {
    let good = "<function=write_file>\n<parameter=path>\na.txt\n</parameter>\n<parameter=content>\nx = 1\ny = \"<b>\"\n</parameter>\n</function>";
    let want = r#"write_file {"path": "a.txt", "content": "x = 1\ny = \"<b>\""}"#;
    for broken in [
        good.replace("\n</function>", ""),
        good.replace("\n</parameter>\n</function>", "\n</function>"),
        good.replacen("path>", "path", 1),
        good.replacen("write_file>", "write_file", 1),
        good.replacen("parameter=path", "parameter name=\"path\"", 1),
        good.replacen("function=write_file", "function name=\"write_file\"", 1),
        good.replacen("<parameter=path>", "< parameter = path >", 1),
    ] {
        assert_eq!(calls(&broken), [want], "{broken}");
        assert_eq!(kinds(&broken), ["markup"], "{broken}");
    }
    let object = "<function=write_file>\n{\"path\": \"a.txt\", \"content\": \"x\"}\n</function>";
    assert_eq!(calls(object), [r#"write_file {"path": "a.txt", "content": "x"}"#]);
    for unclear in [
        // The value of `path` may be all of it.
        good.replacen("\n</parameter>", "", 1),
        good.replacen("</parameter>", "</param>", 1),
        // Cut, or as good as.
        good.replace("\n</parameter>\n</function>", ""),
        good.replace("path", "pth").replace("\n</function>", ""),
        good.replace("\n</function>", "\nThat is it."),
        "<function=write_file>\n{\"path\": \"a.txt\", \"content\": \"x\n</function>".to_owned(),
    ] {
        assert_eq!(calls(&unclear), ["-"], "{unclear}");
    }
    // Without a closing tag of the call nobody says that it was whole.
    assert_eq!(scan(&good.replace("\n</function>", "")), ["-"]);
}
