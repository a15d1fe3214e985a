//! One forced text, four ways to ask for it: with vLLM's parsers and without, as a stream and as one body. All four give
//! the same message, and it is the one that behaviour.md asks for (B9, B14–B16, B19, B21, B22).

use std::thread;

use serde_json::{Value, json};

use crate::engine::SetUp;
use crate::gateway::Gateway;
use crate::message::Message;
use crate::script::{Script, tools};

const THINK: &str = "<think>\nThe user asks about the weather, so I call the tool.\n</think>\n\n";
const REASONING: Option<&str> = Some("The user asks about the weather, so I call the tool.");
const WEATHER: &str = "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris\", \"unit\": \"celsius\"}}\n</tool_call>";
const NOW: &str = "<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>";
const WEATHER_CALL: (&str, &str) = ("get_weather", r#"{"city": "Paris", "unit": "celsius"}"#);
const NOW_CALL: (&str, &str) = ("now", "{}");

#[test]
fn an_answer_with_reasoning() {
    let script = Script::say(&format!("{THINK}Naïve café 👩‍👩‍👧 日本語, sunny."));
    let want = Message::expect(REASONING, Some("Naïve café 👩‍👩‍👧 日本語, sunny."), &[], "stop");
    same_everywhere(&script, json!({}), &want);
}

#[test]
fn an_answer_without_thinking() {
    let script = Script::say("Hello! How can I help?");
    let more = json!({"chat_template_kwargs": {"enable_thinking": false}});
    same_everywhere(
        &script,
        more,
        &Message::expect(None, Some("Hello! How can I help?"), &[], "stop"),
    );
}

#[test]
fn an_empty_think_block() {
    let script = Script::say("<think>\n\n</think>\n\nDirect answer.");
    same_everywhere(
        &script,
        json!({}),
        &Message::expect(None, Some("Direct answer."), &[], "stop"),
    );
}

#[test]
fn one_call() {
    let script = Script::say(&format!("{THINK}{WEATHER}"));
    let want = Message::expect(REASONING, None, &[WEATHER_CALL], "tool_calls");
    same_everywhere(&script, json!({"tools": tools()}), &want);
}

#[test]
fn one_call_spelt_character_by_character() {
    let script = Script::say(&format!("{THINK}{WEATHER}")).one_token_per_character();
    let want = Message::expect(REASONING, None, &[WEATHER_CALL], "tool_calls");
    same_everywhere(&script, json!({"tools": tools()}), &want);
}

#[test]
fn calls_with_text_around_them() {
    let script = Script::say(&format!("{THINK}First.\n{WEATHER}\nThen.\n{NOW}\nDone."));
    for set_up in SetUp::BOTH {
        let [whole, stream] = both_ways(&Gateway::before(set_up), &script, &json!({"tools": tools()}));
        assert_eq!(whole, stream, "{set_up:?}");
        assert_eq!(whole.calls, [owned(WEATHER_CALL), owned(NOW_CALL)], "{set_up:?}");
        let content = whole.content.expect("the text around the calls");
        let words: Vec<&str> = content.split_whitespace().collect();
        assert_eq!(
            words,
            ["First.", "Then.", "Done."],
            "{set_up:?}: no text is lost, none is added"
        );
    }
}

#[test]
fn two_calls_and_no_thinking() {
    let script = Script::say(&format!("{WEATHER}\n{NOW}"));
    let more = json!({"tools": tools(), "chat_template_kwargs": {"enable_thinking": false}});
    same_everywhere(
        &script,
        more,
        &Message::expect(None, None, &[WEATHER_CALL, NOW_CALL], "tool_calls"),
    );
}

#[test]
fn the_first_of_two_calls_if_parallel_calls_are_off() {
    let script = Script::say(&format!("{THINK}{WEATHER}\n{NOW}"));
    let more = json!({"tools": tools(), "parallel_tool_calls": false});
    same_everywhere(
        &script,
        more,
        &Message::expect(REASONING, None, &[WEATHER_CALL], "tool_calls"),
    );
}

#[test]
fn a_last_call_without_its_closing_tag() {
    let script = Script::say(&format!("{THINK}{}", WEATHER.trim_end_matches("\n</tool_call>")));
    let want = Message::expect(REASONING, None, &[WEATHER_CALL], "tool_calls");
    same_everywhere(&script, json!({"tools": tools()}), &want);
}

/// With its parsers, vLLM 0.32 ends the reasoning at the tag. The stream leaks the `</think>` behind it, so that the message is
/// found all the same (B16). The whole answer lacks it, and nobody can tell any more that the call was thought: there it
/// counts, as vLLM says, no tag shows and no word is lost.
#[test]
fn a_call_that_was_only_thought() {
    let script = Script::say(&format!("<think>\nMaybe {NOW} would do.\n</think>\n\nNo call needed."));
    let more = json!({"tools": tools()});
    let reasoning = format!("Maybe {NOW} would do.");
    let want = Message::expect(Some(&reasoning), Some("No call needed."), &[], "stop");
    let [raw, raw_stream] = both_ways(&Gateway::before(SetUp::Raw), &script, &more);
    assert_eq!(raw, raw_stream, "raw: whole and streamed");
    assert_eq!(raw.trimmed(), want);

    let [whole, stream] = both_ways(&Gateway::before(SetUp::Parsers), &script, &more);
    assert_eq!(stream, raw_stream, "parsers, streamed: as without them");
    assert_eq!(
        whole.trimmed(),
        Message::expect(
            Some("Maybe"),
            Some("would do.\n\n\nNo call needed."),
            &[NOW_CALL],
            "tool_calls"
        )
    );
}

/// Nothing but white space behind the call in the block: it was meant, closed block or not.
#[test]
fn a_call_at_the_end_of_a_block() {
    let want = Message::expect(Some("I call it."), None, &[NOW_CALL], "tool_calls");
    for end in ["", "\n</think>", "\n</think>\n\n"] {
        let script = Script::say(&format!("<think>\nI call it. {NOW}{end}"));
        same_everywhere(&script, json!({"tools": tools()}), &want);
    }
}

/// The block closes right before the tag: vLLM's split looks as if the call had been thought, and it wasn't.
#[test]
fn a_call_right_behind_the_block() {
    let script = Script::say(&format!("<think>\nI call it.</think>{NOW}\nThen."));
    let want = Message::expect(Some("I call it."), Some("Then."), &[NOW_CALL], "tool_calls");
    same_everywhere(&script, json!({"tools": tools()}), &want);
}

#[test]
fn a_tag_inside_an_argument() {
    let call = r#"<tool_call>
{"name": "get_weather", "arguments": {"city": "what does </tool_call> mean"}}
</tool_call>"#;
    let want = ("get_weather", r#"{"city": "what does </tool_call> mean"}"#);
    let want = Message::expect(REASONING, None, &[want], "tool_calls");
    same_everywhere(
        &Script::say(&format!("{THINK}{call}")),
        json!({"tools": tools()}),
        &want,
    );
}

#[test]
fn a_call_without_tools_is_text() {
    let script = Script::say(&format!("{THINK}{NOW}"));
    same_everywhere(&script, json!({}), &Message::expect(REASONING, Some(NOW), &[], "stop"));
}

/// Asks each set-up both ways. White space around reasoning and text is compared between the ways, not with `want`.
fn same_everywhere(script: &Script, more: Value, want: &Message) {
    let mut first = None;
    for set_up in SetUp::BOTH {
        let [whole, stream] = both_ways(&Gateway::before(set_up), script, &more);
        assert_eq!(whole, stream, "{set_up:?}: whole and streamed");
        let first = first.get_or_insert_with(|| stream.clone());
        assert_eq!(&whole, first, "{set_up:?} and {:?}", SetUp::BOTH[0]);
        assert_eq!(&whole.trimmed(), want, "{set_up:?}");
    }
}

/// The whole answer and the streamed one, asked for at the same time.
fn both_ways(gateway: &Gateway, script: &Script, more: &Value) -> [Message; 2] {
    let whole = script.chat(more.clone());
    let mut streamed = whole.clone();
    streamed["stream"] = json!(true);
    thread::scope(|scope| {
        let whole = scope.spawn(|| Message::of_body(&gateway.chat(&whole).json()));
        let stream = scope.spawn(|| Message::of_events(&gateway.stream("same-message", &streamed).events().unwrap()));
        [
            whole.join().expect("the whole answer"),
            stream.join().expect("the stream"),
        ]
    })
}

fn owned((name, arguments): (&str, &str)) -> (String, String) {
    (name.to_owned(), arguments.to_owned())
}
