//! Is what arrived what was told? Every answer is whole, refused with a reason, ended by an honest error event, or left by the client;
//! all else is [`Wrong`], and a defect.
//!
//! | arrived | verdict |
//! | --- | --- |
//! | all that was told, one id, one role, the right finish, usage, `[DONE]` once and last | `Whole` |
//! | a status of 429 or 5xx with code and message | `Refused` |
//! | a beginning of what was told, one error event with code and message, no `[DONE]` | `ErrorEvent` |
//! | a beginning, and the client left, or didn't read for longer than it may | `Left` |
//! | anything else | `Wrong` |

use serde_json::Value;
use std::fmt;

use super::heard::{Heard, HeardChoice};
use super::told::{TOOL, Wanted};

/// A good end.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Verdict {
    /// All of it.
    Whole,
    /// A status with a reason.
    Refused(u16, String),
    /// An error event with a reason.
    ErrorEvent(String),
    /// By the client's own doing.
    Left,
}

/// A defect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Wrong {
    /// A piece is missing, the first one here.
    Lost(String),
    /// A piece came twice.
    Doubled(String),
    /// Something that wasn't told: another request's words, a second id, a wrong finish.
    Other(String),
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Wrong::Lost(what) => write!(f, "lost: {what}"),
            Wrong::Doubled(what) => write!(f, "doubled: {what}"),
            Wrong::Other(what) => write!(f, "wrong: {what}"),
        }
    }
}

/// How the connection of a stream ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Close {
    /// As HTTP ends a body.
    Proper,
    /// Without that.
    Broken,
    /// Not at all, for longer than anybody waits.
    Never,
    /// The client left, or was cut off because it didn't read.
    ByClient,
}

fn other<T>(what: impl Into<String>) -> Result<T, Wrong> {
    Err(Wrong::Other(what.into()))
}

/// Of a status other than 200.
pub(super) fn refusal(status: u16, body: &[u8]) -> Result<Verdict, Wrong> {
    let heard = Heard::whole(body);
    match heard.errors.first() {
        Some(error) => Ok(Verdict::Refused(status, reason(error)?)),
        None => other(format!("status {status} without an error object")),
    }
    .and_then(|verdict| match status {
        // All requests here are good ones.
        429 | 500 | 502..=504 => Ok(verdict),
        _ => other(format!(
            "a good request was refused with {status}: {}",
            String::from_utf8_lossy(body)
        )),
    })
}

/// Of a stream with status 200.
pub(super) fn stream(wanted: &Wanted, heard: &Heard, close: Close) -> Result<Verdict, Wrong> {
    if let Some(what) = &heard.unreadable
        && close != Close::ByClient
    {
        return other(what.clone());
    }
    let done = heard.dones == 1;
    shown(wanted, heard, done)?;
    if heard.after_end {
        return other("a data line behind the end");
    }
    match (close, heard.errors.first()) {
        (Close::Never, _) => Err(Wrong::Lost("the end: the stream never ended".to_owned())),
        (Close::ByClient, None) => Ok(Verdict::Left),
        (Close::Broken, None) => Err(Wrong::Lost("the end: the connection broke".to_owned())),
        (_, Some(error)) => Ok(Verdict::ErrorEvent(reason(error)?)),
        (Close::Proper, None) if done => all(wanted, heard).map(|()| Verdict::Whole),
        (Close::Proper, None) => Err(Wrong::Lost("[DONE]: a clean end without a word".to_owned())),
    }
}

/// Of a whole answer with status 200.
pub(super) fn whole(wanted: &Wanted, body: &[u8]) -> Result<Verdict, Wrong> {
    let heard = Heard::whole(body);
    if let Some(what) = &heard.unreadable {
        return other(what.clone());
    }
    if !heard.errors.is_empty() {
        return other("status 200 with an error");
    }
    shown(wanted, &heard, true)?;
    all(wanted, &heard).map(|()| Verdict::Whole)
}

/// What an error says; one of ours inside, or none, is a defect.
fn reason(error: &Value) -> Result<String, Wrong> {
    let text = |field| error.get(field).and_then(Value::as_str).filter(|text| !text.is_empty());
    match (text("message"), text("code")) {
        (Some(_), Some("internal_error")) => other(format!("an error of the gateway's own: {error}")),
        (Some(_), Some(code)) => Ok(code.to_owned()),
        _ => other(format!("an error without a reason: {error}")),
    }
}

