//! From what is asked to what is sent: the edits of the body and the stages of the answer, per replica (B19).
//!
//! | tools, `tool_choice` | replica | sent | calls are found by |
//! | --- | --- | --- | --- |
//! | absent, `auto` | raw, with parsers | `"none"`: raw text, the tools stay in the prompt | us |
//! | absent, `auto` | engine only, or `parsing = "engine"` | as asked | vLLM, judged by us |
//! | `required`, named, `strict` | with parsers, engine only | as asked: guided decoding | vLLM, judged by us |
//! | `required`, named | raw | `"none"` and a structural tag of the calls | us |
//! | `none`, or no tools | any | as asked | nobody |

use bytes::Bytes;
use serde_json::value::RawValue;
use sluice_policy::protocol::ask::{Ask, Edit, Endpoint, ToolChoice};
use sluice_policy::reasoning::{Opener, Thinking};
use sluice_policy::tool_call::{Bare, ToolSet};
use sluice_policy::turn::{
    AnswerPlan, Continuable, OnInvalid, ReasoningNames, ReasoningPlan, Release, SeamPlan, Stops, Surface, ToolPlan,
    Turn,
};
use std::borrow::Cow;
use std::sync::Arc;

use super::exchange::Exchange;
use super::history::History;
use crate::upstream::Replica;
use crate::upstream::replica::ToolSetup;

/// What is the same for all replicas.
pub struct Wishes {
    /// Tools of the request, read once; none if there are none, or vLLM will have to say what is wrong with them.
    pub tools: Option<Arc<ToolSet>>,
    /// All parsing is left to vLLM by configuration.
    pub engine_parsing: bool,
    /// Calls of one answer that are asked again.
    pub reasks: u8,
    /// Answers go on elsewhere when their replica is lost.
    pub continues: bool,
    /// What becomes of a call that isn't valid.
    pub on_invalid: OnInvalid,
    /// When calls are shown.
    pub release: Release,
    /// How reasoning is found.
    pub reasoning: bool,
    /// Who opens think blocks, where the configuration says so.
    pub opener: Option<Opener>,
    /// Under which names the client gets it.
    pub names: ReasoningNames,
    /// The client asked for verdicts.
    pub show_verdicts: bool,
    /// Seed of the call ids.
    pub id_seed: u64,
}

/// Who finds the calls of this request on this replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tools {
    /// No call is looked for.
    Off,
    /// vLLM gives raw text.
    Scan,
    /// vLLM gives raw text that a grammar makes one bare call.
    Guided,
    /// vLLM parses.
    Engine,
}

fn tools(ask: &Ask, wishes: &Wishes, setup: ToolSetup) -> Tools {
    if ask.endpoint != Endpoint::ChatCompletions || wishes.tools.is_none() {
        return Tools::Off;
    }
    let engine = wishes.engine_parsing || setup == ToolSetup::EngineOnly;
    match &ask.tool_choice {
        ToolChoice::None => Tools::Off,
        ToolChoice::Absent | ToolChoice::Auto if engine || (ask.strict_tools && setup == ToolSetup::Parsers) => {
            Tools::Engine
        }
        ToolChoice::Absent | ToolChoice::Auto => Tools::Scan,
        ToolChoice::Required | ToolChoice::Named(_) if setup == ToolSetup::Raw && !engine && !ask.response_format => {
            Tools::Guided
        }
        ToolChoice::Required | ToolChoice::Named(_) | ToolChoice::Unknown => Tools::Engine,
    }
}

