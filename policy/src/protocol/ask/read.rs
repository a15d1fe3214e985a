//! One walk over the top-level object: each member is judged, remembered for edits, or only checked.

use bytes::Bytes;

use super::edit::Fields;
use super::prompt::Prompt;
use super::{Ask, AskLimits, Endpoint, Grants, Seen, tools};
use crate::protocol::fault::{Fault, FaultKind};
use crate::protocol::skim::{Cursor, Kind, Text};
use crate::route::session::{SESSION_VALUE_LIMIT_BYTES, SessionSource, value};

/// Longest model id that is looked at, in bytes: above any path that vLLM could have been started with.
const MODEL_LIMIT_BYTES: usize = 4096;

/// Longest key that could be one of ours, in bytes.
const KEY_LIMIT_BYTES: usize = 64;

/// Reads a request's body.
///
/// # Errors
/// A 400 each: what isn't JSON or no object, a limit, a field that isn't granted, a repeated key, or a value that the gateway needs
/// and can't read. All other mistakes are left to vLLM.
pub fn read(endpoint: &Endpoint, body: Bytes, limits: &AskLimits, grants: &Grants) -> Result<Ask, Fault> {
    let mut ask = Ask::blank(endpoint.clone(), body.clone());
    if !endpoint.has_body() {
        return Ok(ask);
    }
    if body.trim_ascii().is_empty() {
        return Err(Fault::new(
            FaultKind::BadRequest,
            "The request body is empty; a JSON object is expected.",
        ));
    }
    let mut cursor = Cursor::new(&body, limits.json_depth)?;
    let kind = cursor.kind()?;
    if kind != Kind::Object {
        // The rest is checked too, so that broken JSON is called that.
        cursor.skip()?;
        cursor.end()?;
        let message = format!("The request body must be a JSON object, not {}.", kind.as_str());
        return Err(Fault::new(FaultKind::BadRequest, message));
    }
    let mut reader = Reader {
        limits,
        grants,
        prompt: Prompt::new(grants),
        seen: Seen::default(),
        max: MaxTokens::default(),
    };
    ask.fields = Fields::with_room();
    let span = cursor.members(|cursor, key| -> Result<(), Fault> {
        let start = cursor.offset();
        reader.member(cursor, &key, &mut ask)?;
        if cursor.offset() == start {
            cursor.skip()?;
        }
        ask.fields.push(&key, start..cursor.offset(), limits.fields)
    })?;
    ask.fields.close(span);
    cursor.end()?;
    ask.max_tokens = reader.max.completion.or(reader.max.plain);
    reader.prompt.finish(&mut ask);
    Ok(ask)
}

/// What is known while the walk goes on.
struct Reader<'r> {
    limits: &'r AskLimits,
    grants: &'r Grants,
    prompt: Prompt,
    seen: Seen,
    max: MaxTokens,
}

/// The names of one limit: the newer one wins.
#[derive(Default)]
struct MaxTokens {
    completion: Option<u64>,
    plain: Option<u64>,
}

/// The judged keys of the top-level object.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Field {
    Model,
    Stream,
    StreamOptions,
    N,
    BestOf,
    MaxTokens,
    MaxCompletionTokens,
    MaxOutputTokens,
    Tools,
    ToolChoice,
    ParallelToolCalls,
    Grammar(u32),
    Logprobs,
    PromptLogprobs,
    TemplateKwargs,
    Messages,
    Input,
    System,
    Instructions,
    Prompt,
    Documents(u32),
    Session(SessionSource),
    Conversation,
    Metadata,
    User,
    Priority,
    Refused(Refused),
}

/// Fields that need a grant.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Refused {
    KvTransfer,
    EcTransfer,
    PromptEmbeds,
    ChatTemplate,
    VllmXargs,
    LogitsProcessors,
}

