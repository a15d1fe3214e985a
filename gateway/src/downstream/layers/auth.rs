//! Who asks (B2): the key is checked before a byte of the body is read.

use pingora_limits::rate::Rate;
use sluice_policy::protocol::ask::Endpoint;
use sluice_policy::protocol::fault::{Fault, FaultKind};
use std::net::IpAddr;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use super::gate::Check;
use crate::downstream::listener::Peer;
use crate::flow::call::Call;
use crate::keys::{KeyId, KeyRing, KeyVerdict};

/// Failed logins are counted over this time, per address.
const WINDOW: Duration = Duration::from_secs(60);
/// More failed logins than this in the window, and the address waits.
const MAX_FAILED_LOGINS: isize = 120;

/// Addresses and their failed logins; a sketch of fixed size, whatever attacks.
static FAILED_LOGINS: LazyLock<Rate> = LazyLock::new(|| Rate::new(WINDOW));

/// See the module.
#[derive(Clone)]
pub struct Auth {
    /// The accepted keys.
    pub keys: Arc<KeyRing>,
}

impl Check for Auth {
    fn check<B>(&self, call: &mut Call<B>) -> Result<(), Fault> {
        if call.endpoint.is_open() {
            return Ok(());
        }
        call.identity = judge(&self.keys, call)?;
        if let Some(identity) = &call.identity {
            call.claim.of_key(identity);
        }
        Ok(())
    }
}

fn judge<B>(keys: &KeyRing, call: &Call<B>) -> Result<Option<Arc<KeyId>>, Fault> {
    let address = call
        .head
        .extensions
        .get::<Peer>()
        .and_then(|peer| peer.0)
        .map(|address| address.ip());
    let header = |name: &str| call.head.headers.get(name).map(|value| value.as_bytes());
    let anthropic = matches!(call.endpoint, Endpoint::Messages | Endpoint::CountTokens);
    let verdict = keys.judge(header("authorization"), header("x-api-key").filter(|_| anthropic));
    let fault = match verdict {
        KeyVerdict::Accepted(identity) => return Ok(Some(identity)),
        KeyVerdict::Open => return Ok(None),
        KeyVerdict::Missing => Fault::new(
            FaultKind::KeyMissing,
            "You didn't provide an API key. Send it in the Authorization header: `Authorization: Bearer YOUR_KEY`.",
        ),
        KeyVerdict::NotBearer => Fault::new(
            FaultKind::KeyMalformed,
            "The Authorization header is not of the form `Bearer YOUR_KEY`.",
        ),
        KeyVerdict::NotAccepted => Fault::new(FaultKind::KeyRejected, "The API key provided is not accepted."),
    };
    if let Some(address) = address
        && matches!(fault.kind, FaultKind::KeyRejected)
        && failed_logins(address) > MAX_FAILED_LOGINS
    {
        let message = format!("Too many failed logins from this address (limit {MAX_FAILED_LOGINS} a minute).");
        return Err(Fault::new(FaultKind::LoginsLimited, message).with_retry_after(WINDOW));
    }
    Err(fault)
}

fn failed_logins(address: IpAddr) -> isize {
    FAILED_LOGINS.observe(&address, 1)
}
