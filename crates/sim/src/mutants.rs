//! Do the judges find what is wrong? One known error after the other is planted, and the seeds
//! are counted until a run fails.

use pygmy_protocol::planted::{ALL, plant};

use crate::{
    campaign::{Campaign, Summary},
    faults::Scenario,
    run::Scratch,
};

/// Hunts every planted bug, or the one named `only`, with at most `seeds` seeds each. Whether all
/// were found.
pub(crate) fn hunt(seeds: u64, only: Option<&str>, scratch: &Scratch) -> bool {
    let mut all_found = true;
    println!("| planted error | runs | what the judges said |");
    println!("|---|---|---|");
    for bug in ALL.iter().filter(|bug| only.is_none_or(|name| name == bug.name())) {
        plant(Some(*bug));
        let campaign = Campaign {
            seeds: 0..seeds,
            scenario: Scenario::All,
            failures_max: 1,
            time_max: None,
            quiet: true,
        };
        let summary = campaign.run(scratch);
        plant(None);
        println!("| {} | {} | {} |", bug.name(), summary.runs, verdict(&summary));
        all_found &= !summary.failures.is_empty();
    }
    all_found
}

fn verdict(summary: &Summary) -> String {
    let Some(report) = summary.failures.first() else { return "NOT FOUND".to_owned() };
    let why = report.failure.as_deref().unwrap_or_default();
    let first_line = why.lines().next().unwrap_or_default();
    format!("seed {}: {first_line}", report.plan.seed)
}
