//! What stands behind an opening tag: one or more calls, as JSON or in the XML dialect, up to the closing tag.
//!
//! Text enters byte by byte in any split, an [`End`] leaves, and [`Block`] then knows the spans of the calls. Each byte is
//! looked at once; only a partial tag (and a closed XML parameter with the white space behind it) is looked at again. Both
//! stages run the same block, so that they agree on where a call ends: the reasoning splitter to leave think tags in a
//! call's strings alone, the scanner to read the calls. Reading them is `call`'s.

use super::json::{Json, PARTS_LIMIT, Progress, space};
use super::loose::{Close, Loose, Open};
use super::tag::{Tag, floor};
use super::tools::ToolSet;
use memchr::memchr;
use std::ops::Range;
use std::sync::Arc;

/// Longest call that is held, tags included.
pub const CALL_LIMIT: usize = 4 << 20;
/// Longest info string of a fence inside a block, and longest word that may turn out to be a function.
const WORD_LIMIT: usize = 64;
/// White space looked through behind `</parameter>` to learn whether it is markup.
const LOOK_AHEAD: usize = 64;

/// A call block that is being read.
#[derive(Debug, Clone)]
pub(crate) struct Block {
    tools: Arc<ToolSet>,
    state: State,
    /// Bytes taken, the opening tag included.
    seen: usize,
    /// `<tool_call name="…">`.
    pub(crate) named: Option<String>,
    /// Spans of complete JSON values, from the block's start.
    pub(crate) values: Vec<Range<usize>>,
    /// Functions of the XML dialect.
    pub(crate) functions: Vec<Function>,
    /// Where text that isn't part of a call begins, behind the last value.
    pub(crate) surplus: Option<usize>,
    /// The first byte that doesn't fit.
    wrong: usize,
    /// Opened by `<function=…>` itself.
    bare: bool,
    /// Inside a think block: `</think>` outside strings and values ends this block too.
    thought: bool,
    fenced: bool,
    /// Closing tags in strings of a block that isn't valid may be text; else the first one ends it, as it does inside a think
    /// block, whose end must not wait for the answer's.
    patient: bool,
}

/// One `<function=…>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Function {
    pub(crate) name: String,
    /// Keys and spans of their values.
    pub(crate) parameters: Vec<(String, Range<usize>)>,
    /// Where `</function>` ends.
    pub(crate) end: usize,
}

/// How a block ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum End {
    /// By its closing tag, which is taken.
    Closed,
    /// By the next opening tag, or by the end of the think block around it, which is not taken.
    Reopened,
    /// By the end of the answer, behind a complete call.
    Finished,
    /// By the end of the answer, inside a call.
    Cut,
    /// It isn't valid; `back` is where it ended if that was before the bytes taken.
    Bad { at: usize, back: Option<usize> },
    /// Prose follows the tag: all of it is text.
    NotACall,
    /// Over the limit of a held call.
    TooLong,
}

#[derive(Debug, Clone)]
enum State {
    /// White space before the body.
    Lead,
    /// A run of backticks at the body's start.
    Ticks(usize),
    /// The rest of a fence's first line.
    Info(usize),
    /// A word: a call written as code if it is a declared name and `(` follows, else prose.
    Word(String),
    Json {
        json: Json,
        from: usize,
        /// The string of this number holds a closing tag that ends here: the block's end, should the string never end.
        shut: Option<(usize, usize)>,
    },
    /// Behind a complete value.
    After,
    /// Behind something that isn't a call, after a complete value.
    Surplus(Loose),
    /// Behind `<function=…>` or a parameter.
    Between,
    Value {
        key: String,
        from: usize,
    },
    /// Behind `</function>`.
    AfterFunction,
    Broken(Loose),
}

impl Block {
    /// Behind `<tool_call>`, whose tag has `len` bytes.
    pub(crate) fn tagged(len: usize, named: Option<String>, tools: Arc<ToolSet>) -> Self {
        Block {
            tools,
            state: State::Lead,
            seen: len,
            named,
            values: Vec::new(),
            functions: Vec::new(),
            surplus: None,
            wrong: 0,
            bare: false,
            thought: false,
            fenced: false,
            patient: true,
        }
    }

    /// Behind a `<function=NAME>` that no `<tool_call>` holds.
    pub(crate) fn bare(len: usize, name: String, tools: Arc<ToolSet>) -> Self {
        let mut block = Block {
            bare: true,
            ..Block::tagged(len, None, tools)
        };
        block.function(name);
        block
    }

