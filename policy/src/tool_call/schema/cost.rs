//! What checking a value may cost, from the graph of its schema.
//!
//! A schema of a few bytes can make a validator visit one value an exponential number of times: a chain of definitions that each
//! name the next one twice, or a recursive one whose two branches both descend. So the visits that one value at depth `d` can
//! meet are bounded by a table over the graph:
//!
//! ```text
//! visits(schema, 0) = weight + Σ visits(in place, 0)
//! visits(schema, d) = max visits(one_of, d-1) + Σ visits(all_of, d-1) + Σ visits(in place, d)
//! ```
//!
//! A check then costs at most the number of values times the most visits down to their depth, and as many bytes read by
//! patterns. Cold start: the table is computed when the schema is compiled, and ends at the depth of the schema unless it
//! is recursive. What is over a limit isn't checked.

use super::bounds::Node;
use crate::tool_call::json::DEPTH_LIMIT;
use serde_json::Value;

/// Most visits of a check: some tenths of a second.
const VISITS_LIMIT: u64 = 8 << 20;
/// Most visits of all checks that are done to mend one call.
const MEND_VISITS_LIMIT: u64 = 16 << 20;
/// A value that is copied into an error counts for so many visits.
const COPY_VISITS: u64 = 16;
/// So does a number of copied bytes.
const COPIED_BYTES: u64 = 8;
/// Most schemas that stand on the stack at once: validation recurses into values and references.
const STACK_LIMIT: usize = 1024;
/// Longest chain of schemas for one value.
const CHAIN_LIMIT: usize = 64;
/// Visits that reading a byte by one pattern counts for: a pattern may keep hundreds of states.
const PATTERN_VISITS: u64 = 64;
/// How often what is applied in place is visited for `unevaluatedProperties` and the like.
const LOOKS_AGAIN: u64 = 4;

/// The bounds of one schema's checks.
#[derive(Debug)]
pub(super) struct Cost {
    /// Most visits and pattern matches that a value at each depth or above meets; the last entry holds for all below.
    by_depth: Vec<Load>,
    /// Longest chain of schemas for one value.
    chain: usize,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Load {
    visits: u64,
    patterns: u64,
}

impl Load {
    fn plus(self, other: Load) -> Load {
        Load {
            visits: self.visits.saturating_add(other.visits),
            patterns: self.patterns.saturating_add(other.patterns),
        }
    }

    fn times(self, factor: u64) -> Load {
        Load {
            visits: self.visits.saturating_mul(factor),
            patterns: self.patterns.saturating_mul(factor),
        }
    }

    fn max(self, other: Load) -> Load {
        Load {
            visits: self.visits.max(other.visits),
            patterns: self.patterns.max(other.patterns),
        }
    }
}

/// Values in a value, and how deep they nest.
#[derive(Debug, Clone, Copy, Default)]
struct Extent {
    values: u64,
    depth: usize,
}

impl Extent {
    fn of(value: &Value) -> Extent {
        let inner = |found: Extent, child: &Value| {
            let child = Extent::of(child);
            Extent {
                values: found.values + child.values,
                depth: found.depth.max(child.depth + 1),
            }
        };
        let this = Extent { values: 1, depth: 0 };
        match value {
            Value::Array(items) => items.iter().fold(this, inner),
            Value::Object(members) => members.values().fold(this, inner),
            _ => this,
        }
    }
}

impl Cost {
    /// `None` if schemas apply themselves to the same value without end, or in too long a chain.
    pub(super) fn of(nodes: &[Node]) -> Option<Self> {
        let order = in_order(nodes)?;
        let chain = longest_chain(nodes, &order)?;
        let mut above: Vec<Load> = Vec::new();
        let mut by_depth: Vec<Load> = Vec::new();
        for depth in 0..=DEPTH_LIMIT {
            let mut here = vec![Load::default(); nodes.len()];
            for at in &order {
                let node = nodes.get(*at)?;
                let own = if depth == 0 {
                    Load {
                        visits: node.weight,
                        patterns: node.patterns,
                    }
                } else {
                    below(node, &above)
                };
                let in_place = sum(&node.in_place, &here);
                let again = if node.looks_again { LOOKS_AGAIN } else { 1 };
                *here.get_mut(*at)? = own.plus(in_place.times(again));
            }
            let root = here.first().copied()?;
            if depth > 0 && root == Load::default() {
                break;
            }
            let most = by_depth.last().map_or(root, |load| load.max(root));
            by_depth.push(most);
            above = here;
        }
        Some(Cost { by_depth, chain })
    }

