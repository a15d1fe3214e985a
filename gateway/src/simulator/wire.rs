//! Answers in vLLM's bytes: events of a stream, and whole bodies.
//!
//! Enters: an [`Ask`], its [`Script`]s and how far the engine has come. Leaves: JSON with vLLM 0.32's fields in its
//! order; the recordings hold it in tests. Nothing is decided here.
use std::fmt::Write as _;

use bytes::Bytes;

use super::ask::{Ask, Choice, Parses, Surface};
use super::parsers::{Told, tell};
use super::script::{Finish, Script};
use super::tokens::{BLOCK_TOKENS, END_OF_TURN_TEXT, mix, mix_text};

/// vLLM's version, as `/version` says it.
pub(super) const VERSION: &str = "0.32.0";
/// The event that ends a stream.
pub(super) const DONE: &[u8] = b"data: [DONE]\n\n";

/// One request's voice.
pub(super) struct Wire {
    /// The request.
    ask: Ask,
    /// Its answers, choice by choice over all prompts.
    scripts: Vec<Script>,
    /// The same as vLLM's parsers tell them; empty without parsers.
    told: Vec<Told>,
    /// `{"id":…,"object":…,"created":…,"model":…,"choices":[` of every event.
    event_head: String,
    id: String,
    created: u64,
    model: String,
    fingerprint: String,
}

impl Wire {
    /// Prepares the answers of a request. `id` is without its prefix.
    pub(super) fn new(ask: Ask, scripts: Vec<Script>, id: &str, created: u64, model: &str, fingerprint: &str) -> Self {
        let told = match ask.parses {
            Parses::Nothing => Vec::new(),
            Parses::Reasoning | Parses::All => {
                let seed = |choice: usize| mix(mix_text(created, id), choice as u64);
                let one = |(choice, script)| tell(script, ask.thinking, ask.parses == Parses::All, seed(choice));
                scripts.iter().enumerate().map(one).collect()
            }
        };
        let (prefix, object) = match ask.surface {
            Surface::Chat => ("chatcmpl", "chat.completion.chunk"),
            Surface::Completions => ("cmpl", "text_completion"),
        };
        let id = format!("{prefix}-{id}");
        let event_head = format!(
            "data: {{\"id\":{},\"object\":\"{object}\",\"created\":{created},\"model\":{},\"choices\":[",
            quoted(&id),
            quoted(model)
        );
        Self {
            ask,
            scripts,
            told,
            event_head,
            id,
            created,
            model: model.to_owned(),
            fingerprint: fingerprint.to_owned(),
        }
    }

    /// The answers.
    pub(super) fn scripts(&self) -> &[Script] {
        &self.scripts
    }

    /// Whether each choice begins with an event of its own for the role.
    pub(super) fn has_roles(&self) -> bool {
        self.ask.surface == Surface::Chat
    }

    /// Whether the stream ends in an event with usage.
    pub(super) fn has_usage(&self) -> bool {
        self.ask.include_usage
    }

    /// The first event of a chat choice.
    pub(super) fn role(&self, choice: usize) -> Bytes {
        let mut out = self.event_head.clone();
        let _ = write!(
            out,
            "{{\"index\":{choice},\"delta\":{{\"role\":\"assistant\",\"content\":\"\"}},\"logprobs\":null,\"finish_reason\":null}}]"
        );
        if self.ask.continuous_usage {
            self.running_usage(choice, 0, &mut out);
        }
        let _ = write!(
            out,
            ",\"prompt_token_ids\":{},\"prompt_text\":null}}\n\n",
            self.prompt_ids(choice)
        );
        Bytes::from(out)
    }

