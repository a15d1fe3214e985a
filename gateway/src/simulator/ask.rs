//! One request, read and checked as vLLM checks it, in its order and with its words.
//!
//! Enters: the body's bytes. Leaves: an [`Ask`] with everything that the answer, the engine and the wire need, its
//! prompts rendered into token chains; or the [`Refusal`] that vLLM would send.
use serde_json::{Map, Value};

use super::call::Tool;
use super::check::{self, MAX_N, number_of};
use super::config::{Setup, SimConfig};
use super::fault::{KnobError, Knobs};
use super::prompt::{self, Prompt, Template};
use super::refusal::{Refusal, shown};
use super::tokens::mix_text;

/// Which endpoint asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Surface {
    /// `/v1/chat/completions`.
    Chat,
    /// `/v1/completions`.
    Completions,
}

/// What the answer must look like.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Form {
    /// Anything.
    Free,
    /// JSON that meets the schema.
    Json(Value),
    /// Exactly this.
    Exactly(String),
}

/// vLLM's parsers that read an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Parses {
    /// None: tags stay in the content.
    Nothing,
    /// The reasoning parser.
    Reasoning,
    /// The reasoning and the tool parser.
    All,
}

/// `tool_choice`, as far as it asks for a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Choice {
    /// Absent, `auto` or `none`: the model does as it likes.
    Free,
    /// `required`.
    Required,
    /// A named function.
    Named(String),
}

/// A request.
#[derive(Debug)]
pub(super) struct Ask {
    /// Endpoint.
    pub(super) surface: Surface,
    /// One prompt, or several of a completion.
    pub(super) prompts: Vec<Prompt>,
    /// Choices per prompt.
    pub(super) n: u32,
    /// Server-sent events or one body.
    pub(super) stream: bool,
    /// `stream_options.include_usage`.
    pub(super) include_usage: bool,
    /// `stream_options.continuous_usage_stats`.
    pub(super) continuous_usage: bool,
    /// Most tokens of each answer.
    pub(super) max_tokens: u32,
    /// Fewest tokens of each answer.
    pub(super) min_tokens: u32,
    /// Go on until `max_tokens`.
    pub(super) ignore_eos: bool,
    /// Stop strings.
    pub(super) stop: Vec<String>,
    /// Show the stop string.
    pub(super) include_stop: bool,
    /// Logprobs with so many alternatives.
    pub(super) logprobs: Option<u32>,
    /// Repeat the prompt in the answer (completions).
    pub(super) echo: bool,
    /// Token ids in the answer.
    pub(super) return_token_ids: bool,
    /// Declared tools.
    pub(super) tools: Vec<Tool>,
    /// What `tool_choice` asks for.
    pub(super) choice: Choice,
    /// Which of vLLM's own parsers read the answer.
    pub(super) parses: Parses,
    /// Whether the template lets the model think.
    pub(super) thinking: bool,
    /// Constraint on the answer.
    pub(super) form: Form,
    /// Text of the last user message (or of the prompt), for choosing a tool.
    pub(super) question: String,
    /// Tool results since the last user message, if the last message is one.
    pub(super) results: u32,
    /// Knobs of this request.
    pub(super) knobs: Knobs,
}

impl Ask {
    /// Reads a request; `knobs` has what headers and draws said already.
    ///
    /// # Errors
    /// What vLLM refuses, and knobs that can't be read.
    pub(super) fn read(surface: Surface, body: &[u8], config: &SimConfig, knobs: Knobs) -> Result<Self, Refusal> {
        let object = object(body)?;
        check::types(&object, surface)?;
        check::model(&object, config)?;
        let mut ask = match surface {
            Surface::Chat => chat(&object, config, knobs)?,
            Surface::Completions => completions(&object, knobs)?,
        };
        check::sampling(&object)?;
        check::limit_tokens(&object, config, &mut ask)?;
        check::answer_size(&ask)?;
        Ok(ask)
    }
}

