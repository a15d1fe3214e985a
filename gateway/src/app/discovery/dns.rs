//! Replicas by DNS: every address of a name, looked up again and again.
//!
//! The name is the system's to resolve (its `hosts` file, its servers). A replica is named after its address, so that it keeps its name and
//! its place on the ring however the answers are ordered.

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::{DiscoveryError, Found, ServiceDiscovery};

/// What looks a name up.
type Lookup = Box<dyn Fn(String) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> + Send + Sync>;

/// See the module.
pub(super) struct Dns {
    /// `host:port`.
    name: String,
    scheme: &'static str,
    interval: Duration,
    lookup: Lookup,
}

const SECURE: &str = "https://";

impl Dns {
    /// Of `host:port` or `https://host:port`.
    pub(super) fn new(name: &str, interval: Duration) -> Dns {
        let lookup: Lookup =
            Box::new(|name| Box::pin(async move { Ok(tokio::net::lookup_host(name).await?.collect()) }));
        Dns::by(lookup, name, interval)
    }

    pub(super) fn by(lookup: Lookup, name: &str, interval: Duration) -> Dns {
        let (scheme, name) = match name.strip_prefix(SECURE) {
            Some(name) => ("https", name),
            None => ("http", name),
        };
        Dns {
            name: name.to_owned(),
            scheme,
            interval,
            lookup,
        }
    }
}

#[async_trait]
impl ServiceDiscovery for Dns {
    async fn discover(&self) -> Result<Found, DiscoveryError> {
        let name = || self.name.clone();
        let addresses = (self.lookup)(name()).await;
        let addresses = addresses.map_err(|source| DiscoveryError::Lookup { name: name(), source })?;
        if addresses.is_empty() {
            return Err(DiscoveryError::NoAddress { name: name() });
        }
        let found = addresses.into_iter().map(|address| {
            let address = SocketAddr::new(address.ip().to_canonical(), address.port());
            (replica_name(address), format!("{}://{address}", self.scheme))
        });
        Ok(found.collect())
    }

    async fn changed(&self) {
        tokio::time::sleep(self.interval).await;
    }
}

/// `10.0.0.7-8000`: names of replicas have no colons.
fn replica_name(address: SocketAddr) -> String {
    let ip = match address.ip() {
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => format!("v6-{}", ip.to_string().replace(':', "-")),
    };
    format!("{ip}-{}", address.port())
}

/// The host of `https://host:port`.
pub(super) fn secure_host(name: &str) -> Option<String> {
    let (host, _) = name.strip_prefix(SECURE)?.rsplit_once(':')?;
    Some(host.to_owned())
}
