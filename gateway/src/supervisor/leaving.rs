//! A replica that is configured no more.
//!
//! Enters: the replica's orders and its state. It runs on, so that its requests may end, until [`Leaving::end`]; whoever wants its name
//! or its port waits until nothing of it is left. A replica's task drops its side of the state channel when it is done: that is the sign.

use std::sync::Arc;

use tokio::sync::watch;

use super::{Order, ReplicaState, Wanted};

/// See the module.
pub struct Leaving {
    orders: Arc<watch::Sender<Order>>,
    state: watch::Receiver<ReplicaState>,
}

impl Leaving {
    pub(super) fn new(orders: Arc<watch::Sender<Order>>, state: watch::Receiver<ReplicaState>) -> Leaving {
        Leaving { orders, state }
    }

    /// Ends it, whatever its `on_exit` says, and returns when nothing of it is left. Bounded by its `stop_grace` and the kernel.
    pub async fn end(mut self) {
        self.orders.send_modify(|order| order.wanted = Wanted::End);
        gone(&mut self.state).await;
    }
}

async fn gone(state: &mut watch::Receiver<ReplicaState>) {
    while state.changed().await.is_ok() {}
}

/// Waits until all of these are gone; false if the one that waits is to end before.
pub(super) async fn all_gone(leaving: Vec<watch::Receiver<ReplicaState>>, wants: &mut watch::Receiver<Order>) -> bool {
    let all = async {
        for mut state in leaving {
            gone(&mut state).await;
        }
    };
    tokio::select! {
        biased;
        () = all => true,
        _ = wants.wait_for(|order| order.wanted.is_final()) => false,
    }
}
