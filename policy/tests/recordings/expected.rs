//! What a client gets, case by case: written by hand from the text that each request scripts (`force_text`) and the rules.

/// Reasoning, content, calls (name, arguments) and finish of one choice.
pub(crate) struct Expected {
    pub(crate) reasoning: Option<&'static str>,
    pub(crate) content: Option<&'static str>,
    pub(crate) calls: Vec<(&'static str, &'static str)>,
    pub(crate) finish: &'static str,
}

const WHY: Option<&str> = Some("The user asks about the weather, so I call the tool.\n");
const GREET: Option<&str> = Some("Greet back.\n");
const HELLO: Option<&str> = Some("Hello! How can I help you today?");
const PARIS: (&str, &str) = ("get_weather", r#"{"city": "Paris"}"#);
const PARIS_CELSIUS: (&str, &str) = ("get_weather", r#"{"city": "Paris", "unit": "celsius"}"#);
const EVENTS: (&str, &str) = (
    "search",
    r#"{"query": "Paris events", "filters": {"site": "example.org"}}"#,
);
const NOW: (&str, &str) = ("now", "{}");

/// Reasoning as in most tool cases, one or more calls.
fn calls(calls: &[(&'static str, &'static str)]) -> Expected {
    Expected {
        reasoning: WHY,
        content: None,
        calls: calls.to_vec(),
        finish: "tool_calls",
    }
}

fn says(reasoning: Option<&'static str>, content: Option<&'static str>) -> Expected {
    Expected {
        reasoning,
        content,
        calls: Vec::new(),
        finish: "stop",
    }
}

/// A call that can't be repaired: its text is content (B27).
fn unrepaired(raw: &'static str) -> Expected {
    says(WHY, Some(raw))
}

/// `None` for cases whose text isn't scripted.
pub(crate) fn expected(case: &str) -> Option<Expected> {
    Some(match case {
        // Text and reasoning (B14, B15).
        "chat_plain" | "chat_logprobs" | "chat_n2" | "chat_usage" | "chat_usage_continuous" => says(GREET, HELLO),
        "nothink_but_thinks" | "prompt_has_think_close" | "think_plain_tags" => says(GREET, HELLO),
        // include_reasoning: false is for vLLM's parser; raw text has it all the same.
        "chat_no_reasoning" => says(GREET, HELLO),
        "chat_after_tool" => says(Some("Got it.\n"), Some("It is 21 degrees.")),
        "chat_empty" => says(None, None),
        "chat_length_in_text" => Expected {
            finish: "length",
            ..says(GREET, Some("Hello"))
        },
        "chat_length_in_think" => Expected {
            finish: "length",
            ..says(Some("G"), None)
        },
        "chat_stop_string" => says(GREET, Some("Hello! How can I ")),
        "chat_token_ids" => says(Some("x\n"), Some("ok")),
        "chat_unicode" => says(Some("🤔 où?\n"), Some("Naïve café 👩‍👩‍👧 日本語 𝔘𝔫𝔦 ok")),
        "nothink_plain" => says(None, Some("Hello! How can I help?")),
        "structured_choice" => says(None, Some("alpha")),
        "think_empty" => says(None, Some("Direct answer.")),
        "think_no_open" => says(Some("The prompt opened it.\n"), Some("Answer.")),
        "think_none" => says(None, Some("Just an answer, no tags.")),
        "think_only" => says(Some("Only thoughts.\n"), None),
        "think_twice" => says(Some("A\n\nB\n"), Some("text end")),
        "think_unterminated" => says(Some("I never stop thinking"), None),
        // Calls (B19, B21, B22, B28).
        "tool_auto_usage"
        | "tool_char_tokens"
        | "tool_n2"
        | "tool_plain_tags"
        | "tool_strict_auto"
        | "tool_required_rejected" => calls(&[PARIS_CELSIUS]),
        "tool_auto_logprobs" | "tool_empty_args" => calls(&[NOW]),
        "tool_choice_none" | "tool_no_tools" => says(
            WHY,
            Some(
                "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris\", \"unit\": \"celsius\"}}\n</tool_call>",
            ),
        ),
        "tool_in_think" => says(
            Some(
                "Maybe <tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris\", \"unit\": \"celsius\"}}\n</tool_call> would do.\n",
            ),
            Some("No call needed."),
        ),
        "tool_in_think_unterminated" => Expected {
            reasoning: Some("I call it. "),
            ..calls(&[PARIS_CELSIUS])
        },
        "tool_length_cut" => Expected {
            finish: "length",
            ..says(WHY, None)
        },
        "tool_named" | "tool_required" => Expected {
            reasoning: Some("Call it.\n"),
            ..calls(&[PARIS])
        },
        "nothink_tool" | "tool_named_nothink" | "tool_required_nothink" | "tool_think_none" => Expected {
            reasoning: None,
            ..calls(&[PARIS_CELSIUS])
        },
        "tool_no_think_close_nl" => Expected {
            reasoning: Some("x\n"),
            ..calls(&[PARIS_CELSIUS])
        },
        "tool_required_two_nothink" => Expected {
            reasoning: None,
            ..calls(&[PARIS_CELSIUS, NOW])
        },
        // The stop string is the closing tag: the call is at the very end without one.
        "tool_stop_string" => calls(&[PARIS_CELSIUS]),
        "tool_text_before" => Expected {
            content: Some("Let me look.\n\n"),
            ..calls(&[PARIS_CELSIUS])
        },
        "tool_three_text_between" => Expected {
            content: Some("First.\nThen.\nDone."),
            ..calls(&[PARIS_CELSIUS, EVENTS, NOW])
        },
        "tool_two" => calls(&[PARIS_CELSIUS, EVENTS]),
        "tool_two_parallel_false" => calls(&[PARIS_CELSIUS]),
        "tool_unicode" => calls(&[("search", r#"{"query": "caf\u00e9 ☕ \"q\" \\ 日本 👩‍👩‍👧", "limit": 10}"#)]),
        _ => return expected_bad(case),
    })
}

/// Calls that vLLM's parsers get wrong.
fn expected_bad(case: &str) -> Option<Expected> {
    Some(match case {
        "bad_args_string"
        | "bad_arguments_first"
        | "bad_bare_json_no_tags"
        | "bad_close_tag_only"
        | "bad_extra_brace"
        | "bad_extra_key_after"
        | "bad_fence_no_tags"
        | "bad_markdown_fence"
        | "bad_nested_open_tag"
        | "bad_parameters_key"
        | "bad_unclosed_tag" => calls(&[PARIS]),
        "bad_array_of_calls" | "bad_two_objects_one_tag" => calls(&[PARIS, NOW]),
        "bad_no_arguments" => calls(&[NOW]),
        "bad_qwen3_xml" => calls(&[("get_weather", r#"{"city": "Paris", "days": 3}"#)]),
        "bad_qwen3_xml_nothink" => Expected {
            reasoning: None,
            ..calls(&[("get_weather", r#"{"city": "Paris", "days": 3}"#)])
        },
        "bad_tag_in_string" => calls(&[("search", r#"{"query": "what does </tool_call> mean"}"#)]),
        // Five may be a string, but "three" is no number (B24).
        "bad_wrong_types" => unrepaired(
            "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": 5, \"days\": \"three\"}}\n</tool_call>",
        ),
        // Repaired (B23).
        "bad_bad_then_good" => calls(&[("search", r#"{"query": "x"}"#), PARIS_CELSIUS]),
        "bad_good_then_bad" => calls(&[PARIS_CELSIUS, ("search", r#"{"query": "x"}"#)]),
        "bad_bad_escape" => calls(&[("search", r#"{"query": "C:\\Users\\x"}"#)]),
        "bad_missing_brace" | "bad_single_quotes" | "bad_trailing_comma" => calls(&[PARIS]),
        // null for an optional key is left out (B24)
        "bad_python_literals" | "bad_python_literals_dq" => calls(&[("search", r#"{"query": "x", "exact": true}"#)]),
        "bad_raw_newline_in_string" => calls(&[("search", r#"{"query": "line one\nline two"}"#)]),
        // Not repairable without inventing something: text for good (B27).
        "bad_empty" => unrepaired("<tool_call>\n</tool_call>"),
        "bad_no_name" => unrepaired("<tool_call>\n{\"arguments\": {\"city\": \"Paris\"}}\n</tool_call>"),
        "bad_unclosed_tag_cut_json" => {
            unrepaired("<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Par")
        }
        "bad_unknown_function" => {
            unrepaired("<tool_call>\n{\"name\": \"get_wether\", \"arguments\": {\"city\": \"Paris\"}}\n</tool_call>")
        }
        _ => return None,
    })
}

/// Where vLLM's own parsers have spoilt an answer before it reaches the gateway, so that it can't be what is expected. With
/// raw text (the default) all of these are right.
pub(crate) fn spoilt(set: &str, case: &str) -> Option<&'static str> {
    let why = match case {
        _ if set == "raw" => return None,
        "think_none" if set == "parsers" => "without tags 0.32 calls it all reasoning",
        "think_plain_tags" if set == "parsers-v0.12" => return None,
        "think_twice" => "a second </think> is swallowed",
        "think_no_open" if set == "parsers-v0.12" => "0.12 swallows the </think> without splitting",
        "chat_no_reasoning" => "reasoning isn't wanted, and 0.12 sends it in streams only",
        "chat_stop_string" | "tool_stop_string" if set == "parsers-v0.12" => {
            "text is lost where tokens are held for a stop string"
        }
        "tool_in_think" if set == "parsers" => "0.32 makes a thought a call and drops what follows",
        "tool_length_cut" if set == "parsers-v0.12" => "half a call is told as a whole one that was finished",
        "tool_n2" if set == "parsers-v0.12" => "the choices share one parser and lose a name",
        "tool_named"
        | "tool_named_nothink"
        | "tool_required"
        | "tool_required_nothink"
        | "tool_required_two_nothink"
            if set == "parsers-v0.12" =>
        {
            "the scripted text doesn't fit that version's grammar"
        }
        "tool_three_text_between" => "text behind the first call is lost or reordered",
        "tool_two_parallel_false" if set == "parsers" => "the grammar refuses the scripted second call",
        "tool_required_rejected" => "the grammar refuses the scripted text",
        "tool_unicode" => "a whole answer's arguments are serialised anew",
        _ if case.starts_with("bad_") => "malformed calls: see facts.md 3",
        _ => return None,
    };
    Some(why)
}
