//! Server-sent events, cut out of a byte stream.
//!
//! Bytes in, `Event`s out. An event that lies within one input chunk is a slice of it; only one that spans chunks is
//! copied. Line ends may be LF, CRLF or CR, mixed; comments, `id:` and `event:` fields are kept in `raw` and otherwise
//! ignored; a byte order mark at the start is skipped. Any split of the same bytes gives the same events: a CR at the end
//! of a chunk waits for the next byte, because an LF there would belong to it. Nothing here knows JSON: see `chat`.

use bytes::{Bytes, BytesMut};
use memchr::memchr2;
use thiserror::Error;

/// The frame that ends an OpenAI stream.
pub const DONE: &[u8] = b"data: [DONE]\n\n";
/// A comment: shows a waiting client that the stream lives, and clients ignore it.
pub const KEEP_ALIVE: &[u8] = b": keep-alive\n\n";
/// Default of the largest event that is accepted, in bytes.
pub const EVENT_LIMIT_BYTES: usize = 16 << 20;

/// One event as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The bytes as received, with the blank line that ends the event.
    pub raw: Bytes,
    /// The payload: a slice of `raw` if there is one data line, lines joined by LF if there are more, empty for a comment.
    pub data: Bytes,
}

/// Why a stream can't be decoded any further.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum SseError {
    /// An event is longer than the decoder's limit.
    #[error("an event of the upstream is longer than {limit_bytes} bytes")]
    TooLong {
        /// The limit that was given to [`Decoder::new`].
        limit_bytes: usize,
    },
}

/// Cuts one stream into events. After an error it must not be used again.
#[derive(Debug)]
pub struct Decoder {
    limit_bytes: usize,
    /// The beginning of an event whose end has not come.
    partial: BytesMut,
    progress: Progress,
    at_start: bool,
}

impl Decoder {
    /// A decoder that accepts events of at most `limit_bytes`.
    pub fn new(limit_bytes: usize) -> Self {
        Self {
            limit_bytes,
            partial: BytesMut::new(),
            progress: Progress::default(),
            at_start: true,
        }
    }

    /// Appends to `out` each event that ends within `input`.
    ///
    /// # Errors
    /// [`SseError::TooLong`]; the events before the long one are in `out`.
    pub fn push(&mut self, input: Bytes, out: &mut Vec<Event>) -> Result<(), SseError> {
        let mut from = 0;
        while !self.partial.is_empty() {
            match self.complete(&input, from)? {
                Some((raw, next)) => {
                    from = next;
                    self.emit(raw, out)?;
                }
                None => return Ok(()),
            }
        }
        while let Some(rest) = input.get(from..).filter(|rest| !rest.is_empty()) {
            match self.progress.scan(rest) {
                Some(len) => {
                    self.emit(input.slice(from..from + len), out)?;
                    from += len;
                }
                None => {
                    self.partial.extend_from_slice(rest);
                    return self.within_limit(rest.len());
                }
            }
        }
        Ok(())
    }

    /// At the end of the stream: an event whose blank line ended in a bare CR is complete after all. Anything else that
    /// is left was cut off and stays visible through [`is_empty`](Self::is_empty).
    ///
    /// # Errors
    /// [`SseError::TooLong`].
    pub fn finish(&mut self, out: &mut Vec<Event>) -> Result<(), SseError> {
        if self.progress.awaits_lf && self.progress.line_start == self.progress.next && self.progress.next > 0 {
            let raw = self.partial.split().freeze();
            self.emit(raw, out)?;
        }
        Ok(())
    }

    /// True if no event is cut off: the stream may end here.
    pub fn is_empty(&self) -> bool {
        self.partial.is_empty()
    }

    /// Copies `input` line by line behind the partial event until that is complete; also says where to go on.
    fn complete(&mut self, input: &Bytes, mut from: usize) -> Result<Option<(Bytes, usize)>, SseError> {
        loop {
            let rest = input.get(from..).unwrap_or_default();
            if rest.is_empty() {
                self.within_limit(self.partial.len())?;
                return Ok(None);
            }
            let line = match memchr2(b'\n', b'\r', rest) {
                _ if self.progress.awaits_lf => 1,
                Some(end) => end + 1,
                None => rest.len(),
            };
            self.partial.extend_from_slice(rest.get(..line).unwrap_or_default());
            from += line;
            if let Some(len) = self.progress.scan(&self.partial) {
                // The byte that was looked at behind a CR may belong to the next event.
                let surplus = self.partial.len() - len;
                let raw = self.partial.split_to(len).freeze();
                self.partial.clear();
                return Ok(Some((raw, from - surplus)));
            }
            self.within_limit(self.partial.len())?;
        }
    }

