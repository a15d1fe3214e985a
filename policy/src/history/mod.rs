//! The past of a conversation, made safe before it is sent (B30).
//!
//! What the request reader noted of past turns enters ([`Past`]), changes of the body leave ([`Changes`]): bytes put in the place of
//! bytes, never a message written anew, never one moved. Each change follows from the messages up to its own and the
//! request's tools, so that a turn is the same bytes in every later request and the KV prefix stays.
//!
//! | kind | what | when |
//! | --- | --- | --- |
//! | `arguments_repaired`, `arguments_stubbed` | arguments of a past call that aren't a JSON object: mended, else `{}` | always: vLLM refuses them for ever (0.12), or forgets them (0.32) |
//! | `arguments_quoted` | arguments that are an object, not a string with one in it | always |
//! | `call_completed` | a past call without id or type gets it | always |
//! | `result_matched` | a tool result without a call id gets that of the first call before it without a result | always |
//! | `system_as_user` | a system message that isn't the first one speaks as the user | where the served template refuses it |
//! | `empty_turn` | a turn that says nothing is left out | the same |
//!
//! `note` (what the reader keeps) → `arguments`, `results`, `template` (what is changed) → [`Changes::in_force`].

mod arguments;
mod note;
mod results;
mod template;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::ops::Range;

pub use self::note::Past;
pub(crate) use self::note::{Draft, Role};
pub use self::template::refused;
use crate::protocol::ask::{Edit, Patch};
use crate::tool_call::ToolSet;

/// One change: new bytes in the place of others, as offsets of the body.
#[derive(Clone, PartialEq, Eq)]
pub struct Change {
    /// What is replaced; empty where something is put in.
    pub at: Range<usize>,
    /// What stands there then.
    pub new: String,
    /// Why.
    pub kind: Kind,
}

/// Without the text, which is the client's.
impl std::fmt::Debug for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}@{:?}", self.kind.name(), self.at)
    }
}

/// Kinds of changes: a closed set, the label of the metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Past arguments were mended.
    ArgumentsRepaired,
    /// Past arguments could not be mended and became `{}`.
    ArgumentsStubbed,
    /// Past arguments that were an object became a string.
    ArgumentsQuoted,
    /// A past call got the id or type that it lacked.
    CallCompleted,
    /// A tool result got its call's id.
    ResultMatched,
    /// A system message in the middle became the user's.
    SystemAsUser,
    /// A turn without content was left out.
    EmptyTurn,
}

impl Kind {
    /// All of them, in the order of [`Counts`].
    pub const ALL: [Kind; 7] = [
        Kind::ArgumentsRepaired,
        Kind::ArgumentsStubbed,
        Kind::ArgumentsQuoted,
        Kind::CallCompleted,
        Kind::ResultMatched,
        Kind::SystemAsUser,
        Kind::EmptyTurn,
    ];

    /// The label.
    pub fn name(self) -> &'static str {
        match self {
            Kind::ArgumentsRepaired => "arguments_repaired",
            Kind::ArgumentsStubbed => "arguments_stubbed",
            Kind::ArgumentsQuoted => "arguments_quoted",
            Kind::CallCompleted => "call_completed",
            Kind::ResultMatched => "result_matched",
            Kind::SystemAsUser => "system_as_user",
            Kind::EmptyTurn => "empty_turn",
        }
    }

    fn applies(self, rules: Rules) -> bool {
        match self {
            Kind::SystemAsUser => rules.contains(Rules::SYSTEM_FIRST),
            Kind::EmptyTurn => rules.contains(Rules::NO_EMPTY_TURNS),
            Kind::ArgumentsRepaired
            | Kind::ArgumentsStubbed
            | Kind::ArgumentsQuoted
            | Kind::CallCompleted
            | Kind::ResultMatched => true,
        }
    }
}

/// What a served template refuses, as learned from its 400s.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rules(u8);

impl Rules {
    /// Nothing.
    pub const NONE: Rules = Rules(0);
    /// A system message that isn't the first.
    pub const SYSTEM_FIRST: Rules = Rules(1);
    /// A turn without content.
    pub const NO_EMPTY_TURNS: Rules = Rules(2);

    /// Both together.
    #[must_use]
    pub fn and(self, other: Rules) -> Rules {
        Rules(self.0 | other.0)
    }

    /// All of `other` are among these.
    pub fn contains(self, other: Rules) -> bool {
        self.0 & other.0 == other.0
    }

    /// As bits, for whoever keeps them in an atomic.
    pub fn bits(self) -> u8 {
        self.0
    }

    /// From [`Rules::bits`].
    pub fn from_bits(bits: u8) -> Rules {
        Rules(bits & 3)
    }
}

/// What can be changed of one body, in its order.
#[derive(Debug, Clone, Default)]
pub struct Changes(Vec<Change>);

/// How many changes of each kind, in the order of [`Kind::ALL`].
pub type Counts = [u32; Kind::ALL.len()];

impl Changes {
    /// All that a past asks for, or may ask for under some template's rules.
    pub fn of(past: &Past, body: &[u8], tools: Option<&ToolSet>) -> Changes {
        let mut changes = Vec::new();
        if !past.is_plain() {
            arguments::changes(past, body, tools, &mut changes);
            results::changes(past, body, &mut changes);
            template::changes(past, &mut changes);
            changes.sort_by_key(|change| (change.at.start, change.at.end));
        }
        Changes(changes)
    }

    /// Those that are made under these rules: in order, and none inside another one.
    pub fn in_force(&self, rules: Rules) -> impl Iterator<Item = &Change> {
        let mut done = 0;
        let applying = self.0.iter().filter(move |change| change.kind.applies(rules));
        applying.filter(move |change| {
            let free = change.at.start >= done;
            done = done.max(change.at.end);
            free
        })
    }

    /// The edit that makes them; none if there are none.
    pub fn edit(&self, rules: Rules) -> Option<Edit<'_>> {
        let patches = self.in_force(rules).map(|change| Patch {
            at: change.at.clone(),
            new: Cow::Borrowed(change.new.as_bytes()),
        });
        let patches: Vec<_> = patches.collect();
        (!patches.is_empty()).then_some(Edit::Patch("messages", patches))
    }

    /// How many those are.
    pub fn counts(&self, rules: Rules) -> Counts {
        let mut counts = Counts::default();
        for change in self.in_force(rules) {
            for (count, _) in counts
                .iter_mut()
                .zip(Kind::ALL)
                .filter(|(_, kind)| *kind == change.kind)
            {
                *count += 1;
            }
        }
        counts
    }

    /// These rules would change something that stands now.
    pub fn gains(&self, now: Rules, more: Rules) -> bool {
        !now.contains(more)
            && self
                .0
                .iter()
                .any(|change| change.kind.applies(now.and(more)) && !change.kind.applies(now))
    }
}
