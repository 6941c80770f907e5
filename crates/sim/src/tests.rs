use crate::{
    faults::Scenario,
    run::{Plan, Report, Scratch, run},
    trace,
};

fn simulate(seed: u64, scenario: Scenario) -> Report {
    trace::install();
    let scratch = Scratch::make().unwrap();
    run(Plan { seed, scenario, faults: None, clients: None }, &scratch)
}

#[test]
fn every_scenario_keeps_every_promise() {
    use Scenario::*;
    for (seed, scenario) in [All, Calm, Crashes, Network, Disks, Pauses].into_iter().enumerate() {
        let report = simulate(seed as u64, scenario);
        assert_eq!(report.failure, None, "seed {seed} of {scenario:?}");
        assert!(report.requests > 0, "a run without requests proves nothing");
    }
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    let (first, second) = (simulate(5, Scenario::All), simulate(5, Scenario::All));
    assert_eq!(first.trace, second.trace);
    assert_ne!(first.trace, simulate(6, Scenario::All).trace);
}

/// Seeds that have found a real error. A later change may turn such a run into another one, so each
/// error has a test of its own as well, where it was made.
const FOUND: &[u64] = &[
    // A replica that joined anew asked one peer after the other, and waited eight seconds for each
    // whose machine had died silently.
    2048,
];

#[test]
fn seeds_that_found_an_error_keep_every_promise() {
    for seed in FOUND {
        assert_eq!(simulate(*seed, Scenario::All).failure, None, "seed {seed}");
    }
}
