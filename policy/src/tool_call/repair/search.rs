//! The search: cheapest reading first, bounded.
//!
//! A node is a place in the text, what the grammar expects there, and what was done to get there. A node with one strict
//! continuation is followed at once; the others wait in a queue by cost. Where a reading fails, the last few tokens and the
//! open brackets before the failure are *suspects*: only there alternatives to what fitted are made (a search that tried every
//! edit everywhere would cost the square of the text).

use super::cost::{
    EDIT, MOST, NODES_LIMIT, OPEN_SUSPECTS, STRANGE_KEY, SUSPECTS, UNDECLARED_KEY, WORK_FACTOR, WORK_FLOOR,
};
use super::shape::{Declared, Place};
use super::text::Quote;
use super::{Ending, Task};
use crate::tool_call::call::{ARGUMENT_KEYS, IDLE_KEYS};
use crate::tool_call::json::DEPTH_LIMIT;
use crate::tool_call::tools::Tool;
use crate::tool_call::verdict::Kind;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::ops::Range;

pub(super) type Id = u32;

/// What the grammar expects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Expect {
    /// A value: the call itself, behind a colon, behind a comma of an array.
    Value,
    /// Behind `[`.
    FirstValue,
    /// Behind a comma of an object.
    Key,
    /// Behind `{`.
    FirstKey,
    Colon,
    /// Behind a value: a comma or a closer.
    Next,
    /// Behind a whole call.
    Done,
}

/// How a node came from its parent: what is written for the bytes between them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Op {
    Start,
    /// The bytes as they are.
    Read,
    /// A string whose text is this span.
    Text {
        quote: Quote,
        from: usize,
        to: usize,
    },
    /// Another word.
    Word(&'static str),
    /// A character that wasn't there; the bytes, if there are any, are taken out.
    Put(u8),
    /// Nothing.
    Drop,
    /// Nothing, and the comma before is taken back.
    Uncomma,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Node {
    pub(super) parent: Id,
    pub(super) at: usize,
    pub(super) cost: u16,
    pub(super) expect: Expect,
    pub(super) frame: Id,
    pub(super) op: Op,
    pub(super) kind: Option<Kind>,
    /// Habits seen, a bit each.
    pub(super) habits: u8,
    suspected: bool,
}

impl Node {
    /// Before the text.
    const START: Node = Node {
        parent: 0,
        at: 0,
        cost: 0,
        expect: Expect::Value,
        frame: 0,
        op: Op::Start,
        kind: None,
        habits: 0,
        suspected: false,
    };
}

/// What an open bracket holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Level {
    /// Calls.
    Calls,
    /// A call: its name and its arguments.
    Call,
    /// Arguments, or a value inside.
    Value,
}

/// An open bracket with the keys so far. Frame 0 stands for none.
#[derive(Debug, Clone, Copy)]
pub(super) struct Frame<'a> {
    pub(super) parent: Id,
    pub(super) object: bool,
    pub(super) level: Level,
    pub(super) tool: Option<&'a Tool>,
    pub(super) place: Option<Place<'a>>,
    /// The last key; 0 is none.
    pub(super) key: Id,
    /// The node before the bracket.
    opener: Id,
    depth: usize,
}

impl Frame<'_> {
    /// Outside of all brackets.
    const NONE: Self = Frame {
        parent: 0,
        object: false,
        level: Level::Calls,
        tool: None,
        place: None,
        key: 0,
        opener: 0,
        depth: 0,
    };
}

#[derive(Debug, Clone)]
struct Key {
    before: Id,
    span: Range<usize>,
}

pub(super) struct Search<'a> {
    pub(super) task: &'a Task<'a>,
    pub(super) text: &'a str,
    pub(super) bytes: &'a [u8],
    nodes: Vec<Node>,
    frames: Vec<Frame<'a>>,
    keys: Vec<Key>,
    queue: BinaryHeap<Reverse<(u16, usize, Id)>>,
    work: usize,
}

