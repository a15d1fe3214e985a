//! The end (B37): readiness goes false, running streams finish within a bound, records are flushed, and the process leaves
//! at once when the last stream has ended.
//!
//! pingora has told the listeners to close and the connections to take no more; it sleeps its grace period in the main
//! thread, which we do not wait for.

use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};

use super::remembered::Remembered;
use crate::downstream::leaving::Leaving;
use crate::flow::Flow;
use crate::flow::registry::Registry;
use crate::supervisor::Supervisor;

/// Answers that were cut by the drain's end have this long to leave.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// The records have this long to reach the disk.
const FLUSH: Duration = Duration::from_secs(5);
/// Connections without a request are closed by then.
const IDLE_CONNECTIONS: Duration = Duration::from_millis(500);

/// What the end needs.
pub struct Drain {
    /// Readiness.
    pub draining: Arc<AtomicBool>,
    /// What runs.
    pub flow: Arc<Flow>,
    /// Client connections.
    pub connections: Arc<AtomicUsize>,
    /// Where what is known of conversations is saved.
    pub remembered: Remembered,
    /// How long running streams may take.
    pub limit: Duration,
}

impl Drain {
    /// Waits until nothing runs any more, or may no more. If another process took over, the service is as ready as before.
    pub async fn finish(&self, leaving: Leaving) {
        let begun = Instant::now();
        self.draining.store(leaving != Leaving::HandedOver, Ordering::Relaxed);
        let registry = &self.flow.registry;
        tracing::info!(
            running = registry.running(),
            "draining: no new requests, running streams finish"
        );
        if !self.finished(registry).await {
            tracing::warn!(running = registry.running(), limit = ?self.limit, "the drain's time is over: what runs is ended");
            registry.end_all();
            let _ = tokio::time::timeout(LAST_WORDS, registry.is_idle()).await;
        }
        self.connections_closed(self.limit.saturating_sub(begun.elapsed()))
            .await;
    }

    /// Ends the process. If another one took over, what outlives a gateway is the other's.
    pub async fn end(self, supervisor: Option<Supervisor>, leaving: Leaving) -> ! {
        if leaving != Leaving::HandedOver {
            self.remembered.save(&self.flow.fleet.load());
        }
        if let Some(supervisor) = supervisor {
            supervisor.shutdown().await;
        }
        self.leave()
    }

    /// True when nothing runs any more; false at the limit, or at a second Ctrl-C.
    async fn finished(&self, registry: &Arc<Registry>) -> bool {
        let again = async {
            match signal(SignalKind::interrupt()) {
                Ok(mut interrupts) => drop(interrupts.recv().await),
                Err(_) => std::future::pending().await,
            }
        };
        tokio::select! {
            () = registry.is_idle() => true,
            () = tokio::time::sleep(self.limit) => false,
            () = again => false,
        }
    }

    /// The last bytes of the last answers leave with their connections. Idle connections close at once, so who is left after
    /// them is a client that still reads: it has the rest of the drain's time.
    async fn connections_closed(&self, left: Duration) {
        let closed = async {
            while self.connections.load(Ordering::Relaxed) > 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let _ = tokio::time::timeout(left.max(IDLE_CONNECTIONS), closed).await;
    }

    fn leave(&self) -> ! {
        if !self.flow.books.recorder.flush(FLUSH) {
            tracing::error!("some records did not reach the disk in time");
        }
        tracing::info!("bye");
        process::exit(0)
    }
}
