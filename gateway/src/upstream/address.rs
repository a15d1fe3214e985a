//! Where a vLLM listens: the one reader of replicas' URLs.
//!
//! A URL has no path and no query: the routes are vLLM's own. What can't be used says why, so that the configuration can name
//! it.

use http::HeaderValue;
use http::uri::{InvalidUri, Uri};
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::net::TcpStream;

use super::tls::{Stream, Tls};

/// Host and port of a replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    host: String,
    port: u16,
    literal: Option<SocketAddr>,
    host_header: HeaderValue,
    scheme: Scheme,
}

/// How it is spoken to.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Scheme {
    Http,
    /// With this TLS; none was set up if it is `None`.
    Https(Option<Arc<Tls>>),
}

/// Why a URL can't be a replica's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UrlFault {
    /// Not of a URL's form.
    #[error("this is no URL")]
    NoUrl,
    /// Nothing between `//` and the port or the path.
    #[error("the URL has no host")]
    NoHost,
    /// Something before `@`. It is a secret: the URL must not be shown.
    #[error("a URL holds no user and no password")]
    Credentials,
    /// Another scheme.
    #[error("the URL must begin with http:// or https://")]
    Scheme,
    /// No number, or out of range.
    #[error("the URL's port is not between 1 and 65535")]
    Port,
    /// Something behind `?`.
    #[error("a replica's URL has no query")]
    Query,
    /// More than `/` behind the port.
    #[error("a replica's URL has no path")]
    Path(String),
}

impl From<InvalidUri> for UrlFault {
    fn from(_: InvalidUri) -> Self {
        UrlFault::NoUrl
    }
}

impl Address {
    /// From a host (name or address literal, IPv6 without brackets) and a port. `None` if the host cannot stand in a `Host` header.
    pub fn new(host: &str, port: u16) -> Option<Self> {
        let literal = host.parse().ok().map(|ip| SocketAddr::new(ip, port));
        let authority = if host.contains(':') {
            format!("[{host}]:{port}")
        } else {
            format!("{host}:{port}")
        };
        let host_header = HeaderValue::from_str(&authority).ok()?;
        Some(Address {
            host: host.to_owned(),
            port,
            literal,
            host_header,
            scheme: Scheme::Http,
        })
    }

    /// From `http://host:port[/]` or `https://…`; the port defaults to 80 or 443. One of `https` is connected to by its TLS
    /// ([`Address::with_tls`]).
    ///
    /// # Errors
    /// What is wrong with the URL.
    pub fn from_url(url: &str) -> Result<Self, UrlFault> {
        let uri: Uri = url.parse()?;
        let authority = uri.authority().ok_or(UrlFault::NoHost)?;
        if authority.as_str().contains('@') {
            return Err(UrlFault::Credentials);
        }
        let (scheme, usual_port) = match uri.scheme_str() {
            Some("http") => (Scheme::Http, 80),
            Some("https") => (Scheme::Https(None), 443),
            _ => return Err(UrlFault::Scheme),
        };
        let host = authority.host();
        if host.is_empty() {
            return Err(UrlFault::NoHost);
        }
        // `Uri` leaves a port that is no number unnoticed.
        let port = match authority.as_str().strip_prefix(host) {
            Some("") => usual_port,
            Some(rest) => rest
                .strip_prefix(':')
                .and_then(|port| port.parse().ok())
                .filter(|port| *port > 0)
                .ok_or(UrlFault::Port)?,
            None => return Err(UrlFault::NoHost),
        };
        if uri.query().is_some() {
            return Err(UrlFault::Query);
        }
        if !matches!(uri.path(), "" | "/") {
            return Err(UrlFault::Path(uri.path().to_owned()));
        }
        let address = Address::new(host.trim_start_matches('[').trim_end_matches(']'), port);
        let address = address.ok_or(UrlFault::NoHost)?;
        Ok(Address { scheme, ..address })
    }

    /// The same, its TLS by these settings if it speaks TLS.
    #[must_use]
    pub fn with_tls(self, tls: Option<&Arc<Tls>>) -> Self {
        let scheme = match self.scheme {
            Scheme::Http => Scheme::Http,
            Scheme::Https(_) => Scheme::Https(tls.cloned()),
        };
        Address { scheme, ..self }
    }

    /// It speaks TLS.
    pub fn is_secure(&self) -> bool {
        matches!(self.scheme, Scheme::Https(_))
    }

