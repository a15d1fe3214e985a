//! Tables of what fits, what is mended and what isn't, hostile schemas, and what every mend promises.

use super::super::tools::ToolSet;
use super::super::verdict::Kind;
use super::{BadSchema, Judgement, Schema};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::fmt::Write as _;

fn judge(schema: &Value, arguments: &str) -> Judgement {
    let schema = Schema::compile(&schema.to_string()).expect("the schema compiles");
    schema.judge(arguments)
}

fn mended(arguments: &str, kinds: &[Kind]) -> Judgement {
    Judgement::Mended {
        arguments: arguments.to_owned(),
        kinds: kinds.to_vec(),
    }
}

fn unfit(at: &str) -> Judgement {
    Judgement::Unfit { at: at.to_owned() }
}

/// An object with this one property.
fn with(property: Value) -> Value {
    json!({"type": "object", "properties": {"x": property}})
}

#[test]
fn shapes_are_mended() {
    use Kind::{Array, Boolean, Enum, Null, Number, Text, Unpacked};
    let options = json!({"type": "string", "enum": ["celsius", "high priority"]});
    for (schema, from, to) in [
        (json!({"type": "integer"}), r#""5""#, Some(("5", Number))),
        (json!({"type": "integer"}), r#"" -5 ""#, Some(("-5", Number))),
        (json!({"type": "integer"}), r#""5.0""#, Some(("5.0", Number))),
        (json!({"type": "integer"}), r#""5.5""#, None),
        (json!({"type": "number"}), r#""5.5e3""#, Some(("5.5e3", Number))),
        (
            json!({"type": "number"}),
            r#""9007199254740993""#,
            Some(("9007199254740993", Number)),
        ),
        (json!({"type": "number"}), r#""1,000""#, None),
        (json!({"type": "number"}), r#""five""#, None),
        (json!({"type": "number"}), r#""0x10""#, None),
        (json!({"type": "number"}), r#""NaN""#, None),
        (json!({"type": "number"}), r#""""#, None),
        (json!({"type": "integer", "minimum": 6}), r#""5""#, None),
        (json!({"type": "integer"}), "5.5", None),
        (json!({"type": "integer"}), "true", None),
        (json!({"type": "boolean"}), r#""true""#, Some(("true", Boolean))),
        (json!({"type": "boolean"}), r#""False""#, Some(("false", Boolean))),
        (json!({"type": "boolean"}), r#""yes""#, None),
        (json!({"type": "boolean"}), "1", None),
        (
            json!({"type": ["integer", "null"]}),
            r#""null""#,
            Some(("null", Unpacked)),
        ),
        (json!({"type": ["integer", "null"]}), r#""5""#, Some(("5", Number))),
        (
            json!({"type": ["integer", "string"]}),
            "true",
            Some((r#""true""#, Text)),
        ),
        (json!({"type": "string"}), "1.50", Some((r#""1.50""#, Text))),
        (json!({"type": "string"}), "false", Some((r#""false""#, Text))),
        (json!({"type": "string"}), r#"{"a": 1}"#, None),
        (json!({"type": "string"}), r#"["a"]"#, None),
        (json!({"type": "array"}), r#""a""#, Some((r#"["a"]"#, Array))),
        (json!({"type": "array"}), "5", Some(("[5]", Array))),
        (json!({"type": "array"}), r#"{"a": 1}"#, Some((r#"[{"a": 1}]"#, Array))),
        (json!({"type": "array"}), r#""[1, 2]""#, Some(("[1, 2]", Unpacked))),
        (json!({"type": "array"}), r#""[1, 2""#, None),
        (json!({"type": "array"}), r#""""#, None),
        (json!({"type": "array", "minItems": 2}), r#""a""#, None),
        (
            json!({"type": "object"}),
            r#""{\"a\": \"\\u00e9\"}""#,
            Some((r#"{"a": "\u00e9"}"#, Unpacked)),
        ),
        (json!({"type": "object"}), r#""{'a': 1}""#, None),
        (json!({"type": "object"}), "[]", None),
        (options.clone(), r#""Celsius ""#, Some((r#""celsius""#, Enum))),
        (options.clone(), r#""HighPriority""#, Some((r#""high priority""#, Enum))),
        (options.clone(), r#""high_priority""#, None),
        (options, r#""kelvin""#, None),
        (json!({"enum": ["A", "a"]}), r#"" a""#, None),
        (json!({"enum": [5, 10]}), r#""5""#, Some(("5", Number))),
        (json!({"enum": ["5", "10"]}), "5", Some((r#""5""#, Text))),
        (json!({"enum": ["True", "False"]}), "true", Some((r#""True""#, Text))),
        (json!({"enum": [true, "x"]}), r#""TRUE""#, Some(("true", Boolean))),
        (json!({"const": "on"}), r#""On""#, Some((r#""on""#, Enum))),
        (json!({"type": "string", "nullable": true}), "5", Some((r#""5""#, Text))),
    ] {
        let schema = with(schema);
        let got = judge(&schema, &format!("{{ \"x\" :{from} }}"));
        let want = to.map_or(unfit("/x"), |(to, kind)| mended(&format!("{{ \"x\" :{to} }}"), &[kind]));
        assert_eq!(got, want, "{schema}: {from}");
    }
    // nulls go with their key, where they may
    let schema = json!({"type": "object", "required": ["q"], "properties": {
        "q": {"type": "string"}, "n": {"type": "integer"}, "u": {"enum": ["a"]}, "o": {"type": "object", "properties": {"n": {"type": "integer"}}}}});
    for (from, to) in [
        (r#"{"q": "a", "n": null}"#, Some(r#"{"q": "a"}"#)),
        (r#"{"n": null, "q": "a"}"#, Some(r#"{"q": "a"}"#)),
        (
            r#"{ "n" :null,"u":null , "q": "a" ,"o": {"n": null} }"#,
            Some(r#"{ "q": "a" ,"o": {} }"#),
        ),
        (r#"{"n": 1, "q": "a", "n": null}"#, Some(r#"{"q": "a"}"#)), // not the earlier value instead
        (r#"{"q": null, "n": 1}"#, None),
    ] {
        assert_eq!(
            judge(&schema, from),
            to.map_or(unfit("/q"), |to| mended(to, &[Null])),
            "{from}"
        );
    }
    assert_eq!(judge(&json!({"items": {"type": "integer"}}), "{}"), Judgement::Fits);
}

#[test]
fn what_fits_is_never_touched() {
    for (schema, value) in [
        (json!({"type": "string"}), r#""5""#),
        (json!({"type": ["string", "integer"]}), r#""5""#),
        (json!({"anyOf": [{"type": "integer"}, {"type": "string"}]}), r#""5""#),
        (json!({"type": "string"}), r#""{\"a\": 1}""#),
        (json!({"type": ["string", "null"]}), "null"),
        (json!({"type": "string", "nullable": true}), "null"),
        (json!({"enum": ["a"], "nullable": true, "type": "string"}), "null"),
        (json!({"anyOf": [{"type": "array"}, {"type": "string"}]}), r#""a""#),
        (json!({"type": "string", "format": "date-time"}), r#""tomorrow""#),
        (json!({"type": "integer"}), "5.0"),
        (json!({}), "1"),
        (json!(true), "1"),
    ] {
        let schema = with(schema);
        let arguments = format!(r#"{{"x": {value}, "more": "5"}}"#);
        assert_eq!(judge(&schema, &arguments), Judgement::Fits, "{schema}: {value}");
    }
}

#[test]
fn nested_values_are_mended_where_they_stand() {
    use Kind::{Array, Boolean, Enum, Number, Text, Unpacked};
    let edit = json!({"type": "object", "required": ["line"], "properties": {"line": {"type": "integer"}, "text": {"type": "string"}}});
    let schema = json!({"type": "object", "required": ["path"], "additionalProperties": {"type": "boolean"}, "properties": {
        "path": {"type": "string"},
        "edits": {"type": "array", "items": {"$ref": "#/$defs/edit"}},
        "tree": {"$ref": "#/$defs/tree"},
        "mode": {"allOf": [{"$ref": "#/$defs/mode"}]},
        "limit": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
        "ids": {"oneOf": [{"type": "array", "items": {"type": "integer"}}, {"type": "integer", "minimum": 100}]}
    }, "$defs": {
        "edit": edit,
        "mode": {"enum": ["read", "write"]},
        "tree": {"type": "object", "properties": {"n": {"type": "integer"}, "next": {"$ref": "#/$defs/tree"}}}
    }});
    for (from, to, kinds) in [
        (
            r#"{"path": "a", "edits": [{"line": "5", "text": "5"}, {"line": 6,"text": 7}]}"#,
            r#"{"path": "a", "edits": [{"line": 5, "text": "5"}, {"line": 6,"text": "7"}]}"#,
            &[Number, Text][..],
        ),
        (
            r#"{"path": "a", "edits": "[{\"line\": \"5\", \"text\": \"\\u00e9\"}]"}"#,
            r#"{"path": "a", "edits": [{"line": 5, "text": "\u00e9"}]}"#,
            &[Unpacked, Number],
        ),
        (
            r#"{"path": "a", "edits": {"line": "5"}}"#,
            r#"{"path": "a", "edits": [{"line": 5}]}"#,
            &[Array, Number],
        ),
        (
            r#"{"path": "a", "edits": "{\"line\": 5}"}"#,
            r#"{"path": "a", "edits": [{"line": 5}]}"#,
            &[Array, Unpacked],
        ),
        (
            r#"{"path": "a", "tree": {"n": 1, "next": {"next": {"n": "3"}}}}"#,
            r#"{"path": "a", "tree": {"n": 1, "next": {"next": {"n": 3}}}}"#,
            &[Number],
        ),
        (
            r#"{"path": "a", "mode": " READ"}"#,
            r#"{"path": "a", "mode": "read"}"#,
            &[Enum],
        ),
        (
            r#"{"path": "a", "limit": "5"}"#,
            r#"{"path": "a", "limit": 5}"#,
            &[Number],
        ),
        (
            r#"{"path": "a", "ids": "5"}"#,
            r#"{"path": "a", "ids": [5]}"#,
            &[Array, Number],
        ),
        (
            r#"{"path": "a", "ids": "500"}"#,
            r#"{"path": "a", "ids": 500}"#,
            &[Number],
        ),
        (
            r#"{"path": "a", "force": "true"}"#,
            r#"{"path": "a", "force": true}"#,
            &[Boolean],
        ),
    ] {
        assert_eq!(judge(&schema, from), mended(to, kinds), "{from}");
    }
    for (from, at) in [
        (r#"{"edits": []}"#, ""),
        (r#"{"path": "a", "edits": [{"text": "x"}]}"#, "/edits/0"),
        (r#"{"path": "a", "edits": [null]}"#, "/edits/0"),
        (r#"{"path": "a", "force": 2}"#, "/force"),
        (r#"{"path": "a", "limit": "many"}"#, "/limit"),
        (
            r#"{"path": "a", "edits": [{"line": "5"}, {"line": "x"}]}"#,
            "/edits/0/line",
        ),
    ] {
        assert_eq!(judge(&schema, from), unfit(at), "{from}");
    }
}

#[test]
fn undeclared_keys_are_neither_renamed_nor_removed() {
    let schema = json!({"type": "object", "additionalProperties": false, "properties": {"city": {"type": "string"}}});
    for from in [r#"{"citi": "a"}"#, r#"{"city": "a", "x": null}"#, r#"{"City": "a"}"#] {
        assert_eq!(judge(&schema, from), unfit(""), "{from}");
    }
}

/// Two ways out of the same cost that say different things: nobody knows what was meant.
#[test]
fn a_choice_that_nothing_decides_is_not_made() {
    let schema = with(json!({"anyOf": [{"enum": ["on", 1]}, {"enum": ["ON", 1]}]}));
    assert_eq!(judge(&schema, r#"{"x": "On"}"#), unfit("/x"));
    let schema = with(json!({"anyOf": [{"enum": ["on", 1]}, {"enum": ["on", 2]}]}));
    assert_eq!(
        judge(&schema, r#"{"x": "On"}"#),
        mended(r#"{"x": "on"}"#, &[Kind::Enum])
    );
    // the branch that needs fewer edits
    let schema = with(
        json!({"oneOf": [{"type": "array", "items": {"type": "integer"}}, {"type": "array", "items": {"type": "string"}, "minItems": 1}]}),
    );
    assert_eq!(
        judge(&schema, r#"{"x": "5"}"#),
        mended(r#"{"x": ["5"]}"#, &[Kind::Array])
    );
}

#[test]
fn drafts_are_known_by_name_or_tried() {
    for (schema, good, bad) in [
        (
            json!({"properties": {"x": {"type": "number", "minimum": 0, "exclusiveMinimum": true}}}),
            r#"{"x": 1}"#,
            r#"{"x": 0}"#,
        ),
        (
            json!({"properties": {"x": {"items": [{"type": "integer"}]}}}),
            r#"{"x": [1]}"#,
            r#"{"x": [true]}"#,
        ),
        (
            json!({"properties": {"x": {"prefixItems": [{"type": "integer"}]}}}),
            r#"{"x": [1]}"#,
            r#"{"x": [true]}"#,
        ),
        (
            json!({"$schema": "http://json-schema.org/draft-07/schema#", "definitions": {"n": {"type": "integer"}}, "properties": {"x": {"$ref": "#/definitions/n"}}}),
            r#"{"x": 1}"#,
            r#"{"x": true}"#,
        ),
        (
            json!({"$defs": {"a b/c": {"$anchor": "n", "type": "integer"}}, "properties": {"x": {"$ref": "#/$defs/a%20b~1c"}, "y": {"$ref": "#n"}}}),
            r#"{"x": 1, "y": 2}"#,
            r#"{"x": 1, "y": true}"#,
        ),
    ] {
        assert_eq!(judge(&schema, good), Judgement::Fits, "{schema}");
        assert!(matches!(judge(&schema, bad), Judgement::Unfit { .. }), "{schema}");
    }
}

#[test]
fn what_cannot_be_compiled_is_unchecked() {
    for schema in [
        json!({"type": "dict"}),
        json!({"properties": {"x": {"type": "float"}}}),
        json!({"properties": 1}),
        json!([]),
        json!({"$ref": "http://example.com/schema.json"}),
        json!({"properties": {"x": {"$ref": "file:///etc/passwd"}}}),
        json!({"properties": {"x": {"$ref": "other.json#/a"}}}),
        json!({"properties": {"x": {"$ref": "#/$defs/missing"}}}),
        json!({"properties": {"x": {"$ref": "#missing"}}}),
        json!({"properties": {"x": {"$dynamicRef": "#x"}}}),
        json!({"$schema": "https://example.com/meta"}),
        json!({"properties": {"x": {"$id": "http://example.com/a", "$ref": "#/properties/y"}, "y": {}}}),
        json!({"pattern": "(?=x)y"}), // look-around: not linear
        json!({"pattern": "(a+"}),
        json!({"$ref": "#"}),
        json!({"allOf": [{"$ref": "#/$defs/a"}], "$defs": {"a": {"anyOf": [{"$ref": "#/$defs/b"}]}, "b": {"not": {"$ref": "#/$defs/a"}}}}),
    ] {
        assert!(Schema::compile(&schema.to_string()).is_err(), "{schema}");
    }
    let tools = json!([
        {"function": {"name": "none"}},
        {"function": {"name": "null", "parameters": null}},
        {"function": {"name": "bad", "parameters": {"type": "dict"}}},
        {"function": {"name": "good", "parameters": {"type": "object"}}},
    ]);
    let tools = ToolSet::parse(tools.to_string().as_bytes()).unwrap();
    let unchecked: Vec<bool> = tools.tools().iter().map(|tool| tool.unchecked().is_some()).collect();
    assert_eq!(unchecked, [false, false, true, false]);
    assert_eq!(tools.exact("bad").unwrap().judge("{}"), Judgement::Unchecked);
    assert_eq!(tools.exact("none").unwrap().judge("{}"), Judgement::Fits);
    // numbers and escapes that serde_json has no value for
    let any = Schema::compile("{}").unwrap();
    assert_eq!(any.judge(r#"{"x": 1e999}"#), Judgement::Unchecked);
    assert_eq!(any.judge(r#"{"x": "\ud800"}"#), Judgement::Unchecked);
}

#[test]
fn schemas_over_a_bound_are_unchecked() {
    let nested = |depth: usize| {
        let schema = format!("{}{{}}{}", "{\"not\":".repeat(depth), "}".repeat(depth));
        Schema::compile(&schema).is_ok()
    };
    assert!(nested(60));
    assert!(!nested(70) && !nested(120) && !nested(5000));
    let large = json!({"description": "x".repeat(super::SCHEMA_BYTES_LIMIT)});
    assert!(matches!(Schema::compile(&large.to_string()), Err(BadSchema::Large)));
    let many = |count: usize| {
        let properties: serde_json::Map<String, Value> = (0..count).map(|at| (format!("p{at}"), json!({}))).collect();
        Schema::compile(&json!({"properties": properties}).to_string()).is_ok()
    };
    assert!(many(8000) && !many(8200));
    let patterns = |count: usize| {
        let all: Vec<Value> = (0..count).map(|at| json!({"pattern": format!("a{at}+b")})).collect();
        Schema::compile(&json!({"allOf": all}).to_string()).is_ok()
    };
    assert!(patterns(64) && !patterns(65));
    // a set of tools has a bound of its own
    let schema = json!({"description": "x".repeat(200_000)});
    let tools: Vec<Value> = (0..12)
        .map(|at| json!({"function": {"name": format!("t{at}"), "parameters": schema}}))
        .collect();
    let tools = ToolSet::parse(Value::from(tools).to_string().as_bytes()).unwrap();
    let unchecked = tools.tools().iter().filter(|tool| tool.unchecked().is_some()).count();
    assert_eq!(unchecked, 2);
}

/// Chains of definitions that each name the next one twice: 2^n visits of one value.
#[test]
fn exponential_schemas_are_not_run() {
    let bomb = |count: usize, key: &str| {
        let mut defs = serde_json::Map::new();
        for at in 0..count {
            let next = json!({"$ref": format!("#/$defs/d{}", at + 1)});
            defs.insert(format!("d{at}"), json!({key: [next, next]}));
        }
        defs.insert(format!("d{count}"), json!({"type": "string"}));
        json!({"$ref": "#/$defs/d0", "$defs": defs})
    };
    for key in ["anyOf", "allOf", "oneOf"] {
        assert_eq!(judge(&bomb(4, key), "{}"), unfit(""), "{key}");
        assert_eq!(judge(&bomb(28, key), "{}"), Judgement::Unchecked, "{key}");
        assert!(Schema::compile(&bomb(200, key).to_string()).is_err(), "{key}");
    }
    // each level of the value is visited twice as often as the one above
    let twice = json!({"allOf": [{"properties": {"x": {"$ref": "#"}}}, {"properties": {"x": {"$ref": "#"}}}]});
    let nested = |depth: usize| format!("{}1{}", "{\"x\":".repeat(depth), "}".repeat(depth));
    assert_eq!(judge(&twice, &nested(8)), Judgement::Fits);
    assert_eq!(judge(&twice, &nested(40)), Judgement::Unchecked);
    // what was evaluated is asked again and again
    let again = (0..12).fold(
        json!({"properties": {"a": {}}}),
        |inner, _| json!({"allOf": [inner], "unevaluatedProperties": false}),
    );
    assert_eq!(judge(&again, r#"{"a": 1}"#), Judgement::Unchecked);
}

#[test]
fn deep_values_do_not_fill_the_stack() {
    let nested = |depth: usize| format!("{}1{}", "{\"x\":".repeat(depth), "}".repeat(depth));
    let chained = |chain: usize| {
        let inner = (0..chain - 2).fold(json!({"$ref": "#"}), |inner, _| json!({"allOf": [inner]}));
        json!({"properties": {"x": inner}, "type": ["object", "integer"]})
    };
    assert_eq!(
        judge(&json!({"properties": {"x": {"$ref": "#"}}}), &nested(120)),
        Judgement::Fits
    );
    // the deepest that is allowed, in a test's thread of 2 MiB, with errors at its end
    assert_eq!(judge(&chained(8), &nested(120)), Judgement::Fits);
    let at = "/x".repeat(120);
    assert_eq!(judge(&chained(8), &nested(120).replace('1', "[]")), unfit(&at));
    assert_eq!(judge(&chained(28), &nested(120)), Judgement::Unchecked);
    // a long row of references compiles without recursion
    let mut defs = serde_json::Map::new();
    for at in 0..4000 {
        defs.insert(
            format!("d{at}"),
            json!({"properties": {"x": {"$ref": format!("#/$defs/d{}", (at + 1) % 4000)}}}),
        );
    }
    assert_eq!(
        judge(&json!({"$ref": "#/$defs/d0", "$defs": defs}), &nested(120)),
        Judgement::Fits
    );
}

#[test]
fn patterns_are_linear_and_bounded() {
    let long = format!(r#"{{"x": "{}!"}}"#, "a".repeat(50_000));
    for pattern in ["^(a+)+$", "^(a|a)*$", "^(a?){50}a{50}$", "(.*a){12}b"] {
        let schema = with(json!({"pattern": pattern}));
        assert_eq!(judge(&schema, &long), unfit("/x"), "{pattern}");
    }
    for pattern in ["((a{1000}){1000}){1000}", "^(\\p{L}{1000}){1000}$", "(ab|c){60000}d"] {
        assert!(
            Schema::compile(&with(json!({"pattern": pattern})).to_string()).is_err(),
            "{pattern}"
        );
    }
    assert_eq!(
        judge(&with(json!({"pattern": "^\\w{1,64}$"})), r#"{"x": "a_1"}"#),
        Judgement::Fits
    );
}

#[test]
fn much_work_is_not_done() {
    // a large enum against many values
    let options: Vec<Value> = (0..20_000).map(|at| json!(format!("o{at}"))).collect();
    let schema = with(json!({"items": {"enum": options}}));
    let mut many = String::from(r#"{"x": ["o19999""#);
    for _ in 0..20_000 {
        many += r#","o19999""#;
    }
    many += "]}";
    assert_eq!(judge(&schema, &many), Judgement::Unchecked);
    assert_eq!(
        judge(&schema, r#"{"x": ["o19999", "O7"]}"#),
        mended(r#"{"x": ["o19999", "o7"]}"#, &[Kind::Enum])
    );
    // more errors than are mended
    let mut many = String::from(r#"{"x": [1"#);
    for _ in 0..1000 {
        many += ",\"2\"";
    }
    many += "]}";
    assert_eq!(
        judge(&with(json!({"items": {"type": "integer"}})), &many),
        unfit("/x/1")
    );
    // contradictory
    assert_eq!(
        judge(
            &with(json!({"allOf": [{"type": "integer"}, {"type": "string"}]})),
            r#"{"x": "5"}"#
        ),
        unfit("/x")
    );
    assert_eq!(judge(&with(json!({"not": {}})), r#"{"x": "5"}"#), unfit("/x"));
    assert_eq!(judge(&with(json!(false)), r#"{"x": null}"#), unfit("/x"));
}

/// Leaves of a value as text: every one of a mended text comes from the text it was made of, or from the schema.
fn leaves(value: &Value, into: &mut Vec<String>) {
    match value {
        Value::Array(items) => items.iter().for_each(|item| leaves(item, into)),
        Value::Object(members) => members.iter().for_each(|(key, value)| {
            into.push(key.clone());
            leaves(value, into);
        }),
        Value::String(text) => into.push(text.clone()),
        other => into.push(other.to_string()),
    }
}

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop::sample::select(vec![
        json!(null),
        json!(true),
        json!(5),
        json!(1.5),
        json!("5"),
        json!("true"),
        json!("null"),
        json!("Red "),
        json!("a"),
        json!(""),
        json!("[1, \"2\"]"),
        json!("{\"a\": \"5\"}"),
        json!("[{\"b\": null}]"),
        json!("x, y"),
        json!("{'a'"),
    ]);
    leaf.prop_recursive(3, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map("[abc]", inner, 0..4)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

fn schema() -> impl Strategy<Value = Value> {
    let leaf = prop::sample::select(vec![
        json!({"type": "integer"}),
        json!({"type": "number", "minimum": 2}),
        json!({"type": "string"}),
        json!({"type": "boolean"}),
        json!({"type": ["integer", "null"]}),
        json!({"enum": ["red", "green", 5]}),
        json!({"const": "a"}),
        json!({"type": "object"}),
        json!({"type": "array"}),
        json!({}),
        json!({"type": "string", "nullable": true}),
        json!({"$ref": "#"}),
    ]);
    leaf.prop_recursive(3, 24, 3, |inner| {
        let many = prop::collection::vec(inner.clone(), 1..4);
        prop_oneof![
            inner.clone().prop_map(|items| json!({"type": "array", "items": items})),
            (many.clone(), prop::sample::select(vec!["anyOf", "oneOf", "allOf"])).prop_map(|(many, key)| json!({key: many})),
            (prop::collection::btree_map("[abc]", inner, 0..4), prop::collection::vec("[abc]", 0..2), any::<bool>()).prop_map(
                |(properties, mut required, open)| {
                    required.sort();
                    required.dedup();
                    json!({"type": "object", "properties": properties, "required": required, "additionalProperties": open})
                }
            ),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_mend_is_valid_and_invents_nothing(properties in prop::collection::btree_map("[abc]", schema(), 0..4), value in
        prop::collection::btree_map("[abc]", value(), 0..4))
    {
        let schema = json!({"type": "object", "properties": properties});
        let value = Value::Object(value.into_iter().collect());
        let arguments = value.to_string();
        let Ok(schema) = Schema::compile(&schema.to_string()) else { return Ok(()) };
        let valid = schema.validator.is_valid(&value);
        match schema.judge(&arguments) {
            Judgement::Fits => prop_assert!(valid),
            Judgement::Unfit { at } => {
                prop_assert!(!valid || schema.keys.slip(&value).is_some());
                prop_assert!(value.pointer(&at).is_some() || !valid);
            }
            Judgement::Unchecked => {}
            Judgement::Mended { arguments: mended, kinds } => {
                prop_assert!(!valid && !kinds.is_empty());
                let new: Value = serde_json::from_str(&mended).unwrap();
                prop_assert!(new.is_object() && schema.validator.is_valid(&new), "{}", mended);
                // mended again it stays as it is
                prop_assert_eq!(schema.judge(&mended), Judgement::Fits);
                let mut sources = String::new();
                write!(sources, "{arguments} red green 5 a").unwrap();
                let sources = sources.replace('\\', "");
                let mut found = Vec::new();
                leaves(&new, &mut found);
                for leaf in found {
                    let source = sources.contains(&leaf.replace('\\', "")) || sources.contains(&leaf.replace(['"', '\\'], ""));
                    prop_assert!(source, "{:?} of {} has no source in {}", leaf, mended, arguments);
                }
            }
        }
    }
}
