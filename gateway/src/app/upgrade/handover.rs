//! The turn from one process to the next, on both sides; the table of it stands in `app::upgrade`.

use pingora_core::server::ShutdownWatch;
use std::collections::BTreeMap;
use std::sync::PoisonError;
use std::time::Duration;

use super::UpgradeError;
use super::control::{Order, Outcome};
use super::predecessor::Predecessor;
use super::sockets::Door;
use super::successor::Successor;
use super::wire::Taken;
use crate::app::beside::{Beside, take};
use crate::app::keeper::Keeper;
use crate::app::notify;
use crate::downstream::leaving::Leaving;
use crate::supervisor::{Supervisor, SupervisorError};
use crate::upstream::admission;

/// Replicas that were ready are found again within this time; else those that are will do.
const FOUND_AGAIN: Duration = Duration::from_secs(30);
/// How often they are looked at.
const LOOK: Duration = Duration::from_millis(20);
/// How often the old process says what its requests take.
const TELL: Duration = Duration::from_millis(200);
/// Accepting ends at once; it isn't waited for longer.
const CLOSING: Duration = Duration::from_secs(1);
/// The old process lets go of the lock before it says so; what still ends strays may hold it for a moment.
const LOCK_TRIES: u32 = 50;
/// Between two of them.
const LOCK_PAUSE: Duration = Duration::from_millis(100);

impl Beside {
    /// The old side: hands everything to another process, or goes on.
    pub(in crate::app) async fn upgrade(
        &self,
        order: Order,
        keeper: &mut Option<Keeper>,
        shutdown: &mut ShutdownWatch,
    ) -> Outcome {
        tracing::info!("another process is to take over");
        match self.hand_over(order, keeper, shutdown).await {
            Ok(pid) => {
                tracing::info!(pid, "another process serves; this one finishes what it has");
                Outcome::Done {
                    pid,
                    leaves: std::process::id(),
                }
            }
            Err(error) => {
                tracing::error!(%error, "the upgrade failed; this process goes on");
                Outcome::Failed(error.to_string())
            }
        }
    }

    async fn hand_over(
        &self,
        order: Order,
        keeper: &mut Option<Keeper>,
        shutdown: &mut ShutdownWatch,
    ) -> Result<u32, UpgradeError> {
        let mut successor = {
            let sockets = self.sockets.lock().unwrap_or_else(PoisonError::into_inner);
            let sockets = sockets.as_ref().ok_or(UpgradeError::Ending)?;
            Successor::start(order.program, sockets, self.ready_replicas())?
        };
        let turned = tokio::select! {
            turned = self.turn(&mut successor, keeper) => turned,
            _ = shutdown.wait_for(|ends| *ends) => Err(UpgradeError::Ending),
        };
        if let Err(error) = turned {
            successor.end().await;
            if let Some(keeper) = keeper {
                keeper.take_back();
            }
            return Err(error);
        }
        self.leaving.send_replace(Leaving::HandedOver);
        drop(take(&self.sockets));
        // What this process still accepts it answers; what is said next is to count that, too.
        let mut door = self.door.subscribe();
        let _ = tokio::time::timeout(CLOSING, door.wait_for(|door| *door == Door::Closed)).await;
        let pid = successor.pid().unwrap_or_default();
        notify::main_process(pid);
        // Said before anything else can be: it serves, whatever becomes of this.
        let _ = self.say_taken(&mut successor).await;
        *self.successor.lock().unwrap_or_else(PoisonError::into_inner) = Some(successor);
        Ok(pid)
    }

    /// Tells what requests take here.
    async fn say_taken(&self, successor: &mut Successor) -> Result<(), UpgradeError> {
        let said = successor.taken(self.taken()).await;
        said.inspect_err(|error| tracing::info!(%error, "nobody hears any more what requests take here"))
    }

    /// While this process finishes what it has, the other one hears what that takes: now and then, and when `finished`.
    pub(in crate::app) async fn keep_telling(&self, finished: impl Future<Output = ()>) {
        let Some(mut successor) = take(&self.successor) else {
            return finished.await;
        };
        let now_and_then = async {
            loop {
                tokio::time::sleep(TELL).await;
                if self.say_taken(&mut successor).await.is_err() {
                    // It has handed over itself, and left before this one.
                    return std::future::pending().await;
                }
            }
        };
        tokio::select! {
            () = now_and_then => {}
            () = finished => {}
        }
        let _ = self.say_taken(&mut successor).await;
        *self.successor.lock().unwrap_or_else(PoisonError::into_inner) = Some(successor);
    }