    /// A port of this machine.
    pub fn loopback(port: u16) -> Self {
        let literal = SocketAddr::from(([127, 0, 0, 1], port));
        let host_header = HeaderValue::from_str(&literal.to_string());
        Address {
            host: literal.ip().to_string(),
            port,
            literal: Some(literal),
            // Digits and dots are a header's value.
            host_header: host_header.unwrap_or_else(|_| HeaderValue::from_static("127.0.0.1")),
            scheme: Scheme::Http,
        }
    }

    /// `http://host:port`, or `https://…`.
    pub fn url(&self) -> String {
        let scheme = if self.is_secure() { "https" } else { "http" };
        format!("{scheme}://{}", self.authority())
    }

    /// `host:port`, as in the `Host` header.
    pub fn authority(&self) -> &str {
        // It was made of text.
        self.host_header.to_str().unwrap_or_default()
    }

    /// The `Host` header.
    pub fn host_header(&self) -> HeaderValue {
        self.host_header.clone()
    }

    /// A new connection.
    ///
    /// # Errors
    /// Nobody listens there, the name is unknown, or TLS isn't agreed on.
    pub async fn connect(&self) -> std::io::Result<Stream> {
        let stream = match self.literal {
            Some(address) => TcpStream::connect(address).await?,
            None => TcpStream::connect((self.host.as_str(), self.port)).await?,
        };
        stream.set_nodelay(true)?;
        match &self.scheme {
            Scheme::Http => Ok(Stream::Plain(stream)),
            // Boxed: a handshake has kilobytes, and each attempt would have room for one.
            Scheme::Https(Some(tls)) => Box::pin(tls.connect(&self.host, stream)).await,
            Scheme::Https(None) => Err(std::io::Error::other("no TLS is set up for it")),
        }
    }

    /// Whether it leads to a listener of this process at `listen`, as far as addresses tell.
    pub fn leads_to(&self, listen: SocketAddr) -> bool {
        let is_here = match self.literal {
            None => self.host == "localhost",
            Some(literal) => {
                let ip = literal.ip();
                ip == listen.ip() || (ip.is_loopback() && (listen.ip().is_loopback() || listen.ip().is_unspecified()))
            }
        };
        is_here && self.port == listen.port()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_read_or_says_why_not() {
        let url = |url: &str| Address::from_url(url).map(|address| address.url());
        for (given, read) in [
            ("http://127.0.0.1:8000", "http://127.0.0.1:8000"),
            ("http://127.0.0.1:8000/", "http://127.0.0.1:8000"),
            ("http://gpu-box/", "http://gpu-box:80"),
            ("http://[::1]:8000", "http://[::1]:8000"),
            ("https://gpu-box", "https://gpu-box:443"),
            ("https://gpu-box:8443/", "https://gpu-box:8443"),
        ] {
            assert_eq!(url(given), Ok(read.to_owned()));
        }
        for (given, fault) in [
            ("", UrlFault::NoUrl),
            ("http://", UrlFault::NoUrl),
            ("/health", UrlFault::NoHost),
            ("http://u:p@a:1", UrlFault::Credentials),
            ("a:1", UrlFault::Scheme),
            ("ftp://a:1", UrlFault::Scheme),
            ("http://a:", UrlFault::Port),
            ("http://a:0", UrlFault::Port),
            ("http://a:70000", UrlFault::Port),
            ("http://a:1/?q", UrlFault::Query),
            ("http://a:1/v1", UrlFault::Path("/v1".to_owned())),
        ] {
            assert_eq!(url(given), Err(fault), "{given}");
        }
    }

    #[test]
    fn a_loop_is_seen() {
        let leads = |url: &str, listen: &str| Address::from_url(url).unwrap().leads_to(listen.parse().unwrap());
        assert!(leads("http://localhost:5002", "127.0.0.1:5002"));
        assert!(leads("http://127.0.0.1:5002", "0.0.0.0:5002"));
        assert!(leads("http://10.0.0.7:5002", "10.0.0.7:5002"));
        assert!(!leads("http://127.0.0.1:8000", "127.0.0.1:5002"));
        assert!(!leads("http://10.0.0.7:5002", "127.0.0.1:5002"));
    }

    #[test]
    fn a_loopback_address_is_its_url() {
        assert_eq!(Ok(Address::loopback(8000)), Address::from_url("http://127.0.0.1:8000"));
    }
}
