//! What runs beside the path, in one background service of one thread: the supervisor and what it says of replicas, the
//! sweeper of idle connections, the admin listener, reloads, and at the end the drain.

use async_trait::async_trait;
use pingora_core::server::ShutdownWatch;
use pingora_core::services::background::BackgroundService;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{Notify, watch};

use super::build;
use super::discovery::News;
use super::drain::Drain;
use super::greeting;
use super::keeper::Keeper;
use super::notify;
use super::remembered::{self, Remembered};
use super::roster::Roster;
use super::upgrade::control::{Caller, Control, Order};
use super::upgrade::predecessor::Predecessor;
use super::upgrade::sockets::{Door, Sockets};
use super::upgrade::successor::Successor;
use crate::admin::{self, AdminState};
use crate::config::live::on_hangup;
use crate::config::{Config, Live, Watch};
use crate::downstream::endpoints;
use crate::downstream::leaving::Leaving;
use crate::downstream::tls::Certificate;
use crate::flow::Flow;
use crate::keys::KeyRing;
use crate::supervisor::{self, Settings, StartSimulation};

/// Where `vllm serve` listens if nothing is said.
const USUAL_VLLM: &str = "127.0.0.1:8000";
/// How often idle upstream connections are looked at.
const SWEEP: Duration = Duration::from_secs(1);

/// See the module.
pub struct Beside {
    /// The running configuration.
    pub live: Arc<Live>,
    /// What requests use.
    pub flow: Arc<Flow>,
    /// Where what is known of conversations is saved.
    pub remembered: Remembered,
    /// This process is on its way out.
    pub draining: Arc<AtomicBool>,
    /// The accepted keys.
    pub keys: Arc<KeyRing>,
    /// The clients' listener's, if it speaks TLS.
    pub certificate: Option<Arc<Certificate>>,
    /// For the supervisor.
    pub start: Start,
    /// Told after each reload.
    pub reloaded: Arc<Notify>,
    /// For the end; taken once.
    pub drain: Mutex<Option<Drain>>,
    /// The admin listener's socket, bound before anything else started.
    pub admin: Mutex<Option<std::net::TcpListener>>,
    /// What is handed to a process that takes over.
    pub sockets: Mutex<Option<Sockets>>,
    /// The process that this one takes over from; taken once.
    pub predecessor: Mutex<Option<Predecessor>>,
    /// The one that has taken over: while this one lives it is its child.
    pub successor: Mutex<Option<Successor>>,
    /// Lets clients in.
    pub door: Arc<watch::Sender<Door>>,
    /// How this process leaves.
    pub leaving: Arc<watch::Sender<Leaving>>,
}

/// What the supervisor starts with.
pub struct Start {
    /// Where and what not to hand down.
    pub settings: Settings,
    /// How a simulated one is started.
    pub simulate: StartSimulation,
    /// The replicas; taken once.
    pub roster: Mutex<Option<Roster>>,
}

#[async_trait]
impl BackgroundService for Beside {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        let predecessor = take(&self.predecessor);
        let mut keeper = self.kept(predecessor.as_ref()).await;
        self.serve_admin();
        self.flow.affinity.follow(&self.live.get().affinity);
        self.look_for_vllm();
        let _watch = self.reload_on_change();
        let sweeper = tokio::spawn(sweep(self.live.clone(), self.flow.clone()));
        let saver = tokio::spawn(save(self.remembered.clone(), self.flow.clone()));
        // Before it is said that this process serves: the next upgrade is this one's.
        let control = self.open_control();
        match predecessor {
            Some(predecessor) => self.go_on_from(predecessor),
            // Else the old process says who is the main one now; systemd listens to that only.
            None => {
                self.door.send_replace(Door::Open);
                notify::ready();
            }
        }
        loop {
            let (order, caller) = tokio::select! {
                _ = shutdown.wait_for(|draining| *draining) => break,
                () = self.reloaded.notified() => {
                    self.flow.affinity.follow(&self.live.get().affinity);
                    keeper.iter_mut().for_each(Keeper::reload);
                    continue;
                }
                news = finds(keeper.as_mut()) => {
                    if let Some(keeper) = &mut keeper {
                        keeper.found(news);
                    }
                    continue;
                }
                called = next(control.as_ref()) => called,
            };
            let outcome = self.upgrade(order, &mut keeper, &mut shutdown).await;
            caller.tell(&outcome).await;
        }
        sweeper.abort();
        saver.abort();
        // Their ports are closed with the last copy.
        drop((take(&self.sockets), control));
        let leaving = *self.leaving.borrow();
        let supervisor = keeper.map(Keeper::into_supervisor);
        if let Some(drain) = take(&self.drain) {
            self.keep_telling(drain.finish(leaving)).await;
            drain.end(supervisor, leaving).await
        }
    }
}

/// Other replicas, when they are found; nobody finds any without a keeper.
async fn finds(keeper: Option<&mut Keeper>) -> News {
    match keeper {
        Some(keeper) => keeper.finds().await,
        None => std::future::pending().await,
    }
}

/// The next order; none ever comes without a socket.
async fn next(control: Option<&Control>) -> (Order, Caller) {
    match control {
        Some(control) => control.next().await,
        None => std::future::pending().await,
    }
}

impl Beside {
    /// The replicas, held to the configuration. A process that takes over does so only if it has them, and those that were ready are.
    async fn kept(&self, predecessor: Option<&Predecessor>) -> Option<Keeper> {
        let mut started = self.supervise(predecessor.is_some()).await;
        if let Some(predecessor) = predecessor {
            let found = match &mut started {
                Ok(keeper) => {
                    // Some may have to be found by discovery first.
                    let mut finding = std::pin::pin!(self.find_again(predecessor));
                    loop {
                        let news = tokio::select! {
                            found = &mut finding => break found,
                            news = keeper.finds() => news,
                        };
                        keeper.found(news);
                    }
                }
                Err(error) => Err(error.to_string()),
            };
            if let Err(why) = found {
                tracing::error!(why, "can't take over");
                predecessor.tell().failed(&why);
                std::process::exit(1);
            }
        }
        let failed = |error| tracing::error!(%error, "the replicas can't be started");
        started.map_err(failed).ok()
    }

