//! What vLLM refuses in a request: wrong types, values out of range, models and tool choices that aren't there.
//!
//! Each check words its refusal as vLLM 0.32 does; the order in which they are made is that of [`super::ask`].
use serde_json::{Map, Value};

use super::ask::{Ask, Choice, Surface};
use super::call::Tool;
use super::config::{ChatTemplate, Setup, SimConfig};
use super::prompt;
use super::refusal::{Refusal, shown};

/// Most choices of one request.
pub(super) const MAX_N: u64 = 1_024;
/// Most tokens that one request may force, over all its choices.
const MAX_ANSWER_TOKENS: u64 = 2_000_000;
/// `--max-logprobs`.
const MAX_LOGPROBS: u64 = 20;
/// Vocabulary of Qwen3, for `logit_bias`.
const VOCABULARY: u64 = 151_936;
/// `max_tokens` of `/v1/completions` if none is given.
const COMPLETIONS_MAX_TOKENS: u32 = 16;

/// Refuses a model that isn't served; no model at all means the served one.
pub(super) fn model(object: &Map<String, Value>, config: &SimConfig) -> Result<(), Refusal> {
    let served = config.served_model();
    match object.get("model").and_then(Value::as_str) {
        Some(asked) if asked != served && !config.aliases.iter().any(|alias| alias == asked) => {
            let all = std::iter::once(served)
                .chain(config.aliases.iter().cloned())
                .collect::<Vec<_>>()
                .join(", ");
            Err(Refusal::model(asked, &all))
        }
        _ => Ok(()),
    }
}

/// Types of the fields that vLLM's models declare.
pub(super) fn types(object: &Map<String, Value>, surface: Surface) -> Result<(), Refusal> {
    const FLOATS: [&str; 6] = [
        "temperature",
        "top_p",
        "min_p",
        "presence_penalty",
        "frequency_penalty",
        "repetition_penalty",
    ];
    const INTEGERS: [&str; 8] = [
        "n",
        "max_tokens",
        "max_completion_tokens",
        "seed",
        "top_k",
        "top_logprobs",
        "min_tokens",
        "priority",
    ];
    let number =
        |value: &Value| value.is_number() || value.as_str().is_some_and(|text| text.trim().parse::<f64>().is_ok());
    for key in FLOATS {
        if let Some(value) = object.get(key).filter(|value| !value.is_null() && !number(value)) {
            let (kind, message) = match value {
                Value::String(_) => (
                    "float_parsing",
                    "Input should be a valid number, unable to parse string as a number",
                ),
                _ => ("float_type", "Input should be a valid number"),
            };
            return Err(Refusal::invalid(
                kind,
                &format!("body.{key}"),
                message,
                &shown(Some(value)),
            ));
        }
    }
    for key in INTEGERS {
        if let Some(value) = object.get(key).filter(|value| !value.is_null() && !number(value)) {
            let (kind, message) = match value {
                Value::String(_) => (
                    "int_parsing",
                    "Input should be a valid integer, unable to parse string as an integer",
                ),
                _ => ("int_type", "Input should be a valid integer"),
            };
            return Err(Refusal::invalid(
                kind,
                &format!("body.{key}"),
                message,
                &shown(Some(value)),
            ));
        }
    }
    if surface == Surface::Completions {
        return Ok(());
    }
    match object.get("messages") {
        Some(Value::Array(_)) => {}
        None => {
            let input = format!("<dict of {} items>", object.len());
            return Err(Refusal::invalid("missing", "body.messages", "Field required", &input));
        }
        other => {
            return Err(Refusal::invalid(
                "list_type",
                "body.messages",
                "Input should be a valid list",
                &shown(other),
            ));
        }
    }
    for (place, tool) in object
        .get("tools")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .enumerate()
    {
        if tool.get("function").is_none() {
            let at = format!("body.tools.{place}.function");
            return Err(Refusal::invalid("missing", &at, "Field required", &shown(Some(tool))));
        }
    }
    Ok(())
}