    async fn turn(&self, successor: &mut Successor, keeper: &mut Option<Keeper>) -> Result<(), UpgradeError> {
        successor.prepared().await?;
        let (remembered, fleet) = (self.remembered.clone(), self.flow.fleet.load_full());
        // On a thread for waiting: it is a few megabytes of disk.
        let _ = tokio::task::spawn_blocking(move || remembered.save(&fleet)).await;
        if let Some(keeper) = keeper {
            keeper.let_go().await;
        }
        successor.serves().await
    }

    fn ready_replicas(&self) -> Vec<String> {
        let fleet = self.flow.fleet.load();
        let replicas = fleet.replicas().into_iter();
        let ready = replicas.filter(|(_, replica)| replica.standing().is_up());
        ready.map(|(_, replica)| replica.name().to_string()).collect()
    }

    /// The new side: waits until what was ready at the old one is ready here.
    ///
    /// # Errors
    /// In words: nothing is, and something was.
    pub(in crate::app) async fn find_again(&self, predecessor: &Predecessor) -> Result<(), String> {
        let wanted = predecessor.ready();
        let all_found = async {
            loop {
                let found = self.ready_replicas();
                let fleet = self.flow.fleet.load();
                let missing = fleet.replicas().iter().any(|(_, replica)| {
                    let name = replica.name();
                    wanted.iter().any(|one| **one == *name) && !found.iter().any(|one| **one == *name)
                });
                if !missing && (wanted.is_empty() || !found.is_empty()) {
                    return;
                }
                tokio::time::sleep(LOOK).await;
            }
        };
        if tokio::time::timeout(FOUND_AGAIN, all_found).await.is_err() && self.ready_replicas().is_empty() {
            return Err(format!("no replica became ready within {FOUND_AGAIN:?}"));
        }
        Ok(())
    }

    /// The new side: says that it serves, accepts as soon as it knows what requests take at the old one, and hears of that until the old
    /// one has left.
    pub(in crate::app) fn go_on_from(&self, predecessor: Predecessor) {
        let (keys, flow, door) = (self.keys.clone(), self.flow.clone(), self.door.clone());
        let take = move |taken: &Taken| {
            keys.go_on_from(&taken.keys);
            for (backend, replica) in flow.fleet.load().replicas() {
                let name = replica.name();
                let holds = taken.replicas.get(&*name).copied().unwrap_or_default();
                if let Some(slot) = backend.slot_of(&name) {
                    admission::set_elsewhere(&backend, slot, holds);
                }
            }
        };
        // On a thread for waiting: it lives as long as the old process, which `[server] drain` bounds.
        tokio::task::spawn_blocking(move || {
            let mut heard = predecessor.serving().and_then(|()| predecessor.taken());
            if let Ok(Some(taken)) = &heard {
                take(taken);
            }
            // Also if the old one has gone: nobody else accepts then.
            door.send_replace(Door::Open);
            while let Ok(Some(taken)) = &heard {
                take(taken);
                heard = predecessor.taken();
            }
            take(&Taken::default());
            match heard {
                Ok(_) => tracing::info!("the process before has left"),
                Err(error) => tracing::warn!(%error, "what requests take in the process before isn't known any more"),
            }
        });
    }

    /// The old side: of keys with limits, and of replicas.
    fn taken(&self) -> Taken {
        let mut replicas = BTreeMap::new();
        for (backend, replica) in self.flow.fleet.load().replicas() {
            let name = replica.name();
            let Some(slot) = backend.slot_of(&name) else {
                continue;
            };
            let holds = backend.places().holds(slot);
            if holds.sequences > 0 {
                replicas.insert(name.to_string(), holds);
            }
        }
        Taken {
            keys: self.keys.hand_over(),
            replicas,
        }
    }

    /// Takes the replicas; after an upgrade their lock may be held for a moment.
    pub(in crate::app) async fn supervise(&self, takes_over: bool) -> Result<Keeper, SupervisorError> {
        let mut tries = if takes_over { LOCK_TRIES } else { 1 };
        let start = &self.start;
        let roster = take(&start.roster).unwrap_or_default();
        loop {
            tries -= 1;
            match Supervisor::start(start.settings.clone(), roster.specs(), start.simulate.clone()) {
                Err(SupervisorError::Locked { .. }) if tries > 0 => tokio::time::sleep(LOCK_PAUSE).await,
                Err(error) => return Err(error),
                Ok(supervisor) => {
                    let (live, flow) = (self.live.clone(), self.flow.clone());
                    return Ok(Keeper::new(live, flow, supervisor, roster, self.remembered.clone()));
                }
            }
        }
    }
}
