//! Which replicas a backend has now: by slot, with the ring over them.
//!
//! Enters: who has which slot. Leaves: who may be asked, and in which order for a session. A reload makes a new [`Members`]; a request
//! looks at it anew for each attempt, so that one that waits sees who has come. A replica keeps its slot as long as it is there, and
//! the slot of one that has gone stays empty until nothing that was sent there is under way: what routing and admission know by number
//! stays true over reloads.
//!
//! Ring: positions come from the replica's *name*, so that they survive a restart on another port and several gateways
//! in front of the same fleet agree.

use pingora_ketama::{Bucket, Continuum};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use super::replica::{Readiness, Replica};

/// Points of a replica on the ring, as ketama has them.
const RING_POINTS: usize = 160;

/// See the module.
pub struct Members {
    slots: Vec<Option<Arc<Replica>>>,
    ring: Continuum,
    nodes: HashMap<SocketAddr, usize>,
}

/// Who is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resort {
    /// Somebody whose breaker admits.
    Usual,
    /// For want of a better one.
    Last,
}

impl Members {
    /// Of the backend of this name.
    pub fn new(backend: &str, slots: Vec<Option<Arc<Replica>>>) -> Members {
        let all = slots.iter().enumerate();
        let nodes: HashMap<SocketAddr, usize> = all
            .filter_map(|(slot, replica)| Some((ring_place(backend, &replica.as_ref()?.name()), slot)))
            .collect();
        let mut buckets: Vec<Bucket> = nodes.keys().map(|&node| Bucket::new(node, 1)).collect();
        buckets.sort();
        Members {
            slots,
            ring: Continuum::new(&buckets),
            nodes,
        }
    }

    /// Replicas.
    pub fn len(&self) -> usize {
        self.iter().count()
    }

    /// There is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Slots, empty ones too.
    pub fn slots(&self) -> usize {
        self.slots.len()
    }

    /// Who has this slot.
    pub fn get(&self, slot: usize) -> Option<&Arc<Replica>> {
        self.slots.get(slot)?.as_ref()
    }

    /// Each with its slot.
    pub fn iter(&self) -> impl Iterator<Item = (usize, &Arc<Replica>)> {
        let all = self.slots.iter().enumerate();
        all.filter_map(|(slot, replica)| Some((slot, replica.as_ref()?)))
    }

    /// Slots in the ring's order. One turn around it meets every replica.
    pub fn on_ring<'r>(&'r self, key: &'r [u8]) -> impl Iterator<Item = usize> + 'r {
        let ring = self.ring.node_iter(key).take(self.slots.len() * RING_POINTS);
        ring.filter_map(|node| self.nodes.get(node).copied())
    }

    /// Ready replicas that their breakers admit; one that nobody has asked yet only if there is no ready one; one whose breaker doesn't
    /// as the last resort: better asked than refused, unless it hangs.
    pub fn may_be_asked(&self, tried: &[usize]) -> (Vec<bool>, Resort) {
        let of = |fits: &dyn Fn(&Replica) -> bool| -> Option<Vec<bool>> {
            let slots = self.slots.iter().enumerate();
            let may: Vec<bool> = slots
                .map(|(slot, replica)| !tried.contains(&slot) && replica.as_deref().is_some_and(fits))
                .collect();
            may.contains(&true).then_some(may)
        };
        let usual = of(&|replica| replica.readiness() == Readiness::Ready && replica.is_usable());
        if let Some(may) = usual.or_else(|| of(&Replica::is_usable)) {
            return (may, Resort::Usual);
        }
        let last = of(&Replica::is_last_resort);
        (last.unwrap_or_else(|| vec![false; self.slots.len()]), Resort::Last)
    }
}

/// A stable place on the ring for a name; ketama wants socket addresses.
fn ring_place(backend: &str, replica: &str) -> SocketAddr {
    let digest = Sha256::digest(format!("{backend}/{replica}").as_bytes());
    let mut octets = [0_u8; 16];
    for (octet, byte) in octets.iter_mut().zip(digest.iter()) {
        *octet = *byte;
    }
    SocketAddr::new(IpAddr::V6(Ipv6Addr::from(octets)), 1)
}