/// Sampling parameters in their ranges.
pub(super) fn sampling(object: &Map<String, Value>) -> Result<(), Refusal> {
    let float = |key: &str| object.get(key).and_then(number_of);
    let whole = |key: &str| object.get(key).and_then(number_of).map(|value| value as i64);
    let n = whole("n").unwrap_or(1);
    if n < 1 {
        return Err(Refusal::bad(&format!("n must be at least 1, got {n}.")));
    }
    let temperature = float("temperature");
    if let Some(value) = temperature.filter(|value| *value < 0.0) {
        let value = format!("{value:?}");
        return Err(Refusal::parameter(
            &format!("temperature must be non-negative, got {value}."),
            "temperature",
            Some(&value),
        ));
    }
    if let Some(value) = float("top_p").filter(|value| *value <= 0.0 || *value > 1.0) {
        let value = format!("{value:?}");
        return Err(Refusal::parameter(
            &format!("top_p must be in (0, 1], got {value}."),
            "top_p",
            Some(&value),
        ));
    }
    for key in ["max_tokens", "max_completion_tokens"] {
        if let Some(value) = whole(key).filter(|value| *value < 1) {
            let message = format!("max_tokens must be at least 1, got {value}.");
            return Err(Refusal::parameter(&message, "max_tokens", Some(&value.to_string())));
        }
    }
    if temperature == Some(0.0) && n > 1 {
        return Err(Refusal::bad(&format!(
            "n must be 1 when using greedy sampling, got {n}."
        )));
    }
    if n as u64 > MAX_N {
        return Err(Refusal::bad(&format!("n must be at most {MAX_N}, got {n}.")));
    }
    let biased = object
        .get("logit_bias")
        .and_then(Value::as_object)
        .into_iter()
        .flatten();
    let beyond: Vec<u64> = biased
        .filter_map(|(id, _)| id.parse().ok())
        .filter(|id| *id >= VOCABULARY)
        .collect();
    if !beyond.is_empty() {
        let message = format!(
            "token_id(s) {beyond:?} in logit_bias contain out-of-vocab token ids. Vocabulary size: {VOCABULARY}"
        );
        return Err(Refusal::parameter(&message, "logit_bias", Some(&format!("{beyond:?}"))));
    }
    Ok(())
}

/// The simulator's own limit: an answer is made before its first token is sent, so it has to fit memory.
pub(super) fn answer_size(ask: &Ask) -> Result<(), Refusal> {
    let forced = if ask.ignore_eos { ask.max_tokens } else { 0 };
    let each = ask.knobs.tokens.unwrap_or(0).max(ask.min_tokens).max(forced);
    let all = u64::from(each) * u64::from(ask.n) * ask.prompts.len() as u64;
    if all > MAX_ANSWER_TOKENS {
        return Err(Refusal::bad(&format!(
            "The simulator answers at most {MAX_ANSWER_TOKENS} tokens per request."
        )));
    }
    Ok(())
}

/// A number, also one that is written as a string.
pub(super) fn number_of(value: &Value) -> Option<f64> {
    value.as_f64().or_else(|| value.as_str()?.trim().parse().ok())
}

/// The context's length, and what it leaves for the answer.
pub(super) fn limit_tokens(object: &Map<String, Value>, config: &SimConfig, ask: &mut Ask) -> Result<(), Refusal> {
    let longest = config.max_model_len;
    let wanted = ["max_completion_tokens", "max_tokens"]
        .iter()
        .find_map(|key| object.get(*key).and_then(number_of));
    if let Some(wanted) = wanted.filter(|wanted| *wanted > f64::from(longest)) {
        let message = format!(
            "max_tokens={wanted} cannot be greater than max_model_len={longest}. Please request fewer output tokens."
        );
        return Err(Refusal::parameter(&message, "max_tokens", Some(&wanted.to_string())));
    }
    let prompt = ask
        .prompts
        .iter()
        .map(|prompt| prompt.chain.tokens())
        .max()
        .unwrap_or(0);
    if prompt >= longest {
        let at_least = longest + 1;
        let message = format!(
            "This model's maximum context length is {longest} tokens. However, your prompt contains at least {at_least} \
             input tokens, which exceeds this limit even without any output tokens. Please reduce the length of the input \
             prompt."
        );
        return Err(Refusal::parameter(
            &message,
            "input_tokens",
            Some(&at_least.to_string()),
        ));
    }
    let default = if ask.surface == Surface::Completions {
        COMPLETIONS_MAX_TOKENS
    } else {
        longest
    };
    ask.max_tokens = wanted
        .map_or(default, |wanted| wanted as u32)
        .clamp(1, longest - prompt);
    Ok(())
}