impl Field {
    /// The judged fields by name. What only one endpoint reads is judged in all: an endpoint of a version to come may read it too.
    /// Only documents aren't: chat requests carry texts with their sources under that name.
    fn of(key: &str, endpoint: &Endpoint) -> Option<Field> {
        let documents = matches!(endpoint, Endpoint::Rerank | Endpoint::Score);
        Some(match key {
            "model" => Field::Model,
            "stream" => Field::Stream,
            "stream_options" => Field::StreamOptions,
            "n" => Field::N,
            "best_of" => Field::BestOf,
            "max_tokens" => Field::MaxTokens,
            "max_completion_tokens" => Field::MaxCompletionTokens,
            "max_output_tokens" => Field::MaxOutputTokens,
            "tools" => Field::Tools,
            "tool_choice" => Field::ToolChoice,
            "parallel_tool_calls" => Field::ParallelToolCalls,
            "response_format" => Field::Grammar(0),
            "structured_outputs" => Field::Grammar(1),
            "guided_json" => Field::Grammar(2),
            "guided_regex" => Field::Grammar(3),
            "guided_choice" => Field::Grammar(4),
            "guided_grammar" => Field::Grammar(5),
            "structural_tag" => Field::Grammar(6),
            "logprobs" => Field::Logprobs,
            "prompt_logprobs" => Field::PromptLogprobs,
            "chat_template_kwargs" => Field::TemplateKwargs,
            "messages" => Field::Messages,
            "input" => Field::Input,
            "system" => Field::System,
            "instructions" => Field::Instructions,
            "prompt" => Field::Prompt,
            "query" if documents => Field::Documents(0),
            "queries" if documents => Field::Documents(1),
            "documents" if documents => Field::Documents(2),
            "items" if documents => Field::Documents(3),
            "data_1" if documents => Field::Documents(4),
            "data_2" if documents => Field::Documents(5),
            "text_1" if documents => Field::Documents(6),
            "text_2" if documents => Field::Documents(7),
            "session_id" => Field::Session(SessionSource::SessionId),
            "prompt_cache_key" => Field::Session(SessionSource::PromptCacheKey),
            "previous_response_id" => Field::Session(SessionSource::PreviousResponseId),
            "conversation" => Field::Conversation,
            "metadata" => Field::Metadata,
            "user" => Field::User,
            "priority" => Field::Priority,
            "kv_transfer_params" => Field::Refused(Refused::KvTransfer),
            "ec_transfer_params" => Field::Refused(Refused::EcTransfer),
            "prompt_embeds" => Field::Refused(Refused::PromptEmbeds),
            "chat_template" => Field::Refused(Refused::ChatTemplate),
            "vllm_xargs" => Field::Refused(Refused::VllmXargs),
            "logits_processors" => Field::Refused(Refused::LogitsProcessors),
            _ => return None,
        })
    }

    /// A place of its own among the judged keys, below 64.
    fn place(self) -> u32 {
        match self {
            Field::Model => 0,
            Field::Stream => 1,
            Field::StreamOptions => 2,
            Field::N => 3,
            Field::BestOf => 4,
            Field::MaxTokens => 5,
            Field::MaxCompletionTokens => 6,
            Field::MaxOutputTokens => 7,
            Field::Tools => 8,
            Field::ToolChoice => 9,
            Field::ParallelToolCalls => 10,
            Field::Logprobs => 11,
            Field::PromptLogprobs => 12,
            Field::TemplateKwargs => 13,
            Field::Messages => 14,
            Field::Input => 15,
            Field::System => 16,
            Field::Instructions => 17,
            Field::Prompt => 18,
            Field::Conversation => 19,
            Field::Metadata => 20,
            Field::User => 21,
            Field::Priority => 22,
            Field::Session(source) => 23 + source as u32,
            Field::Grammar(which) => 38 + which,
            Field::Documents(which) => 46 + which,
            Field::Refused(which) => 56 + which as u32,
        }
    }
}

impl Refused {
    /// Whether this key may, and the permission's name.
    fn grant(self, grants: &Grants) -> (bool, &'static str) {
        match self {
            Refused::KvTransfer | Refused::EcTransfer => (grants.kv_transfer, "kv_transfer"),
            Refused::PromptEmbeds => (grants.prompt_embeds, "prompt_embeds"),
            Refused::ChatTemplate => (grants.chat_template, "chat_template"),
            Refused::VllmXargs => (grants.vllm_xargs, "vllm_xargs"),
            Refused::LogitsProcessors => (grants.logits_processors, "logits_processors"),
        }
    }
}