/// The body as a JSON object.
pub(super) fn object(body: &[u8]) -> Result<Map<String, Value>, Refusal> {
    if body.is_empty() {
        return Err(Refusal::invalid("missing", "body", "Field required", "None"));
    }
    match serde_json::from_slice(body) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(other) => {
            let message = "Input should be a valid dictionary or object to extract fields from";
            Err(Refusal::invalid(
                "model_attributes_type",
                "body",
                message,
                &shown(Some(&other)),
            ))
        }
        Err(error) => Err(Refusal::not_json(byte_of(body, &error))),
    }
}

/// The byte at which parsing failed.
fn byte_of(body: &[u8], error: &serde_json::Error) -> usize {
    let before: usize = body
        .split_inclusive(|byte| *byte == b'\n')
        .take(error.line().saturating_sub(1))
        .map(<[u8]>::len)
        .sum();
    (before + error.column()).min(body.len())
}

/// Fields that both endpoints share.
fn shared(object: &Map<String, Value>, surface: Surface, knobs: Knobs) -> Result<Ask, Refusal> {
    let flag = |key: &str| object.get(key).and_then(Value::as_bool).unwrap_or(false);
    let stream = flag("stream");
    let options = object.get("stream_options").filter(|options| !options.is_null());
    if options.is_some() && !stream {
        return Err(Refusal::parameter(
            "Stream options can only be defined when `stream=True`.",
            "stream_options",
            None,
        ));
    }
    let option = |key: &str| options.and_then(|options| options.get(key)?.as_bool()).unwrap_or(false);
    let stop = match object.get("stop") {
        Some(Value::String(stop)) => vec![stop.clone()],
        Some(Value::Array(stops)) => stops.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        _ => Vec::new(),
    };
    Ok(Ask {
        surface,
        prompts: Vec::new(),
        n: object
            .get("n")
            .and_then(number_of)
            .map_or(1, |n| n.clamp(1.0, MAX_N as f64) as u32),
        stream,
        include_usage: option("include_usage"),
        continuous_usage: option("include_usage") && option("continuous_usage_stats"),
        max_tokens: 1,
        min_tokens: object.get("min_tokens").and_then(number_of).unwrap_or(0.0) as u32,
        ignore_eos: flag("ignore_eos"),
        stop,
        include_stop: flag("include_stop_str_in_output"),
        logprobs: None,
        echo: false,
        return_token_ids: flag("return_token_ids"),
        tools: Vec::new(),
        choice: Choice::Free,
        parses: Parses::Nothing,
        thinking: false,
        form: form(object)?,
        question: String::new(),
        results: 0,
        knobs,
    })
}

fn chat(object: &Map<String, Value>, config: &SimConfig, knobs: Knobs) -> Result<Ask, Refusal> {
    let mut ask = shared(object, Surface::Chat, knobs)?;
    let empty = Vec::new();
    let tools = object.get("tools").and_then(Value::as_array);
    if tools.is_some_and(Vec::is_empty) {
        let message =
            "`tools` must not be an empty array. Either provide at least one tool or omit the field entirely.";
        return Err(Refusal::parameter(message, "tools", None));
    }
    let tools = tools.unwrap_or(&empty);
    ask.tools = prompt::declared(tools);
    let parses_tools;
    (ask.choice, parses_tools) = check::tool_choice(object.get("tool_choice"), tools, &ask.tools, config.setup)?;
    ask.parses = match config.setup {
        Setup::Raw => Parses::Nothing,
        Setup::Parsers if parses_tools => Parses::All,
        Setup::Parsers => Parses::Reasoning,
    };
    let messages = object.get("messages").and_then(Value::as_array).unwrap_or(&empty);
    if messages.is_empty() {
        return Err(Refusal::bad(
            "Cannot apply chat template to an empty conversation. Provide at least one message.",
        ));
    }
    check::past_calls(messages)?;
    check::media(messages, config)?;
    check::template(messages, config.template)?;
    if object.get("logprobs").and_then(Value::as_bool) == Some(true) {
        ask.logprobs = Some(check::logprobs(
            object.get("top_logprobs").and_then(Value::as_u64).unwrap_or(0),
        )?);
    }
    ask.thinking = template_flag(object, "enable_thinking").unwrap_or(true);
    read_knobs(object, messages, &mut ask.knobs)?;
    let mut rendered = Prompt::new(salt(object), ask.return_token_ids, false);
    let template = Template {
        tools,
        thinking: ask.thinking,
        opens_answer: true,
    };
    prompt::render(messages, template, &mut rendered);
    ask.prompts.push(rendered);
    ask.question = messages
        .iter()
        .rev()
        .find(|message| prompt::role(message) == "user")
        .map(prompt::content)
        .unwrap_or_default();
    if messages.last().is_some_and(|message| prompt::role(message) == "tool") {
        let since = messages
            .iter()
            .rposition(|message| prompt::role(message) == "user")
            .map_or(0, |at| at + 1);
        ask.results = messages[since..]
            .iter()
            .filter(|message| prompt::role(message) == "tool")
            .count() as u32;
    }
    Ok(ask)
}

