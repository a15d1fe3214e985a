//! Against tables, and against serde on random and damaged JSON.

use proptest::prelude::*;
use serde::de::IgnoredAny;

use super::*;

fn check(document: &[u8]) -> Result<(), SkimError> {
    let mut cursor = Cursor::new(document, 128)?;
    cursor.skip()?;
    cursor.end()
}

fn syntax(at: usize, expected: &'static str) -> Result<(), SkimError> {
    Err(SkimError::Syntax { at, expected })
}

#[test]
fn errors_name_the_place() {
    let member = "`,` or `}`";
    let item = "`,` or `]`";
    let end = "the end of the document";
    for (document, wanted) in [
        ("", syntax(0, "a value")),
        ("  ", syntax(2, "a value")),
        ("{", syntax(1, "a key")),
        (r#"{"a""#, syntax(4, "`:`")),
        (r#"{"a":"#, syntax(5, "a value")),
        (r#"{"a":1"#, syntax(6, member)),
        (r#"{"a":1,"#, syntax(7, "a key")),
        (r#"{"a":1,}"#, syntax(7, "a key")),
        (r#"{,"a":1}"#, syntax(1, "a key")),
        (r#"{"a":1 "b":2}"#, syntax(7, member)),
        (r#"{"a":1]"#, syntax(6, member)),
        (r#"{a:1}"#, syntax(1, "a key")),
        (r#"{'a':1}"#, syntax(1, "a key")),
        ("[1 2]", syntax(3, item)),
        ("[1,]", syntax(3, "a value")),
        ("[1}", syntax(2, item)),
        ("[[1]", syntax(4, item)),
        ("]", syntax(0, "a value")),
        (r#""abc"#, syntax(4, "the end of a string")),
        (r#""abc\"#, syntax(4, "a valid escape")),
        (r#""abc\""#, syntax(6, "the end of a string")),
        (r#""a\x""#, syntax(2, "a valid escape")),
        (r#""a\u12g4""#, syntax(2, "a valid escape")),
        (r#""a\u12"#, syntax(2, "a valid escape")),
        ("\"a\nb\"", Err(SkimError::Control { at: 2 })),
        ("\"a\u{0}b\"", Err(SkimError::Control { at: 2 })),
        ("{\n\"a\tb\":1}", Err(SkimError::Control { at: 4 })),
        ("tru", syntax(0, "a value")),
        ("truee", syntax(4, end)),
        ("True", syntax(0, "a value")),
        ("nul", syntax(0, "a value")),
        ("NaN", syntax(0, "a value")),
        ("-Infinity", syntax(1, "a digit")),
        ("01", syntax(1, end)),
        ("-", syntax(1, "a digit")),
        ("1.", syntax(2, "a digit")),
        (".5", syntax(0, "a value")),
        ("1e", syntax(2, "a digit")),
        ("1e+", syntax(3, "a digit")),
        ("+1", syntax(0, "a value")),
        ("1 2", syntax(2, end)),
        ("{} x", syntax(3, end)),
        ("{}\u{0}", syntax(2, end)),
        ("\u{feff}{}", syntax(0, "a value")),
    ] {
        assert_eq!(check(document.as_bytes()), wanted, "{document:?}");
    }
    assert_eq!(check(b"\"ab\xff\""), Err(SkimError::NotUtf8 { at: 3 }));
    assert_eq!(
        check(
            "{}".encode_utf16()
                .flat_map(u16::to_le_bytes)
                .collect::<Vec<_>>()
                .as_slice()
        ),
        syntax(1, "a key")
    );
    let long = "1".repeat(NUMBER_LIMIT_BYTES + 1);
    assert_eq!(check(long.as_bytes()), Err(SkimError::Number { at: 0 }));
    assert_eq!(check(&long.as_bytes()[1..]), Ok(()));
}

#[test]
fn depth_is_counted_wherever_it_grows() {
    let nested = |levels: usize| "[{\"a\":".repeat(levels / 2) + "1" + &"}]".repeat(levels / 2);
    assert_eq!(check(nested(128).as_bytes()), Ok(()));
    assert_eq!(
        check(nested(130).as_bytes()),
        Err(SkimError::Depth { at: 64 * 6, limit: 128 })
    );
    // An endless bracket costs no more than the limit.
    assert_eq!(
        check("[".repeat(1_000_000).as_bytes()),
        Err(SkimError::Depth { at: 128, limit: 128 })
    );
    // The caller's own levels and skipped ones add up.
    let mut cursor = Cursor::new(br#"{"a":[[1]]}"#, 2).unwrap();
    let deep = cursor.members(|cursor, _| cursor.items(|_, _| Ok::<(), SkimError>(())).map(drop));
    assert_eq!(deep, Err(SkimError::Depth { at: 6, limit: 2 }));
    // No limit lifts the walk's own.
    let mut cursor = Cursor::new(b"[", u32::MAX).unwrap();
    assert_eq!(cursor.depth_limit, DEPTH_LIMIT_MAX);
    assert!(cursor.skip().is_err());
    let deepest = "[".repeat(DEPTH_LIMIT_MAX as usize) + &"]".repeat(DEPTH_LIMIT_MAX as usize);
    assert!(Cursor::new(deepest.as_bytes(), u32::MAX).unwrap().skip().is_ok());
}

#[test]
fn keys_compare_decoded() {
    for (raw, word, same) in [
        (r#""model""#, "model", true),
        (r#""mod\u0065l""#, "model", true),
        (r#""\u006d\u006F\u0064\u0065\u006c""#, "model", true),
        (r#""model ""#, "model", false),
        (r#""Model""#, "model", false),
        (r#""mod\u0065""#, "model", false),
        (r#""mod\u0065lx""#, "model", false),
        (r#""a\/b\n\t\"\\""#, "a/b\n\t\"\\", true),
        (r#""\ud83d\ude00""#, "😀", true),
        (r#""\ud83dx""#, "\u{FFFD}x", true),
        (r#""\ude00\ud83d""#, "\u{FFFD}\u{FFFD}", true),
        (r#""\ud83d\u0041""#, "\u{FFFD}A", true),
    ] {
        let text = Cursor::new(raw.as_bytes(), 1).unwrap().string().unwrap();
        assert_eq!(text.is(word), same, "{raw}");
        assert_eq!(text.decoded(64).unwrap() == word, same, "{raw}");
    }
}

#[test]
fn decoding_is_bounded() {
    let text = Cursor::new(br#""abc\n""#, 1).unwrap().string().unwrap();
    assert_eq!(text.decoded(4).as_deref(), Some("abc\n"));
    assert_eq!(text.decoded(3), None);
    let text = Cursor::new(br#""abcd""#, 1).unwrap().string().unwrap();
    assert_eq!(text.decoded(4).as_deref(), Some("abcd"));
    assert_eq!(text.decoded(3), None);
}

#[test]
fn a_value_may_be_read_or_left() {
    let document = r#" { "a" : [1, {"b": 2}] , "c":"x" , "d" : {} } "#;
    let mut cursor = Cursor::new(document.as_bytes(), 8).unwrap();
    let mut seen = Vec::new();
    let span = cursor.members(|cursor, key| {
        if key.is("c") {
            seen.push(cursor.string()?.raw().to_owned());
        } else if key.is("a") {
            let start = cursor.offset();
            cursor.items(|cursor, index| {
                seen.push(format!("{index} {:?}", cursor.kind()?));
                Ok::<(), SkimError>(())
            })?;
            seen.push(cursor.raw(start..cursor.offset()).to_owned());
        }
        Ok::<(), SkimError>(())
    });
    assert_eq!(seen, ["0 Number", "1 Object", r#"[1, {"b": 2}]"#, "x"]);
    assert_eq!(span, Ok(1..document.len() - 1));
    assert_eq!(cursor.end(), Ok(()));
}

#[test]
fn every_length_of_string_is_skipped_right() {
    // Across the borders of words and of the SIMD search.
    for length in 0..200 {
        for tail in ["\"", "\\\"\"", "\\u00e9\"", "é\""] {
            let document = format!("\"{}{tail}", "x".repeat(length));
            let mut cursor = Cursor::new(document.as_bytes(), 1).unwrap();
            assert_eq!(cursor.skip(), Ok(0..document.len()), "{length} {tail}");
            let cut = &document[..document.len() - 1];
            assert!(check(cut.as_bytes()).is_err(), "{cut}");
        }
    }
}

/// Random JSON text, white space and escapes included.
pub(crate) fn json() -> impl Strategy<Value = String> {
    let white = "[ \n\r\t]{0,2}";
    let string = r#""([ -!#-\[\]-~éüß漢😀]|\\[bfnrt/"\\]|\\u[0-9a-fA-F]{4}){0,12}""#;
    let leaf = prop_oneof![
        "null|true|false",
        "-?(0|[1-9][0-9]{0,3})(\\.[0-9]{1,3})?([eE][+-]?[0-9]{1,2})?",
        string
    ];
    leaf.prop_recursive(4, 40, 6, move |inner| {
        let spaced = (white, inner, white).prop_map(|(left, value, right)| format!("{left}{value}{right}"));
        let member =
            (white, string, white, spaced.clone()).prop_map(|(a, key, b, value)| format!("{a}{key}{b}:{value}"));
        prop_oneof![
            (prop::collection::vec(spaced, 0..6)).prop_map(|items| format!("[{}]", items.join(","))),
            (prop::collection::vec(member, 0..6)).prop_map(|members| format!("{{{}}}", members.join(","))),
        ]
    })
}

proptest! {
    #[test]
    fn what_is_json_is_accepted(document in json()) {
        prop_assert_eq!(check(document.as_bytes()), Ok(()));
    }

    #[test]
    fn agrees_with_serde_on_damaged_json(document in json(), at in any::<prop::sample::Index>(), with in "[\\[\\]{}:,\"\\\\0-9tfn.eE+\\-\u{0}-\u{20}a]{0,2}", cut in 0usize..3) {
        let at = document.floor_char_boundary(at.index(document.len() + 1));
        let to = document.ceil_char_boundary((at + cut).min(document.len()));
        let damaged = format!("{}{with}{}", &document[..at], &document[to..]);
        let serde = serde_json::from_str::<IgnoredAny>(&damaged).is_ok();
        prop_assert_eq!(check(damaged.as_bytes()).is_ok(), serde, "{:?}", damaged);
    }

    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let serde = std::str::from_utf8(&bytes).is_ok_and(|text| serde_json::from_str::<IgnoredAny>(text).is_ok());
        prop_assert_eq!(check(&bytes).is_ok(), serde);
    }

    #[test]
    fn strings_decode_as_serde_decodes_them(text in "\\PC{0,40}", escape in any::<bool>()) {
        let raw = match escape {
            true => format!("\"{}\"", text.encode_utf16().map(|unit| format!("\\u{unit:04x}")).collect::<String>()),
            false => serde_json::to_string(&text).unwrap(),
        };
        let read = Cursor::new(raw.as_bytes(), 1).unwrap().string().unwrap();
        prop_assert!(read.is(&text));
        let decoded = read.decoded(usize::MAX);
        prop_assert_eq!(decoded.as_deref(), Some(text.as_str()));
    }
}