    /// The event of a choice's token number `token` (from 0); None if a parser swallowed it.
    pub(super) fn token(&self, choice: usize, token: u32) -> Option<Bytes> {
        let script = &self.scripts[choice];
        let text = &script.text[script.visible(token)..script.visible(token + 1)];
        let is_last = token + 1 == script.tokens();
        let delta = match self.told.get(choice) {
            Some(told) => match told.deltas.get(token as usize).cloned().flatten() {
                None if !is_last => return None,
                delta => delta.unwrap_or_else(|| "{}".to_owned()),
            },
            None => format!("{{\"content\":{}}}", quoted(text)),
        };
        let mut out = String::with_capacity(self.event_head.len() + text.len() + 192);
        out.push_str(&self.event_head);
        match self.ask.surface {
            Surface::Chat => self.chat_choice(choice, token, &delta, is_last, &mut out),
            Surface::Completions => self.text_choice(choice, token, text, is_last, &mut out),
        }
        out.push(']');
        if self.ask.continuous_usage {
            self.running_usage(choice, token + 1, &mut out);
        }
        if is_last && !self.ask.include_usage {
            let _ = write!(out, ",\"system_fingerprint\":\"{}\"", self.fingerprint);
        }
        out.push_str("}\n\n");
        Some(Bytes::from(out))
    }

    fn chat_choice(&self, choice: usize, token: u32, delta: &str, is_last: bool, out: &mut String) {
        let script = &self.scripts[choice];
        let _ = write!(out, "{{\"index\":{choice},\"delta\":{delta},\"logprobs\":");
        match self.ask.logprobs {
            Some(alternatives) => chat_logprobs(script, token..token + 1, alternatives, out),
            None => out.push_str("null"),
        }
        if is_last {
            let _ = write!(
                out,
                ",\"finish_reason\":\"{}\",\"stop_reason\":{}",
                self.finish_reason(
                    choice,
                    self.told.get(choice).is_some_and(|told| told.streamed_calls > 0)
                ),
                stop_reason(script)
            );
        } else {
            out.push_str(",\"finish_reason\":null");
        }
        let _ = write!(out, ",\"token_ids\":{}}}", self.token_ids(script, token..token + 1));
    }

    fn text_choice(&self, choice: usize, token: u32, text: &str, is_last: bool, out: &mut String) {
        let script = &self.scripts[choice];
        let echoed = if token == 0 { self.echo(choice) } else { "" };
        let _ = write!(
            out,
            "{{\"index\":{choice},\"text\":{},\"logprobs\":",
            quoted(&format!("{echoed}{text}"))
        );
        match self.ask.logprobs {
            Some(alternatives) => text_logprobs(script, "", token..token + 1, alternatives, out),
            None => out.push_str("null"),
        }
        let finish = if is_last {
            format!("\"{}\"", script.finish_reason())
        } else {
            "null".to_owned()
        };
        let stop = if is_last {
            stop_reason(script)
        } else {
            "null".to_owned()
        };
        let prompt_ids = if token == 0 {
            self.prompt_ids(choice)
        } else {
            "null".to_owned()
        };
        let _ = write!(
            out,
            ",\"finish_reason\":{finish},\"stop_reason\":{stop},\"prompt_token_ids\":{prompt_ids},\"token_ids\":{}}}",
            self.token_ids(script, token..token + 1)
        );
    }

    /// The event with the usage, once all choices are complete.
    pub(super) fn usage(&self, cached: u32) -> Bytes {
        let (prompt, completion) = self.counts();
        let mut out = self.event_head.clone();
        let _ = write!(
            out,
            "],\"usage\":{{\"prompt_tokens\":{prompt},\"total_tokens\":{},\"completion_tokens\":{completion},\"prompt_tokens_details\":{{\"cached_tokens\":{cached}",
            prompt + completion
        );
        if self.ask.surface == Surface::Chat {
            let _ = write!(out, ",\"created_cache_tokens\":{}", self.created_cache_tokens(cached));
        }
        out.push('}');
        if let Some(details) = self.reasoning_details() {
            let _ = write!(out, ",\"completion_tokens_details\":{details}");
        }
        let _ = write!(out, "}},\"system_fingerprint\":\"{}\"}}\n\n", self.fingerprint);
        Bytes::from(out)
    }