    /// Inside a think block, or not.
    pub(crate) fn thought(self, thought: bool) -> Self {
        Block { thought, ..self }
    }

    /// As it is, or with its first closing tag as its end if it isn't valid.
    pub(crate) fn patient(self, patient: bool) -> Self {
        Block { patient, ..self }
    }

    /// Takes text from `at` on and moves it; `None`: all of it, but for what may be a partial tag.
    pub(crate) fn push(&mut self, text: &str, at: &mut usize) -> Option<End> {
        loop {
            let rest = text.get(*at..).unwrap_or_default();
            let room = self.tools.call_limit().saturating_sub(self.seen);
            let over = rest.len() > room;
            let window = if over { floor(rest, room) } else { rest };
            match self.step(window) {
                Took::Bytes(count) => self.take(at, count),
                Took::End(count, end) => {
                    self.take(at, count);
                    return Some(end);
                }
                Took::Wait if over => {
                    return Some(match &self.state {
                        State::Broken(loose) if loose.shut().is_some() => self.finish(),
                        _ => End::TooLong,
                    });
                }
                Took::Wait => return None,
            }
        }
    }

    /// The answer ended.
    pub(crate) fn finish(&self) -> End {
        match self.state {
            State::After | State::AfterFunction => End::Finished,
            State::Surplus(ref loose) if loose.shut().is_none() => End::Finished,
            State::Surplus(ref loose) | State::Broken(ref loose) => End::Bad {
                at: self.wrong,
                back: loose.shut(),
            },
            State::Word(_) | State::Ticks(_) => End::NotACall,
            _ => End::Cut,
        }
    }

    fn take(&mut self, at: &mut usize, count: usize) {
        *at += count;
        self.seen += count;
    }

    /// One step on `rest`; takes at least a byte, ends, or waits.
    fn step(&mut self, rest: &str) -> Took {
        let Some(first) = rest.chars().next() else {
            return Took::Wait;
        };
        match &mut self.state {
            State::Lead | State::After | State::Between | State::AfterFunction if space(first) => {
                Took::Bytes(rest.len() - rest.trim_start_matches(space).len())
            }
            State::Lead => self.lead(rest, first),
            State::Ticks(count) => match first {
                '`' => {
                    *count += 1;
                    Took::Bytes(1)
                }
                _ if *count >= 3 => self.to(State::Info(0), 0),
                _ => Took::End(0, End::NotACall),
            },
            State::Info(count) => {
                *count += first.len_utf8();
                match first {
                    '\n' | '{' | '[' => {
                        self.fenced = true;
                        self.to(State::Lead, usize::from(first == '\n'))
                    }
                    _ if *count > WORD_LIMIT => Took::End(0, End::NotACall),
                    _ => Took::Bytes(first.len_utf8()),
                }
            }
            State::Word(word) => match first {
                'a'..='z' | 'A'..='Z' | '0'..='9' | '_' | '-' | '.' if word.len() < WORD_LIMIT => {
                    word.push(first);
                    Took::Bytes(1)
                }
                '(' if self.tools.find(word).is_some() => self.broken(0),
                _ => Took::End(0, End::NotACall),
            },
            State::Json { .. } => self.json(rest),
            State::After => self.after(rest, first),
            State::Surplus(_) | State::Broken(_) => self.until_tag(rest),
            State::Between | State::AfterFunction => self.markup(rest),
            State::Value { .. } => self.parameter(rest),
        }
    }

    fn to(&mut self, state: State, count: usize) -> Took {
        self.state = state;
        Took::Bytes(count)
    }

    /// Not valid at `offset` bytes from here.
    fn broken(&mut self, offset: usize) -> Took {
        self.wrong = self.seen + offset;
        self.to(State::Broken(Loose::outside()), offset)
    }

    fn value(&mut self) -> Took {
        if self.values.len() >= PARTS_LIMIT {
            return self.broken(0);
        }
        let json = Json::new();
        self.to(
            State::Json {
                json,
                from: self.seen,
                shut: None,
            },
            0,
        )
    }

    fn function(&mut self, name: String) {
        self.functions.push(Function {
            name,
            parameters: Vec::new(),
            end: 0,
        });
        self.state = State::Between;
    }

