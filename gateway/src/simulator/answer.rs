//! What the simulated model says: thinking, a call or a text, the same for the same seed and request.
//!
//! Enters: an [`Ask`]. Leaves: one [`Script`] for each choice. A text begins with `[simulated]`, and so does the
//! thinking, so that no answer can be mistaken for a real one; calls and structured outputs stay clean, as they must
//! be valid.
use super::ask::{Ask, Choice, Form, Surface};
use super::call::{self, CallKind, Tool};
use super::config::SimConfig;
use super::prompt::spaced;
use super::schema::{self, Optional};
use super::script::{Limits, Script};
use super::tokens::{mix, pieces};

/// What every simulated text begins with.
pub const MARK: &str = "[simulated]";

/// Sentences that texts are made of.
const TEXT: &[&str] = &[
    " This text stands in for an answer.",
    " Nothing here was thought by a model.",
    " It is long enough to look at.",
    " Each word comes when its time is due.",
    " A real server would say more.",
    " The numbers beside it are a model of one.",
];
/// Sentences that thinking is made of.
const THINKING: &[&str] = &[
    " The user wants something.",
    " Let me see what was said before.",
    " There may be a tool for that.",
    " One step after the other.",
    " That should do it.",
    " I check it once more.",
];

/// The answers of a request, prompt by prompt, choice by choice.
pub(super) fn compose(ask: &Ask, config: &SimConfig) -> Vec<Script> {
    let limits = Limits {
        max_tokens: ask.max_tokens,
        stop: ask.stop.clone(),
        include_stop: ask.include_stop,
    };
    let choices = ask
        .prompts
        .iter()
        .flat_map(|prompt| (0..ask.n).map(move |choice| (prompt, choice)));
    choices
        .map(|(prompt, choice)| {
            let dice = mix(mix(config.seed, prompt.chain.fingerprint()), u64::from(choice));
            Script::new(text(ask, config, prompt.text.as_deref(), dice), &limits)
        })
        .collect()
}

fn text(ask: &Ask, config: &SimConfig, prompt: Option<&str>, dice: u64) -> String {
    let begun = prompt.filter(|_| ask.surface == Surface::Completions).and_then(begun);
    if let Some(text) = &ask.knobs.text {
        match begun.map(|begun| begun.strip_prefix(NO_THINKING).unwrap_or(begun)) {
            None | Some("") => return text.clone(),
            // It goes on with that text, if it was the start of it.
            Some(begun) if ask.form == Form::Free => {
                if let Some(rest) = text.strip_prefix(begun) {
                    return rest.to_owned();
                }
            }
            Some(_) => {}
        }
    }
    match &ask.form {
        Form::Json(schema) => return spaced(&schema::instance(schema, Optional::Some, dice)),
        Form::Exactly(text) => return text.clone(),
        Form::Free => {}
    }
    let wanted = length(ask, config, dice);
    // The end-of-turn token counts.
    let budget = wanted.saturating_sub(1) as usize;
    match ask.surface {
        Surface::Chat => chat(ask, config, budget, dice),
        // A model stops behind its calls.
        Surface::Completions if begun.is_some_and(|begun| begun.ends_with("</tool_call>")) => String::new(),
        Surface::Completions => filled(opening(begun), TEXT, budget, dice),
    }
}

/// Tokens that the answer should have.
fn length(ask: &Ask, config: &SimConfig, dice: u64) -> u32 {
    let span = u64::from(config.answer_tokens_max - config.answer_tokens_min) + 1;
    let drawn = config.answer_tokens_min + (mix(dice, 4) % span) as u32;
    let wanted = ask.knobs.tokens.unwrap_or(drawn).max(ask.min_tokens);
    if ask.ignore_eos { ask.max_tokens + 1 } else { wanted }
}

/// What the template puts there where the model may not think.
const NO_THINKING: &str = "<think>\n\n</think>\n\n";