    /// The whole answer as one body.
    pub(super) fn whole(&self, cached: u32) -> Bytes {
        let object = if self.ask.surface == Surface::Chat {
            "chat.completion"
        } else {
            "text_completion"
        };
        let mut out = format!(
            "{{\"id\":{},\"object\":\"{object}\",\"created\":{},\"model\":{},\"choices\":[",
            quoted(&self.id),
            self.created,
            quoted(&self.model)
        );
        for choice in 0..self.scripts.len() {
            out.push_str(if choice == 0 { "" } else { "," });
            match self.ask.surface {
                Surface::Chat => self.whole_chat_choice(choice, &mut out),
                Surface::Completions => self.whole_text_choice(choice, &mut out),
            }
        }
        let (prompt, completion) = self.counts();
        let created = match self.ask.surface {
            Surface::Chat => self.created_cache_tokens(cached).to_string(),
            Surface::Completions => "null".to_owned(),
        };
        let _ = write!(
            out,
            "],\"service_tier\":null,\"system_fingerprint\":\"{}\",\"usage\":{{\"prompt_tokens\":{prompt},\"total_tokens\":{},\"completion_tokens\":{completion},\"prompt_tokens_details\":{{\"cached_tokens\":{cached},\"created_cache_tokens\":{created},\"multimodal_tokens\":null}},\"completion_tokens_details\":{}}}",
            self.fingerprint,
            prompt + completion,
            self.reasoning_details().unwrap_or_else(|| "null".to_owned())
        );
        if self.ask.surface == Surface::Chat {
            let _ = write!(
                out,
                ",\"prompt_logprobs\":null,\"prompt_token_ids\":{},\"prompt_text\":null",
                self.prompt_ids(0)
            );
        }
        out.push_str(",\"kv_transfer_params\":null,\"ec_transfer_params\":null,\"metrics\":null}");
        Bytes::from(out)
    }

    /// What a reasoning parser adds to the usage.
    fn reasoning_details(&self) -> Option<String> {
        let tokens: u32 = self.told.iter().map(|told| told.reasoning_tokens).sum();
        (!self.told.is_empty()).then(|| format!("{{\"reasoning_tokens\":{tokens}}}"))
    }

