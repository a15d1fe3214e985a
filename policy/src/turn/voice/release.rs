//! A call that is shown while it is being written (B20): `certain`, and `auto` past its bounds.
//!
//! What is certain of the open call leaves as the first deltas of it. When the call is whole, its arguments must begin with what was
//! shown, whatever was repaired; then the rest follows. If they don't, or no call comes of it, the answer fails: a byte that was
//! shown is never taken back, and half a call never looks like a clean end.

use super::super::said::{Said, call_id};
use super::Voice;
use super::again::Again;
use super::certain::Certain;
use crate::tool_call::{Call, Reason, Verdict};
use crate::turn::Release;

/// The call that is open.
#[derive(Debug)]
pub(super) struct Open {
    certain: Certain,
    /// Its index, once something of it was shown.
    shown: Option<u32>,
}

impl Voice {
    /// The open call has been held for long.
    pub(in super::super) fn hurry(&mut self) {
        self.hurries = true;
    }

    /// Something of the open call was shown.
    pub(super) fn shows_open(&self) -> bool {
        self.open.as_ref().is_some_and(|open| open.shown.is_some())
    }

    /// Shows what became certain of the open call.
    pub(super) fn release_certain(&mut self, said: &mut Said) {
        let (Some(scanner), Some(tools), Again::Idle) = (&self.scanner, &self.tools, &self.again) else {
            return;
        };
        // Where vLLM tells the calls, one that leaks into the content beside them is held.
        let block = match self.written_back.open_call() {
            None if !self.written_back.has_begun() => scanner.open_call(),
            told => told.filter(|_| !scanner.in_call()),
        };
        let Some(block) = block else {
            self.hurries = false;
            return;
        };
        let due = match self.release {
            Release::Hold => false,
            Release::Certain => true,
            Release::Auto { held_bytes } => self.hurries || block.len() > held_bytes,
        };
        let opens = self.calls_shown < self.call_limit && !self.ends;
        if !due || !(opens || self.shows_open()) {
            return;
        }
        let new = Open {
            certain: Certain::new(),
            shown: None,
        };
        let open = self.open.get_or_insert_with(|| Box::new(new));
        open.certain.read(block, tools);
        let Some(name) = open.certain.name().map(str::to_owned) else {
            return;
        };
        let arguments = open.certain.take(block).to_owned();
        match open.shown {
            Some(_) if arguments.is_empty() => {}
            Some(index) => said.more_arguments(index, &arguments),
            None => {
                let index = self.calls_shown;
                open.shown = Some(index);
                self.close_inline(said);
                let id = call_id(self.id_seed, self.index, index);
                said.add_call(Some(index), &id, &name, &arguments);
                self.calls_shown += 1;
                self.found_calls = true;
            }
        }
    }

    /// The open call is whole: what wasn't shown of it follows.
    pub(super) fn complete_open(&mut self, call: Call, said: &mut Said) {
        let Some(open) = self.open.take() else { return };
        let Some(index) = open.shown else { return };
        self.hurries = false;
        let shown = open.certain.taken(&call.raw);
        match call.arguments.strip_prefix(shown) {
            Some(rest) if open.certain.name() == Some(&*call.name) => {
                if !rest.is_empty() {
                    said.more_arguments(index, rest);
                }
            }
            // A repair that changes what was thought certain: an error, never another call.
            _ => self.denied = true,
        }
        self.judge(call.name, call.verdict);
    }

    /// No call comes of what was shown.
    pub(super) fn break_open(&mut self, reason: Reason) {
        let name = self.open.take().and_then(|open| open.certain.name().map(str::to_owned));
        self.denied = true;
        self.judge(name.unwrap_or_default(), Verdict::Refused(reason));
    }
}

#[cfg(test)]
mod tests;
