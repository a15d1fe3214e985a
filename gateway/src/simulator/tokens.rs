//! Tokens without a tokenizer: text is cut into pieces of about four bytes by a fixed rule.
//!
//! Every piece has one id and every id one piece, by arithmetic alone: two simulators agree about ids as two vLLMs with
//! the same model do, so that a continuation by token ids works across replicas. Qwen3's special tokens keep their ids;
//! all other ids are the simulator's own (they go beyond Qwen's vocabulary, up to 2^31). [`Chain`] turns a run of ids
//! into the hashes of its blocks, which is all that the KV-cache model ever sees of a prompt.

/// Qwen3's special tokens, the only ones whose ids are those of the real tokenizer.
const SPECIALS: [(u32, &str); 9] = [
    (151_643, "<|endoftext|>"),
    (151_644, "<|im_start|>"),
    (END_OF_TURN, "<|im_end|>"),
    (151_657, "<tool_call>"),
    (151_658, "</tool_call>"),
    (151_665, "<tool_response>"),
    (151_666, "</tool_response>"),
    (151_667, "<think>"),
    (151_668, "</think>"),
];

/// The id that ends an answer, `<|im_end|>`.
pub(super) const END_OF_TURN: u32 = 151_645;
/// Text of [`END_OF_TURN`], as `logprobs` shows it.
pub(super) const END_OF_TURN_TEXT: &str = "<|im_end|>";

/// Tokens in one KV block.
pub(super) const BLOCK_TOKENS: u32 = 16;

/// Longest run of word bytes in one token (with its leading space).
const WORD_BYTES: usize = 5;
/// First id of two marks side by side.
const PAIR: u32 = 256;
/// First id of a character outside ASCII.
const CHARACTER: u32 = 200_000;
/// First id of a word piece by its length in bytes (2 to 5); each byte is one of 64.
const WORD: [u32; 6] = [0, 0, 2_000_000, 2_010_000, 3_000_000, 20_000_000];

/// 1 + the base-64 digit of a word byte; 0 for what is no word byte. A space is digit 63, and only ever leads.
const DIGIT: [u8; 128] = {
    let mut table = [0; 128];
    let mut byte = 0;
    while byte < 128 {
        let b = byte as u8;
        table[byte] = match b {
            b'a'..=b'z' => b - b'a' + 1,
            b'A'..=b'Z' => b - b'A' + 27,
            b'0'..=b'9' => b - b'0' + 53,
            b'_' => 63,
            _ => 0,
        };
        byte += 1;
    }
    table
};

fn is_word(byte: u8) -> bool {
    byte < 128 && DIGIT[byte as usize] != 0
}

fn is_mark(byte: u8) -> bool {
    byte < 128 && DIGIT[byte as usize] == 0
}

/// The special token at the start of `text`, if there is one.
fn special(text: &str) -> Option<(u32, &'static str)> {
    if !text.starts_with('<') {
        return None;
    }
    SPECIALS.iter().find(|(_, tag)| text.starts_with(tag)).copied()
}

/// Cuts `text` into its tokens, left to right.
pub(super) fn pieces(text: &str) -> Pieces<'_> {
    Pieces { rest: text }
}

/// Iterator of [`pieces`].
pub(super) struct Pieces<'a> {
    rest: &'a str,
}

impl<'a> Iterator for Pieces<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        let bytes = self.rest.as_bytes();
        let first = *bytes.first()?;
        let second = bytes.get(1).copied().unwrap_or(0);
        let length = if first == b'<' && special(self.rest).is_some() {
            special(self.rest).map_or(1, |(_, tag)| tag.len())
        } else if first >= 128 {
            self.rest.chars().next().map_or(1, char::len_utf8)
        } else if is_word(first) || (first == b' ' && is_word(second)) {
            1 + bytes[1..]
                .iter()
                .take(WORD_BYTES - 1)
                .take_while(|b| is_word(**b))
                .count()
        } else if bytes.len() > 1 && is_mark(second) && !starts_something(&self.rest[1..]) {
            2
        } else {
            1
        };
        let (piece, rest) = self.rest.split_at(length);
        self.rest = rest;
        Some(piece)
    }
}

/// Whether the mark at the start of `text` belongs to what follows it (a special token, a word after its space).
fn starts_something(text: &str) -> bool {
    let bytes = text.as_bytes();
    special(text).is_some() || (bytes.first() == Some(&b' ') && bytes.get(1).is_some_and(|b| is_word(*b)))
}

/// The id of a piece that [`pieces`] made.
pub(super) fn id(piece: &str) -> u32 {
    let bytes = piece.as_bytes();
    match bytes {
        [] => 0,
        [one] if *one < 128 => u32::from(*one),
        [first, ..] if *first >= 128 => CHARACTER + piece.chars().next().map_or(0, u32::from),
        [a, b] if is_mark(*b) => PAIR + u32::from(*a) * 128 + u32::from(*b),
        [b'<', ..] => special(piece).map_or(u32::from(b'<'), |(id, _)| id),
        _ => {
            let digits = bytes.iter().fold(0, |code, b| code * 64 + digit(*b));
            WORD[bytes.len().min(WORD_BYTES)] + digits
        }
    }
}

fn digit(byte: u8) -> u32 {
    if byte == b' ' {
        63
    } else {
        u32::from(DIGIT[usize::from(byte & 127)].max(1)) - 1
    }
}

