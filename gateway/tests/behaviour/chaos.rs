//! The fault campaign of `benches/src/chaos`, small: agents through the gateway while its replicas are killed, stopped and slowed, every
//! answer judged by its bytes (B10, B31, B35, B36). The whole one is `cargo run -p sluice-benches --bin chaos`.

use sluice_benches::chaos::{Campaign, Report};
use std::path::PathBuf;
use std::time::Duration;

fn campaign(replicas: usize, requests: u64, gap: Duration) -> Report {
    let folder = tempfile::tempdir().unwrap();
    let campaign = Campaign {
        sluice: PathBuf::from(env!("CARGO_BIN_EXE_sluice")),
        folder: folder.path().to_owned(),
        requests,
        // No new request after it; those that run take as long as they take.
        time: Duration::from_secs(12),
        agents: 32,
        replicas,
        seed: 4,
        gap,
        speed: 3.0,
        rest: Duration::ZERO,
    };
    let report = campaign.run().unwrap();
    println!("{report}");
    if report.defects() > 0 {
        println!("evidence is left in {}", folder.keep().display());
    }
    report
}

#[test]
fn b31_nothing_is_lost_doubled_or_wrong_while_replicas_come_and_go() {
    let report = campaign(3, 300, Duration::from_secs(3));
    assert_eq!(report.defects(), 0, "{report}");
    assert!(
        report.whole() > 0 && report.continued() > 0,
        "nothing happened: {report}"
    );
}

#[test]
fn b35_nor_while_the_only_one_does() {
    let report = campaign(1, 150, Duration::from_secs(4));
    assert_eq!(report.defects(), 0, "{report}");
    assert!(report.whole() > 0, "nothing happened: {report}");
}
