//! A replica without a GPU: the simulator on a loopback port of its own.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use jiff::Timestamp;
use sluice_policy::profile::{Diagnosis, Finding};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::{Order, ReplicaSpec, ReplicaState, Wanted};
use crate::simulator::SimConfig;

/// A running simulator. It ends when `task` is aborted.
#[derive(Debug)]
pub struct Simulation {
    /// Where it listens.
    pub address: SocketAddr,
    /// What serves it.
    pub task: JoinHandle<()>,
    /// The id that it lists.
    pub model: String,
}

/// Starts the simulator of one replica on an ephemeral loopback port; called inside the runtime. The supervisor hands
/// the simulator's settings on as they are: `app` joins the two here.
pub type StartSimulation = Arc<dyn Fn(&ReplicaSpec, &SimConfig) -> io::Result<Simulation> + Send + Sync>;

/// Runs the simulator until the gateway goes down or it is configured no more, and anew if it ended by itself and is asked for.
pub(super) async fn run(
    spec: ReplicaSpec,
    config: Box<SimConfig>,
    simulate: StartSimulation,
    mut wants: watch::Receiver<Order>,
    tell: watch::Sender<ReplicaState>,
) {
    loop {
        let Order { wanted, name, .. } = wants.borrow_and_update().clone();
        match wanted {
            Wanted::Close | Wanted::End | Wanted::LetGo => return,
            Wanted::Rest => {
                tell.send_replace(ReplicaState::Stopped);
                if wants.changed().await.is_err() {
                    return;
                }
            }
            Wanted::Run => match simulate(&spec, &config) {
                Ok(simulation) => serve(&name, simulation, &mut wants, &tell).await,
                Err(error) => {
                    crashed(&name, &tell, format!("the simulator can't start: {error}"));
                    if wants.changed().await.is_err() {
                        return;
                    }
                }
            },
        }
    }
}

async fn serve(
    name: &str,
    mut simulation: Simulation,
    wants: &mut watch::Receiver<Order>,
    tell: &watch::Sender<ReplicaState>,
) {
    let url = format!("http://{}", simulation.address);
    tracing::warn!(
        replica = name,
        url,
        "this replica is SIMULATED: its answers are made up, and say so"
    );
    tell.send_replace(ReplicaState::Ready {
        since: Timestamp::now(),
        url,
        version: None,
        models: vec![simulation.model.clone()],
    });
    let ended = tokio::select! {
        _ = wants.wait_for(|order| order.wanted != Wanted::Run) => None,
        ended = &mut simulation.task => Some(ended),
    };
    match ended {
        None => {
            simulation.task.abort();
            tell.send_replace(ReplicaState::Stopped);
        }
        Some(ended) => {
            let why = ended
                .err()
                .map_or("it ended by itself".to_owned(), |error| error.to_string());
            crashed(name, tell, format!("the simulator ended: {why}"));
            let _ = wants.changed().await; // it is part of this program: what broke it stays broken until somebody looks
        }
    }
}

fn crashed(name: &str, tell: &watch::Sender<ReplicaState>, why: String) {
    tracing::error!(replica = name, why, "simulated replica failed");
    let finding = Finding::new(Diagnosis::Unknown, why);
    tell.send_replace(ReplicaState::Crashed {
        finding,
        restarts: 1,
        next_try: None,
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervisor::ReplicaKey;

    fn order(wanted: Wanted) -> Order {
        Order {
            wanted,
            name: "a".to_owned(),
            key: ReplicaKey::NotWanted,
        }
    }

    #[tokio::test]
    async fn it_serves_rests_and_serves_again() {
        let spec = super::super::tests::spec("sim", super::super::LauncherConfig::Simulated(Box::default()));
        let simulate: StartSimulation = Arc::new(|_, _| {
            let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
            let address = listener.local_addr()?;
            let task = tokio::spawn(async move {
                let _listener = listener;
                std::future::pending().await
            });
            Ok(Simulation {
                address,
                task,
                model: "m-simulated".to_owned(),
            })
        });
        let (want, wants) = watch::channel(order(Wanted::Run));
        let (tell, mut state) = watch::channel(ReplicaState::Stopped);
        let task = tokio::spawn(run(spec, Box::default(), simulate, wants, tell));
        let url = state
            .wait_for(|state| state.url().is_some())
            .await
            .unwrap()
            .url()
            .unwrap()
            .to_owned();
        let address: SocketAddr = url.strip_prefix("http://").unwrap().parse().unwrap();
        tokio::net::TcpStream::connect(address).await.unwrap();
        want.send_replace(order(Wanted::Rest));
        state.wait_for(|state| *state == ReplicaState::Stopped).await.unwrap();
        want.send_replace(order(Wanted::Run));
        state.wait_for(|state| state.url().is_some()).await.unwrap();
        want.send_replace(order(Wanted::Close));
        task.await.unwrap();
    }

    #[tokio::test]
    async fn one_that_cannot_start_says_why_and_tries_when_asked() {
        let spec = super::super::tests::spec("sim", super::super::LauncherConfig::Simulated(Box::default()));
        let simulate: StartSimulation = Arc::new(|_, _| Err(io::Error::other("no port")));
        let (want, wants) = watch::channel(order(Wanted::Run));
        let (tell, mut state) = watch::channel(ReplicaState::Stopped);
        let task = tokio::spawn(run(spec, Box::default(), simulate, wants, tell));
        let state = state.wait_for(|state| state.name() == "crashed").await.unwrap().clone();
        let ReplicaState::Crashed { finding, .. } = state else {
            panic!("{state:?}")
        };
        assert!(finding.evidence[0].contains("no port"), "{finding:?}");
        want.send_replace(order(Wanted::Close));
        task.await.unwrap();
    }
}
