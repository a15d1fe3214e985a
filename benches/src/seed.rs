//! SplitMix64 (Steele, Lea, Flood 2014), and words drawn with it.

/// A stream of numbers that depends on its seed alone.
#[derive(Clone, Debug)]
pub struct Seed(u64);

impl Seed {
    /// The stream of `seed`.
    pub fn new(seed: u64) -> Self {
        Seed(seed)
    }

    /// The next number.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        word ^ (word >> 31)
    }

    /// One of `items`; they must not be empty.
    pub fn pick<'a>(&mut self, items: &[&'a str]) -> &'a str {
        let at = (self.next_u64() % items.len().max(1) as u64) as usize;
        items.get(at).copied().unwrap_or_default()
    }
}

/// Tokens of prose.
const PROSE: &[&str] = &[
    " the",
    " model",
    " returns",
    " a",
    " list",
    " of",
    " tokens",
    " while",
    " streaming",
    ",",
    " and",
    " then",
    " it",
    " should",
    " be",
    " checked",
    " first",
    " because",
    " result",
    " naïve",
    " 函数",
    " user",
    " wants",
    " to",
    " know",
    " whether",
    ".",
    " file",
    " test",
    " error",
    " path",
    "ing",
    "ed",
    " in",
    " for",
    " function",
    " value",
    " 12",
    "5",
    " call",
    " with",
    " this",
];

/// Tokens of source code, with what JSON must escape about as often as real code has it.
const CODE: &[&str] = &[
    "    let ",
    "value",
    " = ",
    "self",
    ".",
    "items",
    "(",
    ")",
    ";\n",
    "    if ",
    " {\n",
    "    }\n",
    "fn ",
    "name",
    ": ",
    "&str",
    " -> ",
    "Result",
    "<",
    ">",
    "\"text\"",
    "\n",
    "\n\n",
    "        ",
    "return ",
    "Ok",
    "Err",
    "format!",
    "(\"{}: {}\", ",
    "a",
    ", ",
    "b",
    "// why\n",
    "\t",
    "match ",
    " => ",
    ",\n",
    "r\"C:\\dir\\file\"",
    "assert_eq!",
    "'x'",
    "é",
    "0x7f",
    " + ",
    "index",
    "[",
    "]",
    "usize",
    "mut ",
];

/// One token of prose, with its space before it.
pub fn prose(seed: &mut Seed) -> &'static str {
    seed.pick(PROSE)
}

/// At least `bytes` of source code.
pub fn code(seed: &mut Seed, bytes: usize) -> String {
    let mut text = String::with_capacity(bytes + 32);
    while text.len() < bytes {
        text.push_str(seed.pick(CODE));
    }
    text
}

/// `bytes` of base64.
pub fn base64(seed: &mut Seed, bytes: usize) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes + 8);
    while text.len() < bytes {
        let word = seed.next_u64();
        for digit in 0..8 {
            let at = (word >> (digit * 6)) as usize & 63;
            text.push(ALPHABET.get(at).copied().map_or('A', char::from));
        }
    }
    text.truncate(bytes);
    text
}