    /// A check of `value`, written in so many bytes, stays within the limits.
    pub(super) fn allows_check(&self, value: &Value, bytes: usize) -> bool {
        let extent = Extent::of(value);
        self.load(extent)
            .is_some_and(|load| visits(extent, bytes, load) <= VISITS_LIMIT)
    }

    /// Takes what a check costs that collects errors from what is left for mends; false if too little is left. Each visit may
    /// end in an error, and one inside of a choice holds a copy of its value: of a value at depth d, d + 1 times.
    pub(super) fn spend(&self, left: &mut Left, value: &Value, bytes: usize) -> bool {
        let extent = Extent::of(value);
        let Some(load) = self.load(extent) else {
            return false;
        };
        let copies = (extent.depth as u64 + 1).saturating_mul(load.visits);
        let copied = (extent.values * COPY_VISITS + bytes as u64 / COPIED_BYTES).saturating_mul(copies);
        let cost = visits(extent, bytes, load).saturating_add(copied);
        let rest = left.0.checked_sub(cost);
        left.0 = rest.unwrap_or(0);
        rest.is_some()
    }

    /// What one value meets at most; `None`: a check takes too much of the stack.
    fn load(&self, extent: Extent) -> Option<Load> {
        if (extent.depth + 1) * self.chain > STACK_LIMIT {
            return None;
        }
        self.by_depth.get(extent.depth).or(self.by_depth.last()).copied()
    }
}

/// Visits that are left for the mends of one call.
#[derive(Debug)]
pub(super) struct Left(u64);

impl Default for Left {
    fn default() -> Self {
        Left(MEND_VISITS_LIMIT)
    }
}

fn visits(extent: Extent, bytes: usize, load: Load) -> u64 {
    let read = (bytes as u64)
        .saturating_mul(load.patterns)
        .saturating_mul(PATTERN_VISITS);
    extent.values.saturating_mul(load.visits).saturating_add(read)
}

fn sum(schemas: &[usize], loads: &[Load]) -> Load {
    let loads = schemas.iter().filter_map(|at| loads.get(*at));
    loads.fold(Load::default(), |sum, load| sum.plus(*load))
}

/// The most that a child one level deeper meets.
fn below(node: &Node, above: &[Load]) -> Load {
    let one = node.one_of.iter().filter_map(|at| above.get(*at));
    let one = one.fold(Load::default(), |most, load| most.max(*load));
    one.plus(sum(&node.all_of, above))
}

/// The nodes, each behind those it applies in place; `None` if they go round in circles.
fn in_order(nodes: &[Node]) -> Option<Vec<usize>> {
    let mut waits: Vec<usize> = nodes.iter().map(|node| node.in_place.len()).collect();
    let mut users: Vec<Vec<usize>> = vec![Vec::new(); nodes.len()];
    for (at, node) in nodes.iter().enumerate() {
        for used in &node.in_place {
            users.get_mut(*used)?.push(at);
        }
    }
    let mut order: Vec<usize> = waits
        .iter()
        .enumerate()
        .filter(|(_, waits)| **waits == 0)
        .map(|(at, _)| at)
        .collect();
    let mut done = 0;
    while let Some(at) = order.get(done).copied() {
        done += 1;
        for user in users.get(at)? {
            let waits = waits.get_mut(*user)?;
            *waits -= 1;
            if *waits == 0 {
                order.push(*user);
            }
        }
    }
    (order.len() == nodes.len()).then_some(order)
}

fn longest_chain(nodes: &[Node], order: &[usize]) -> Option<usize> {
    let mut chains = vec![0; nodes.len()];
    for at in order {
        let inner = nodes
            .get(*at)?
            .in_place
            .iter()
            .filter_map(|used| chains.get(*used).copied());
        *chains.get_mut(*at)? = inner.max().unwrap_or(0) + 1;
    }
    chains.into_iter().max().filter(|chain| *chain <= CHAIN_LIMIT)
}
