//! What becomes of malformed calls that vLLM's own parsers have been at (B19): its calls judged, its leaks found.
//!
//! A whole answer of vLLM leaks what it can't parse, so that all of it is found. A stream loses some for good: no byte of them
//! arrives, or half an argument.

use sluice_policy::turn::Turn;

use crate::client::read;
use crate::expected::expected;
use crate::replay::{End, hear};
use crate::tape::{Tape, cases};

/// Cases whose calls aren't those that are asked for; those that give another call, which nobody here can tell, are marked.
fn lost(set: &str, stream: bool) -> (usize, Vec<String>) {
    let all = cases(set, stream).into_iter().filter(|case| case.starts_with("bad_"));
    let (mut count, mut lost) = (0, Vec::new());
    for case in all {
        let tape = Tape::load(set, &case);
        let plan = tape.plan(set, &case);
        let heard = if stream {
            let (heard, end) = hear(&plan, [&tape.body[..]]);
            assert_eq!(end, End::Done, "{set}/{case}");
            heard
        } else {
            read(&Turn::whole(plan, &tape.body).unwrap().0)
        };
        let name = case.trim_end_matches(".stream");
        let message = &heard.messages[&0];
        let value = |text: &str| serde_json::from_str::<serde_json::Value>(text).expect("arguments are JSON");
        let calls = message.calls.iter().map(|call| (&*call.name, value(&call.arguments)));
        let wanted = expected(name).expect(name).calls;
        let wanted = wanted.into_iter().map(|(name, arguments)| (name, value(arguments)));
        count += 1;
        if !calls.clone().eq(wanted) {
            let mark = if message.calls.is_empty() { "" } else { " gives another" };
            lost.push(format!("{}{mark}", name.trim_start_matches("bad_")));
        }
        assert_eq!(
            message.finish,
            if message.calls.is_empty() { "stop" } else { "tool_calls" },
            "{set}/{case}"
        );
    }
    (count, lost)
}

#[test]
fn calls_that_vllm_parsed_are_mended_and_its_leaks_are_found() {
    for (set, stream, wanted) in [
        ("raw", true, &[][..]),
        ("raw", false, &[]),
        ("parsers", false, &[]),
        ("parsers-v0.12", false, &[]),
        (
            "parsers",
            true,
            &[
                "parameters_key",
                "python_literals",
                "qwen3_xml",
                "qwen3_xml_nothink",
                "single_quotes",
                "tag_in_string",
            ],
        ),
        (
            "parsers-v0.12",
            true,
            &[
                "arguments_first",
                "array_of_calls",
                "escape",
                "markdown_fence",
                "parameters_key",
                "python_literals",
                "python_literals_dq",
                "qwen3_xml",
                "qwen3_xml_nothink",
                "raw_newline_in_string",
                "single_quotes",
                "tag_in_string",
                // The second object never arrives.
                "two_objects_one_tag gives another",
                // vLLM closes the string that was cut itself.
                "unclosed_tag_cut_json gives another",
            ],
        ),
    ] {
        let (count, lost) = lost(set, stream);
        assert_eq!(count, 31, "{set}");
        assert_eq!(lost, wanted, "{set}, stream {stream}");
    }
}