    fn open_control(&self) -> Option<Control> {
        let failed = |error| tracing::warn!(%error, "`sluice upgrade` can't reach this process");
        Control::open(&self.start.settings.state_folder).map_err(failed).ok()
    }

    fn serve_admin(&self) {
        let Some(listener) = take(&self.admin) else { return };
        let listener = match TcpListener::from_std(listener) {
            Ok(listener) => listener,
            Err(error) => return tracing::error!(%error, "the admin listener can't be served"),
        };
        let (flow, draining) = (self.flow.clone(), self.draining.clone());
        let health = Arc::new(move || {
            let status = if draining.load(Ordering::Relaxed) {
                "draining"
            } else {
                "ok"
            };
            serde_json::json!({"status": status, "replicas": endpoints::replicas(&flow.fleet.load())})
        });
        let state = AdminState {
            metrics: self.flow.books.metrics.clone(),
            health,
        };
        // An ending process shows how it ends; after another one took over, that is asked.
        let mut hears = self.leaving.subscribe();
        let handed_over = async move { drop(hears.wait_for(|leaving| *leaving == Leaving::HandedOver).await) };
        tokio::spawn(admin::serve(listener, state, handed_over));
    }

    /// Someone who tries the simulated replicas may have a real vLLM running: the line that uses it is printed.
    fn look_for_vllm(&self) {
        let simulated = self
            .flow
            .fleet
            .load()
            .backends
            .iter()
            .all(|backend| backend.is_simulated());
        if simulated {
            tokio::spawn(async {
                if let Some(version) = supervisor::vllm_at(USUAL_VLLM).await {
                    greeting::say(&supervisor::vllm_hint(USUAL_VLLM, &version));
                }
            });
        }
    }

    /// The file, the keys and the certificate, on change and on SIGHUP.
    fn reload_on_change(&self) -> Option<Watch> {
        let reload = {
            let (live, flow, keys) = (self.live.clone(), self.flow.clone(), self.keys.clone());
            let (certificate, reloaded) = (self.certificate.clone(), self.reloaded.clone());
            move || {
                live.reload();
                if let Err(error) = keys.reload() {
                    tracing::error!(%error, "the keys stay as they were");
                }
                match certificate.as_ref().map(|certificate| certificate.reload()) {
                    Some(Ok(true)) => tracing::info!("new connections get the new certificate"),
                    Some(Err(error)) => tracing::error!(%error, "the certificate stays as it was"),
                    Some(Ok(false)) | None => {}
                }
                let config = live.get();
                flow.config.store(Arc::new(build::flow(&config)));
                flow.registry.set_limit(config.limits.requests);
                reloaded.notify_one();
            }
        };
        let files = self
            .live
            .source()
            .file()
            .map(Path::to_path_buf)
            .into_iter()
            .chain([self.keys.path().to_path_buf()])
            .chain(
                self.certificate
                    .iter()
                    .flat_map(|certificate| certificate.files().map(Path::to_path_buf)),
            )
            .chain(upstream_tls(&self.live.get()));
        let hangup = reload.clone();
        tokio::spawn(async move {
            if let Err(error) = on_hangup(hangup).await {
                tracing::error!(%error, "SIGHUP can't be listened to");
            }
        });
        match Watch::start(files.collect(), reload) {
            Ok(watch) => Some(watch),
            Err(error) => {
                tracing::warn!(%error, "changes of the configuration are seen at SIGHUP only");
                None
            }
        }
    }
}

/// Files of TLS to replicas, as the process started with them.
fn upstream_tls(config: &Config) -> Vec<PathBuf> {
    let tls = config.backend.iter().map(|backend| &backend.tls);
    let files = tls.flat_map(|tls| [&tls.ca, &tls.cert, &tls.key]);
    files.filter(|file| !file.as_os_str().is_empty()).cloned().collect()
}

pub(super) fn take<T>(slot: &Mutex<Option<T>>) -> Option<T> {
    slot.lock().unwrap_or_else(PoisonError::into_inner).take()
}

/// vLLM closes idle connections after 5 s: ours are gone before.
async fn sweep(live: Arc<Live>, flow: Arc<Flow>) {
    let mut ticks = tokio::time::interval(SWEEP);
    loop {
        ticks.tick().await;
        let idle = live.get().upstream.idle;
        for (_, replica) in flow.fleet.load().replicas() {
            replica.pool.sweep(idle);
        }
        let server = &live.get().server;
        // Without keep-alives nobody polls a relay that waits for its replica: a silence says nothing then.
        if !server.keep_alive.is_zero() {
            let cut = flow.registry.hang_up_on_stalled(server.write_stall + server.keep_alive);
            if cut > 0 {
                tracing::warn!(cut, "hung up on clients that read nothing");
            }
        }
    }
}

/// What is known of conversations, now and then: a gateway that is killed loses the last minutes of it.
async fn save(remembered: Remembered, flow: Arc<Flow>) {
    let mut ticks = tokio::time::interval(remembered::EVERY);
    ticks.tick().await;
    loop {
        ticks.tick().await;
        let (remembered, fleet) = (remembered.clone(), flow.fleet.load_full());
        // On a thread for waiting: it is a few megabytes of disk.
        let _ = tokio::task::spawn_blocking(move || remembered.save(&fleet)).await;
    }
}
