//! Frames on their way out: neighbours that leave as they came are one slice of the input, rewritten ones share one buffer.

use bytes::Bytes;

use super::{Frame, Shows, Step};
use crate::protocol::chat::Edits;

/// Collects the frames of one push.
#[derive(Debug, Default)]
pub(super) struct Outlet {
    /// The input of this push.
    source: Bytes,
    run: Run,
}

/// Neighbouring frames that can leave together.
#[derive(Debug, Default)]
enum Run {
    #[default]
    Empty,
    /// This part of the input.
    Slice { start: usize, end: usize, shows: Shows },
    /// New text.
    Written { bytes: Vec<u8>, shows: Shows },
}

impl Outlet {
    /// Another input begins.
    pub(super) fn open(&mut self, source: Bytes) {
        self.source = source;
    }

    /// The frame `raw` as it came.
    pub(super) fn forward(&mut self, raw: &Bytes, shows: Shows, out: &mut Vec<Step>) {
        let Some(start) = self.offset(raw) else {
            // It began in an earlier input.
            self.flush(out);
            out.push(Step::Emit(Frame {
                bytes: raw.clone(),
                shows,
            }));
            return;
        };
        let stop = start + raw.len();
        match &mut self.run {
            Run::Slice { end, shows: so_far, .. } if *end == start => {
                *end = stop;
                *so_far = so_far.or(shows);
            }
            _ => {
                self.flush(out);
                self.run = Run::Slice {
                    start,
                    end: stop,
                    shows,
                };
            }
        }
    }

    /// The data line `text` with `edits`.
    pub(super) fn write(&mut self, text: &str, edits: &mut Edits, shows: Shows, out: &mut Vec<Step>) {
        if !matches!(self.run, Run::Written { .. }) {
            self.flush(out);
            let bytes = Vec::with_capacity(text.len() + edits.len() + 8);
            self.run = Run::Written {
                bytes,
                shows: Shows::Nothing,
            };
        }
        if let Run::Written { bytes, shows: so_far } = &mut self.run {
            bytes.extend_from_slice(b"data: ");
            edits.apply(text, bytes);
            bytes.extend_from_slice(b"\n\n");
            *so_far = so_far.or(shows);
        }
    }

    /// What is collected leaves.
    pub(super) fn flush(&mut self, out: &mut Vec<Step>) {
        let frame = match std::mem::take(&mut self.run) {
            Run::Empty => return,
            Run::Slice { start, end, shows } => Frame {
                bytes: self.source.slice(start..end),
                shows,
            },
            Run::Written { bytes, shows } => Frame {
                bytes: Bytes::from(bytes),
                shows,
            },
        };
        out.push(Step::Emit(frame));
    }

    /// The input was used up.
    pub(super) fn close(&mut self, out: &mut Vec<Step>) {
        self.flush(out);
        self.source = Bytes::new();
    }

    fn offset(&self, raw: &Bytes) -> Option<usize> {
        let start = (raw.as_ptr() as usize).checked_sub(self.source.as_ptr() as usize)?;
        (start + raw.len() <= self.source.len()).then_some(start)
    }
}
