//! The SSE decoder: any bytes, cut anywhere.
//!
//! Holds: no panic; the same events however the bytes are cut; the events' raw bytes are the input's, in order, and nothing
//! is left out but blank lines between them and an unfinished event at the end.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use sluice_policy::protocol::sse::{Decoder, Event, SseError};

#[path = "cuts.rs"]
mod cuts;

const BOM: &[u8] = "\u{feff}".as_bytes();

fuzz_target!(|input: &[u8]| {
    let [limit, seed, stream @ ..] = input else { return };
    // Small limits are hit, large ones never.
    let limit = if *limit < 128 { usize::from(*limit) + 1 } else { 1 << 20 };
    let (whole, ended, complete) = decode(limit, std::iter::once(stream));
    let (parts, ended_in_parts, complete_in_parts) = decode(limit, cuts::cut(stream, *seed));
    assert_eq!(whole, parts, "the cut shows");
    assert_eq!(ended.is_err(), ended_in_parts.is_err());

    let mut rest = stream.strip_prefix(BOM).unwrap_or(stream);
    for event in &whole {
        let raw = event.raw.strip_prefix(BOM).unwrap_or(&event.raw);
        rest = without_blank_lines(rest)
            .strip_prefix(raw)
            .expect("an event's bytes are those received, in order");
    }
    if ended.is_ok() {
        assert_eq!(complete, complete_in_parts);
        assert!(
            !complete || without_blank_lines(rest).is_empty(),
            "bytes are left although no event is cut off"
        );
    }
});

/// The events, how it ended, and whether nothing is left.
fn decode<'a>(limit: usize, parts: impl Iterator<Item = &'a [u8]>) -> (Vec<Event>, Result<(), SseError>, bool) {
    let (mut decoder, mut events) = (Decoder::new(limit), Vec::new());
    let mut ended = Ok(());
    for part in parts {
        ended = decoder.push(Bytes::copy_from_slice(part), &mut events);
        if ended.is_err() {
            break;
        }
    }
    let ended = ended.and_then(|()| decoder.finish(&mut events));
    let complete = decoder.is_empty();
    (events, ended, complete)
}

fn without_blank_lines(bytes: &[u8]) -> &[u8] {
    let blank = bytes.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
    &bytes[blank..]
}
