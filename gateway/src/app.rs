//! The process: what is built at start, in which order, and how it ends.
//!
//! Enters: where the configuration comes from. Leaves: an exit code. pingora is the shell (listeners, runtimes, the signal
//! that everything hears); requests are served by `downstream`, everything beside their path runs in one background
//! service of one thread (`beside`). The end is ours: pingora's grace period is a fixed sleep (trap 1), so `drain` leaves
//! as soon as the last stream has ended.

// What runs beside the path.
pub mod beside;
// From configuration to what requests use.
pub mod build;
// Which replicas are held, and how a new configuration changes them.
pub mod roster;
// Replicas that are found, beside those that are named.
pub mod discovery;
// Holds the fleet to the configuration while it runs.
pub mod keeper;
// What the supervisor says of a replica, carried to where requests look.
pub mod follow;
// Looks at the engines: figures, progress.
pub mod health;
// What the routers know, over a restart.
pub mod remembered;
// Another process takes over.
pub mod upgrade;
// What systemd is told.
mod notify;
// The end.
pub mod drain;
// What a person reads at the start.
pub mod greeting;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use pingora_core::listeners::{L4BufferSettings, ListenerConfig};
use pingora_core::server::configuration::ServerConf;
use pingora_core::server::{RunArgs, Server, ShutdownSignal, ShutdownSignalWatch};
use pingora_core::services::background::background_service;
use pingora_core::services::listening::Service;
use sluice_policy::admission::queue::Priority;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::{Arc, Mutex};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tower::ServiceBuilder;

use self::beside::{Beside, Start};
use self::drain::Drain;
use self::remembered::Remembered;
use self::roster::Roster;
use self::upgrade::predecessor::{Predecessor, TakeOverError};
use self::upgrade::sockets::{Clients, Door, Sockets};
use crate::affinity::Affinity;
use crate::config::{Config, ConfigError, Live, Source};
use crate::downstream::cors::Cors;
use crate::downstream::endpoints::Endpoints;
use crate::downstream::layers::admit::Admit;
use crate::downstream::layers::auth::Auth;
use crate::downstream::layers::body::{BodyLimits, ReadBody};
use crate::downstream::layers::gate::Gate;
use crate::downstream::layers::guard::Guard;
use crate::downstream::layers::rate::Rates;
use crate::downstream::layers::trace::{HeadLimits, Trace};
use crate::downstream::leaving::{self, Leaving};
use crate::downstream::listener::{ConnectionLimits, Listener, Serve};
use crate::downstream::tls::{Certificate, TlsError};
use crate::flow::Flow;
use crate::flow::account::Books;
use crate::flow::call::Buffers;
use crate::flow::refusal::Refusals;
use crate::flow::registry::Registry;
use crate::flow::tool_sets::ToolSets;
use crate::keys::{KeyFileError, KeyRing};
use crate::record::{self, RecordError, Recorder};
use crate::simulator::Simulator;
use crate::supervisor::{self, Settings, Simulation, StartSimulation};
use crate::telemetry::{Metrics, TelemetryError};

/// The port that clients of a vLLM on our port would find it on after the two-step move.
const VLLM_PORT: u16 = 8000;
/// pingora's sleep must not end before our own drain does.
const GRACE_MARGIN_S: u64 = 3600;

