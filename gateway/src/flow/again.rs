//! A replica goes on with an answer: `/tokenize` for the ids of the prompt and of the text so far, then `/v1/completions` behind
//! them. The same replica, where a call is asked again (B26); another one, where the first was lost (B31, see `seam`).
//!
//! `policy` says from where on, and what may follow; here it is put into requests. The prompt is tokenized once per answer,
//! from the very fields of the client's body. The guided call is sampled at temperature 0 by a grammar of the tool's schema,
//! what follows it as the client asked for. Dropping what [`Asker::ask`] gives is the cancellation, as everywhere.

use bytes::Bytes;
use http::StatusCode;
use serde::Deserialize;
use serde_json::value::RawValue;
use sluice_policy::protocol::ask::{Ask, Endpoint};
use sluice_policy::protocol::fault::{Fault, FaultKind};
use sluice_policy::turn::{AskAgain, Budget, Guide, Room};
use std::sync::Arc;
use std::time::Instant;

use super::attempt::{self, Live};
use super::exchange::Exchange;
use super::plan;
use crate::upstream::{Replica, Segments};

/// Answers of `/tokenize` are read up to this size: a million tokens.
const TOKENS_BYTES: usize = 8 << 20;

/// Fields of a chat request that its template sees; the messages first, which may be patched.
const TEMPLATE_FIELDS: [&str; 10] = [
    "messages",
    "tools",
    "chat_template",
    "chat_template_kwargs",
    "add_generation_prompt",
    "continue_final_message",
    "add_special_tokens",
    "documents",
    "reasoning_effort",
    "mm_processor_kwargs",
];

/// Fields of a chat request that `/v1/completions` takes too, for text that nothing guides. What counts tokens is set anew.
const SAMPLING_FIELDS: [&str; 17] = [
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "seed",
    "stop",
    "stop_token_ids",
    "include_stop_str_in_output",
    "ignore_eos",
    "logit_bias",
    "bad_words",
    "allowed_token_ids",
    "skip_special_tokens",
    "spaces_between_special_tokens",
];

/// Asks one replica for the rest of one answer.
pub struct Asker {
    exchange: Arc<Exchange>,
    replica: Arc<Replica>,
    /// Known from the first question on.
    prompt: Option<Tokens>,
    /// When the guided call must be there.
    deadline: Instant,
}

/// An answer to a question that has begun.
pub struct Begun {
    /// To be read.
    pub live: Live,
    /// What it may take.
    pub budget: Budget,
    /// Of the first attempt.
    pub prompt_tokens: u64,
}

/// Why there is none.
pub enum Unasked {
    /// No token is left.
    NoRoom {
        /// Of the first attempt.
        prompt_tokens: u64,
    },
    /// The replica failed, or was too slow.
    Failed(Fault),
}

impl From<Fault> for Unasked {
    fn from(fault: Fault) -> Self {
        Unasked::Failed(fault)
    }
}

/// Token ids of a text.
#[derive(Clone, Default)]
struct Tokens {
    count: u64,
    /// The model's context, where a replica said it.
    context: Option<u64>,
    /// JSON numbers with commas between them; cheap to clone.
    ids: Bytes,
}

impl Asker {
    /// Of the replica that gave the answer so far.
    pub fn new(exchange: Arc<Exchange>, replica: Arc<Replica>) -> Self {
        let deadline = Instant::now() + exchange.limits.again.time;
        Asker {
            exchange,
            replica,
            prompt: None,
            deadline,
        }
    }

    /// When the guided call must be there.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// The same answer, from another replica. It serves the same model: the prompt's ids stay.
    pub fn at(self, replica: Arc<Replica>) -> Self {
        Asker { replica, ..self }
    }

    /// Whom it asks.
    pub fn replica_name(&self) -> Arc<str> {
        self.replica.name()
    }

    /// For whom.
    pub fn exchange(&self) -> &Arc<Exchange> {
        &self.exchange
    }