/// The stages of the answer of this replica.
pub fn answer(ask: &Ask, wishes: &Wishes, replica: &Replica) -> AnswerPlan {
    let chat = ask.endpoint == Endpoint::ChatCompletions;
    let tools = tools(ask, wishes, replica.tool_setup());
    AnswerPlan {
        surface: if chat { Surface::Chat } else { Surface::Completions },
        reasoning: if chat && wishes.reasoning {
            ReasoningPlan::Qwen3 {
                thinking: thinking(ask),
                opener: wishes.opener.unwrap_or_else(|| replica.opener()),
            }
        } else {
            ReasoningPlan::Off
        },
        tools: match (tools, &wishes.tools) {
            // Calls that vLLM has parsed are judged too, and what its parsers leak is found.
            (Tools::Scan | Tools::Engine, Some(set)) => ToolPlan::Scan {
                tools: set.clone(),
                bare: bare(ask),
            },
            (Tools::Guided, Some(set)) => ToolPlan::Scan {
                tools: set.clone(),
                bare: Bare::Calls,
            },
            _ => ToolPlan::Off,
        },
        parallel_tool_calls: ask.parallel_tool_calls,
        named_function: matches!(ask.tool_choice, ToolChoice::Named(_)),
        include_usage: ask.include_usage,
        show_verdicts: wishes.show_verdicts,
        names: wishes.names,
        simulated: replica.simulated,
        id_seed: wishes.id_seed,
        reasks: if goes_on(ask) { wishes.reasks } else { 0 },
        on_invalid: wishes.on_invalid,
        release: wishes.release,
        seam: seam(ask, wishes, tools),
    }
}

/// How the answer goes on when its replica is lost (B31).
fn seam(ask: &Ask, wishes: &Wishes, tools: Tools) -> SeamPlan {
    if !wishes.continues || !ask.stream {
        return SeamPlan::off();
    }
    let wants_call = matches!(ask.tool_choice, ToolChoice::Required | ToolChoice::Named(_));
    let guided = tools == Tools::Guided || (tools == Tools::Engine && (wants_call || ask.strict_tools));
    SeamPlan {
        continuable: Continuable::of(ask, guided),
        choices: ask.n,
        stops: stops(ask),
    }
}

/// The client's stop words, if they can be read.
fn stops(ask: &Ask) -> Stops {
    #[derive(serde::Deserialize)]
    #[serde(untagged)]
    enum Wire {
        One(String),
        Several(Vec<String>),
    }
    let words = match ask.raw("stop").map(|raw| serde_json::from_slice(&raw)) {
        Some(Ok(Wire::One(word))) => vec![word],
        Some(Ok(Wire::Several(words))) => words,
        Some(Err(_)) | None => Vec::new(),
    };
    Stops {
        words: words.into_iter().filter(|word| !word.is_empty()).collect(),
        included: ask.raw("include_stop_str_in_output").is_some_and(|raw| raw == "true"),
    }
}

/// The answer can be continued through `/v1/completions`: one choice, of plain text, that no grammar of the client's rules.
fn goes_on(ask: &Ask) -> bool {
    ask.n == 1 && !ask.logprobs && !ask.images && !ask.response_format
}

/// The stages of a streamed answer of this replica, before its first byte.
pub fn turn(exchange: &Exchange, replica: &Replica) -> Turn {
    Turn::with_event_limit(
        answer(&exchange.ask, &exchange.wishes, replica),
        exchange.limits.event_bytes,
    )
}

/// The stages of an answer that no replica has begun: nothing enters them.
pub fn unknown(wishes: &Wishes) -> AnswerPlan {
    AnswerPlan {
        surface: Surface::Chat,
        reasoning: ReasoningPlan::Off,
        tools: ToolPlan::Off,
        parallel_tool_calls: true,
        named_function: false,
        include_usage: false,
        show_verdicts: false,
        names: wishes.names,
        simulated: false,
        id_seed: wishes.id_seed,
        reasks: 0,
        on_invalid: wishes.on_invalid,
        release: wishes.release,
        seam: SeamPlan::off(),
    }
}

fn thinking(ask: &Ask) -> Thinking {
    match ask.thinking {
        Some(true) => Thinking::On,
        Some(false) => Thinking::Off,
        None => Thinking::Unknown,
    }
}

/// Bare JSON is a call only where nobody asked for JSON (B22).
fn bare(ask: &Ask) -> Bare {
    if ask.response_format { Bare::Text } else { Bare::Calls }
}

