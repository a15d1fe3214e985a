//! The past of one conversation on its way to a replica (B30): what may be changed, and which rules are in force for it.
//!
//! `policy::history` says what could be changed; here it is remembered which of it this request needs. A request begins with what
//! its model's template is known to refuse, and gives way where a 400 names something more.

use sluice_policy::history::{Changes, Counts, Rules, refused};
use sluice_policy::protocol::ask::Edit;
use sluice_policy::protocol::fault::{Fault, FaultKind};
use std::sync::atomic::{AtomicU8, Ordering};

/// See the module.
#[derive(Debug, Default)]
pub struct History {
    changes: Changes,
    rules: AtomicU8,
}

impl History {
    /// With what is known of the served template.
    pub fn new(changes: Changes, known: Rules) -> Self {
        History {
            changes,
            rules: AtomicU8::new(known.bits()),
        }
    }

    /// Another model has it from now on: nothing is known but what its template refuses.
    pub fn begin_anew(&self, known: Rules) {
        self.rules.store(known.bits(), Ordering::Relaxed);
    }

    /// The edit of the body; the same for each attempt and each question from now on, until the history gives way.
    pub fn edit(&self) -> Option<Edit<'_>> {
        self.changes.edit(self.rules())
    }

    /// What is changed, by kind.
    pub fn counts(&self) -> Counts {
        self.changes.counts(self.rules())
    }

    /// The rules in force.
    pub fn rules(&self) -> Rules {
        Rules::from_bits(self.rules.load(Ordering::Relaxed))
    }

    /// The replica refused something that can be changed: from now on it is. False: it makes no difference.
    pub fn gives_way(&self, fault: &Fault) -> bool {
        let more = match fault.kind {
            FaultKind::BadRequest => refused(&fault.message),
            _ => None,
        };
        let Some(more) = more.filter(|more| self.changes.gains(self.rules(), *more)) else {
            return false;
        };
        self.rules.fetch_or(more.bits(), Ordering::Relaxed);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use sluice_policy::protocol::ask::{AskLimits, Endpoint, Grants, read};

    #[test]
    fn a_history_gives_way_once_and_only_where_it_can() {
        let body = r#"{"messages":[{"role":"user","content":"a"},{"role":"system","content":"b"}]}"#;
        let ask = read(
            &Endpoint::ChatCompletions,
            Bytes::from(body),
            &AskLimits::default(),
            &Grants::default(),
        )
        .unwrap();
        let history = History::new(Changes::of(&ask.past, &ask.body, None), Rules::NONE);
        let fault = |kind, message| Fault::new(kind, message);
        let system = "System message must be at the beginning.";
        assert!(history.edit().is_none());
        for other in [
            fault(FaultKind::UpstreamFailed(500), system),
            fault(FaultKind::ContextLength, system),
            fault(FaultKind::BadRequest, "Text content must be non-empty."),
            fault(FaultKind::BadRequest, "temperature must be non-negative, got -1.0."),
        ] {
            assert!(!history.gives_way(&other), "{}", other.message);
        }
        assert!(history.gives_way(&fault(FaultKind::BadRequest, system)));
        assert_eq!(history.counts().iter().sum::<u32>(), 1);
        assert!(history.edit().is_some());
        assert!(!history.gives_way(&fault(FaultKind::BadRequest, system)));
    }
}