/// `tool_choice`, and whether vLLM's tool parser will read the answer.
pub(super) fn tool_choice(
    choice: Option<&Value>,
    given: &[Value],
    tools: &[Tool],
    setup: Setup,
) -> Result<(Choice, bool), Refusal> {
    let wrong = |message: &str| Err(Refusal::parameter(message, "tool_choice", None));
    let choice = choice.filter(|choice| !choice.is_null());
    let is_none = choice.and_then(Value::as_str) == Some("none");
    if given.is_empty() && choice.is_some() && !is_none {
        return wrong("When using `tool_choice`, `tools` must be set.");
    }
    if given.is_empty() || is_none {
        return Ok((Choice::Free, false));
    }
    let raw = setup == Setup::Raw;
    match choice {
        None => {}
        Some(Value::String(text)) => match text.as_str() {
            "auto" => {}
            "required" if raw => {
                return Err(Refusal::bad(
                    "tool_choice=\"required\" requires --tool-call-parser to be set",
                ));
            }
            "required" => return Ok((Choice::Required, true)),
            other => {
                return wrong(&format!(
                    "Invalid value for `tool_choice`: {other}! Only named tools, \"none\", \"auto\" or \"required\" are supported."
                ));
            }
        },
        Some(named) => {
            let name = named
                .pointer("/function/name")
                .and_then(Value::as_str)
                .unwrap_or_default();
            if !tools.iter().any(|tool| tool.name == name) {
                return wrong("The tool specified in `tool_choice` does not match any of the specified `tools`");
            }
            if raw {
                let message = format!("tool_choice=function \"{name}\" requires --tool-call-parser to be set");
                return Err(Refusal::bad(&message));
            }
            return Ok((Choice::Named(name.to_owned()), true));
        }
    }
    if raw {
        let message = "\"auto\" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set";
        return Err(Refusal::bad(message));
    }
    Ok((Choice::Free, true))
}

/// Past calls have an id, a type, and arguments in a string.
pub(super) fn past_calls(messages: &[Value]) -> Result<(), Refusal> {
    let calls = messages
        .iter()
        .filter(|message| prompt::role(message) == "assistant")
        .flat_map(|message| {
            message
                .get("tool_calls")
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
                .enumerate()
        });
    for (place, call) in calls {
        let function = call.get("function");
        let wrong = |key: &str, value: Option<&Value>| match value {
            Some(Value::String(_)) => None,
            Some(value) => Some((
                key.to_owned(),
                "string_type",
                "Input should be a valid string",
                shown(Some(value)),
            )),
            None => Some((key.to_owned(), "missing", "Field required", shown(Some(call)))),
        };
        let found = wrong("id", call.get("id"))
            .or_else(|| wrong("type", call.get("type")))
            .or_else(|| wrong("function.name", function.and_then(|function| function.get("name"))))
            .or_else(|| match function.and_then(|function| function.get("arguments")) {
                None => Some(("function".to_owned(), "missing", "Field required", shown(function))),
                arguments => wrong("function", arguments),
            });
        if let Some((key, kind, message, input)) = found {
            let place = format!("body.{place}.ChatCompletionMessageFunctionToolCallParam.{key}");
            return Err(Refusal::past_call(kind, &place, message, &input, call));
        }
    }
    Ok(())
}

/// What the chat template raises.
pub(super) fn template(messages: &[Value], template: ChatTemplate) -> Result<(), Refusal> {
    if template == ChatTemplate::Qwen3 {
        return Ok(());
    }
    if messages.iter().skip(1).any(|message| prompt::role(message) == "system") {
        return Err(Refusal::bad("System message must be at the beginning."));
    }
    let says_nothing = |message: &&Value| {
        let calls = message
            .get("tool_calls")
            .and_then(Value::as_array)
            .is_some_and(|calls| !calls.is_empty());
        prompt::role(message) == "assistant" && !calls && prompt::content(message).is_empty()
    };
    if messages.iter().any(|message| says_nothing(&message)) {
        return Err(Refusal::bad(
            "Assistant message must have either content or tool_calls, but not both.",
        ));
    }
    Ok(())
}

/// Qwen3-32B reads text only.
pub(super) fn media(messages: &[Value], config: &SimConfig) -> Result<(), Refusal> {
    let parts = messages
        .iter()
        .filter_map(|message| message.get("content")?.as_array())
        .flatten();
    let is_media = |part: &Value| {
        matches!(
            part.get("type").and_then(Value::as_str),
            Some("image_url" | "input_audio" | "audio_url" | "video_url")
        )
    };
    if parts.into_iter().any(is_media) {
        return Err(Refusal::bad(&format!(
            "{} is not a multimodal model",
            config.served_model()
        )));
    }
    Ok(())
}