/// A reading of the whole text, and what the caller makes of it.
pub(super) enum Turn {
    /// A whole reading, before it is judged.
    Read(Id),
    /// A whole reading that was judged, the cheapest that is left.
    Judged(Id, u16),
    /// No reading is left.
    Dry,
    /// The work is used up.
    Spent,
}

impl<'a> Search<'a> {
    pub(super) fn new(task: &'a Task<'a>) -> Self {
        let no_key = Key { before: 0, span: 0..0 };
        Search {
            task,
            text: task.text,
            bytes: task.text.as_bytes(),
            nodes: vec![Node::START],
            frames: vec![Frame::NONE],
            keys: vec![no_key],
            queue: BinaryHeap::from([Reverse((0, 0, 0))]),
            work: WORK_FLOOR + task.text.len().saturating_mul(WORK_FACTOR),
        }
    }

    /// The next whole reading, cheapest first, none above `most`.
    pub(super) fn next(&mut self, most: u16) -> Turn {
        while let Some(Reverse((cost, _, id))) = self.queue.pop() {
            if cost > most {
                return Turn::Dry;
            }
            let node = self.node(id);
            if node.expect == Expect::Done && node.op == Op::Start {
                return Turn::Judged(node.parent, cost);
            }
            let mut id = id;
            loop {
                if self.work == 0 || self.nodes.len() >= NODES_LIMIT {
                    return Turn::Spent;
                }
                if self.is_whole(id) {
                    return Turn::Read(id);
                }
                match self.step(id) {
                    Some(next) => id = next,
                    None => break,
                }
            }
        }
        Turn::Dry
    }

    /// A reading that was judged takes its place in the queue by what it costs now.
    pub(super) fn judged(&mut self, id: Id, extra: u16) {
        let node = self.node(id);
        let cost = node.cost.saturating_add(extra);
        let judged = Node {
            parent: id,
            op: Op::Start,
            expect: Expect::Done,
            cost,
            ..node
        };
        self.nodes.push(judged);
        self.queue.push(Reverse((cost, 0, self.last_id())));
    }

    fn is_whole(&self, id: Id) -> bool {
        let node = self.node(id);
        node.expect == Expect::Done && self.skip_space(node.at) >= self.bytes.len()
    }

    fn last_id(&self) -> Id {
        Id::try_from(self.nodes.len().saturating_sub(1)).unwrap_or(Id::MAX)
    }

    pub(super) fn node(&self, id: Id) -> Node {
        // an id always names a node; one that didn't would be too dear to follow
        self.nodes.get(id as usize).copied().unwrap_or(Node {
            cost: MOST + 1,
            expect: Expect::Colon,
            suspected: true,
            ..Node::START
        })
    }

