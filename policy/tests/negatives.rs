//! Texts that are no calls: they name tools, quote tags, hold JSON, plan calls, and every byte of them stays where it was (B22).
//!
//! Each is read whole, by character and cut in two at every byte.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    unreachable_pub,
    dead_code
)]

mod text;

use sluice_policy::reasoning::{Opener, Thinking};
use sluice_policy::tool_call::{Bare, ToolSet};
use std::sync::Arc;
use text::{Setup, Shown, same_at_every_split};

fn setup(bare: Bare) -> Setup {
    let raw = br#"[{"type":"function","function":{"name":"get_weather","parameters":{"type":"object","properties":
        {"city":{"type":"string"},"days":{"type":"integer"}},"required":["city"]}}},
        {"type":"function","function":{"name":"write_file","parameters":{"type":"object","properties":
        {"path":{"type":"string"},"content":{"type":"string"}},"required":["path","content"]}}},
        {"type":"function","function":{"name":"now"}}]"#;
    let tools = Arc::new(ToolSet::parse(raw).unwrap());
    Setup {
        bare,
        ..Setup::with(&tools, Thinking::On, Opener::Model)
    }
}

/// All of it is content.
fn stays(bare: Bare, texts: &[&str]) {
    for text in texts {
        let shown = same_at_every_split(&setup(bare), text, text);
        assert_eq!(shown, [Shown::Text((*text).to_owned())], "{text:?}");
    }
}

#[test]
fn talk_of_tools_is_text() {
    stays(
        Bare::Calls,
        &[
            "You can call get_weather(city=\"Paris\") to find out.",
            "I would use get_weather with {\"city\": \"Paris\"}.",
            "To call a tool, the model writes a tool_call with a name and arguments.",
            "The functions are: get_weather, write_file, now.",
            "now() returns the time; get_weather('Paris', days=3) the forecast.",
            "get_weather",
            "functions.get_weather is not needed here.",
            "Call: get_weather {\"city\": \"Paris\"}",
            "name: get_weather\narguments: {\"city\": \"Paris\"}",
            "I can't call get_weather without a city. Which one do you mean?",
            "Shall I call `write_file` with path \"a.txt\"?",
            "- get_weather: {\"city\": string}\n- now: {}",
        ],
    );
}

#[test]
fn quoted_tags_are_text() {
    stays(
        Bare::Calls,
        &[
            "Show me how: `<tool_call>{\"name\": \"now\", \"arguments\": {}}</tool_call>`.",
            "The tag `<tool_call>` opens a call, `</tool_call>` closes it.",
            "He wrote \"<tool_call>{}</tool_call>\" in his mail.",
            "``<tool_call>{\"name\": \"now\"}</tool_call>`` is how it looks.",
            "Between <tool_call> and </tool_call> stands JSON.",
            "Use <function=NAME> and <parameter=KEY>, never <function_call>.",
            "<tool_call> without an end is an error, as is </tool_call> alone.",
            "In XML: &lt;tool_call&gt;{\"name\": \"now\"}&lt;/tool_call&gt;",
            "if a <tool_call then b > c",
            "<tool_call_list> and <tool_callback> are other tags.",
            "<tools>\n{\"name\": \"now\"}\n</tools>",
            "<tool_response>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_response>",
        ],
    );
}

#[test]
fn example_code_is_text() {
    stays(
        Bare::Calls,
        &[
            "Like this:\n```\n<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>\n```\n",
            "```xml\n<tools/>\n<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris\"}}\n</tool_call>\n```",
            "In a request:\n```json\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris\"}}\n```\nis what I'd send.",
            "```python\nresult = get_weather(city=\"Paris\")\nprint(result)\n```",
            "```python\nprompt = \"<tool_call>\" + json.dumps(call) + \"</tool_call>\"\n```",
            "~~~\n<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>\n~~~\n",
            "First:\n````md\n```\n<tool_call>{\"name\": \"now\"}</tool_call>\n```\n````\nDone.",
            "```js\nconst open = '<tool_call>';\nconst close = '</tool_call>';\n```",
            "```json\n{\"name\": \"get_weather\", \"arguments\": {\"city\": 5, \"days\": \"x\"}}\n```",
            "```json\n[{\"type\": \"function\", \"function\": {\"name\": \"now\", \"parameters\": {\"type\": \"object\", \"properties\": {}}}}]\n```",
        ],
    );
}

#[test]
fn json_that_is_an_answer_is_text() {
    stays(
        Bare::Calls,
        &[
            "{\"city\": \"Paris\", \"days\": 3}",
            "{\"name\": \"Alice\", \"arguments\": [\"for\", \"against\"]}",
            "{\"name\": \"get_weather\", \"description\": \"Current weather\", \"parameters\": {\"type\": \"object\"}}",
            "{\"name\": \"get_wether\", \"arguments\": {\"city\": \"Paris\"}}",
            // A declared name, but arguments that would have to be mended.
            "{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris\", \"days\": \"3\"}}",
            "{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris\"}",
            "{'name': 'now', 'arguments': {}}",
            "Result: {\"name\": \"now\", \"arguments\": {}}",
            "{\"name\": \"now\", \"arguments\": {}}\nThat was an example.",
            "[\"get_weather\", \"now\"]",
            "[{\"name\": \"now\", \"arguments\": {}}, {\"name\": \"later\", \"arguments\": {}}]",
            "\"get_weather\"",
            "{\"tool\": \"now\", \"args\": {}}",
            // A declaration, of a tool that takes anything.
            "{\"name\": \"now\", \"description\": \"The time\", \"parameters\": {\"type\": \"object\", \"properties\": {}}}",
            "[{\"name\": \"now\", \"parameters\": {\"type\": \"object\"}}]",
        ],
    );
    // Asked for by `response_format`: a call by its looks, and none.
    stays(
        Bare::Text,
        &[
            "{\"name\": \"now\", \"arguments\": {}}",
            "{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris\"}}",
            "[{\"name\": \"now\", \"arguments\": {}}]",
            "```json\n{\"name\": \"now\", \"arguments\": {}}\n```",
        ],
    );
}

#[test]
fn what_is_only_thought_stays_thought() {
    for (thought, said) in [
        ("I could call get_weather(city=\"Paris\").\n", "It is sunny."),
        (
            "Maybe <tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call> would do.\n",
            "No need.",
        ),
        (
            "<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>\n",
            "It is noon.",
        ),
        ("The form is `<tool_call>`, I think.\n", "Yes."),
        (
            "Plan:\n1. {\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris\"}}\n2. answer\n",
            "Which city?",
        ),
        (
            "<tool_call>{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Par\n",
            "Never mind.",
        ),
    ] {
        let answer = format!("<think>\n{thought}</think>\n\n{said}");
        let shown = same_at_every_split(&setup(Bare::Calls), &answer, &answer);
        let wanted = [Shown::Reasoning(thought.to_owned()), Shown::Text(said.to_owned())];
        assert_eq!(shown, wanted, "{answer:?}");
    }
}
