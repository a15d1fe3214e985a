//! Which replicas are held, backend by backend, and how a new configuration changes them.
//!
//! Enters: what a configuration wants ([`WantedBackend`]). Leaves: the [`Fleet`] that requests use, and a [`Change`]: who has come, who has
//! gone, whose name or key is another one. `policy::membership` says who is who; here is what a replica is: its launcher's settings, the
//! model, and where it is a process its key. Nothing is started or ended here: that is `keeper`'s.
//!
//! | a replica | then |
//! | --- | --- |
//! | is what it was, by this name or another | keeps everything: breaker, readiness, connections, cache, places |
//! | comes | gets requests once it is ready |
//! | comes where no ready one stays | the same, and requests are held for it (B35) |
//! | goes | gets no new request |

use sluice_policy::membership::{self, Likeness};
use std::sync::Arc;

use super::build::{WantedBackend, WantedReplica};
use crate::supervisor::{LauncherConfig, ReplicaSpec};
use crate::upstream::{Backend, Fleet, Member, Replica};

/// See the module.
#[derive(Default)]
pub struct Roster {
    backends: Vec<Held>,
}

/// One backend's.
struct Held {
    backend: Arc<Backend>,
    replicas: Vec<Seat>,
}

/// One replica.
#[derive(Clone)]
pub struct Seat {
    /// Whose it is.
    pub backend: Arc<Backend>,
    /// Its slot there.
    pub slot: usize,
    /// Itself.
    pub replica: Arc<Replica>,
    /// What the supervisor holds.
    pub spec: ReplicaSpec,
}

/// What a new configuration changes.
#[derive(Default)]
pub struct Change {
    /// Those that have come.
    pub added: Vec<Seat>,
    /// Those that have gone.
    pub dropped: Vec<Seat>,
    /// Those with another name or key: the name that each had, and how it is now.
    pub changed: Vec<(String, Seat)>,
    /// Those that go on with settings that they were started with, though others are wanted.
    pub outdated: Vec<Arc<str>>,
}

impl Roster {
    /// What is wanted at the start.
    pub fn new(wanted: Vec<WantedBackend>) -> Roster {
        let mut roster = Roster::default();
        roster.change(wanted);
        roster
    }

    /// For requests.
    pub fn fleet(&self) -> Fleet {
        Fleet {
            backends: self.backends.iter().map(|held| held.backend.clone()).collect(),
        }
    }

    /// Everybody.
    pub fn seats(&self) -> impl Iterator<Item = &Seat> {
        self.backends.iter().flat_map(|held| &held.replicas)
    }

    /// For the supervisor.
    pub fn specs(&self) -> Vec<ReplicaSpec> {
        self.seats().map(|seat| seat.spec.clone()).collect()
    }

    /// This is wanted from now on. [`Roster::fleet`] is another one afterwards.
    pub fn change(&mut self, wanted: Vec<WantedBackend>) -> Change {
        let names: Vec<String> = self.seats().map(|seat| seat.spec.name.clone()).collect();
        let plan = membership::plan(&self.backends, &wanted, |held, want| {
            if *held.backend.name == *want.name {
                Likeness::Same
            } else if want.replicas.iter().any(|replica| held.has(replica)) {
                Likeness::Renamed
            } else {
                Likeness::Other
            }
        });
        let mut before: Vec<Option<Held>> = std::mem::take(&mut self.backends).into_iter().map(Some).collect();
        let mut change = Change::default();
        for (want, fate) in wanted.into_iter().zip(plan.wanted) {
            let held = fate.running().and_then(|place| before.get_mut(place)?.take());
            self.backends.push(match held {
                Some(held) => held.renewed(want, &names, &mut change),
                None => Held::new(want, &mut change),
            });
        }
        change
            .dropped
            .extend(before.into_iter().flatten().flat_map(|held| held.replicas));
        change
    }
}

impl Held {
    fn new(want: WantedBackend, change: &mut Change) -> Held {
        let replicas: Vec<Arc<Replica>> = want.replicas.iter().map(|want| Arc::new(want.replica())).collect();
        let backend = Backend::new(
            &want.name,
            &want.model,
            want.aliases,
            &want.profile,
            replicas.clone(),
            want.routing,
        );
        let capacities = want.replicas.iter().map(|want| want.capacity);
        let backend = backend.with_fallback(want.fallback, want.images);
        let backend = Arc::new(backend.with_capacities(capacities));
        let seats = want.replicas.into_iter().zip(replicas).enumerate();
        let seats = seats.map(|(slot, (want, replica))| Seat {
            backend: backend.clone(),
            slot,
            replica,
            spec: want.spec,
        });
        let replicas: Vec<Seat> = seats.collect();
        change.added.extend(replicas.iter().cloned());
        Held { backend, replicas }
    }