/// Appends the text of a token; an id that stands for nothing becomes U+FFFD, as an undecodable byte does.
pub(super) fn decode(id: u32, out: &mut String) {
    if let Some((_, tag)) = SPECIALS.iter().find(|(special, _)| *special == id) {
        out.push_str(tag);
    } else if id < 128 {
        out.push(char::from(id as u8));
    } else if (PAIR..PAIR + 128 * 128).contains(&id) {
        let code = id - PAIR;
        out.push(char::from((code / 128) as u8));
        out.push(char::from((code % 128) as u8));
    } else if (CHARACTER..CHARACTER + 0x11_0000).contains(&id) {
        out.push(char::from_u32(id - CHARACTER).unwrap_or('\u{fffd}'));
    } else if let Some(length) = (2..=WORD_BYTES).find(|n| (WORD[*n]..WORD[*n] + (1 << (6 * n))).contains(&id)) {
        let code = id - WORD[length];
        for place in (0..length).rev() {
            out.push(letter((code >> (6 * place)) & 63, place == length - 1));
        }
    } else {
        out.push('\u{fffd}');
    }
}

fn letter(digit: u32, leads: bool) -> char {
    let digit = digit as u8;
    match digit {
        0..=25 => char::from(b'a' + digit),
        26..=51 => char::from(b'A' + digit - 26),
        52..=61 => char::from(b'0' + digit - 52),
        62 => '_',
        _ if leads => ' ',
        _ => '\u{fffd}',
    }
}

/// A run of token ids and the hashes of its full blocks; each hash stands for everything up to its block's end.
#[derive(Debug, Clone)]
pub(super) struct Chain {
    hash: u64,
    tokens: u32,
    blocks: Vec<u64>,
}

impl Chain {
    /// An empty run. Runs with different `salt`s share no block (vLLM's `cache_salt`).
    pub(super) fn new(salt: u64) -> Self {
        Self {
            hash: salt ^ 0x9e37_79b9_7f4a_7c15,
            tokens: 0,
            blocks: Vec::new(),
        }
    }

    /// Adds one token.
    pub(super) fn push(&mut self, id: u32) {
        self.hash = mix(self.hash, u64::from(id));
        self.tokens += 1;
        if self.tokens.is_multiple_of(BLOCK_TOKENS) {
            self.blocks.push(self.hash);
        }
    }

    /// Tokens in the run.
    pub(super) fn tokens(&self) -> u32 {
        self.tokens
    }

    /// Hashes of the full blocks.
    pub(super) fn blocks(&self) -> &[u64] {
        &self.blocks
    }

    /// One number that stands for the whole run.
    pub(super) fn fingerprint(&self) -> u64 {
        self.hash
    }
}

/// Mixes `value` into `hash`; the same on every machine and in every build.
pub(super) fn mix(hash: u64, value: u64) -> u64 {
    let folded = u128::from(hash ^ value.wrapping_mul(0x9e37_79b9_7f4a_7c15)) * 0xd6e8_feb8_6659_fd93;
    (folded as u64) ^ ((folded >> 64) as u64)
}

/// [`mix`] over the bytes of a text.
pub(super) fn mix_text(hash: u64, text: &str) -> u64 {
    text.bytes()
        .fold(mix(hash, text.len() as u64), |hash, byte| mix(hash, u64::from(byte)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ids(text: &str) -> Vec<u32> {
        pieces(text).map(id).collect()
    }

    fn text(ids: &[u32]) -> String {
        let mut out = String::new();
        ids.iter().for_each(|id| decode(*id, &mut out));
        out
    }

    #[test]
    fn special_tokens_are_one_piece_with_qwens_ids() {
        assert_eq!(ids("<think>hello</think>")[0], 151_667);
        assert_eq!(ids("<think>a</think>"), [151_667, u32::from(b'a'), 151_668]);
        assert_eq!(
            pieces("\n</think>\n\n<tool_call>").collect::<Vec<_>>(),
            ["\n", "</think>", "\n\n", "<tool_call>"]
        );
    }

    #[test]
    fn about_four_bytes_a_token() {
        let prose = "The user asks about the weather in Paris today, so the tool is called with its arguments.";
        let bytes_per_token = prose.len() as f64 / pieces(prose).count() as f64;
        assert!((3.0..5.0).contains(&bytes_per_token), "{bytes_per_token}");
    }

    #[test]
    fn unknown_ids_are_replacement_characters() {
        assert_eq!(text(&[150_000, u32::MAX]), "\u{fffd}\u{fffd}");
    }

    #[test]
    fn a_chain_hashes_full_blocks_and_depends_on_all_before() {
        let run = |ids: std::ops::Range<u32>, salt| {
            let mut chain = Chain::new(salt);
            ids.for_each(|id| chain.push(id));
            chain
        };
        let (long, short) = (run(0..40, 0), run(0..33, 0));
        assert_eq!((long.blocks().len(), long.tokens()), (2, 40));
        assert_eq!(long.blocks(), short.blocks());
        assert_ne!(run(1..41, 0).blocks()[1], long.blocks()[1]);
        assert_ne!(run(0..40, 1).blocks()[0], long.blocks()[0]);
    }

    proptest! {
        #[test]
        fn ids_and_text_are_one_to_one(input in "\\PC{0,40}|[a-zA-Z0-9_ <>/{}\":,\n|]{0,60}") {
            prop_assert_eq!(text(&ids(&input)), input);
        }

        #[test]
        fn different_pieces_have_different_ids(a in "\\PC{1,12}|[a-z_ <{\n]{1,12}", b in "\\PC{1,12}|[a-z_ <{\n]{1,12}") {
            for x in pieces(&a) {
                for y in pieces(&b) {
                    prop_assert_eq!(x == y, id(x) == id(y), "{:?} {:?}", x, y);
                }
            }
        }
    }
}