/// A boolean of `chat_template_kwargs`.
pub(super) fn template_flag(object: &Map<String, Value>, key: &str) -> Option<bool> {
    object.get("chat_template_kwargs")?.get(key)?.as_bool()
}

/// `cache_salt` as a number.
pub(super) fn salt(object: &Map<String, Value>) -> u64 {
    object
        .get("cache_salt")
        .and_then(Value::as_str)
        .map_or(0, |salt| mix_text(1, salt))
}

/// Knobs of the body: markers in messages, `sluice_sim`, and the scripting field of the vLLM test backend.
fn read_knobs(object: &Map<String, Value>, messages: &[Value], knobs: &mut Knobs) -> Result<(), Refusal> {
    let is = |message: &Value, role: &str| message.get("role").and_then(Value::as_str) == Some(role);
    let since = messages
        .iter()
        .rposition(|message| is(message, "assistant"))
        .map_or(0, |at| at + 1);
    for (place, message) in messages.iter().enumerate() {
        if place >= since || is(message, "system") {
            knobs.read_markers(&prompt::content(message)).map_err(knob_refused)?;
        }
    }
    read_body_knobs(object, knobs)
}

fn read_body_knobs(object: &Map<String, Value>, knobs: &mut Knobs) -> Result<(), Refusal> {
    for (key, value) in object
        .get("sluice_sim")
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
    {
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        knobs.set(key, &value).map_err(knob_refused)?;
    }
    let scripted = |key: &str| object.get("vllm_xargs").and_then(|xargs| xargs.get(key));
    if let Some(text) = scripted("force_text").and_then(Value::as_str) {
        knobs.text = Some(text.to_owned());
    }
    for (key, knob) in [("force_delay_ms", "itl-ms"), ("force_first_delay_ms", "ttft-ms")] {
        if let Some(delay) = scripted(key) {
            knobs.set(knob, &delay.to_string()).map_err(knob_refused)?;
        }
    }
    Ok(())
}

/// A knob that can't be read is the developer's mistake: say so at once.
pub(super) fn knob_refused(error: KnobError) -> Refusal {
    Refusal::bad(&error.to_string())
}