/// What was shown is a beginning of what was told, whatever the end; all of it if it is `complete`.
fn shown(wanted: &Wanted, heard: &Heard, complete: bool) -> Result<(), Wrong> {
    if heard.ids.len() > 1 {
        return other(format!("several ids: {:?}", heard.ids));
    }
    if heard.choices.len() > wanted.choices {
        return other(format!("{} choices", heard.choices.len()));
    }
    let complete = complete && wanted.tokens.is_none();
    for (index, choice) in heard.choices.iter().enumerate() {
        let part = |name: &str, told: &str, said: &str, complete: bool| {
            compare(told, said, complete).map_err(|wrong| match wrong {
                Wrong::Lost(what) => Wrong::Lost(format!("choice {index}, {name}: {what}")),
                Wrong::Doubled(what) => Wrong::Doubled(format!("choice {index}, {name}: {what}")),
                Wrong::Other(what) => Wrong::Other(format!("choice {index}, {name}: {what}")),
            })
        };
        part("reasoning", &wanted.reasoning, &choice.reasoning, complete)?;
        part(
            "reasoning_content",
            &wanted.reasoning,
            &choice.reasoning_content,
            complete,
        )?;
        // Nothing of the text may come before all of the thinking.
        if choice.reasoning != wanted.reasoning && !choice.content.is_empty() {
            part("reasoning before text", &wanted.reasoning, &choice.reasoning, true)?;
        }
        part("content", &wanted.content, &choice.content, complete)?;
        calls(wanted, choice, complete).map_err(|what| Wrong::Other(format!("choice {index}: {what}")))?;
        if let (Some(told), Some(call)) = (&wanted.call, choice.calls.first()) {
            part("content before the call", &wanted.content, &choice.content, true)?;
            part("arguments", told, &call.arguments, complete)?;
        }
        if choice.roles > 1 || choice.after_finish || choice.finishes.len() > 1 {
            return other(format!(
                "choice {index}: {} roles, finishes {:?}, more after the finish: {}",
                choice.roles, choice.finishes, choice.after_finish
            ));
        }
    }
    Ok(())
}

/// Number, ids and names of the calls.
fn calls(wanted: &Wanted, choice: &HeardChoice, complete: bool) -> Result<(), String> {
    let most = usize::from(wanted.call.is_some());
    if choice.calls.len() > most || (complete && choice.calls.len() < most) {
        return Err(format!("{} calls for {most}", choice.calls.len()));
    }
    match choice.calls.first() {
        Some(call) if call.ids.len() != 1 || call.names != [TOOL] => {
            Err(format!("a call with ids {:?} and names {:?}", call.ids, call.names))
        }
        _ => Ok(()),
    }
}

/// What a complete answer must have beside its text.
fn all(wanted: &Wanted, heard: &Heard) -> Result<(), Wrong> {
    if heard.choices.len() != wanted.choices {
        return Err(Wrong::Lost(format!(
            "{} choices of {}",
            heard.choices.len(),
            wanted.choices
        )));
    }
    if heard.ids.is_empty() {
        return other("no id");
    }
    for (index, choice) in heard.choices.iter().enumerate() {
        if choice.finishes != [wanted.finish] {
            return other(format!(
                "choice {index} finished as {:?}, not {}",
                choice.finishes, wanted.finish
            ));
        }
    }
    match heard.usages.as_slice() {
        [] if !wanted.usage => Ok(()),
        [usage] => plausible(wanted, heard, usage),
        more => other(format!("{} figures of usage", more.len())),
    }
}

/// Tokens by the simulator's rule have one to five bytes, tags aside. Where an answer went on, a token may have been counted in two halves.
fn plausible(wanted: &Wanted, heard: &Heard, usage: &Value) -> Result<(), Wrong> {
    let count = |field| usage.get(field).and_then(Value::as_u64).unwrap_or(0);
    let (prompt, said, total) = (
        count("prompt_tokens"),
        count("completion_tokens"),
        count("total_tokens"),
    );
    let mut bytes = 0;
    for choice in &heard.choices {
        let calls: usize = choice.calls.iter().map(|call| call.arguments.len()).sum();
        bytes += (choice.reasoning.len() + choice.content.len() + calls) as u64;
    }
    let right = match wanted.tokens {
        Some(tokens) => said == tokens * wanted.choices as u64,
        // Tags, the call's frame, a stop word, the end of turn.
        None => said >= bytes / 5 && said <= bytes + 64 * wanted.choices as u64,
    };
    if prompt == 0 || total != prompt + said || !right {
        return other(format!("usage {usage} for {bytes} bytes, {:?} tokens", wanted.tokens));
    }
    Ok(())
}

/// `said` against what was told: equal, or its beginning.
fn compare(told: &str, said: &str, complete: bool) -> Result<(), Wrong> {
    if told == said || (!complete && told.starts_with(said)) {
        return Ok(());
    }
    let same = told
        .bytes()
        .zip(said.bytes())
        .take_while(|(told, said)| told == said)
        .count();
    let word = |text: &str| {
        let start = text
            .get(..same)
            .and_then(|text| text.rfind(' '))
            .map_or(0, |space| space + 1);
        let word = text.get(start..).unwrap_or_default();
        word.split(' ').next().unwrap_or_default().trim().to_owned()
    };
    let (due, came) = (word(told), word(said));
    let what = format!("at byte {same} {came:?} instead of {due:?}");
    if said.len() == same {
        return Err(Wrong::Lost(what));
    }
    Err(match (number(&due), number(&came)) {
        (Some((of, due)), Some((whose, came))) if of == whose && came > due => Wrong::Lost(what),
        (Some((of, due)), Some((whose, came))) if of == whose && came < due => Wrong::Doubled(what),
        (None, Some(_)) if due.is_empty() => Wrong::Doubled(what),
        _ => Wrong::Other(what),
    })
}

/// A word's letter and tag, and its number.
fn number(word: &str) -> Option<(&str, u32)> {
    let (tag, number) = word.split_once('.')?;
    Some((tag, number.get(..5).unwrap_or(number).parse().ok()?))
}

#[cfg(test)]
#[path = "judge_tests.rs"]
mod tests;
