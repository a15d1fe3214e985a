//! The request reader: method, path and body bytes in, an `Ask` out.
//!
//! `route` holds the allowlist (B1). `read` walks the body once, copies nothing of it, and keeps what the gateway judges:
//! values and spans. It refuses what B4 refuses and leaves every other mistake to vLLM, whose words the client then gets.
//! `Ask::upstream_body` splices edits between slices of the received bytes, so that a 10 MB history is never written anew.
//! A key that is judged must not be repeated in its object: JSON readers differ in which one they take, and what was judged
//! must be what vLLM reads. Where next: `skim` (the walk), `fault` (the refusals), `route::session` (what the body says of it).

mod edit;
mod media;
mod prompt;
mod read;
mod route;
mod tools;

use bytes::Bytes;

pub use self::edit::{Edit, Patch};
pub use self::read::read;
pub use self::route::{Endpoint, find, route};
use crate::history::Past;
use crate::protocol::fault::{Fault, FaultKind};
use crate::protocol::skim::{SkimError, Text};
use crate::route::session::SessionSource;

/// What the gateway knows of a request after one walk over its body.
#[derive(Clone)]
pub struct Ask {
    /// What is asked of.
    pub endpoint: Endpoint,
    /// The body as received.
    pub body: Bytes,
    /// None: missing or null, which means the only backend's (B5).
    pub model: Option<String>,
    /// `stream: true`.
    pub stream: bool,
    /// `stream_options.include_usage: true`: the client wants the usage chunk.
    pub include_usage: bool,
    /// `stream_options.continuous_usage_stats: true`: usage in each chunk.
    pub continuous_usage: bool,
    /// Choices asked for: 1 if absent, and what vLLM refuses counts as 1.
    pub n: u32,
    /// `max_completion_tokens`, else `max_tokens` (`max_output_tokens` of responses).
    pub max_tokens: Option<u64>,
    /// Raw JSON of `tools` if it is an array with something in it; a slice of the body.
    pub tools: Option<Bytes>,
    /// Items of `tools`.
    pub tool_count: u32,
    /// What the client says about calling tools.
    pub tool_choice: ToolChoice,
    /// Any tool with `strict: true`.
    pub strict_tools: bool,
    /// `parallel_tool_calls`; true if absent, as OpenAI has it.
    pub parallel_tool_calls: bool,
    /// `response_format` (other than `text`), `structured_outputs` or one of the older `guided_…` fields: a grammar rules the answer.
    pub response_format: bool,
    /// Token log probabilities in the answer, of output or prompt.
    pub logprobs: bool,
    /// vLLM's `priority`, if it is a whole number: less is earlier. The engine never sees it.
    pub priority: Option<i64>,
    /// `chat_template_kwargs.enable_thinking`; none if absent or not a boolean.
    pub thinking: Option<bool>,
    /// What the body says about the conversation that it belongs to (B32).
    pub session: BodySession,
    /// Items of `messages` (or of `input`, for responses).
    pub messages: u32,
    /// Images, video or audio in the prompt.
    pub images: bool,
    /// Past turns that may need a change (B30).
    pub past: Past,
    /// Raw bytes of messages and tools, or of the prompt, without media: what prefill is estimated from.
    pub prompt_bytes: u64,
    /// Members of the top-level object, in order: where edits go.
    fields: edit::Fields,
}

/// The body's part of the session key ladder (B32); the headers come before it, see `route::session`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BodySession {
    /// The first of `session_id`, `prompt_cache_key`, `conversation`, `previous_response_id`, `metadata.session_id` that is a
    /// string with something in it; at most 256 bytes of it.
    pub key: Option<(SessionSource, String)>,
    /// `user`: many conversations share one, so it only breaks ties.
    pub user: Option<String>,
    /// Hash of the system messages before the first user message, and of that message: what stays the same over a conversation.
    /// The same in every process of one version of Sluice.
    pub conversation_hash: u64,
}

/// `tool_choice` as the client sent it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum ToolChoice {
    /// Missing or null: OpenAI's default, `auto` if there are tools.
    #[default]
    Absent,
    /// `"auto"`.
    Auto,
    /// `"none"`.
    None,
    /// `"required"`.
    Required,
    /// The function of this name.
    Named(String),
    /// Anything else; vLLM says what it thinks of it.
    Unknown,
}

/// Bounds of a request (B4). What exceeds one is refused with a message that names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AskLimits {
    /// Nesting of arrays and objects. Default 128.
    pub json_depth: u32,
    /// Members of the top-level object. Default 1,024 (OpenAI's and vLLM's fields together are about 100).
    pub fields: usize,
    /// `n`, and `best_of`. Default 16: each choice takes a running sequence of its own on the replica.
    pub n: u32,
    /// `max_tokens` and its other names. Default 1,000,000: above any model's context, so only nonsense is caught.
    pub max_tokens: u64,
    /// Bytes of each field that vLLM compiles into a grammar. Default 256 KiB: compiling blocks its scheduler.
    pub grammar_bytes: usize,
    /// Items of `tools`. Default 1,024.
    pub tools: u32,
    /// Bytes of `tools`. Default 4 MiB.
    pub tools_bytes: usize,
}