/// How many logprobs may be asked for.
pub(super) fn logprobs(count: u64) -> Result<u32, Refusal> {
    if count > MAX_LOGPROBS {
        let message =
            format!("Requested sample logprobs of {count}, which is greater than max allowed: {MAX_LOGPROBS}");
        return Err(Refusal::parameter(&message, "logprobs", Some(&count.to_string())));
    }
    Ok(count as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// As vLLM 0.32 answers each of them.
    #[test]
    fn past_calls_are_refused_in_vllm_s_words() {
        let good = json!({"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}});
        let custom = "{'type': 'missing', 'loc': 'body.0.ChatCompletionMessageCustomToolCallParam.custom', 'msg': 'Field required', 'input': '<dict of";
        let literal = "{'type': 'literal_error', 'loc': 'body.0.ChatCompletionMessageCustomToolCallParam.type', 'msg': \"Input should be 'custom'\", 'input': 'function', 'ctx': {'expected': \"'custom'\"}}";
        let with = |at: &str, value: Value| {
            let mut call = good.clone();
            *call.pointer_mut(at).unwrap() = value;
            call
        };
        let without = |outer: &str, key: &str| {
            let mut call = good.clone();
            call.pointer_mut(outer).unwrap().as_object_mut().unwrap().remove(key);
            call
        };
        for (call, param, wanted) in [
            (
                with("/function/arguments", json!({"a": 1})),
                "function",
                format!(
                    "3 validation errors:\n  {{'type': 'string_type', 'loc': 'body.0.ChatCompletionMessageFunctionToolCallParam.function', 'msg': 'Input should be a valid string', 'input': '<dict of 1 items>'}}\n  {custom} 3 items>'}}\n  {literal}"
                ),
            ),
            (
                without("/function", "arguments"),
                "function",
                format!(
                    "3 validation errors:\n  {{'type': 'missing', 'loc': 'body.0.ChatCompletionMessageFunctionToolCallParam.function', 'msg': 'Field required', 'input': '<dict of 1 items>'}}\n  {custom} 3 items>'}}\n  {literal}"
                ),
            ),
            (
                without("", "id"),
                "id",
                format!(
                    "4 validation errors:\n  {{'type': 'missing', 'loc': 'body.0.ChatCompletionMessageFunctionToolCallParam.id', 'msg': 'Field required', 'input': '<dict of 2 items>'}}\n  {{'type': 'missing', 'loc': 'body.0.ChatCompletionMessageCustomToolCallParam.id', 'msg': 'Field required', 'input': '<dict of 2 items>'}}\n  {custom} 2 items>'}}\n  {literal}"
                ),
            ),
            (
                without("", "type"),
                "type",
                format!(
                    "3 validation errors:\n  {{'type': 'missing', 'loc': 'body.0.ChatCompletionMessageFunctionToolCallParam.type', 'msg': 'Field required', 'input': '<dict of 2 items>'}}\n  {custom} 2 items>'}}\n  {{'type': 'missing', 'loc': 'body.0.ChatCompletionMessageCustomToolCallParam.type', 'msg': 'Field required', 'input': '<dict of 2 items>'}}"
                ),
            ),
        ] {
            let messages = [json!({"role": "assistant", "tool_calls": [call]})];
            let refusal = past_calls(&messages).unwrap_err();
            let body: Value = serde_json::from_str(&refusal.body).unwrap();
            assert_eq!(refusal.status, 400);
            assert_eq!(body["error"]["message"], wanted);
            let place = format!("body.0.ChatCompletionMessageFunctionToolCallParam.{param}");
            assert_eq!(body["error"]["param"], place);
        }
        let fine = [
            json!({"role": "assistant", "tool_calls": [good]}),
            json!({"role": "user", "tool_calls": [1]}),
        ];
        assert_eq!(past_calls(&fine), Ok(()));
    }

    #[test]
    fn a_strict_template_refuses_what_qwen3_s_takes() {
        let turn = |role: &str, content: &str| json!({"role": role, "content": content});
        let middle = [turn("user", "a"), turn("system", "b")];
        let empty = [turn("user", "a"), turn("assistant", "")];
        for messages in [&middle, &empty] {
            assert_eq!(template(messages, ChatTemplate::Qwen3), Ok(()));
            assert_eq!(template(messages, ChatTemplate::Strict).unwrap_err().status, 400);
        }
        let fine = [turn("system", "a"), turn("user", ""), turn("assistant", "b")];
        assert_eq!(template(&fine, ChatTemplate::Strict), Ok(()));
    }
}