    /// `finish_reason` of a choice that shows calls or not; a named function gives `stop`.
    fn finish_reason(&self, choice: usize, has_calls: bool) -> &'static str {
        let script = &self.scripts[choice];
        let is_named = matches!(self.ask.choice, Choice::Named(_));
        if has_calls && !is_named && !script.is_length() {
            "tool_calls"
        } else {
            script.finish_reason()
        }
    }

    fn whole_chat_choice(&self, choice: usize, out: &mut String) {
        let script = &self.scripts[choice];
        let told = self.told.get(choice);
        let optional = |text: Option<&str>| text.map_or_else(|| "null".to_owned(), quoted);
        let content = match told {
            None => Some(script.text.as_str()),
            // Under a grammar for calls vLLM leaves an empty text.
            Some(told) if !told.calls.is_empty() && self.ask.choice != Choice::Free => {
                told.content.as_deref().or(Some(""))
            }
            Some(told) => told.content.as_deref(),
        };
        let _ = write!(
            out,
            "{{\"index\":{choice},\"message\":{{\"role\":\"assistant\",\"content\":{},\"refusal\":null,\"annotations\":null,\"audio\":null,\"function_call\":null",
            optional(content)
        );
        let calls = told.map(|told| told.calls.as_slice()).unwrap_or_default();
        if !calls.is_empty() {
            let one = |(place, (name, arguments)): (usize, &(String, String))| {
                let id = mix(mix_text(self.created, &self.id), place as u64);
                format!(
                    "{{\"id\":\"chatcmpl-tool-{id:016x}\",\"type\":\"function\",\"function\":{{\"name\":{},\"arguments\":{}}}}}",
                    quoted(name),
                    quoted(arguments)
                )
            };
            let calls: Vec<String> = calls.iter().enumerate().map(one).collect();
            let _ = write!(out, ",\"tool_calls\":[{}]", calls.join(","));
        }
        let reasoning = optional(told.and_then(|told| told.reasoning.as_deref()));
        let _ = write!(out, ",\"reasoning\":{reasoning}}},\"logprobs\":");
        match self.ask.logprobs {
            Some(alternatives) => chat_logprobs(script, 0..script.tokens(), alternatives, out),
            None => out.push_str("null"),
        }
        let _ = write!(
            out,
            ",\"finish_reason\":\"{}\",\"stop_reason\":{},\"token_ids\":{},\"routed_experts\":null}}",
            self.finish_reason(choice, !calls.is_empty()),
            stop_reason(script),
            self.token_ids(script, 0..script.tokens())
        );
    }

    fn whole_text_choice(&self, choice: usize, out: &mut String) {
        let script = &self.scripts[choice];
        let echoed = self.echo(choice);
        let _ = write!(
            out,
            "{{\"index\":{choice},\"text\":{},\"logprobs\":",
            quoted(&format!("{echoed}{}", script.text))
        );
        match self.ask.logprobs {
            Some(alternatives) => text_logprobs(script, echoed, 0..script.tokens(), alternatives, out),
            None => out.push_str("null"),
        }
        let _ = write!(
            out,
            ",\"finish_reason\":\"{}\",\"stop_reason\":{},\"token_ids\":{},\"prompt_logprobs\":{},\"prompt_token_ids\":{},\"routed_experts\":null}}",
            script.finish_reason(),
            stop_reason(script),
            self.token_ids(script, 0..script.tokens()),
            self.prompt_logprobs(choice),
            self.prompt_ids(choice)
        );
    }

    fn running_usage(&self, choice: usize, produced: u32, out: &mut String) {
        let prompt = self.prompt_of(choice);
        let _ = write!(
            out,
            ",\"usage\":{{\"prompt_tokens\":{prompt},\"total_tokens\":{},\"completion_tokens\":{produced},\"completion_tokens_details\":null}}",
            prompt + produced
        );
    }

    /// Prompt and completion tokens of the whole request.
    fn counts(&self) -> (u32, u32) {
        let prompt = self.ask.prompts.iter().map(|prompt| prompt.chain.tokens()).sum();
        (prompt, self.scripts.iter().map(Script::tokens).sum())
    }

    /// Tokens of full prompt blocks that this request put into the cache.
    fn created_cache_tokens(&self, cached: u32) -> u32 {
        self.ask
            .prompts
            .first()
            .map_or(0, |prompt| prompt.chain.tokens() / BLOCK_TOKENS * BLOCK_TOKENS)
            .saturating_sub(cached)
    }

    fn prompt_index(&self, choice: usize) -> usize {
        choice / self.ask.n as usize
    }

    fn prompt_of(&self, choice: usize) -> u32 {
        self.ask
            .prompts
            .get(self.prompt_index(choice))
            .map_or(0, |prompt| prompt.chain.tokens())
    }

    fn prompt_ids(&self, choice: usize) -> String {
        let prompt = self
            .ask
            .prompts
            .get(self.prompt_index(choice))
            .filter(|_| self.ask.return_token_ids);
        prompt
            .and_then(|prompt| prompt.ids.as_deref())
            .map_or_else(|| "null".to_owned(), listed)
    }

    /// Logprobs of an echoed prompt: made up, each token the second best.
    fn prompt_logprobs(&self, choice: usize) -> String {
        let echoed = self.echo(choice);
        if echoed.is_empty() || self.ask.logprobs.is_none() {
            return "null".to_owned();
        }
        let one = |(place, piece): (usize, &str)| {
            let id = super::tokens::id(piece);
            let best = super::tokens::id(".");
            match place {
                0 => "null".to_owned(),
                _ => format!(
                    "{{\"{id}\":{{\"logprob\":-1.5,\"rank\":2,\"decoded_token\":{}}},\"{best}\":{{\"logprob\":-0.5,\"rank\":1,\"decoded_token\":\".\"}}}}",
                    quoted(piece)
                ),
            }
        };
        let all: Vec<String> = super::tokens::pieces(echoed).enumerate().map(one).collect();
        format!("[{}]", all.join(","))
    }

    fn echo(&self, choice: usize) -> &str {
        let prompt = self
            .ask
            .prompts
            .get(self.prompt_index(choice))
            .filter(|_| self.ask.echo);
        prompt.and_then(|prompt| prompt.text.as_deref()).unwrap_or_default()
    }

    fn token_ids(&self, script: &Script, tokens: std::ops::Range<u32>) -> String {
        if !self.ask.return_token_ids {
            return "null".to_owned();
        }
        listed(
            script
                .ids
                .get(tokens.start as usize..tokens.end as usize)
                .unwrap_or_default(),
        )
    }
}

