//! One choice's text through both stages, as `turn` joins them.

use sluice_policy::reasoning::{Channel, Opener, Part, Splitter, Thinking};
use sluice_policy::tool_call::{Bare, Piece, Reason, Scanner, ToolSet};
use std::sync::Arc;

/// What a client would see of it, in order, neighbours of one kind joined.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shown {
    Reasoning(String),
    Text(String),
    Call {
        name: String,
        arguments: String,
        raw: String,
    },
    Invalid {
        raw: String,
        reason: Reason,
    },
}

#[derive(Debug, Clone)]
pub struct Setup {
    pub thinking: Thinking,
    pub opener: Opener,
    pub tools: Option<Arc<ToolSet>>,
    pub bare: Bare,
}

impl Setup {
    pub fn new(tools: &Arc<ToolSet>) -> Self {
        Setup {
            thinking: Thinking::On,
            opener: Opener::default(),
            tools: Some(Arc::clone(tools)),
            bare: Bare::Calls,
        }
    }

    pub fn with(tools: &Arc<ToolSet>, thinking: Thinking, opener: Opener) -> Self {
        Setup {
            thinking,
            opener,
            ..Setup::new(tools)
        }
    }
}

/// Both stages; every second text is first offered to `pass`, as the fast path does.
pub struct Stages {
    pub splitter: Splitter,
    pub scanner: Option<Scanner>,
    shown: Vec<Shown>,
    pushes: usize,
}

impl Stages {
    pub fn new(setup: &Setup) -> Self {
        Stages {
            splitter: Splitter::new(setup.thinking, setup.opener, setup.tools.clone()),
            scanner: setup.tools.clone().map(|tools| Scanner::new(tools, setup.bare)),
            shown: Vec::new(),
            pushes: 0,
        }
    }

    pub fn push(&mut self, text: &str) {
        self.pushes += 1;
        if self.pushes.is_multiple_of(2) {
            match self.splitter.pass(text) {
                Some(Channel::Reasoning) => return self.show(Shown::Reasoning(text.to_owned())),
                Some(Channel::Content) => return self.content(text),
                None => {}
            }
        }
        let mut parts = Vec::new();
        self.splitter.push(text, &mut parts);
        self.parts(parts);
    }

    pub fn finish(mut self) -> Vec<Shown> {
        let mut parts = Vec::new();
        self.splitter.finish(&mut parts);
        self.parts(parts);
        if let Some(mut scanner) = self.scanner.take() {
            let mut pieces = Vec::new();
            scanner.finish(&mut pieces);
            self.pieces(pieces);
        }
        self.shown
    }

    fn parts(&mut self, parts: Vec<Part>) {
        for part in parts {
            match part {
                Part::Reasoning(text) => self.show(Shown::Reasoning(text)),
                Part::Content(text) => self.content(&text),
            }
        }
    }

    fn content(&mut self, text: &str) {
        let Some(scanner) = &mut self.scanner else {
            return self.show(Shown::Text(text.to_owned()));
        };
        if self.pushes.is_multiple_of(2) && scanner.pass(text) {
            return self.show(Shown::Text(text.to_owned()));
        }
        let mut pieces = Vec::new();
        scanner.push(text, &mut pieces);
        self.pieces(pieces);
    }

    fn pieces(&mut self, pieces: Vec<Piece>) {
        for piece in pieces {
            self.show(match piece {
                Piece::Text(text) => Shown::Text(text),
                Piece::Call(call) => Shown::Call {
                    name: call.name,
                    arguments: call.arguments,
                    raw: call.raw,
                },
                Piece::Invalid { raw, reason } => Shown::Invalid { raw, reason },
            });
        }
    }

    fn show(&mut self, shown: Shown) {
        match (self.shown.last_mut(), shown) {
            (Some(Shown::Reasoning(last)), Shown::Reasoning(text)) | (Some(Shown::Text(last)), Shown::Text(text)) => {
                last.push_str(&text);
            }
            (_, Shown::Reasoning(text) | Shown::Text(text)) if text.is_empty() => {}
            (_, shown) => self.shown.push(shown),
        }
    }
}

pub fn read<'a>(setup: &Setup, pieces: impl IntoIterator<Item = &'a str>) -> Vec<Shown> {
    let mut stages = Stages::new(setup);
    pieces.into_iter().for_each(|piece| stages.push(piece));
    stages.finish()
}

/// `text` cut before each of `cuts`, which are character indices.
pub fn cut(text: &str, cuts: &[usize]) -> Vec<String> {
    let mut pieces = vec![String::new()];
    for (at, c) in text.chars().enumerate() {
        if cuts.contains(&at) {
            pieces.push(String::new());
        }
        pieces.last_mut().unwrap().push(c);
    }
    pieces
}

/// The same message by any of these ways of cutting: each two pieces, one character each, and 200 at random by seed.
pub fn same_at_every_split(setup: &Setup, text: &str, id: &str) -> Vec<Shown> {
    let whole = read(setup, [text]);
    for (at, _) in text.char_indices() {
        let (head, tail) = text.split_at(at);
        assert_eq!(read(setup, [head, tail]), whole, "{id}: split at byte {at}");
    }
    let chars: Vec<String> = text.chars().map(String::from).collect();
    assert_eq!(
        read(setup, chars.iter().map(String::as_str)),
        whole,
        "{id}: by character"
    );
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for round in 0..200 {
        let mut pieces: Vec<String> = vec![String::new()];
        for c in text.chars() {
            if random.next().is_multiple_of(7) {
                pieces.push(String::new());
            }
            pieces.last_mut().unwrap().push(c);
        }
        assert_eq!(
            read(setup, pieces.iter().map(String::as_str)),
            whole,
            "{id}: random split {round}"
        );
    }
    whole
}

/// xorshift: the same cuts in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}
