//! What a gateway has recorded, as `sluice requests --json` prints it.

use serde_json::Value;
use sluice_gateway::record::{print, query};

use super::gateway::Gateway;
use super::until;

/// The record of this id, as soon as it is on the disk.
pub(crate) async fn record(gateway: &Gateway, id: &str) -> Value {
    until(&format!("a record of {id}"), async || {
        let rows = query::list(
            &gateway.records(),
            &query::Filter {
                limit: 100_000,
                ..query::Filter::default()
            },
        )
        .ok()?;
        let mut rows = rows.iter().filter(|row| row.id == id);
        let row = rows.next()?;
        assert!(rows.next().is_none(), "two records of {id}");
        Some(serde_json::from_str(&print::json_line(row)).unwrap())
    })
    .await
}
