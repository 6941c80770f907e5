//! Is a run the same each time? Twice in processes of their own, compared line by line.

use std::{io, ops::Range, process::Command};

use crate::faults::Scenario;

/// Compares two runs of each seed. Gives the first difference, if there is one.
///
/// # Errors
/// This program cannot be started again.
pub(crate) fn compare(seeds: Range<u64>, scenario: Scenario) -> io::Result<Option<String>> {
    for seed in seeds {
        let (first, second) = (trace(seed, scenario)?, trace(seed, scenario)?);
        if first == second {
            println!("seed {seed}: {} lines, the same twice", first.lines().count());
            continue;
        }
        let pairs = first.lines().zip(second.lines());
        let difference = pairs.enumerate().find(|(_, (one, other))| one != other);
        return Ok(Some(match difference {
            Some((number, (one, other))) => {
                format!("seed {seed} differs in line {}:\n  {one}\n  {other}", number + 1)
            }
            None => format!("seed {seed}: one trace is longer than the other"),
        }));
    }
    Ok(None)
}

fn trace(seed: u64, scenario: Scenario) -> io::Result<String> {
    let scenario = format!("{scenario:?}").to_lowercase();
    let output = Command::new(std::env::current_exe()?)
        .args(["run", "--seed", &seed.to_string(), "--scenario", &scenario, "--trace"])
        .output()?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