    fn has(&self, want: &WantedReplica) -> bool {
        self.replicas.iter().any(|seat| is_same(&seat.spec, &want.spec))
    }

    /// The same backend as is wanted now. `names` are those of all replicas that run.
    fn renewed(self, want: WantedBackend, names: &[String], change: &mut Change) -> Held {
        let plan = membership::plan(&self.replicas, &want.replicas, |seat, want| {
            likeness(&seat.spec, &want.spec, names)
        });
        let stays = |place: &usize| !plan.dropped.contains(place);
        let kept = self.replicas.iter().enumerate().filter(|(place, _)| stays(place));
        let has_ready = kept.into_iter().any(|(_, seat)| seat.replica.standing().is_up());
        let was_there = self.replicas.iter().any(|seat| seat.replica.was_ready());
        let backend = self
            .backend
            .renewed(&want.name, &want.model, want.aliases, &want.profile)
            .with_fallback(want.fallback, want.images);
        let mut members = Vec::with_capacity(want.replicas.len());
        let mut seats = Vec::with_capacity(want.replicas.len());
        for (want, fate) in want.replicas.into_iter().zip(&plan.wanted) {
            let seat = fate.running().and_then(|place| self.replicas.get(place));
            let capacity = want.capacity;
            let replica = match seat {
                Some(seat) => {
                    members.push(Member::Stays {
                        slot: seat.slot,
                        sequences: capacity.sequences,
                    });
                    seat.replica.rename(&want.spec.name);
                    seat.replica.set_authorization(want.authorization);
                    seat.replica.clone()
                }
                None => {
                    let replica = Arc::new(want.replica());
                    if was_there && !has_ready {
                        replica.succeeds();
                    }
                    let new = replica.clone();
                    members.push(Member::New { replica: new, capacity });
                    replica
                }
            };
            seats.push((replica, want.spec, *fate));
        }
        let slots = backend.enrol(members);
        let backend = Arc::new(backend);
        let seats = seats.into_iter().zip(slots);
        let replicas = seats.map(|((replica, spec, fate), slot)| {
            let before = fate.running().and_then(|place| self.replicas.get(place));
            let seat = Seat {
                backend: backend.clone(),
                slot,
                replica,
                spec: before.map_or_else(|| spec.clone(), |before| called(&before.spec, &spec)),
            };
            match before {
                None => change.added.push(seat.clone()),
                Some(before) => {
                    if before.spec.name != spec.name || before.spec.key != spec.key {
                        change.changed.push((before.spec.name.clone(), seat.clone()));
                    }
                    if is_outdated(&before.spec, &spec) {
                        change.outdated.push(seat.replica.name());
                    }
                }
            }
            seat
        });
        let replicas = replicas.collect();
        let dropped = plan.dropped.iter().filter_map(|place| self.replicas.get(*place));
        change.dropped.extend(dropped.cloned());
        Held { backend, replicas }
    }
}

/// The same replica, whatever it is called.
fn is_same(runs: &ReplicaSpec, want: &ReplicaSpec) -> bool {
    let launcher = match (&runs.launcher, &want.launcher) {
        // One that is only watched may want another key from now on; a process has the one that it was started with.
        (LauncherConfig::External(was), LauncherConfig::External(is)) => was.url == is.url && runs.tls == want.tls,
        (LauncherConfig::Process(was), LauncherConfig::Process(is)) => {
            was.port == is.port && was.command == is.command && was.env == is.env && runs.key == want.key
        }
        (runs, want) => runs == want,
    };
    launcher && runs.model == want.model
}

fn likeness(runs: &ReplicaSpec, want: &ReplicaSpec, names: &[String]) -> Likeness {
    if !is_same(runs, want) {
        return Likeness::Other;
    }
    if runs.name == want.name {
        return Likeness::Same;
    }
    // What is noted of a process has its name: two must not change theirs at once.
    if runs.launcher.is_process() && names.contains(&want.name) {
        Likeness::Other
    } else {
        Likeness::Renamed
    }
}

/// It would be started, or looked at, otherwise.
fn is_outdated(runs: &ReplicaSpec, want: &ReplicaSpec) -> bool {
    let is_started = runs.launcher.is_process() && (runs.profile != want.profile || runs.aliases != want.aliases);
    is_started || runs.launcher != want.launcher
}

/// The same with the name and the key of another one: what it was started with stays.
fn called(runs: &ReplicaSpec, want: &ReplicaSpec) -> ReplicaSpec {
    ReplicaSpec {
        name: want.name.clone(),
        key: want.key.clone(),
        ..runs.clone()
    }
}
