//! A request that nobody can take now is held while its replica restarts (B35), rather than refused.
//!
//! Enters: what has been tried. Leaves: a [`Held`] place, if somebody is expected back and there is room, or why not. It is looked for a
//! replica every [`PAUSE`] by who waits (`attempt`); what the client sees meanwhile is the relay's. Dropping it gives the place back.
//!
//! | the last attempt | held |
//! | --- | --- |
//! | none: nobody may be asked | if one that was there is away: restarted, unreachable, hanging |
//! | none: nobody has looked at the replicas yet | until somebody has, which takes seconds at most |
//! | no connection, or the engine's word that it is dead | yes: nobody is there |
//! | a connection that broke | if it can't be connected to any more, or the supervisor says within a second that it is down |
//! | the replica hangs | yes |
//! | anything else | no: it is there, and said so |

use sluice_policy::protocol::fault::{Fault, FaultKind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::exchange::Exchange;
use crate::upstream::Replica;
use crate::upstream::fleet::HoldSlot;
use crate::upstream::replica::Readiness;

/// Between two looks for a replica.
pub const PAUSE: Duration = Duration::from_millis(100);

/// After a broken connection: the supervisor of a process that died knows it by then. Connecting doesn't always tell, since an engine may
/// outlive its API server and keep the listening socket.
const NOTICE: Duration = Duration::from_secs(1);

/// A vLLM needs 80 s to 200 s to start: asking again sooner than this is of little use.
const RETRY_AFTER: Duration = Duration::from_secs(30);

/// Bounds of holding.
#[derive(Debug, Clone, Copy)]
pub struct HoldLimits {
    /// Each request.
    pub time: Duration,
    /// Requests of one backend at once.
    pub count: usize,
}

/// What ends it, but for its time.
enum WaitsFor {
    /// A replica that is back.
    Return,
    /// The first look at the replicas; what is told if it finds nobody.
    FirstLook(Fault),
}

/// A request that is held.
pub struct Held {
    until: Instant,
    what_for: WaitsFor,
    _slot: HoldSlot,
}

impl Held {
    /// A place to wait in, after the attempt that went to `last` failed so. One time is for all backends that have the request: `until` is
    /// when it ends, once it has begun.
    ///
    /// # Errors
    /// What the client is told: the failure itself where nobody is expected back, or that too many wait.
    pub async fn begin(
        exchange: &Exchange,
        last: Option<&Arc<Replica>>,
        fault: Fault,
        until: &mut Option<Instant>,
    ) -> Result<Held, Fault> {
        let backend = exchange.backend();
        // It may have ended since nobody was found.
        let is_unseen = last.is_none() && (backend.is_unseen() || backend.has_usable(&[]));
        let is_away = match last {
            None if is_unseen => true,
            None => backend.members().iter().any(|(_, replica)| replica.is_expected()),
            Some(replica) => is_gone(exchange, replica, &fault).await,
        };
        let HoldLimits { time, count } = exchange.limits.hold;
        if !is_away || count == 0 {
            return Err(fault);
        }
        let Some(slot) = backend.hold(count) else {
            let message = format!("The model is being restarted, and {count} requests wait for it already.");
            return Err(Fault::new(FaultKind::NoReplica, message).with_retry_after(RETRY_AFTER));
        };
        let what_for = if is_unseen {
            tracing::info!(request = %exchange.id, "waits for the first look at the replicas");
            WaitsFor::FirstLook(fault)
        } else {
            tracing::info!(request = %exchange.id, "held until a replica is back");
            WaitsFor::Return
        };
        Ok(Held {
            what_for,
            until: *until.get_or_insert_with(|| Instant::now() + time),
            _slot: slot,
        })
    }

    /// Waits a little.
    ///
    /// # Errors
    /// Its time is over, or the first look has found nobody.
    pub async fn pause(&self, exchange: &Exchange) -> Result<(), Fault> {
        let backend = exchange.backend();
        if let WaitsFor::FirstLook(fault) = &self.what_for
            && !backend.is_unseen()
            && !backend.has_usable(&[])
        {
            return Err(fault.clone());
        }
        if Instant::now() >= self.until {
            let time = exchange.limits.hold.time;
            let message = format!("The model is being restarted, and was not back within {time:?}.");
            return Err(Fault::new(FaultKind::NoReplica, message).with_retry_after(RETRY_AFTER));
        }
        tokio::time::sleep(PAUSE).await;
        Ok(())
    }
}

/// Nobody listens where this attempt went, or nobody works there.
async fn is_gone(exchange: &Exchange, replica: &Replica, fault: &Fault) -> bool {
    if !replica.was_ready() {
        return false;
    }
    match fault.kind {
        FaultKind::UpstreamUnreachable => true,
        FaultKind::UpstreamBroke => match replica.address() {
            None => true,
            Some(address) => {
                let connected = tokio::time::timeout(exchange.limits.connect, address.connect()).await;
                !matches!(connected, Ok(Ok(_))) || is_down_soon(replica).await
            }
        },
        FaultKind::UpstreamStalled => !replica.is_last_resort(),
        _ => fault.is_engine_death(),
    }
}

async fn is_down_soon(replica: &Replica) -> bool {
    let until = Instant::now() + NOTICE;
    loop {
        if replica.readiness() == Readiness::Down {
            return true;
        }
        if Instant::now() >= until {
            return false;
        }
        tokio::time::sleep(PAUSE).await;
    }
}