    fn within_limit(&self, len: usize) -> Result<(), SseError> {
        if len > self.limit_bytes {
            Err(SseError::TooLong {
                limit_bytes: self.limit_bytes,
            })
        } else {
            Ok(())
        }
    }

    fn emit(&mut self, raw: Bytes, out: &mut Vec<Event>) -> Result<(), SseError> {
        self.within_limit(raw.len())?;
        let lines = std::mem::take(&mut self.progress).lines;
        let body = if std::mem::take(&mut self.at_start) && raw.starts_with(BOM) {
            BOM.len()
        } else {
            0
        };
        if lines == 0 {
            return Ok(()); // a blank line alone
        }
        let data = payload(&raw, body, lines);
        out.push(Event { raw, data });
        Ok(())
    }
}

/// `data` (one line) as a frame.
pub fn frame(data: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(data.len() + 8);
    frame.extend_from_slice(b"data: ");
    frame.extend_from_slice(data);
    frame.extend_from_slice(b"\n\n");
    frame.freeze()
}

const BOM: &[u8] = b"\xEF\xBB\xBF";

/// How far the current event has been looked at, so that no byte is searched twice.
#[derive(Clone, Copy, Debug, Default)]
struct Progress {
    /// Start of the current line.
    line_start: usize,
    /// First byte not yet searched.
    next: usize,
    /// Lines that aren't blank.
    lines: usize,
    /// The byte at `next` is a CR and the last one so far.
    awaits_lf: bool,
}

impl Progress {
    /// Length of the event at the start of `bytes`, or `None` if its end has not come.
    fn scan(&mut self, bytes: &[u8]) -> Option<usize> {
        self.awaits_lf = false;
        loop {
            let rest = bytes.get(self.next..)?;
            let Some(found) = memchr2(b'\n', b'\r', rest) else {
                self.next = bytes.len();
                return None;
            };
            let line_end = self.next + found;
            self.next = line_end;
            let after = match (bytes.get(line_end), bytes.get(line_end + 1)) {
                (Some(b'\r'), Some(b'\n')) => line_end + 2,
                (Some(b'\r'), None) => {
                    self.awaits_lf = true;
                    return None;
                }
                _ => line_end + 1,
            };
            let blank = line_end == self.line_start;
            (self.line_start, self.next) = (after, after);
            if blank {
                return Some(after);
            }
            self.lines += 1;
        }
    }
}

/// The data of an event with `lines` lines that aren't blank; `body` is where its first line starts.
fn payload(raw: &Bytes, body: usize, lines: usize) -> Bytes {
    let text = raw.get(body..).unwrap_or_default();
    if lines == 1 {
        let line = without_line_ends(text);
        return match data_of(line) {
            Some(skip) => raw.slice(body + skip..body + line.len()),
            None => Bytes::new(),
        };
    }
    let mut joined: Option<BytesMut> = None;
    for line in text.split(|&byte| byte == b'\n' || byte == b'\r') {
        let Some(data) = data_of(line).and_then(|skip| line.get(skip..)) else {
            continue;
        };
        match &mut joined {
            Some(joined) => {
                joined.extend_from_slice(b"\n");
                joined.extend_from_slice(data);
            }
            none => *none = Some(BytesMut::from(data)),
        }
    }
    joined.map(BytesMut::freeze).unwrap_or_default()
}

/// Length of `data:` and the one space that may follow, if `line` is a data line.
fn data_of(line: &[u8]) -> Option<usize> {
    match line.strip_prefix(b"data") {
        Some([]) => Some(4), // a field without a colon has an empty value
        Some([b':', b' ', ..]) => Some(6),
        Some([b':', ..]) => Some(5),
        _ => None,
    }
}