/// A JSON string.
pub(super) fn quoted(text: &str) -> String {
    serde_json::to_string(text).unwrap_or_else(|_| "\"\"".to_owned())
}

fn listed(ids: &[u32]) -> String {
    let ids: Vec<String> = ids.iter().map(u32::to_string).collect();
    format!("[{}]", ids.join(","))
}

fn stop_reason(script: &Script) -> String {
    match &script.finish {
        Finish::StopString(stop) => quoted(stop),
        Finish::Stop | Finish::Length => "null".to_owned(),
    }
}

/// A token's text and its made-up, but constant, logprob.
fn logprob(script: &Script, token: u32) -> (String, f64) {
    let text = match script.token_text(token) {
        text if text.is_empty() => END_OF_TURN_TEXT.to_owned(),
        text => text,
    };
    let id = script.ids.get(token as usize).copied().unwrap_or(0);
    (
        text,
        -((mix(u64::from(id), u64::from(token)) % 1_000) as f64 + 1.0) / 1_024.0,
    )
}

/// An alternative that wasn't taken: its text and logprob.
fn alternative(rank: u32, taken: f64) -> (String, f64) {
    (format!(" alt{rank}"), taken - f64::from(rank))
}

fn chat_logprobs(script: &Script, tokens: std::ops::Range<u32>, alternatives: u32, out: &mut String) {
    let entry = |text: &str, logprob: f64| {
        let bytes: Vec<String> = text.bytes().map(|byte| byte.to_string()).collect();
        format!(
            "{{\"token\":{},\"logprob\":{logprob:?},\"bytes\":[{}]",
            quoted(text),
            bytes.join(",")
        )
    };
    out.push_str("{\"content\":[");
    for (place, token) in tokens.enumerate() {
        let (text, taken) = logprob(script, token);
        let mut tops = Vec::new();
        for rank in 0..alternatives {
            let (text, logprob) = if rank == 0 {
                (text.clone(), taken)
            } else {
                alternative(rank, taken)
            };
            tops.push(format!("{}}}", entry(&text, logprob)));
        }
        let comma = if place == 0 { "" } else { "," };
        let _ = write!(
            out,
            "{comma}{},\"top_logprobs\":[{}]}}",
            entry(&text, taken),
            tops.join(",")
        );
    }
    out.push_str("]}");
}

fn text_logprobs(script: &Script, echoed: &str, tokens: std::ops::Range<u32>, alternatives: u32, out: &mut String) {
    let echoed_tokens: Vec<&str> = super::tokens::pieces(echoed).collect();
    let mut texts: Vec<(String, Option<f64>)> = Vec::new();
    for (place, text) in echoed_tokens.iter().enumerate() {
        let known = (place > 0).then(|| -((mix(place as u64, text.len() as u64) % 1_000) as f64 + 1.0) / 1_024.0);
        texts.push(((*text).to_owned(), known));
    }
    texts.extend(
        tokens
            .map(|token| logprob(script, token))
            .map(|(text, taken)| (text, Some(taken))),
    );
    let (mut offset, mut offsets, mut logprobs, mut names, mut tops) = (0, vec![], vec![], vec![], vec![]);
    for (text, taken) in &texts {
        offsets.push(offset.to_string());
        offset += text.chars().count();
        names.push(quoted(text));
        logprobs.push(taken.map_or_else(|| "null".to_owned(), |taken| format!("{taken:?}")));
        tops.push(taken.map_or_else(
            || "null".to_owned(),
            |taken| {
                let others = (1..alternatives.max(1) + 1).map(|rank| alternative(rank, taken));
                let all = std::iter::once((text.clone(), taken)).chain(others);
                let pairs: Vec<String> = all
                    .map(|(text, logprob)| format!("{}:{logprob:?}", quoted(&text)))
                    .collect();
                format!("{{{}}}", pairs.join(","))
            },
        ));
    }
    let _ = write!(
        out,
        "{{\"text_offset\":[{}],\"token_logprobs\":[{}],\"tokens\":[{}],\"top_logprobs\":[{}]}}",
        offsets.join(","),
        logprobs.join(","),
        names.join(","),
        tops.join(",")
    );
}