impl Reader<'_> {
    /// Judges one member; what it leaves unread is skipped by the caller.
    fn member(&mut self, cursor: &mut Cursor<'_>, key: &Text<'_>, ask: &mut Ask) -> Result<(), Fault> {
        let Some(name) = key.decoded(KEY_LIMIT_BYTES) else {
            return Ok(());
        };
        let Some(field) = Field::of(&name, &ask.endpoint) else {
            return Ok(());
        };
        self.seen.once(field.place(), key, String::new)?;
        match field {
            Field::Model => ask.model = model(cursor)?,
            Field::Stream => ask.stream = boolean(cursor, "stream")?.unwrap_or(false),
            Field::StreamOptions => stream_options(cursor, ask)?,
            Field::N => ask.n = self.choices(cursor, "n")?,
            Field::BestOf => drop(self.choices(cursor, "best_of")?),
            Field::MaxTokens => self.max.plain = self.tokens(cursor, "max_tokens")?,
            Field::MaxCompletionTokens => self.max.completion = self.tokens(cursor, "max_completion_tokens")?,
            Field::MaxOutputTokens => self.max.plain = self.tokens(cursor, "max_output_tokens")?,
            Field::Tools => tools::tools(cursor, self.limits, ask)?,
            Field::ToolChoice => ask.tool_choice = tools::tool_choice(cursor)?,
            Field::ParallelToolCalls => {
                ask.parallel_tool_calls = boolean(cursor, "parallel_tool_calls")?.unwrap_or(true)
            }
            Field::Grammar(_) => ask.response_format |= self.grammar(cursor, &name)?,
            Field::Logprobs | Field::PromptLogprobs => {
                ask.logprobs |= match cursor.kind()? {
                    Kind::Bool => cursor.boolean()? == Some(true),
                    kind => kind == Kind::Number,
                }
            }
            Field::TemplateKwargs => ask.thinking = self.template_kwargs(cursor)?,
            Field::Messages => self.prompt.messages(cursor, "messages")?,
            Field::Input => self.prompt.messages(cursor, "input")?,
            Field::System => self.prompt.system(cursor, "system")?,
            Field::Instructions => self.prompt.system(cursor, "instructions")?,
            Field::Prompt => self.prompt.text(cursor)?,
            Field::Documents(_) => self.prompt.documents(cursor, &name)?,
            Field::Session(source) => session(cursor, source, ask)?,
            Field::Conversation if cursor.kind()? == Kind::Object => {
                member_of(cursor, "conversation", "id", |cursor| {
                    session(cursor, SessionSource::Conversation, ask)
                })?
            }
            Field::Conversation => session(cursor, SessionSource::Conversation, ask)?,
            Field::Metadata => member_of(cursor, "metadata", "session_id", |cursor| {
                session(cursor, SessionSource::MetadataSessionId, ask)
            })?,
            Field::User => ask.session.user = session_value(cursor)?,
            Field::Priority if cursor.kind()? == Kind::Number => {
                let span = cursor.skip()?;
                ask.priority = cursor.raw(span).parse().ok();
            }
            Field::Priority => {}
            Field::Refused(refused) => self.refused(cursor, refused, &name)?,
        }
        Ok(())
    }

    /// A count of choices; what vLLM refuses (0, negative) is 1 here and vLLM's to refuse.
    fn choices(&self, cursor: &mut Cursor<'_>, name: &str) -> Result<u32, Fault> {
        let count = whole(cursor, name)?.unwrap_or(1).max(1);
        match u32::try_from(count) {
            Ok(count) if count <= self.limits.n => Ok(count),
            _ => Err(Fault::bad_request(
                name,
                format!("`{name}` is above {} (limit n).", self.limits.n),
            )),
        }
    }

    fn tokens(&self, cursor: &mut Cursor<'_>, name: &str) -> Result<Option<u64>, Fault> {
        let tokens = whole(cursor, name)?;
        if tokens.is_some_and(|tokens| tokens > self.limits.max_tokens) {
            let message = format!("`{name}` is above {} (limit max_tokens).", self.limits.max_tokens);
            return Err(Fault::bad_request(name, message));
        }
        Ok(tokens)
    }

    /// Bounds a field that vLLM compiles; true if it rules the answer.
    fn grammar(&self, cursor: &mut Cursor<'_>, name: &str) -> Result<bool, Fault> {
        let start = cursor.offset();
        let rules = match cursor.kind()? {
            Kind::Null => false,
            Kind::Object if name == "response_format" => {
                let mut text = false;
                member_of(cursor, name, "type", |cursor| {
                    text = cursor.kind()? == Kind::String && cursor.string()?.is("text");
                    Ok(())
                })?;
                !text
            }
            _ => {
                cursor.skip()?;
                true
            }
        };
        if cursor.offset() - start > self.limits.grammar_bytes {
            let message = format!(
                "`{name}` is larger than {} bytes (limit grammar_bytes).",
                self.limits.grammar_bytes
            );
            return Err(Fault::bad_request(name, message));
        }
        Ok(rules)
    }

    /// `enable_thinking`; and no way around the refusal of `chat_template`, since vLLM has let these override its own arguments.
    fn template_kwargs(&self, cursor: &mut Cursor<'_>) -> Result<Option<bool>, Fault> {
        if cursor.kind()? != Kind::Object {
            return Ok(None);
        }
        let mut thinking = None;
        let mut seen = Seen::default();
        cursor.members(|cursor, key| -> Result<(), Fault> {
            let Some(index) = tools::judged(&key, &["enable_thinking", "chat_template", "tokenize"]) else {
                return Ok(());
            };
            seen.once(index, &key, || "chat_template_kwargs".to_owned())?;
            match index {
                0 => thinking = cursor.boolean()?,
                1 => self.refused(cursor, Refused::ChatTemplate, "chat_template_kwargs.chat_template")?,
                _ => self.refused(cursor, Refused::ChatTemplate, "chat_template_kwargs.tokenize")?,
            }
            Ok(())
        })?;
        Ok(thinking)
    }

    fn refused(&self, cursor: &mut Cursor<'_>, field: Refused, name: &str) -> Result<(), Fault> {
        let (granted, grant) = field.grant(self.grants);
        if granted || cursor.kind()? == Kind::Null {
            return Ok(());
        }
        let message = format!("`{name}` is not permitted. This key lacks the permission {grant}.");
        Err(Fault::new(FaultKind::FieldNotPermitted, message).with_param(name))
    }
}

