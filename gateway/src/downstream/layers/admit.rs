//! Room in the process: one permit for each request from here to the end of its answer.

use sluice_policy::protocol::ask::Endpoint;
use sluice_policy::protocol::fault::{Fault, FaultKind};
use std::sync::Arc;

use super::gate::Check;
use crate::flow::call::Call;
use crate::flow::registry::Registry;

/// See the module.
#[derive(Clone)]
pub struct Admit {
    /// Counts what runs.
    pub registry: Arc<Registry>,
}

impl Check for Admit {
    fn check<B>(&self, call: &mut Call<B>) -> Result<(), Fault> {
        if matches!(
            call.endpoint,
            Endpoint::Health | Endpoint::Ping | Endpoint::Version | Endpoint::Cancel(_)
        ) {
            // Asked most when the process is full: never refused for that.
            return Ok(());
        }
        call.permit = Some(self.registry.admit().ok_or_else(|| {
            let message = format!("Too many requests at once (limit {}).", self.registry.limit());
            Fault::new(FaultKind::Capacity, message)
        })?);
        Ok(())
    }
}