/// The body for this replica: slices of the received one with our edits between them.
pub fn upstream_body(ask: &Ask, wishes: &Wishes, history: &History, replica: &Replica) -> Vec<Bytes> {
    let mut edits: Vec<Edit<'_>> = Vec::with_capacity(4);
    edits.extend(history.edit());
    let model = replica.model();
    if !model.is_empty() && ask.model.as_deref() != Some(model.as_str()) && !ask.body.is_empty() {
        edits.push(Edit::Set("model", json_string(&model)));
    }
    if matches!(ask.endpoint, Endpoint::ChatCompletions | Endpoint::Completions) && ask.stream && !ask.include_usage {
        edits.push(Edit::SetIn("stream_options", "include_usage", Cow::Borrowed(b"true")));
    }
    match tools(ask, wishes, replica.tool_setup()) {
        Tools::Scan => edits.push(Edit::Set("tool_choice", Cow::Borrowed(b"\"none\""))),
        Tools::Guided => {
            edits.push(Edit::Set("tool_choice", Cow::Borrowed(b"\"none\"")));
            if let Some(grammar) = grammar(ask) {
                edits.push(Edit::Set("structured_outputs", Cow::Owned(grammar)));
            }
        }
        Tools::Off | Tools::Engine => {}
    }
    ask.upstream_body(&edits)
}

fn json_string(text: &str) -> Cow<'static, [u8]> {
    Cow::Owned(serde_json::Value::from(text).to_string().into_bytes())
}

/// Longest white space between two tokens of guided JSON: enough for a line end and a deep indent. Without a bound a model that is
/// at a loss writes white space until its length is used up.
const WHITE_SPACE: u32 = 32;

/// A grammar (xgrammar's structural tag) whose only texts are calls of the wanted functions, in the model's own notation.
fn grammar(ask: &Ask) -> Option<Vec<u8>> {
    let one = matches!(ask.tool_choice, ToolChoice::Named(_)) || !ask.parallel_tool_calls;
    calls(ask, None, "<tool_call>\n", one).map(String::into_bytes)
}

/// The same for one call whose opening tag has been written: of `tool`, or of any wanted one.
pub fn call_grammar(ask: &Ask, tool: Option<&str>) -> Option<String> {
    calls(ask, tool, "", true)
}