/// What a prompt holds of an answer already; none if it isn't a rendered conversation.
pub(super) fn begun(prompt: &str) -> Option<&str> {
    prompt.rsplit_once("<|im_start|>assistant\n").map(|(_, begun)| begun)
}

/// How a completion begins: a fresh one with the mark, one that goes on with an answer without it.
fn opening(begun: Option<&str>) -> String {
    match begun {
        Some(begun) if begun.contains("<think>") && !begun.contains("</think>") => format!("\n</think>\n\n{MARK}"),
        Some(begun) if begun.contains(MARK) => String::new(),
        _ => MARK.to_owned(),
    }
}

fn chat(ask: &Ask, config: &SimConfig, budget: usize, dice: u64) -> String {
    let share = ask.knobs.reasoning_share.unwrap_or(config.reasoning_share);
    let call = call_for(ask);
    let mut out = String::new();
    if ask.thinking && share > 0.0 {
        // The tags and the line breaks around them are five tokens.
        let inside = ((budget as f64 * share) as usize).saturating_sub(5).max(1);
        out.push_str("<think>\n");
        out.push_str(&filled(MARK.to_owned(), THINKING, inside, mix(dice, 5)));
        if let Some((tool, CallKind::InThink)) = call {
            out.push('\n');
            out.push_str(&call::write(tool, CallKind::InThink, dice));
        }
        out.push_str("\n</think>\n\n");
    }
    match call {
        Some((tool, kind)) if kind != CallKind::InThink => {
            let text = call::write(tool, kind, dice);
            if kind == CallKind::TextAround {
                out.push_str(&format!("{MARK} {text}"))
            } else {
                out.push_str(&text)
            }
        }
        _ => {
            out.push_str(MARK);
            match ask.results {
                0 => {}
                1 => out.push_str(" I saw 1 tool result."),
                many => out.push_str(&format!(" I saw {many} tool results.")),
            }
            out = filled(out, TEXT, budget, mix(dice, 6));
            if ask.knobs.tokens.is_some() {
                out = pieces(&out).take(budget).collect();
            }
        }
    }
    out
}

/// The tool to call and how, if this turn is one for a call.
fn call_for(ask: &Ask) -> Option<(&Tool, CallKind)> {
    let kind = ask.knobs.call.unwrap_or(CallKind::Good);
    if kind == CallKind::None || ask.tools.is_empty() {
        return None;
    }
    match &ask.choice {
        Choice::Named(name) => ask
            .tools
            .iter()
            .find(|tool| tool.name == *name)
            .map(|tool| (tool, kind)),
        Choice::Required => Some((fitting(ask), kind)),
        Choice::Free if ask.results > 0 => None,
        Choice::Free => Some((fitting(ask), kind)),
    }
}

/// The first tool that shares most words with the question.
fn fitting(ask: &Ask) -> &Tool {
    let question = ask.question.to_lowercase();
    let asked: Vec<&str> = words(&question).collect();
    let score = |tool: &Tool| {
        let about = format!("{} {}", tool.name, tool.description).to_lowercase();
        words(&about).filter(|word| asked.contains(word)).count()
    };
    let best = ask.tools.iter().map(score).max().unwrap_or(0);
    ask.tools
        .iter()
        .find(|tool| score(tool) == best)
        .unwrap_or(&ask.tools[0])
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_alphanumeric()).filter(|word| word.len() > 3)
}

/// `start` and sentences after it, cut to exactly `tokens` tokens (or `start`'s, if it has more).
fn filled(start: String, sentences: &[&str], tokens: usize, dice: u64) -> String {
    let mut out = start;
    let mut count = pieces(&out).count();
    let mut turn = 0;
    while count < tokens {
        let sentence = sentences[(mix(dice, turn) % sentences.len() as u64) as usize];
        turn += 1;
        for piece in pieces(sentence) {
            if count == tokens {
                break;
            }
            out.push_str(piece);
            count += 1;
        }
    }
    out
}
