//! What a new configuration makes of what runs: which of it stays, under another name perhaps, what comes and what goes.
//!
//! Problem: a reload must not cost what is known of a replica, nor cut what it answers. Rule: what has its name and is the same stays; of
//! the rest, what is the same as something that has gone is that, renamed; whatever is left comes or goes. A name that now means
//! something else comes and goes at once. Enters: what runs and what is wanted, in the order of the file, and how alike two of them are.
//! Leaves: a [`Plan`] that has each of them once. Used for backends and, within one, for replicas.

/// How alike something that runs and something that is wanted are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Likeness {
    /// The same, by the same name.
    Same,
    /// The same by another name.
    Renamed,
    /// Another one.
    Other,
}

/// What is to be done; numbers are places in the two lists.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Each wanted one, with the one that runs for it already.
    pub wanted: Vec<Fate>,
    /// Those that run and aren't wanted any more.
    pub dropped: Vec<usize>,
}

/// Where a wanted one comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It runs.
    Kept(usize),
    /// It runs by another name.
    Renamed(usize),
    /// It doesn't run yet.
    Added,
}

impl Fate {
    /// The one that runs for it.
    pub fn running(self) -> Option<usize> {
        match self {
            Fate::Kept(place) | Fate::Renamed(place) => Some(place),
            Fate::Added => None,
        }
    }
}

/// What to do so that these run. Of several that are equally like it, the first one is taken.
pub fn plan<R, W>(running: &[R], wanted: &[W], likeness: impl Fn(&R, &W) -> Likeness) -> Plan {
    let mut taken = vec![false; running.len()];
    let mut fates = vec![Fate::Added; wanted.len()];
    // Names first: one that stays isn't given away to a new name.
    for pass in [Likeness::Same, Likeness::Renamed] {
        for (want, fate) in wanted.iter().zip(&mut fates).filter(|(_, fate)| **fate == Fate::Added) {
            let mut free = running.iter().zip(&mut taken).enumerate();
            let found = free.find(|(_, (runs, taken))| !**taken && likeness(runs, want) == pass);
            if let Some((place, (_, taken))) = found {
                *taken = true;
                *fate = match pass {
                    Likeness::Same => Fate::Kept(place),
                    Likeness::Renamed | Likeness::Other => Fate::Renamed(place),
                };
            }
        }
    }
    let dropped = taken.iter().enumerate().filter(|(_, taken)| !**taken);
    Plan {
        dropped: dropped.map(|(place, _)| place).collect(),
        wanted: fates,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `name=what` each.
    fn of(running: &str, wanted: &str) -> Plan {
        fn read(text: &str) -> Vec<(&str, &str)> {
            text.split_whitespace().filter_map(|one| one.split_once('=')).collect()
        }
        plan(&read(running), &read(wanted), |runs, want| {
            match (runs.0 == want.0, runs.1 == want.1) {
                (true, true) => Likeness::Same,
                (false, true) => Likeness::Renamed,
                (_, false) => Likeness::Other,
            }
        })
    }

    #[test]
    fn each_change_has_its_plan() {
        use Fate::{Added, Kept, Renamed};
        for (what, running, wanted, fates, dropped) in [
            ("nothing", "a=1 b=2", "a=1 b=2", vec![Kept(0), Kept(1)], vec![]),
            ("another order", "a=1 b=2", "b=2 a=1", vec![Kept(1), Kept(0)], vec![]),
            ("one comes", "a=1", "a=1 b=2", vec![Kept(0), Added], vec![]),
            ("one goes", "a=1 b=2", "b=2", vec![Kept(1)], vec![0]),
            ("renamed", "a=1 b=2", "c=1 b=2", vec![Renamed(0), Kept(1)], vec![]),
            ("renamed and moved", "a=1", "b=2", vec![Added], vec![0]),
            ("it means another one", "a=1", "a=2", vec![Added], vec![0]),
            (
                "names exchanged",
                "a=1 b=2",
                "a=2 b=1",
                vec![Renamed(1), Renamed(0)],
                vec![],
            ),
            (
                "of equal ones the name decides",
                "a=1 b=1",
                "c=1 b=1",
                vec![Renamed(0), Kept(1)],
                vec![],
            ),
            (
                "one of equal ones goes",
                "a=1 b=1 c=1",
                "c=1 d=1",
                vec![Kept(2), Renamed(0)],
                vec![1],
            ),
            ("all new", "", "a=1 b=1", vec![Added, Added], vec![]),
            ("all gone", "a=1 b=1", "", vec![], vec![0, 1]),
        ] {
            let plan = of(running, wanted);
            assert_eq!((plan.wanted, plan.dropped), (fates, dropped), "{what}");
        }
    }
}