fn calls(ask: &Ask, tool: Option<&str>, opener: &str, one: bool) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Tool<'a> {
        #[serde(borrow)]
        function: Function<'a>,
    }
    #[derive(serde::Deserialize)]
    struct Function<'a> {
        name: String,
        #[serde(borrow)]
        parameters: Option<&'a RawValue>,
    }
    let tools: Vec<Tool<'_>> = serde_json::from_slice(ask.tools.as_ref()?).ok()?;
    let json = |text: String| serde_json::Value::from(text).to_string();
    let tags: Vec<String> = tools
        .iter()
        .filter(|Tool { function }| tool.is_none_or(|tool| tool == function.name))
        .filter(|tool| !matches!(&ask.tool_choice, ToolChoice::Named(name) if *name != tool.function.name))
        .map(|tool| {
            let name = json(tool.function.name.clone());
            let begin = json(format!("{opener}{{\"name\": {name}, \"arguments\": "));
            let schema = tool.function.parameters.map_or("{\"type\":\"object\"}", RawValue::get);
            let end = json("}\n</tool_call>".to_owned());
            format!(
                "{{\"type\":\"tag\",\"begin\":{begin},\"content\":{{\"type\":\"json_schema\",\"json_schema\":{schema},\
                 \"max_whitespace_cnt\":{WHITE_SPACE}}},\"end\":{end}}}"
            )
        })
        .collect();
    if tags.is_empty() {
        return None;
    }
    let tags = tags.join(",");
    let format = format!(
        "{{\"type\":\"structural_tag\",\"format\":{{\"type\":\"tags_with_separator\",\"tags\":[{tags}],\
         \"separator\":\"\\n\",\"at_least_one\":true,\"stop_after_first\":{one}}}}}"
    );
    Some(format!("{{\"structural_tag\":{}}}", json(format)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use serde_json::{Value, json};
    use sluice_policy::protocol::ask::{AskLimits, Grants, read};

    fn ask(body: &Value) -> Ask {
        read(
            &Endpoint::ChatCompletions,
            Bytes::from(body.to_string()),
            &AskLimits::default(),
            &Grants::default(),
        )
        .unwrap()
    }

    fn wishes(ask: &Ask, engine_parsing: bool) -> Wishes {
        Wishes {
            tools: ask.tools.as_ref().map(|raw| Arc::new(ToolSet::parse(raw).unwrap())),
            engine_parsing,
            reasks: 1,
            continues: true,
            on_invalid: OnInvalid::Text,
            release: Release::Hold,
            reasoning: true,
            opener: None,
            names: ReasoningNames::Both,
            show_verdicts: false,
            id_seed: 1,
        }
    }

    fn sent(choice: Value, setup: ToolSetup, engine_parsing: bool) -> Value {
        let tool =
            |name: &str| json!({"type": "function", "function": {"name": name, "parameters": {"type": "object"}}});
        let mut body = json!({"messages": [{"role": "user", "content": "x"}], "tools": [tool("a\"b"), tool("c")]});
        if !choice.is_null() {
            body["tool_choice"] = choice;
        }
        let ask = ask(&body);
        let replica = Replica::new("r", false, None, None);
        replica.serves("served");
        replica.set_tool_setup(setup);
        let body = upstream_body(&ask, &wishes(&ask, engine_parsing), &History::default(), &replica).concat();
        serde_json::from_slice(&body).unwrap()
    }

    /// The table of the module head.
    #[test]
    fn what_is_sent_depends_on_choice_and_replica() {
        let named = json!({"type": "function", "function": {"name": "c"}});
        for (choice, setup, engine, wanted) in [
            (Value::Null, ToolSetup::Raw, false, json!("none")),
            (json!("auto"), ToolSetup::Parsers, false, json!("none")),
            (Value::Null, ToolSetup::EngineOnly, false, Value::Null),
            (json!("auto"), ToolSetup::Parsers, true, json!("auto")),
            (json!("required"), ToolSetup::Parsers, false, json!("required")),
            (json!("required"), ToolSetup::Raw, false, json!("none")),
            (named.clone(), ToolSetup::EngineOnly, false, named.clone()),
            (json!("none"), ToolSetup::Raw, false, json!("none")),
        ] {
            let body = sent(choice.clone(), setup, engine);
            assert_eq!(body["tool_choice"], wanted, "{choice} on {setup:?}, engine {engine}");
            assert_eq!(body["model"], "served");
            let guided = choice == "required" && setup == ToolSetup::Raw;
            assert_eq!(
                body.get("structured_outputs").is_some(),
                guided,
                "{choice} on {setup:?}"
            );
        }
    }

    #[test]
    fn the_grammar_is_the_model_s_own_notation() {
        let format = |choice: Value| -> Value {
            let body = sent(choice, ToolSetup::Raw, false);
            serde_json::from_str(body["structured_outputs"]["structural_tag"].as_str().unwrap()).unwrap()
        };
        let required = format(json!("required"));
        assert_eq!(required["format"]["tags"].as_array().unwrap().len(), 2);
        assert_eq!(
            required["format"]["tags"][0]["begin"],
            "<tool_call>\n{\"name\": \"a\\\"b\", \"arguments\": "
        );
        assert_eq!(
            required["format"]["tags"][0]["content"]["max_whitespace_cnt"],
            WHITE_SPACE
        );
        assert_eq!(required["format"]["stop_after_first"], false);
        let named = format(json!({"type": "function", "function": {"name": "c"}}));
        assert_eq!(named["format"]["tags"].as_array().unwrap().len(), 1);
        assert_eq!(named["format"]["stop_after_first"], true);
    }

    #[test]
    fn usage_is_always_asked_for_in_a_stream() {
        let ask = ask(&json!({"stream": true, "messages": [], "stream_options": {"continuous_usage_stats": true}}));
        let replica = Replica::new("r", false, None, None);
        let body: Value =
            serde_json::from_slice(&upstream_body(&ask, &wishes(&ask, false), &History::default(), &replica).concat())
                .unwrap();
        assert_eq!(
            body["stream_options"],
            json!({"continuous_usage_stats": true, "include_usage": true})
        );
        assert_eq!(body.get("model"), None);
    }
}
