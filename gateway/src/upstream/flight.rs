//! Requests in flight on one replica: counted, and told when it is given up.
//!
//! Enters: a request that is about to be sent. Leaves: an [`InFlight`] that counts until it is dropped, and that whoever waits for the
//! answer looks at beside the socket: a replica that hangs closes no connection.

use foldhash::HashMap;
use futures_util::task::AtomicWaker;
use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use super::replica::Replica;

/// All of one replica's.
#[derive(Default)]
pub struct Flights {
    running: Mutex<HashMap<u64, Arc<Flight>>>,
    next: AtomicU64,
}

#[derive(Default)]
struct Flight {
    left: AtomicBool,
    waker: AtomicWaker,
}

impl Flights {
    /// How many.
    pub fn count(&self) -> usize {
        self.running().len()
    }

    /// All that are in flight now are told to leave; later ones aren't.
    pub fn leave(&self) -> usize {
        let flights: Vec<Arc<Flight>> = self.running().values().cloned().collect();
        for flight in &flights {
            flight.left.store(true, Ordering::Release);
            flight.waker.wake();
        }
        flights.len()
    }

    fn begin(&self) -> (u64, Arc<Flight>) {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let flight = Arc::<Flight>::default();
        self.running().insert(number, flight.clone());
        (number, flight)
    }

    fn running(&self) -> MutexGuard<'_, HashMap<u64, Arc<Flight>>> {
        // Nothing that can panic runs under the lock.
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One request in flight; dropping it ends the count.
pub struct InFlight {
    replica: Arc<Replica>,
    number: u64,
    flight: Arc<Flight>,
}

impl InFlight {
    /// From dispatch on.
    pub fn begin(replica: Arc<Replica>) -> InFlight {
        let (number, flight) = replica.flights.begin();
        InFlight {
            replica,
            number,
            flight,
        }
    }

    /// The replica that it counts on.
    pub fn replica(&self) -> &Arc<Replica> {
        &self.replica
    }

    /// Ready once its replica is given up; registers the task for that.
    pub fn poll_left(&self, cx: &Context<'_>) -> Poll<()> {
        self.flight.waker.register(cx.waker());
        if self.flight.left.load(Ordering::Acquire) {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }

    /// The same for an `async fn`.
    pub async fn left(&self) {
        poll_fn(|cx| self.poll_left(cx)).await;
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.replica.flights.running().remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn those_in_flight_are_told_to_leave_and_later_ones_are_not() {
        let replica = Arc::new(Replica::new("a", false, None, None));
        let (one, two) = (replica.begin(), replica.begin());
        assert_eq!(replica.in_flight(), 2);
        let waiting = tokio::spawn(async move { two.left().await });
        tokio::task::yield_now().await;
        assert_eq!(replica.flights.leave(), 2);
        waiting.await.unwrap();
        one.left().await;
        let later = replica.begin();
        assert!(poll_fn(|cx| Poll::Ready(later.poll_left(cx).is_pending())).await);
        drop((one, later));
        assert_eq!(replica.in_flight(), 0);
    }
}