    pub(super) fn frame(&self, id: Id) -> Frame<'a> {
        self.frames.get(id as usize).copied().unwrap_or(Frame::NONE)
    }

    /// Counts `bytes` of looking.
    pub(super) fn spend(&mut self, bytes: usize) {
        self.work = self.work.saturating_sub(bytes + 1);
    }

    pub(super) fn byte(&self, at: usize) -> Option<u8> {
        self.bytes.get(at).copied()
    }

    pub(super) fn rest(&self, at: usize) -> &'a str {
        self.text.get(at..).unwrap_or_default()
    }

    pub(super) fn skip_space(&self, mut at: usize) -> usize {
        while matches!(self.byte(at), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            at += 1;
        }
        at
    }

    /// A node behind `parent`; `None` above the most that a reading may cost.
    pub(super) fn make(&mut self, parent: Id, at: usize, expect: Expect, frame: Id, op: Op, edit: Edit) -> Option<Id> {
        let before = self.node(parent);
        let bit = edit.habit;
        let cost = if bit != 0 && before.habits & bit != 0 {
            0
        } else {
            edit.cost
        };
        let cost = before.cost.saturating_add(cost);
        if cost > MOST || self.nodes.len() >= NODES_LIMIT {
            return None;
        }
        self.nodes.push(Node {
            parent,
            at,
            cost,
            expect,
            frame,
            op,
            kind: edit.kind,
            habits: before.habits | bit,
            suspected: false,
        });
        Some(self.last_id())
    }

    /// As [`Search::make`], to be followed later.
    pub(super) fn later(&mut self, parent: Id, at: usize, expect: Expect, frame: Id, op: Op, edit: Edit) {
        if let Some(id) = self.make(parent, at, expect, frame, op, edit) {
            self.wait(id);
        }
    }

    /// As [`Search::wait`], once it costs more.
    pub(super) fn dearer(&mut self, id: Id, extra: u16) {
        if let Some(node) = self.nodes.get_mut(id as usize) {
            node.cost = node.cost.saturating_add(extra);
            if node.cost <= MOST {
                self.wait(id);
            }
        }
    }

    pub(super) fn wait(&mut self, id: Id) {
        let node = self.node(id);
        let left = self.bytes.len().saturating_sub(node.at);
        self.queue.push(Reverse((node.cost, left, id)));
    }

    /// Opens a bracket that stands at `at` of the text.
    pub(super) fn open(&mut self, opener: Id, frame: Id, object: bool, at: usize) -> Option<Id> {
        let outer = self.frame(frame);
        if outer.depth >= DEPTH_LIMIT {
            return None;
        }
        let (level, tool, place) = self.inside(frame, object, at);
        self.frames.push(Frame {
            parent: frame,
            object,
            level,
            tool,
            place,
            key: 0,
            opener,
            depth: outer.depth + 1,
        });
        Id::try_from(self.frames.len() - 1).ok()
    }

    /// What a value in this frame is.
    fn inside(&self, frame: Id, object: bool, at: usize) -> (Level, Option<&'a Tool>, Option<Place<'a>>) {
        let outer = self.frame(frame);
        let args = |tool: Option<&'a Tool>| (Level::Value, tool, tool.and_then(|tool| self.task.schema(tool)));
        match outer.level {
            Level::Calls if !object => (Level::Calls, None, None),
            Level::Calls => {
                let tool = self.task.tool_behind(at);
                (Level::Call, tool, tool.and_then(|tool| self.task.schema(tool)))
            }
            Level::Call => {
                let key = self.key(outer.key);
                match self.task.tools.exact(key) {
                    _ if ARGUMENT_KEYS.contains(&key) => args(outer.tool),
                    _ if key == "function" => (Level::Call, outer.tool, outer.place),
                    Some(tool) => args(Some(tool)),
                    None => (Level::Value, outer.tool, outer.place.map(|place| place.property(key))),
                }
            }
            Level::Value => {
                let place = outer.place.map(|place| {
                    if outer.object {
                        place.property(self.key(outer.key))
                    } else {
                        place.element()
                    }
                });
                (Level::Value, outer.tool, place)
            }
        }
    }

    /// What the schema says of the value that comes next in this frame.
    pub(super) fn place_of_value(&self, frame: Id) -> Option<Place<'a>> {
        self.inside(frame, true, 0).2
    }

    pub(super) fn key(&self, id: Id) -> &'a str {
        let span = self.keys.get(id as usize).map(|key| key.span.clone());
        span.and_then(|span| self.text.get(span)).unwrap_or_default()
    }

    fn has_key(&self, frame: &Frame<'a>, wanted: &str) -> bool {
        let mut id = frame.key;
        while let Some(key) = self.keys.get(id as usize).filter(|_| id != 0) {
            if self.text.get(key.span.clone()) == Some(wanted) {
                return true;
            }
            id = key.before;
        }
        false
    }

    fn has_arguments(&self, frame: &Frame<'a>) -> bool {
        ARGUMENT_KEYS.iter().any(|key| self.has_key(frame, key))
    }

    /// The frame with one key more.
    pub(super) fn with_key(&mut self, frame: Id, span: Range<usize>) -> Id {
        let mut next = self.frame(frame);
        self.keys.push(Key { before: next.key, span });
        next.key = Id::try_from(self.keys.len() - 1).unwrap_or_default();
        self.frames.push(next);
        Id::try_from(self.frames.len() - 1).unwrap_or_default()
    }

    /// Whether `key` belongs into this object.
    pub(super) fn knows(&self, frame: &Frame<'a>, key: &str) -> Declared {
        if self.has_key(frame, key) {
            return Declared::No;
        }
        let declared = frame.place.map_or(Declared::Open, |place| place.declares(key));
        match frame.level {
            Level::Value => declared,
            Level::Calls => Declared::No,
            Level::Call => {
                let usual =
                    key == "name" || key == "function" || ARGUMENT_KEYS.contains(&key) || IDLE_KEYS.contains(&key);
                let flat = declared == Declared::Yes && !self.has_arguments(frame);
                let keyed = frame.key == 0 && self.task.tools.exact(key).is_some();
                if usual || flat || keyed {
                    Declared::Yes
                } else {
                    Declared::No
                }
            }
        }
    }

    /// What a key costs where it stands.
    pub(super) fn strangeness(&self, frame: &Frame<'a>, key: &str) -> u16 {
        match self.knows(frame, key) {
            Declared::Yes => 0,
            Declared::No if frame.level == Level::Value && !self.has_key(frame, key) => UNDECLARED_KEY,
            Declared::No => STRANGE_KEY,
            // a key that an object further out declares
            Declared::Open => {
                let mut outer = frame.parent;
                for _ in 0..OPEN_SUSPECTS {
                    let frame = self.frame(outer);
                    let declared = frame.place.map_or(Declared::Open, |place| place.declares(key));
                    if frame.object && frame.level == Level::Value && declared == Declared::Yes {
                        return EDIT / 2;
                    }
                    outer = frame.parent;
                }
                0
            }
        }
    }

    /// A reading failed at `id`: what could have been otherwise before.
    pub(super) fn suspect(&mut self, id: Id) {
        let mut at = id;
        for _ in 0..SUSPECTS {
            let node = self.node(at);
            if node.op == Op::Start {
                break;
            }
            at = node.parent;
            self.accuse(at);
        }
        let mut frame = self.node(id).frame;
        for _ in 0..OPEN_SUSPECTS {
            if frame == 0 {
                break;
            }
            let open = self.frame(frame);
            self.accuse(open.opener);
            frame = open.parent;
        }
    }

    fn accuse(&mut self, id: Id) {
        if let Some(node) = self.nodes.get_mut(id as usize).filter(|node| !node.suspected) {
            node.suspected = true;
            self.otherwise(id);
        }
    }

    /// Nothing may be added at the end of a text that was cut there.
    pub(super) fn is_open(&self) -> bool {
        self.task.ending == Ending::Open
    }
}

/// What an edit costs and is called.
#[derive(Debug, Clone, Copy)]
pub(super) struct Edit {
    pub(super) cost: u16,
    pub(super) kind: Option<Kind>,
    /// A habit counts once a call.
    habit: u8,
}

impl Edit {
    pub(super) const NONE: Edit = Edit {
        cost: 0,
        kind: None,
        habit: 0,
    };

    pub(super) fn of(kind: Kind, cost: u16) -> Self {
        Edit {
            cost,
            kind: Some(kind),
            habit: 0,
        }
    }

    pub(super) fn habit(kind: Kind, cost: u16) -> Self {
        let habit = match kind {
            Kind::Quotes => 1,
            Kind::Literal => 2,
            Kind::Key => 4,
            Kind::Comment => 8,
            Kind::TrailingComma => 16,
            Kind::InnerQuotes => 32,
            _ => 64,
        };
        Edit {
            cost,
            kind: Some(kind),
            habit,
        }
    }

    pub(super) fn and(self, cost: u16) -> Self {
        Edit {
            cost: self.cost + cost,
            ..self
        }
    }
}