impl Default for AskLimits {
    fn default() -> Self {
        AskLimits {
            json_depth: 128,
            fields: 1024,
            n: 16,
            max_tokens: 1_000_000,
            grammar_bytes: 256 * 1024,
            tools: 1024,
            tools_bytes: 4 * 1024 * 1024,
        }
    }
}

/// What a key may send that is refused by default (B4), because it reaches past the conversation into the server.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Grants {
    /// Media that isn't a `data:` URL: vLLM would fetch `http:` and `https:` from inside its network, and read `file:`.
    pub remote_media: bool,
    /// `kv_transfer_params`, `ec_transfer_params`: steer where a replica reads cache blocks from.
    pub kv_transfer: bool,
    /// `prompt_embeds`, and `…_embeds` in message parts: tensors that vLLM deserialises.
    pub prompt_embeds: bool,
    /// `chat_template`, also inside `chat_template_kwargs`: a program that vLLM runs.
    pub chat_template: bool,
    /// `vllm_xargs`: reaches whatever extensions the server has loaded.
    pub vllm_xargs: bool,
    /// `logits_processors`: names Python code.
    pub logits_processors: bool,
}

impl Grants {
    /// Everything allowed: for a trusted caller.
    pub const ALL: Grants = Grants {
        remote_media: true,
        kv_transfer: true,
        prompt_embeds: true,
        chat_template: true,
        vllm_xargs: true,
        logits_processors: true,
    };
}

impl Ask {
    /// An ask of which nothing is known yet: all defaults.
    fn blank(endpoint: Endpoint, body: Bytes) -> Ask {
        Ask {
            endpoint,
            body,
            model: None,
            stream: false,
            include_usage: false,
            continuous_usage: false,
            n: 1,
            max_tokens: None,
            tools: None,
            tool_count: 0,
            tool_choice: ToolChoice::Absent,
            strict_tools: false,
            parallel_tool_calls: true,
            response_format: false,
            logprobs: false,
            priority: None,
            thinking: None,
            session: BodySession::default(),
            messages: 0,
            images: false,
            past: Past::default(),
            prompt_bytes: 0,
            fields: edit::Fields::default(),
        }
    }

    /// The body for the upstream: slices of the received one with the edits between them, never a re-serialisation.
    ///
    /// `priority` is the gateway's (B4): it is removed unless an edit sets it. Of several edits of one key the last wins, and one of
    /// the whole member beats [`Edit::SetIn`].
    pub fn upstream_body(&self, edits: &[Edit<'_>]) -> Vec<Bytes> {
        const NO_PRIORITY: &Edit<'static> = &Edit::Remove("priority");
        let mut edits: Vec<&Edit<'_>> = edits.iter().collect();
        if !edits.iter().any(|edit| edit.key() == NO_PRIORITY.key()) {
            edits.push(NO_PRIORITY);
        }
        edit::splice(&self.body, &self.fields, &edits)
    }

    /// The value of the member that an edit patches, with its patches.
    pub fn patched(&self, edit: &Edit<'_>) -> Vec<Bytes> {
        edit::patched(&self.body, &self.fields, edit)
    }

    /// Raw JSON of a top-level member, as received: for what only one stage looks at.
    pub fn raw(&self, key: &str) -> Option<Bytes> {
        self.fields.value(&self.body, key)
    }
}

/// Without the body and what was decoded of it: prompts never reach a log by a stray `{:?}`.
impl std::fmt::Debug for Ask {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ask")
            .field("endpoint", &self.endpoint)
            .field("model", &self.model)
            .field("stream", &self.stream)
            .field("n", &self.n)
            .field("max_tokens", &self.max_tokens)
            .field("messages", &self.messages)
            .field("tool_count", &self.tool_count)
            .field("body_bytes", &self.body.len())
            .finish_non_exhaustive()
    }
}

/// A body that isn't JSON is refused here: what vLLM says about it differs by version, up to a 500.
impl From<SkimError> for Fault {
    fn from(error: SkimError) -> Fault {
        let message = match error {
            SkimError::Depth { .. } => format!("The request body is {error} (limit json_depth)."),
            _ => format!("The request body is not valid JSON: {error}."),
        };
        Fault::new(FaultKind::BadRequest, message)
    }
}

/// Which judged keys of one object have been seen, by their place in its list of judged keys.
#[derive(Default)]
struct Seen(u64);

impl Seen {
    /// # Errors
    /// A bad request naming the key if it comes a second time.
    fn once(&mut self, index: u32, key: &Text<'_>, path: impl FnOnce() -> String) -> Result<(), Fault> {
        let bit = 1u64 << (index % 64);
        if self.0 & bit == 0 {
            self.0 |= bit;
            return Ok(());
        }
        let name: String = key.chars().take(64).collect();
        let param = match path() {
            path if path.is_empty() => name.clone(),
            path => format!("{path}.{name}"),
        };
        Err(Fault::bad_request(
            param,
            format!(
                "The key `{name}` is repeated in its object at byte {}.",
                key.span().start
            ),
        ))
    }
}

#[cfg(test)]
mod tests;