/// A single line without its end and without the blank line behind it.
fn without_line_ends(mut line: &[u8]) -> &[u8] {
    while let [rest @ .., b'\n' | b'\r'] = line {
        line = rest;
    }
    line
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn decode(pieces: &[&[u8]]) -> Vec<Event> {
        let mut decoder = Decoder::new(EVENT_LIMIT_BYTES);
        let mut out = Vec::new();
        for piece in pieces {
            decoder.push(Bytes::copy_from_slice(piece), &mut out).unwrap();
        }
        decoder.finish(&mut out).unwrap();
        out
    }

    fn check(stream: &str, want: &[&str]) {
        let whole = decode(&[stream.as_bytes()]);
        let data: Vec<_> = whole
            .iter()
            .map(|event| String::from_utf8(event.data.to_vec()).unwrap())
            .collect();
        assert_eq!(data, want, "{stream:?}");
        for cut in 0..=stream.len() {
            let (a, b) = stream.as_bytes().split_at(cut);
            assert_eq!(decode(&[a, b]), whole, "{stream:?} cut at {cut}");
        }
        let bytes: Vec<_> = stream.as_bytes().chunks(1).collect();
        assert_eq!(decode(&bytes), whole, "{stream:?} in single bytes");
    }

    #[test]
    fn line_ends_comments_and_fields() {
        check("data: a\n\ndata: b\n\n", &["a", "b"]);
        check("data: a\r\n\r\ndata: b\r\n\r\n", &["a", "b"]);
        check("data: a\r\rdata: b\r\r", &["a", "b"]);
        check("data: a\n\r\ndata: b\r\n\n", &["a", "b"]);
        check("data:a\n\ndata:  b\n\n", &["a", " b"]);
        check("data: one\ndata: two\n\n", &["one\ntwo"]);
        check("data: one\r\ndata:\r\ndata: two\r\n\r\n", &["one\n\ntwo"]);
        check(": hello\n\ndata: a\n\n", &["", "a"]);
        check("event: x\nid: 7\ndata: a\nretry: 3\n\n", &["a"]);
        check("data\n\ndatax: a\n\n", &["", ""]);
        check("\u{feff}data: a\n\n\u{feff}data: b\n\n", &["a", ""]);
        check("\n\n\r\n\rdata: a\n\n", &["a"]);
        check("data: a\n\ndata: cut", &["a"]);
        check("data: a\n", &[]);
        check("data: é\u{2028}\n\n", &["é\u{2028}"]);
    }

    #[test]
    fn an_event_in_one_chunk_is_a_slice_of_it() {
        let input = Bytes::from_static(b"data: {\"a\":1}\n\ndata: [DONE]\n\n");
        let mut out = Vec::new();
        Decoder::new(64).push(input.clone(), &mut out).unwrap();
        let inside = input.as_ptr_range();
        assert!(
            out.iter()
                .all(|event| inside.contains(&event.raw.as_ptr()) && inside.contains(&event.data.as_ptr()))
        );
        assert_eq!(out.last().map(|event| &event.raw[..]), Some(DONE));
    }

    #[test]
    fn the_limit_holds_for_every_split() {
        let event = b"data: 0123456789\n\n";
        for limit in 0..event.len() + 3 {
            for size in 1..=event.len() {
                let mut decoder = Decoder::new(limit);
                let mut out = Vec::new();
                let result = event
                    .chunks(size)
                    .try_for_each(|piece| decoder.push(Bytes::copy_from_slice(piece), &mut out));
                let want = if event.len() > limit {
                    Err(SseError::TooLong { limit_bytes: limit })
                } else {
                    Ok(())
                };
                assert_eq!(result, want, "limit {limit}, pieces of {size}");
            }
        }
    }

    #[test]
    fn what_is_cut_off_is_visible() {
        let mut decoder = Decoder::new(64);
        let mut out = Vec::new();
        decoder
            .push(Bytes::from_static(b"data: a\n\ndata: b\n"), &mut out)
            .unwrap();
        assert!(!decoder.is_empty());
        decoder.push(Bytes::from_static(b"\n"), &mut out).unwrap();
        assert!(decoder.is_empty());
        assert_eq!(out.len(), 2);
    }

    #[test]
    fn frames_read_back() {
        let event = decode(&[&frame(b"{}")]).remove(0);
        assert_eq!((&event.data[..], &event.raw[..]), (&b"{}"[..], &b"data: {}\n\n"[..]));
    }

    proptest! {
        #[test]
        fn any_bytes_any_split(bytes in proptest::collection::vec(prop_oneof![
                Just(b'\n'), Just(b'\r'), Just(b':'), Just(b' '), Just(b'd'), any::<u8>()], 0..80),
            cuts in proptest::collection::vec(0usize..80, 0..6)) {
            let whole = decode(&[&bytes]);
            let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
            cuts.sort_unstable();
            let mut pieces = Vec::new();
            let mut from = 0;
            for cut in cuts.into_iter().chain([bytes.len()]) {
                pieces.push(&bytes[from..cut]);
                from = cut;
            }
            prop_assert_eq!(decode(&pieces), whole);
        }
    }
}