/// Why the gateway doesn't start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// What it names isn't there.
    #[error(transparent)]
    Build(#[from] build::BuildError),
    /// No folder for keys and records.
    #[error("no folder for keys and records: set [server] state_dir, or HOME")]
    NoStateFolder,
    /// It can't be made.
    #[error("{path}: {source}")]
    StateFolder {
        /// The folder.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The keys.
    #[error(transparent)]
    Keys(#[from] KeyFileError),
    /// The records.
    #[error(transparent)]
    Records(#[from] RecordError),
    /// The metrics.
    #[error(transparent)]
    Metrics(#[from] TelemetryError),
    /// Somebody else has the port.
    #[error("{0}")]
    PortTaken(String),
    /// The address can't be listened on.
    #[error("can't listen on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// Certificate and key.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// A socket can't be kept for a process that takes over.
    #[error("the listening sockets can't be kept: {0}")]
    Sockets(#[source] std::io::Error),
    /// The process that this one takes over from.
    #[error(transparent)]
    TakeOver(#[from] TakeOverError),
}

/// Serves until told to end. Returns only if it can't start: the drain ends the process. With a `predecessor` it takes over from that.
///
/// # Errors
/// See [`StartError`]; nothing has been started then.
pub fn run(source: Source, config: Config, mut predecessor: Option<Predecessor>) -> Result<(), StartError> {
    let env = |name: &str| std::env::var_os(name);
    let state_folder = config.server.state_folder(env).ok_or(StartError::NoStateFolder)?;
    make_private(&state_folder)?;
    let mut socket = |address| match predecessor.as_mut().and_then(|old| old.socket(address)) {
        Some(socket) => Ok(socket),
        None => bind(address),
    };
    let clients = socket(config.server.listen)?;
    let admin = config.admin.enabled.then(|| socket(config.admin.listen)).transpose()?;
    let listens = std::iter::once((config.server.listen, &clients));
    let sockets = Sockets::of(listens.chain(admin.iter().map(|admin| (config.admin.listen, admin))));
    let sockets = sockets.map_err(StartError::Sockets)?;
    let certificate = config
        .server
        .tls
        .enabled
        .then(|| Certificate::read(&config.server.tls))
        .transpose()?;
    let tls = certificate
        .as_ref()
        .map(|certificate| certificate.acceptor(config.server.http2));
    let opened = KeyRing::open(&config.auth, &state_folder, env)?;
    let books = Books {
        recorder: if config.records.enabled {
            record::open(&config.records, &state_folder)?
        } else {
            Recorder::off()
        },
        metrics: Metrics::new()?,
    };
    books.metrics.watch_records(&books.recorder);
    let roster = Roster::new(build::fleet(&config, &[])?);
    let fleet = roster.fleet();
    let remembered = Remembered::new(&state_folder);
    if let Some(old) = &predecessor {
        // Nothing that can be known beforehand fails after this.
        old.prepared()?;
    }
    remembered.restore(&fleet);
    if let Some(secret) = &opened.first {
        greeting::say(&secret.introduction(config.server.listen, config.server.tls.enabled));
    }
    greeting::started(
        &source,
        &config,
        fleet.backends.iter().any(|backend| backend.is_simulated()),
    );

    let affinity = Affinity::new(books.metrics.clone());
    let flow = Arc::new(Flow {
        config: ArcSwap::from_pointee(build::flow(&config)),
        fleet: ArcSwap::from_pointee(fleet),
        registry: Registry::new(config.limits.requests),
        books,
        tool_sets: ToolSets::default(),
        affinity: Arc::new(affinity),
    });
    let of = Arc::downgrade(&flow);
    flow.books.metrics.watch_queues(move || {
        let flow = of.upgrade();
        let fleet = flow.iter().map(|flow| flow.fleet.load_full());
        let backends = fleet.flat_map(|fleet| fleet.backends.clone());
        let queues = backends.flat_map(|backend| {
            let waiting = |priority: Priority| {
                (
                    backend.model().to_string(),
                    priority.as_str(),
                    backend.places().waiting(priority) as u64,
                )
            };
            Priority::ALL.map(waiting)
        });
        queues.collect()
    });
    let draining = Arc::new(AtomicBool::new(false));
    let connections = Arc::new(AtomicUsize::new(0));
    let keys = Arc::new(opened.ring);
    let (leaving, hears) = watch::channel(Leaving::Stays);
    let door = Arc::new(watch::Sender::new(Door::Shut));
    let leaving = Arc::new(leaving);
    let start = Start {
        settings: Settings {
            state_folder,
            secret_variables: build::secret_variables(&config),
        },
        simulate: simulate(),
        roster: Mutex::new(Some(roster)),
    };
    let drain = Drain {
        draining: draining.clone(),
        flow: flow.clone(),
        connections: connections.clone(),
        limit: config.server.drain,
        remembered: remembered.clone(),
    };
    let server_conf = server_conf(&config);
    let listen = config.server.listen;
    let live = Arc::new(Live::new(source, config));
    let refusals = Refusals::new(flow.books.clone());
    let app = Listener::new(
        service(&live, &flow, &keys, &refusals, &draining, &hears),
        tls,
        connection_limits(&live),
        connections,
        refusals,
        hears.clone(),
    );
    let beside = Beside {
        remembered,
        live,
        flow,
        draining,
        keys,
        certificate,
        start,
        reloaded: Arc::default(),
        drain: Mutex::new(Some(drain)),
        admin: Mutex::new(admin),
        sockets: Mutex::new(Some(sockets)),
        predecessor: Mutex::new(predecessor),
        successor: Mutex::new(None),
        door: door.clone(),
        leaving: leaving.clone(),
    };
    let clients = |inner| Clients::new(inner, listen.to_string(), clients, door);
    serve(server_conf, listen, app, clients, beside, Signals { leaving });
    Ok(())
}

fn serve<S: Serve>(
    conf: ServerConf,
    listen: SocketAddr,
    app: Listener<S>,
    with_socket: impl FnOnce(Service<Listener<S>>) -> Clients<S>,
    beside: Beside,
    signals: Signals,
) {
    let mut server = Server::new_with_opt_and_conf(None, conf);
    server.bootstrap();
    let mut clients = Service::new("clients".to_owned(), app);
    // hyper has buffers of its own; pingora's would be 64 KiB more for each connection (trap 15).
    clients.add_listener(ListenerConfig::tcp(listen.to_string()).l4_buffer(L4BufferSettings::unbuffered()));
    server.add_service(background_service("beside", beside));
    server.add_service(with_socket(clients));
    server.run(RunArgs {
        shutdown_signal: Box::new(signals),
    });
}

fn server_conf(config: &Config) -> ServerConf {
    let threads = config.server.worker_threads();
    ServerConf {
        threads,
        // One thread has nobody to steal from: it needs no queue that others could reach into.
        work_stealing: config.server.work_stealing && threads > 1,
        grace_period_seconds: Some(config.server.drain.as_secs() + GRACE_MARGIN_S),
        ..ServerConf::default()
    }
}

/// SIGTERM and Ctrl-C both drain, as does another process that has taken over; a second Ctrl-C is heard by the drain.
struct Signals {
    leaving: Arc<watch::Sender<Leaving>>,
}

#[async_trait]
impl ShutdownSignalWatch for Signals {
    async fn recv(&self) -> ShutdownSignal {
        match (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) {
            (Ok(mut terminate), Ok(mut interrupt)) => {
                let hears = self.leaving.subscribe();
                tokio::select! {
                    () = leaving::leaves(&hears) => {}
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                }
            }
            _ => tracing::error!("signals can't be listened to; ending"),
        }
        self.leaving.send_if_modified(|leaving| {
            let ends = *leaving == Leaving::Stays;
            if ends {
                *leaving = Leaving::Ends;
            }
            ends
        });
        ShutdownSignal::GracefulTerminate
    }
}

/// The layers around the endpoints.
fn service(
    live: &Arc<Live>,
    flow: &Arc<Flow>,
    keys: &Arc<KeyRing>,
    refusals: &Refusals,
    draining: &Arc<AtomicBool>,
    hears: &leaving::Hears,
) -> impl Serve {
    let (head, cors, body) = (live.clone(), live.clone(), live.clone());
    ServiceBuilder::new()
        .layer(Trace {
            limits: Arc::new(move || {
                let limits = &head.get().limits;
                HeadLimits {
                    bytes: limits.header_bytes as usize,
                    count: limits.header_count,
                }
            }),
            cors: Arc::new(move || Arc::new(Cors::new(&cors.get().server.cors_origins))),
            closes: {
                let hears = hears.clone();
                Arc::new(move || *hears.borrow() == Leaving::HandedOver)
            },
            refusals: refusals.clone(),
        })
        .layer(Guard)
        .layer(Gate(Auth { keys: keys.clone() }))
        .layer(Gate(Admit {
            registry: flow.registry.clone(),
        }))
        .layer(Gate(Rates))
        .layer(ReadBody {
            buffers: Buffers::new(live.get().limits.buffered()),
            limits: Arc::new(move || {
                let limits = &body.get().limits;
                BodyLimits {
                    bytes: limits.body_bytes,
                    time: limits.body_time,
                }
            }),
        })
        .service(Endpoints {
            flow: flow.clone(),
            draining: draining.clone(),
        })
}

fn connection_limits(live: &Arc<Live>) -> Arc<dyn Fn() -> ConnectionLimits + Send + Sync> {
    let live = live.clone();
    Arc::new(move || {
        let config = live.get();
        ConnectionLimits {
            http2: config.server.http2,
            header_bytes: config.limits.header_bytes as usize,
            header_count: config.limits.header_count,
            header_time: config.limits.header_time,
            write_stall: config.server.write_stall,
            connections: config.limits.connections,
        }
    })
}

/// A simulated replica is a simulator on a loopback port of its own, reached like any other replica.
fn simulate() -> StartSimulation {
    Arc::new(|spec, config| {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let mut config = config.clone();
        // A backend without a model gets the simulator's own.
        if !spec.model.is_empty() {
            config.model.clone_from(&spec.model);
        }
        let model = config.served_model();
        let simulator = Simulator::new(config).map_err(std::io::Error::other)?;
        let task = tokio::spawn(async move { simulator.serve(listener, std::future::pending()).await });
        Ok(Simulation { address, task, model })
    })
}

/// A folder that only its owner may read.
fn make_private(folder: &Path) -> Result<(), StartError> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(|source| StartError::StateFolder {
            path: folder.display().to_string(),
            source,
        })
}

/// pingora would try a busy port 30 times in silence: it gets a socket that is bound, or the holder of the port is named.
fn bind(address: SocketAddr) -> Result<TcpListener, StartError> {
    let bound = TcpListener::bind(address).and_then(|listener| {
        listener.set_nonblocking(true)?;
        Ok(listener)
    });
    bound.map_err(|source| match source.kind() {
        std::io::ErrorKind::AddrInUse => {
            let holder = supervisor::port_holder(address.port());
            StartError::PortTaken(supervisor::busy_port_message(
                address.port(),
                holder.as_ref(),
                VLLM_PORT,
            ))
        }
        _ => StartError::Listen { address, source },
    })
}