    /// Asks, and gives itself back for the next question.
    pub async fn ask(mut self, question: AskAgain) -> (Self, Result<Begun, Unasked>) {
        let limits = &self.exchange.limits;
        let (until, limit) = match question.guide {
            // A stream's head comes before its first token: only a server that hangs keeps it back.
            Guide::Free if self.exchange.ask.stream => (Instant::now() + limits.stall, limits.stall),
            Guide::Call { .. } => {
                self.deadline = Instant::now() + limits.again.time;
                (self.deadline, limits.again.time)
            }
            Guide::Free => (Instant::now() + limits.answer, limits.answer),
        };
        let asking = self.begin(&question);
        let begun = match tokio::time::timeout_at(until.into(), asking).await {
            Ok(begun) => begun,
            Err(_) => Err(Unasked::Failed(Fault::new(
                FaultKind::UpstreamTimeout,
                format!("The replica did not go on within {limit:?}."),
            ))),
        };
        if let Err(Unasked::Failed(fault)) = &begun {
            tracing::warn!(
                request = %self.exchange.id,
                replica = %self.replica.name(),
                fault = fault.kind.name(),
                "the replica could not go on with an answer"
            );
        }
        (self, begun)
    }

    async fn begin(&mut self, question: &AskAgain) -> Result<Begun, Unasked> {
        let prompt = match self.prompt.take() {
            Some(prompt) => prompt,
            None => match prompt_ids(&self.exchange.ask) {
                Some(ids) => ids,
                None => {
                    self.tokenize(prompt_body(&self.exchange, &self.replica.model()))
                        .await?
                }
            },
        };
        self.prompt = Some(prompt.clone());
        let said = if question.so_far.is_empty() {
            Tokens::default()
        } else {
            self.tokenize(text_body(&question.so_far, &self.replica.model()))
                .await?
        };
        let exchange = &*self.exchange;
        let context = prompt.context.or(said.context).unwrap_or(u64::MAX);
        let budget = question.budget(&Room {
            wanted_tokens: wanted_tokens(&exchange.ask),
            context_tokens: context.saturating_sub(prompt.count + said.count),
            said_tokens: said.count,
            call_tokens: exchange.limits.again.tokens,
        });
        let budget = budget.ok_or(Unasked::NoRoom {
            prompt_tokens: prompt.count,
        })?;
        let body = completion_body(exchange, &self.replica, question, [&prompt, &said], budget)?;
        let id = exchange.again_id(question);
        let live = attempt::send(exchange, &self.replica, "/v1/completions", id, Segments::new(body)).await?;
        Ok(Begun {
            live,
            budget,
            prompt_tokens: prompt.count,
        })
    }

    async fn tokenize(&self, body: Vec<Bytes>) -> Result<Tokens, Unasked> {
        #[derive(Deserialize)]
        struct Wire<'a> {
            count: u64,
            max_model_len: u64,
            #[serde(borrow)]
            tokens: &'a RawValue,
        }
        // No engine has the request: it can't have died of it.
        let not_of_it = |fault: Fault| match fault.kind {
            FaultKind::UpstreamBroke => Fault::new(FaultKind::UpstreamUnreachable, fault.message),
            _ => fault,
        };
        let sent = attempt::send(&self.exchange, &self.replica, "/tokenize", None, Segments::new(body)).await;
        let mut live = sent.map_err(not_of_it)?;
        debug_assert_eq!(live.answer.status(), StatusCode::OK);
        let said = live.answer.collect(TOKENS_BYTES).await;
        let said = said.map_err(|error| not_of_it(attempt::fault_of(&error)))?;
        let unreadable = || Fault::new(FaultKind::UpstreamGarbled, "The replica's tokens can't be read.");
        let wire: Wire<'_> = serde_json::from_slice(&said).map_err(|_| unreadable())?;
        let ids = wire.tokens.get();
        let ids = ids.strip_prefix('[').and_then(|ids| ids.strip_suffix(']'));
        Ok(Tokens {
            count: wire.count,
            context: Some(wire.max_model_len),
            ids: Bytes::copy_from_slice(ids.ok_or_else(unreadable)?.trim().as_bytes()),
        })
    }
}