    fn lead(&mut self, rest: &str, first: char) -> Took {
        match first {
            '{' | '[' => self.value(),
            '`' => self.to(State::Ticks(0), 0),
            '"' | '\'' | ',' | ':' | '}' | ']' => self.broken(0),
            'a'..='z' | 'A'..='Z' | '_' => self.to(State::Word(String::new()), 0),
            '<' => match Tag::read(rest) {
                Tag::Partial => Took::Wait,
                Tag::CallOpen { len, name } => {
                    self.named = self.named.take().or(name);
                    Took::Bytes(len)
                }
                Tag::CallClose { .. } => Took::End(0, End::NotACall),
                Tag::Function { len, name } => {
                    self.function(name);
                    Took::Bytes(len)
                }
                _ => self.broken(0),
            },
            _ => Took::End(0, End::NotACall),
        }
    }

    fn json(&mut self, rest: &str) -> Took {
        let State::Json { json, from, shut } = &mut self.state else {
            return Took::Wait;
        };
        let string = json.in_string();
        let tag = json.takes_tag() && rest.starts_with('<');
        if tag {
            match Tag::read(rest) {
                Tag::Partial => return Took::Wait,
                Tag::CallClose { len } if shut.is_none_or(|(other, _)| Some(other) != string) => {
                    *shut = string.map(|string| (string, self.seen + len));
                }
                Tag::ThinkClose if self.thought && shut.is_none_or(|(other, _)| Some(other) != string) => {
                    *shut = string.map(|string| (string, self.seen));
                }
                _ => {}
            }
        }
        match json.push(rest.as_bytes(), tag) {
            Progress::More => Took::Bytes(rest.len()),
            Progress::TagInString(at) => Took::Bytes(at),
            Progress::Done(at) => {
                let span = *from..self.seen + at;
                self.values.push(span);
                self.to(State::After, at)
            }
            Progress::Bad(at) => {
                let string = json.in_string();
                let shut = shut.filter(|(other, _)| string == Some(*other)).map(|(_, back)| back);
                let bad = rest.as_bytes().get(at).copied();
                self.wrong = self.seen + at;
                if !self.patient && shut.is_some() {
                    let at = self.wrong;
                    return Took::End(at - self.seen, End::Bad { at, back: shut });
                }
                let loose = Loose::new(string.is_some() || json.goes_on(bad), shut, self.wrong);
                self.to(State::Broken(loose), at)
            }
        }
    }

    fn after(&mut self, rest: &str, first: char) -> Took {
        match first {
            ',' => Took::Bytes(1),
            '{' | '[' => self.value(),
            '`' if self.fenced => Took::Bytes(1),
            '<' => match Tag::read(rest) {
                Tag::Partial => Took::Wait,
                Tag::CallClose { len } => Took::End(len, End::Closed),
                Tag::CallOpen { .. } => Took::End(0, End::Reopened),
                Tag::ThinkClose if self.thought => Took::End(0, End::Reopened),
                _ => self.surplus(),
            },
            _ => self.surplus(),
        }
    }

    fn surplus(&mut self) -> Took {
        self.surplus = Some(self.seen);
        self.wrong = self.seen;
        self.to(State::Surplus(Loose::outside()), 0)
    }

    /// Looks for the tag that ends a block whose text doesn't fit.
    fn until_tag(&mut self, rest: &str) -> Took {
        let bad = |at, back| End::Bad { at, back };
        let (surplus, loose) = match &mut self.state {
            State::Surplus(loose) => (true, loose),
            State::Broken(loose) => (false, loose),
            _ => return Took::Wait,
        };
        // markup has no strings
        let strings = self.patient && self.functions.is_empty();
        let plain = memchr(b'<', rest.as_bytes()).unwrap_or(rest.len());
        if plain > 0 {
            loose.push(rest.as_bytes().get(..plain).unwrap_or_default());
            return Took::Bytes(plain);
        }
        let tag = |len| rest.as_bytes().get(..len).unwrap_or_default();
        let behind = |len| rest.get(len..).unwrap_or_default();
        match Tag::read(rest) {
            Tag::Partial => Took::Wait,
            Tag::CallClose { len } => {
                // Behind a whole call only a string can hold a tag: its quotes were sound, and nothing waits for what stands behind.
                let close = if strings && (!surplus || loose.inside()) {
                    loose.close(tag(len), self.seen + len, behind(len))
                } else {
                    Close::End
                };
                match close {
                    Close::Text => Took::Bytes(len),
                    Close::Partial => Took::Wait,
                    Close::End if surplus => Took::End(len, End::Closed),
                    Close::End => Took::End(len, bad(self.wrong, None)),
                }
            }
            Tag::CallOpen { len, name } => {
                let open = match name {
                    None if strings && surplus => loose.reopens_behind_a_call(self.seen),
                    None if strings => loose.reopens(self.seen, behind(len)),
                    _ => Open::Call(self.seen),
                };
                match open {
                    Open::Call(back) if back < self.seen => Took::End(0, bad(self.wrong, Some(back))),
                    Open::Text => self.text(),
                    Open::Partial => Took::Wait,
                    Open::Call(_) if surplus => Took::End(0, End::Reopened),
                    Open::Call(_) => Took::End(0, bad(self.wrong, None)),
                }
            }
            Tag::FunctionClose { len } if self.bare => Took::End(len, bad(self.wrong, None)),
            Tag::ThinkClose if self.thought && surplus => Took::End(0, End::Reopened),
            Tag::ThinkClose if self.thought => Took::End(0, bad(self.wrong, None)),
            _ => self.text(),
        }
    }

