//! What gateways before the same fleet tell each other of a conversation: where it is, and how much of it went there.
//!
//! Problem: a conversation that was moved from where the ring has it is lost to every other gateway that its next turn may come to. Rule: a
//! [`Note`] has the replica's name and a *trail*: a few places of the prompt that was sent there, the last one first. Who reads it looks for
//! the first of them that its own prompt has, too: so much of it is cached there, if nothing has pushed it out. An edited or another
//! conversation of the same name has none, and one whose past thoughts aren't rendered any more has an earlier one. What comes of it
//! is a [`Hint`], which `choose` takes for a session that it doesn't know itself: evidence, never an order. The last writer wins.
//!
//! Enters: a chain, a keyed hash by whoever has the key. Leaves: a line of text without a word of the conversation, from which nobody can
//! learn without the key whether it has a certain prompt.

use std::fmt::Write as _;

use super::chain::{Chain, Link};

/// Places of a trail. Each is twice as far from the end as the one before: the last reaches back 127 links.
const TRAIL_PLACES: usize = 8;

/// A longer text is no note: the longest has a name of 64 characters, and places of two numbers in hexadecimal.
pub const NOTE_BYTES_LIMIT: usize = 512;

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// The replica's name.
    pub replica: String,
    trail: Vec<Place>,
}

/// What another gateway knows of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hint {
    /// Its replica, by number.
    pub replica: usize,
    /// Bytes of the prompt that were sent there before.
    pub cached_bytes: u64,
}

/// One place of a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    /// Of the prompt up to here.
    bytes: u64,
    /// Keyed hash of all that is rendered up to here.
    mark: u64,
}

impl Note {
    /// This prompt is sent to that replica. `mark` is a keyed hash, the same for all who are to understand it.
    pub fn new(replica: &str, chain: &Chain, mark: impl Fn(u64) -> u64) -> Note {
        let links = chain.links();
        let distances = (0..TRAIL_PLACES).map(|place| (1_usize << place) - 1);
        let trail = distances.map_while(|distance| links.get(links.len().checked_sub(distance + 1)?));
        Note {
            replica: replica.to_owned(),
            trail: trail
                .map(|link| Place {
                    bytes: link.bytes,
                    mark: mark(link.hash),
                })
                .collect(),
        }
    }

    /// Of this prompt, what the replica got before.
    pub fn cached_bytes(&self, chain: &Chain, mark: impl Fn(u64) -> u64) -> u64 {
        // Places of different prompts rarely stand at the same byte: few are hashed.
        let link_at = |bytes: u64| -> Option<&Link> {
            let links = chain.links();
            let place = links.binary_search_by_key(&bytes, |link| link.bytes).ok()?;
            links.get(place)
        };
        let mut found = self.trail.iter().filter(|place| {
            let link = link_at(place.bytes);
            link.is_some_and(|link| mark(link.hash) == place.mark)
        });
        found.next().map_or(0, |place| place.bytes)
    }

    /// For the store: the name, and the trail.
    pub fn to_text(&self) -> String {
        let mut text = self.replica.clone();
        for place in &self.trail {
            // Writing to a string can't fail.
            let _ = write!(text, " {:x}:{:x}", place.bytes, place.mark);
        }
        text
    }

    /// What was stored; `None` if it is no note.
    pub fn parse(text: &str) -> Option<Note> {
        if text.len() > NOTE_BYTES_LIMIT {
            return None;
        }
        let mut words = text.split(' ');
        let replica = words.next().filter(|name| !name.is_empty())?.to_owned();
        let number = |text: &str| u64::from_str_radix(text, 16).ok();
        let place = |word: &str| {
            let (bytes, mark) = word.split_once(':')?;
            Some(Place {
                bytes: number(bytes)?,
                mark: number(mark)?,
            })
        };
        let trail: Option<Vec<Place>> = words.map(place).collect();
        Some(Note {
            replica,
            trail: trail.filter(|trail| trail.len() <= TRAIL_PLACES)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(hashes: &[u64]) -> Chain {
        let links = hashes.iter().zip(1..);
        Chain::from_links(
            links
                .map(|(hash, place)| Link {
                    hash: *hash,
                    bytes: place * 100,
                })
                .collect(),
        )
    }

    fn mark(hash: u64) -> u64 {
        hash.wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }

    #[test]
    fn a_note_says_how_much_of_a_prompt_went_there() {
        let long: Vec<u64> = (1..=300).collect();
        let grown: Vec<u64> = (1..=310).collect();
        let mut edited = grown.clone();
        edited[200..].iter_mut().for_each(|hash| *hash += 1_000);
        for (sent, asked, cached) in [
            (&[1, 2, 3][..], &[1, 2, 3][..], 300),
            (&[1, 2, 3], &[1, 2, 3, 4], 300),
            // Its thoughts aren't rendered any more.
            (&[1, 2, 30], &[1, 2, 3, 4], 200),
            (&[1, 2, 3], &[1, 2], 200),
            (&[1, 2, 3], &[7, 8, 9], 0),
            (&[], &[1], 0),
            (&[1], &[], 0),
            (&long, &grown, 30_000),
            // 127 links from the end.
            (&long, &edited, 17_300),
        ] {
            let note = Note::new("a", &chain(sent), mark);
            assert_eq!(note.cached_bytes(&chain(asked), mark), cached, "{note:?}");
            let other_key = |hash| mark(hash) + 1;
            assert_eq!(note.cached_bytes(&chain(asked), other_key), 0);
        }
    }

    #[test]
    fn a_note_is_read_as_it_was_written() {
        let longest: Vec<u64> = (0..1_000).map(|place| u64::MAX - place).collect();
        for (name, hashes) in [
            ("a", &[][..]),
            ("10.0.0.1-8000", &[1, u64::MAX]),
            (&*"x".repeat(64), &longest),
        ] {
            let note = Note::new(name, &chain(hashes), mark);
            let text = note.to_text();
            assert!(text.len() <= NOTE_BYTES_LIMIT, "{text}");
            assert_eq!(Note::parse(&text), Some(note));
        }
    }

    #[test]
    fn what_is_no_note_is_none() {
        let too_many = format!("a{}", " 1:1".repeat(TRAIL_PLACES + 1));
        let too_long = "x".repeat(NOTE_BYTES_LIMIT + 1);
        for text in [
            "", " 1:1", "a 1", "a 1:", "a :1", "a x:1", "a 1:1:1", "a  1:1", &too_many, &too_long,
        ] {
            assert_eq!(Note::parse(text), None, "{text}");
        }
    }
}
