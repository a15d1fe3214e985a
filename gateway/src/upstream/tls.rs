//! TLS to replicas: whom we trust, and who we are where they ask.
//!
//! Enters: the settings of a backend. Leaves: a [`Tls`] that makes TLS of a TCP connection, and the [`Stream`] that requests run over,
//! encrypted or not. HTTP/1.1 is what vLLM speaks, and what is offered (ALPN). Files are read once more at each reload, for connections
//! to come; what can't be used then changes nothing.

use arc_swap::ArcSwap;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, InvalidDnsNameError, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::config::UpstreamTlsConfig;

/// Why a backend's TLS settings can't be used. Each names the setting and its file.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file can't be read, or isn't PEM of the right kind.
    #[error("{}: {source}", path.display())]
    File {
        /// The setting.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: rustls::pki_types::pem::Error,
    },
    /// It holds no certificate that could sign others.
    #[error("{}: no certificate of an authority in it", path.display())]
    NoAuthority {
        /// The file.
        path: PathBuf,
    },
    /// The system has none.
    #[error("the system has no certificates of authorities: name one in `ca`")]
    NoRoots,
    /// Certificate and key don't belong together, or rustls doesn't know their kind.
    #[error("{}: {source}", path.display())]
    Pair {
        /// The certificate's file.
        path: PathBuf,
        /// What rustls said.
        source: rustls::Error,
    },
    /// One of them without the other.
    #[error("`cert` and `key` are given together or not at all")]
    Half,
    /// It is neither a name nor an address.
    #[error("\"{name}\" is no host name: {source}")]
    ServerName {
        /// As it is set.
        name: String,
        /// What is wrong with it.
        source: InvalidDnsNameError,
    },
    /// Unreachable with the protocol versions that are compiled in.
    #[error("TLS can't be set up: {0}")]
    Setup(rustls::Error),
}

impl TlsError {
    /// The setting to look at.
    pub fn key(&self) -> &'static str {
        match self {
            TlsError::File { key, .. } => key,
            TlsError::NoAuthority { .. } | TlsError::NoRoots | TlsError::Setup(_) => "ca",
            TlsError::Pair { .. } | TlsError::Half => "cert",
            TlsError::ServerName { .. } => "server_name",
        }
    }
}

/// See the module.
pub struct Tls {
    settings: UpstreamTlsConfig,
    server_name: Option<ServerName<'static>>,
    connector: ArcSwap<TlsConnector>,
}

/// Without what the files hold.
impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls")
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

/// The same settings are the same TLS: files may be renewed.
impl PartialEq for Tls {
    fn eq(&self, other: &Self) -> bool {
        self.settings == other.settings
    }
}

impl Eq for Tls {}

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// See [`TlsError`].
    pub fn read(settings: &UpstreamTlsConfig) -> Result<Arc<Tls>, TlsError> {
        let server_name = Some(&settings.server_name).filter(|name| !name.is_empty());
        let server_name = server_name.map(|name| {
            ServerName::try_from(name.clone()).map_err(|source| TlsError::ServerName {
                name: name.clone(),
                source,
            })
        });
        Ok(Arc::new(Tls {
            server_name: server_name.transpose()?,
            connector: ArcSwap::from_pointee(connector(settings)?),
            settings: settings.clone(),
        }))
    }

    /// It is what these settings say.
    pub fn is_by(&self, settings: &UpstreamTlsConfig) -> bool {
        self.settings == *settings
    }

    /// Reads the files again, for connections to come.
    ///
    /// # Errors
    /// They can't be used; everything stays as it was.
    pub fn reload(&self) -> Result<(), TlsError> {
        self.connector.store(Arc::new(connector(&self.settings)?));
        Ok(())
    }

    /// TLS over this connection to `host`.
    ///
    /// # Errors
    /// The other side isn't whom we trust, doesn't trust us, or speaks no TLS.
    pub async fn connect(&self, host: &str, stream: TcpStream) -> io::Result<Stream> {
        let name = match &self.server_name {
            Some(name) => name.clone(),
            None => ServerName::try_from(host.to_owned()).map_err(io::Error::other)?,
        };
        let connector = self.connector.load_full();
        let stream = connector.connect(name, stream).await?;
        Ok(Stream::Tls(Box::new(stream)))
    }
}

fn connector(settings: &UpstreamTlsConfig) -> Result<TlsConnector, TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Setup)?
        .with_root_certificates(roots(&settings.ca)?);
    let has = |path: &Path| !path.as_os_str().is_empty();
    let mut config = match (has(&settings.cert), has(&settings.key)) {
        (false, false) => builder.with_no_client_auth(),
        (true, true) => {
            let chain = certificates("cert", &settings.cert)?;
            let key = PrivateKeyDer::from_pem_file(&settings.key).map_err(file("key", &settings.key))?;
            builder
                .with_client_auth_cert(chain, key)
                .map_err(|source| TlsError::Pair {
                    path: settings.cert.clone(),
                    source,
                })?
        }
        (true, false) | (false, true) => return Err(TlsError::Half),
    };
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsConnector::from(Arc::new(config)))
}

/// Those of the file, or the system's: a fleet's authority is one's own as a rule, and what the system trusts its operator has decided.
fn roots(ca: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    if ca.as_os_str().is_empty() {
        let native = rustls_native_certs::load_native_certs();
        roots.add_parsable_certificates(native.certs);
        if roots.is_empty() {
            return Err(TlsError::NoRoots);
        }
    } else {
        roots.add_parsable_certificates(certificates("ca", ca)?);
        if roots.is_empty() {
            return Err(TlsError::NoAuthority { path: ca.to_owned() });
        }
    }
    Ok(roots)
}

fn certificates(key: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    CertificateDer::pem_file_iter(path)
        .and_then(|certificates| certificates.collect::<Result<Vec<_>, _>>())
        .map_err(file(key, path))
}

fn file(key: &'static str, path: &Path) -> impl FnOnce(rustls::pki_types::pem::Error) -> TlsError {
    let path = path.to_owned();
    move |source| TlsError::File { key, path, source }
}

/// A connection to a replica.
pub enum Stream {
    /// As it is.
    Plain(TcpStream),
    /// Encrypted.
    Tls(Box<TlsStream<TcpStream>>),
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Stream::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Stream::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Stream::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Stream::Plain(stream) => stream.is_write_vectored(),
            Stream::Tls(stream) => stream.is_write_vectored(),
        }
    }
}
