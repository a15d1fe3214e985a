//! Whether this process is on its way out, and how: what connections go by.

use std::time::Duration;
use tokio::sync::watch;

/// Idle connections of HTTP/1.1 are kept so long after another process took over: their next request is still answered, with `connection:
/// close`, so that no request meets a connection that closes under it.
const LINGER: Duration = Duration::from_secs(2);

/// What a process does with its connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leaving {
    /// Serves them.
    Stays,
    /// Another process has its sockets: what runs is finished, what was accepted is answered once more.
    HandedOver,
    /// It ends: what runs is finished, what is idle is closed.
    Ends,
}

/// Heard by everybody whom it concerns.
pub type Hears = watch::Receiver<Leaving>;

/// Waits until the process ends and nobody has its sockets.
pub async fn ends(hears: &Hears) {
    // The guard that it gives back must not live across an await.
    drop(hears.clone().wait_for(|leaving| *leaving == Leaving::Ends).await);
}

/// Waits until it leaves, either way.
pub async fn leaves(hears: &Hears) {
    drop(hears.clone().wait_for(|leaving| *leaving != Leaving::Stays).await);
}

/// Waits until connections of HTTP/1.1 that are idle are to be closed.
pub async fn closes_idle(hears: &Hears) {
    leaves(hears).await;
    tokio::select! {
        () = tokio::time::sleep(LINGER) => {}
        () = ends(hears) => {}
    }
}