/// vLLM's own `max_tokens` of `/v1/completions`.
const COMPLETION_TOKENS: u64 = 16;

/// Tokens of each choice that the client wants at most.
fn wanted_tokens(ask: &Ask) -> Option<u64> {
    let unsaid = (ask.endpoint == Endpoint::Completions).then_some(COMPLETION_TOKENS);
    ask.max_tokens.or(unsaid)
}

/// The prompt of a completion that came as token ids.
fn prompt_ids(ask: &Ask) -> Option<Tokens> {
    let raw = ask.raw("prompt").filter(|_| ask.endpoint == Endpoint::Completions)?;
    let inside = raw.strip_prefix(b"[")?.strip_suffix(b"]")?;
    let count = inside.iter().filter(|byte| **byte == b',').count() as u64 + 1;
    Some(Tokens {
        count,
        context: None,
        ids: raw.slice_ref(inside),
    })
}

fn json(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// The prompt as the request made it, past turns as they were sent.
fn prompt_body(exchange: &Exchange, model: &str) -> Vec<Bytes> {
    let ask = &exchange.ask;
    let mut body = vec![Bytes::from(format!("{{\"model\":{}", json(model)))];
    if ask.endpoint == Endpoint::Completions {
        copy_fields(ask, &["prompt", "add_special_tokens"], &mut body);
    } else if let Some(edit) = exchange.history.edit() {
        body.push(Bytes::from_static(b",\"messages\":"));
        body.extend(ask.patched(&edit));
        copy_fields(ask, &TEMPLATE_FIELDS[1..], &mut body);
    } else {
        copy_fields(ask, &TEMPLATE_FIELDS, &mut body);
    }
    body.push(Bytes::from_static(b"}"));
    body
}

fn copy_fields(ask: &Ask, fields: &[&str], body: &mut Vec<Bytes>) {
    for field in fields {
        if let Some(value) = ask.raw(field) {
            body.push(Bytes::from(format!(",\"{field}\":")));
            body.push(value);
        }
    }
}

fn text_body(text: &str, model: &str) -> Vec<Bytes> {
    vec![Bytes::from(format!(
        "{{\"model\":{},\"prompt\":{},\"add_special_tokens\":false}}",
        json(model),
        json(text)
    ))]
}

fn completion_body(
    exchange: &Exchange,
    replica: &Replica,
    question: &AskAgain,
    [prompt, said]: [&Tokens; 2],
    budget: Budget,
) -> Result<Vec<Bytes>, Fault> {
    let ask = &exchange.ask;
    let mut body = vec![Bytes::from(format!(
        "{{\"model\":{},\"prompt\":[",
        json(&replica.model())
    ))];
    let mut comma = "";
    for ids in [&prompt.ids, &said.ids].into_iter().filter(|ids| !ids.is_empty()) {
        body.push(Bytes::from_static(std::mem::replace(&mut comma, ",").as_bytes()));
        body.push(ids.clone());
    }
    let mut rest = format!("],\"max_tokens\":{}", budget.tokens);
    if ask.stream {
        rest.push_str(",\"stream\":true,\"stream_options\":{\"include_usage\":true}");
    }
    if let Guide::Call { tool } = &question.guide {
        let grammar = plan::call_grammar(ask, tool.as_deref())
            .ok_or_else(|| Fault::new(FaultKind::Internal, "No tool of the request can be asked for."))?;
        rest.push_str(",\"temperature\":0,\"structured_outputs\":");
        rest.push_str(&grammar);
    }
    body.push(Bytes::from(rest));
    if question.guide == Guide::Free {
        copy_fields(ask, &SAMPLING_FIELDS, &mut body);
        let least = ask
            .raw("min_tokens")
            .and_then(|raw| serde_json::from_slice::<u64>(&raw).ok());
        let least = least.unwrap_or_default().saturating_sub(said.count).min(budget.tokens);
        if least > 0 {
            body.push(Bytes::from(format!(",\"min_tokens\":{least}")));
        }
    }
    copy_fields(ask, &["cache_salt"], &mut body);
    body.push(Bytes::from_static(b"}"));
    Ok(body)
}
