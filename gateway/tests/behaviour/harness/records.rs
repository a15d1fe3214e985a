//! What a gateway has recorded, as `sluice requests --json` prints it.

use serde_json::Value;
use sluice_gateway::record::{print, query};

use super::gateway::Gateway;
use super::until;

/// The record of this id, as soon as it is on the disk.
pub(crate) async fn record(gateway: &Gateway, id: &str) -> Value {
    until(&format!("a record of {id}"), async || {
        let rows = records(gateway);
        let mut rows = rows.iter().filter(|row| row["id"] == id);
        let row = rows.next()?;
        assert!(rows.next().is_none(), "two records of {id}");
        Some(row.clone())
    })
    .await
}

/// All records that are on the disk by now.
pub(crate) fn records(gateway: &Gateway) -> Vec<Value> {
    let filter = query::Filter {
        limit: 100_000,
        ..query::Filter::default()
    };
    let rows = query::list(&gateway.records(), &filter).unwrap_or_default();
    let lines = rows.iter().map(print::json_line);
    lines.map(|line| serde_json::from_str(&line).unwrap()).collect()
}