    /// The `<` here is text.
    fn text(&mut self) -> Took {
        if let State::Surplus(loose) | State::Broken(loose) = &mut self.state {
            loose.push(b"<");
        }
        Took::Bytes(1)
    }

    /// Between the tags of the XML dialect, or behind `</function>`.
    fn markup(&mut self, rest: &str) -> Took {
        if !rest.starts_with('<') {
            return self.broken(0);
        }
        let between = matches!(self.state, State::Between);
        match Tag::read(rest) {
            Tag::Partial => Took::Wait,
            Tag::Parameter { .. } | Tag::Function { .. } if self.is_full() => self.broken(0),
            Tag::Parameter { len, name } if between => self.to(
                State::Value {
                    key: name,
                    from: self.seen + len,
                },
                len,
            ),
            Tag::FunctionClose { len } if between => {
                let end = self.seen + len;
                if let Some(function) = self.functions.last_mut() {
                    function.end = end;
                }
                self.state = State::AfterFunction;
                if self.bare {
                    Took::End(len, End::Closed)
                } else {
                    Took::Bytes(len)
                }
            }
            Tag::Function { len, name } if !between => {
                self.function(name);
                Took::Bytes(len)
            }
            Tag::CallClose { len } if !between => Took::End(len, End::Closed),
            Tag::CallOpen { .. } if !between => Took::End(0, End::Reopened),
            Tag::ThinkClose if !between && self.thought => Took::End(0, End::Reopened),
            _ => self.broken(0),
        }
    }

    /// No more functions, or parameters of the last one, are told apart.
    fn is_full(&self) -> bool {
        let parameters = self.functions.last().map_or(0, |function| function.parameters.len());
        self.functions.len() > PARTS_LIMIT || parameters >= PARTS_LIMIT
    }

    /// Inside a parameter's value: `</parameter>` ends it only if more markup follows, since the value may speak of tags.
    fn parameter(&mut self, rest: &str) -> Took {
        match memchr(b'<', rest.as_bytes()) {
            None => return Took::Bytes(rest.len()),
            Some(0) => {}
            Some(at) => return Took::Bytes(at),
        }
        let len = match Tag::read(rest) {
            Tag::Partial => return Took::Wait,
            Tag::ParameterClose { len } => len,
            _ => return Took::Bytes(1),
        };
        let behind = rest.get(len..).unwrap_or_default();
        let next = behind.trim_start_matches(space);
        let blank = behind.len() - next.len();
        if blank <= LOOK_AHEAD && next.is_empty() {
            return Took::Wait;
        }
        let follows = match Tag::read(next) {
            _ if blank > LOOK_AHEAD || !next.starts_with('<') => false,
            Tag::Partial => return Took::Wait,
            Tag::Parameter { .. } | Tag::FunctionClose { .. } | Tag::CallClose { .. } => true,
            _ => false,
        };
        if !follows {
            return Took::Bytes(1);
        }
        if let State::Value { key, from } = std::mem::replace(&mut self.state, State::Between)
            && let Some(function) = self.functions.last_mut()
        {
            function.parameters.push((key, from..self.seen));
        }
        Took::Bytes(len)
    }
}

enum Took {
    /// This many bytes; none means that only the state changed.
    Bytes(usize),
    /// The block ends behind this many bytes.
    End(usize, End),
    /// More text is needed.
    Wait,
}
