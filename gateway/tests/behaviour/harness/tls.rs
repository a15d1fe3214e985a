//! A certificate of a test's own, a gateway that shows it, and connections that say which one they were shown.

use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, ServerName};
use std::path::Path;
use std::sync::Arc;
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::{Gateway, Replica, Settings, until};

/// A certificate for `localhost` that signs itself, with its key.
pub(crate) struct Certificate(rcgen::CertifiedKey<rcgen::KeyPair>);

impl Certificate {
    /// A new one.
    pub(crate) fn made() -> Self {
        Certificate(rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap())
    }

    /// As `cert.pem` and `key.pem` of this folder.
    pub(crate) fn write(&self, folder: &Path) {
        std::fs::write(folder.join("cert.pem"), self.0.cert.pem()).unwrap();
        std::fs::write(folder.join("key.pem"), self.key()).unwrap();
    }

    /// Its key as PEM.
    pub(crate) fn key(&self) -> String {
        self.0.signing_key.serialize_pem()
    }

    /// As it is shown in a handshake.
    pub(crate) fn der(&self) -> &CertificateDer<'static> {
        self.0.cert.der()
    }

    /// A gateway that shows it, in front of one replica that is ready; its files are in that folder.
    pub(crate) async fn gateway(&self, replica: &Replica) -> (Gateway, TempDir) {
        let folder = tempfile::tempdir().unwrap();
        self.write(folder.path());
        let settings = Settings::before(&[replica])
            .set("server.tls", "enabled = true")
            .set("server.tls", &format!("cert = {:?}", folder.path().join("cert.pem")))
            .set("server.tls", &format!("key = {:?}", folder.path().join("key.pem")));
        let gateway = settings.start_unready().await;
        until("the replica is ready", async || {
            gateway.log().contains("ready replica=a").then_some(())
        })
        .await;
        (gateway, folder)
    }
}

/// A connection by a client that trusts these certificates and offers these protocols.
pub(crate) async fn connect(gateway: &Gateway, trusted: &[&Certificate], protocols: &[&[u8]]) -> TlsStream<TcpStream> {
    let mut roots = RootCertStore::empty();
    for certificate in trusted {
        roots.add(certificate.der().clone()).unwrap();
    }
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut config = rustls::ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    let stream = TcpStream::connect(gateway.listen).await.unwrap();
    TlsConnector::from(Arc::new(config))
        .connect(ServerName::try_from("localhost").unwrap(), stream)
        .await
        .unwrap()
}

/// The certificate that the gateway showed.
pub(crate) fn shown(stream: &TlsStream<TcpStream>) -> CertificateDer<'static> {
    stream.get_ref().1.peer_certificates().unwrap()[0].clone()
}
