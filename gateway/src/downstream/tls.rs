//! The server's certificate: read at the start and again at each reload, so that a renewed one serves the next connection.
//!
//! Connections that run keep what they began with. A pair that can't be used (half written, of two different keys)
//! changes nothing.

use arc_swap::ArcSwap;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio_rustls::TlsAcceptor;

use crate::config::TlsConfig;

/// Why certificate and key can't be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file can't be read, or isn't PEM of the right kind.
    #[error("TLS: {}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: rustls::pki_types::pem::Error,
    },
    /// They don't belong together, or rustls doesn't know their kind.
    #[error("TLS: {}: {source}", cert.display())]
    Pair {
        /// The certificate's file.
        cert: PathBuf,
        /// What rustls said.
        source: rustls::Error,
    },
    /// `main` installs one first thing.
    #[error("TLS: no crypto provider is installed")]
    NoProvider,
}

/// Certificate and key of the clients' listener.
pub struct Certificate {
    files: TlsConfig,
    current: ArcSwap<CertifiedKey>,
}

/// Without the key.
impl std::fmt::Debug for Certificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Certificate")
            .field("files", &self.files)
            .finish_non_exhaustive()
    }
}

impl Certificate {
    /// Reads the files.
    ///
    /// # Errors
    /// They can't be used.
    pub fn read(files: &TlsConfig) -> Result<Arc<Self>, TlsError> {
        let current = ArcSwap::from_pointee(pair(files)?);
        let files = files.clone();
        Ok(Arc::new(Certificate { files, current }))
    }

    /// Reads the files again. True if they hold another certificate than before.
    ///
    /// # Errors
    /// They can't be used; the certificate stays as it was.
    pub fn reload(&self) -> Result<bool, TlsError> {
        let new = pair(&self.files)?;
        // One certificate has one key: the chain says enough.
        if new.cert == self.current.load().cert {
            return Ok(false);
        }
        self.current.store(Arc::new(new));
        Ok(true)
    }

    /// The files, to be watched.
    pub fn files(&self) -> [&Path; 2] {
        [&self.files.cert, &self.files.key]
    }

    /// What makes TLS of an accepted connection; HTTP/2 by ALPN if it is spoken.
    pub fn acceptor(self: &Arc<Self>, http2: bool) -> TlsAcceptor {
        let mut tls = rustls::ServerConfig::builder()
            .with_no_client_auth()
            .with_cert_resolver(self.clone());
        if http2 {
            tls.alpn_protocols.push(b"h2".to_vec());
        }
        tls.alpn_protocols.push(b"http/1.1".to_vec());
        TlsAcceptor::from(Arc::new(tls))
    }
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.load_full())
    }
}

fn pair(files: &TlsConfig) -> Result<CertifiedKey, TlsError> {
    let file = |path: &Path| {
        let path = path.to_path_buf();
        move |source| TlsError::File { path, source }
    };
    let chain = CertificateDer::pem_file_iter(&files.cert)
        .and_then(|certificates| certificates.collect::<Result<Vec<_>, _>>())
        .map_err(file(&files.cert))?;
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(file(&files.key))?;
    let provider = CryptoProvider::get_default().ok_or(TlsError::NoProvider)?;
    CertifiedKey::from_der(chain, key, provider).map_err(|source| TlsError::Pair {
        cert: files.cert.clone(),
        source,
    })
}