fn completions(object: &Map<String, Value>, knobs: Knobs) -> Result<Ask, Refusal> {
    let mut ask = shared(object, Surface::Completions, knobs)?;
    ask.echo = object.get("echo").and_then(Value::as_bool).unwrap_or(false);
    if let Some(count) = object.get("logprobs").and_then(Value::as_u64) {
        ask.logprobs = Some(check::logprobs(count)?);
    }
    let salt = salt(object);
    let new = || Prompt::new(salt, ask.return_token_ids || ask.logprobs.is_some(), true);
    let from_text = |text: &str| {
        let mut prompt = new();
        prompt.text(text);
        prompt
    };
    let from_ids = |ids: &[Value]| {
        let mut prompt = new();
        prompt.ids(
            ids.iter()
                .filter_map(Value::as_u64)
                .map(|id| id.min(u64::from(u32::MAX)) as u32),
        );
        prompt
    };
    ask.prompts = match object.get("prompt") {
        Some(Value::String(text)) => vec![from_text(text)],
        Some(Value::Array(items)) if items.first().is_some_and(Value::is_number) => vec![from_ids(items)],
        Some(Value::Array(items)) => items
            .iter()
            .map(|item| {
                item.as_array()
                    .map_or_else(|| from_text(item.as_str().unwrap_or_default()), |ids| from_ids(ids))
            })
            .collect(),
        _ => Vec::new(),
    };
    if ask.prompts.is_empty() || ask.prompts.iter().any(|prompt| prompt.chain.tokens() == 0) {
        return Err(Refusal::parameter(
            "Either prompt or prompt_embeds must be provided and non-empty.",
            "prompt",
            None,
        ));
    }
    if ask.prompts.len() as u64 * u64::from(ask.n) > MAX_N {
        return Err(Refusal::bad(&format!(
            "The simulator answers at most {MAX_N} sequences per request."
        )));
    }
    ask.question = ask
        .prompts
        .first()
        .and_then(|prompt| prompt.text.clone())
        .unwrap_or_default();
    let fault = ask.knobs.fault;
    ask.knobs.read_markers(&ask.question).map_err(knob_refused)?;
    if super::answer::begun(&ask.question).is_some_and(|begun| !begun.is_empty()) {
        // A marker of the conversation broke its answer; what goes on with that isn't broken once more.
        ask.knobs.fault = fault;
    }
    read_body_knobs(object, &mut ask.knobs)?;
    Ok(ask)
}

/// The first tag of a structural tag that is one or a list of them, with an instance of its schema between its ends.
fn tagged(format: &str) -> Option<String> {
    let outer: Value = serde_json::from_str(format).ok()?;
    let format = outer.get("format")?;
    let tag = format.pointer("/tags/0").unwrap_or(format);
    let part = |key| tag.get(key).and_then(Value::as_str);
    let schema = tag.pointer("/content/json_schema")?;
    let between = super::schema::instance(schema, super::schema::Optional::All, 0);
    Some(format!("{}{between}{}", part("begin")?, part("end")?))
}

/// `response_format` and `structured_outputs`.
fn form(object: &Map<String, Value>) -> Result<Form, Refusal> {
    let any = || serde_json::json!({"type": "object", "properties": {"simulated": {"const": true}}, "required": ["simulated"]});
    if let Some(format) = object.get("response_format") {
        match format.get("type").and_then(Value::as_str) {
            Some("json_object") => return Ok(Form::Json(any())),
            Some("json_schema") => {
                return Ok(Form::Json(
                    format.pointer("/json_schema/schema").cloned().unwrap_or_else(any),
                ));
            }
            _ => {}
        }
    }
    let Some(outputs) = object.get("structured_outputs").filter(|outputs| outputs.is_object()) else {
        return Ok(Form::Free);
    };
    if let Some(schema) = outputs.get("json").filter(|schema| !schema.is_null()) {
        let schema = schema
            .as_str()
            .and_then(|text| serde_json::from_str(text).ok())
            .unwrap_or_else(|| schema.clone());
        return Ok(Form::Json(schema));
    }
    if outputs.get("json_object").and_then(Value::as_bool) == Some(true) {
        return Ok(Form::Json(any()));
    }
    if let Some(first) = outputs.pointer("/choice/0").and_then(Value::as_str) {
        return Ok(Form::Exactly(first.to_owned()));
    }
    if let Some(text) = outputs.get("structural_tag").and_then(Value::as_str).and_then(tagged) {
        return Ok(Form::Exactly(text));
    }
    match ["regex", "grammar", "structural_tag"]
        .iter()
        .find(|key| outputs.get(**key).is_some_and(|v| !v.is_null()))
    {
        Some(key) => Err(Refusal::bad(&format!(
            "The simulator has no structured_outputs.{key}; it has json, json_object, choice and tags with a schema between them."
        ))),
        None => Ok(Form::Free),
    }
}
