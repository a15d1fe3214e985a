use super::{Ask, AskLimits, Endpoint, Grants};
use crate::protocol::fault::{Fault, FaultKind};
use bytes::Bytes;
/// Reads a body.
pub fn read(_endpoint: &Endpoint, _body: Bytes, _limits: &AskLimits, _grants: &Grants) -> Result<Ask, Fault> {
    Err(Fault::new(FaultKind::Internal, "the request reader is being built"))
}