fn model(cursor: &mut Cursor<'_>) -> Result<Option<String>, Fault> {
    match cursor.kind()? {
        Kind::Null => Ok(None),
        Kind::String => match cursor.string()?.decoded(MODEL_LIMIT_BYTES) {
            Some(model) => Ok(Some(model.into_owned())),
            None => Err(Fault::bad_request(
                "model",
                format!("`model` is longer than {MODEL_LIMIT_BYTES} bytes."),
            )),
        },
        kind => Err(Fault::bad_request(
            "model",
            format!("`model` must be a string, not {}.", kind.as_str()),
        )),
    }
}

fn stream_options(cursor: &mut Cursor<'_>, ask: &mut Ask) -> Result<(), Fault> {
    if cursor.kind()? != Kind::Object {
        return Ok(());
    }
    let mut seen = Seen::default();
    cursor.members(|cursor, key| -> Result<(), Fault> {
        let Some(index) = tools::judged(&key, &["include_usage", "continuous_usage_stats"]) else {
            return Ok(());
        };
        seen.once(index, &key, || "stream_options".to_owned())?;
        match index {
            0 => ask.include_usage = boolean(cursor, "stream_options.include_usage")?.unwrap_or(false),
            _ => ask.continuous_usage = boolean(cursor, "stream_options.continuous_usage_stats")?.unwrap_or(false),
        }
        Ok(())
    })?;
    Ok(())
}

/// A boolean that the gateway needs: vLLM would take "yes" and 1 for true, and we would have judged another request.
fn boolean(cursor: &mut Cursor<'_>, name: &str) -> Result<Option<bool>, Fault> {
    match cursor.kind()? {
        Kind::Null => Ok(None),
        Kind::Bool => Ok(cursor.boolean()?),
        kind => Err(Fault::bad_request(
            name,
            format!("`{name}` must be a boolean, not {}.", kind.as_str()),
        )),
    }
}

/// A whole number that the gateway needs; none if null. Negative ones are 0: vLLM refuses both, in its words.
fn whole(cursor: &mut Cursor<'_>, name: &str) -> Result<Option<u64>, Fault> {
    match cursor.kind()? {
        Kind::Null => Ok(None),
        Kind::Number => {
            let span = cursor.skip()?;
            let raw = cursor.raw(span);
            match (raw.parse::<u64>(), raw.parse::<f64>()) {
                (Ok(value), _) => Ok(Some(value)),
                // `as` saturates: what is above every limit stays so.
                (_, Ok(value)) if value.fract() == 0.0 || !value.is_finite() => Ok(Some(value as u64)),
                _ => Err(Fault::bad_request(name, format!("`{name}` must be a whole number."))),
            }
        }
        kind => Err(Fault::bad_request(
            name,
            format!("`{name}` must be a whole number, not {}.", kind.as_str()),
        )),
    }
}

/// Reads one member of an object that is judged for it alone; other kinds are left unread.
fn member_of(
    cursor: &mut Cursor<'_>,
    outer: &str,
    inner: &str,
    mut read: impl FnMut(&mut Cursor<'_>) -> Result<(), Fault>,
) -> Result<(), Fault> {
    if cursor.kind()? != Kind::Object {
        return Ok(());
    }
    let mut seen = Seen::default();
    cursor.members(|cursor, key| -> Result<(), Fault> {
        if !key.is(inner) {
            return Ok(());
        }
        seen.once(0, &key, || outer.to_owned())?;
        read(cursor)
    })?;
    Ok(())
}

/// A rung of the ladder in the body: the first in its order wins, wherever it stands.
fn session(cursor: &mut Cursor<'_>, source: SessionSource, ask: &mut Ask) -> Result<(), Fault> {
    if let Some(text) = session_value(cursor)?
        && ask.session.key.as_ref().is_none_or(|(known, _)| source < *known)
    {
        ask.session.key = Some((source, text));
    }
    Ok(())
}

/// A string that counts as a session's or user's name, decoded and bounded; other kinds are nobody's.
fn session_value(cursor: &mut Cursor<'_>) -> Result<Option<String>, Fault> {
    if cursor.kind()? != Kind::String {
        return Ok(None);
    }
    let text: String = cursor
        .string()?
        .chars()
        .skip_while(|c| c.is_whitespace())
        .take(SESSION_VALUE_LIMIT_BYTES)
        .collect();
    Ok(value(&text).map(str::to_owned))
}
