//! `pygmy admin doctor`: does the store keep its promises, and if not, what is to be done?
//!
//! [`Facts`] asks all servers, and sees to it that what is compared belongs together: the state of
//! the replicas at one index of the log, the wall clocks at one moment. [`servers`] and [`replicas`]
//! judge that and ask nothing, one subject after the other, unless an [obstacle](obstacles) makes
//! that pointless.

mod facts;
mod hashes;
mod obstacles;
mod replicas;
mod servers;

#[cfg(test)]
mod tests;

use anyhow::bail;
use pygmy_protocol::Env;
use serde::Serialize;

use self::facts::Facts;
use super::Cluster;
use crate::{
    print::{self, Column},
    runtime::block_on,
};

/// How bad something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Ok,
    /// Nobody answers who could be asked.
    Unknown,
    /// No promise is broken; the next fault may find the store weaker than it should be.
    Warning,
    Wrong,
}

impl Verdict {
    fn as_str(self) -> &'static str {
        match self {
            Verdict::Ok => "ok",
            Verdict::Unknown => "unknown",
            Verdict::Warning => "warning",
            Verdict::Wrong => "WRONG",
        }
    }
}

/// Something that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Finding {
    verdict: Verdict,
    what: String,
    /// What to do about it.
    todo: String,
}

impl Finding {
    fn wrong(what: impl Into<String>, todo: impl Into<String>) -> Finding {
        Finding { verdict: Verdict::Wrong, what: what.into(), todo: todo.into() }
    }

    fn warning(what: impl Into<String>, todo: impl Into<String>) -> Finding {
        Finding { verdict: Verdict::Warning, what: what.into(), todo: todo.into() }
    }
}

/// One subject.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Check {
    name: &'static str,
    verdict: Verdict,
    /// What is so; empty where there are findings.
    #[serde(skip_serializing_if = "String::is_empty")]
    summary: String,
    findings: Vec<Finding>,
}

impl Check {
    fn new(name: &'static str, summary: impl Into<String>, findings: Vec<Finding>) -> Check {
        let worst = findings.iter().map(|finding| finding.verdict).max();
        let summary = if worst.is_none() { summary.into() } else { String::new() };
        Check { name, verdict: worst.unwrap_or(Verdict::Ok), summary, findings }
    }

    fn unknown(name: &'static str, why: &str) -> Check {
        Check { name, verdict: Verdict::Unknown, summary: why.to_owned(), findings: Vec::new() }
    }
}

/// Examines the store of `cluster`.
pub(super) fn run(env: &Env, cluster: &Cluster, json: bool) -> anyhow::Result<()> {
    let Some(config) = &cluster.config else {
        bail!("the store is compared with its configuration: name it with --config");
    };
    let secret = cluster.secret()?;
    let facts = block_on(env, Facts::gather(env, cluster, config, &secret))?;
    let checks = examine(&facts);
    let verdict = judge(&checks);
    let printed = if json {
        let report = serde_json::json!({ "ok": verdict.is_ok(), "checks": checks });
        print::json(&report).map_err(anyhow::Error::from)
    } else {
        print_checks(&checks)
    };
    // Also for those who read only the beginning of it.
    verdict.and(printed)
}

fn examine(facts: &Facts) -> Vec<Check> {
    let everywhere = [servers::clocks(facts), servers::versions(facts)];
    if let Some(obstacle) = obstacles::obstacle(facts) {
        return [servers::alive(facts), obstacle].into_iter().chain(everywhere).collect();
    }
    let checks = [
        servers::servers(facts),
        servers::balancers(facts),
        replicas::members(facts),
        replicas::state(facts),
        replicas::books(facts),
        servers::caches(facts),
        replicas::disks(facts),
    ];
    checks.into_iter().chain(everywhere).collect()
}

fn judge(checks: &[Check]) -> anyhow::Result<()> {
    let findings = checks.iter().flat_map(|check| &check.findings);
    match findings.filter(|finding| finding.verdict == Verdict::Wrong).count() {
        0 => Ok(()),
        1 => bail!("one thing is wrong; what to do stands below it"),
        wrong => bail!("{wrong} things are wrong; what to do stands below each"),
    }
}

/// A line for each check; where it is not ok, a line for each finding and one with what to do.
fn print_checks(checks: &[Check]) -> anyhow::Result<()> {
    let columns = [Column::Text("CHECK"), Column::Text("RESULT"), Column::Text("FOUND")];
    let row =
        |name: &str, result: &str, found: &str| vec![name.into(), result.into(), found.into()];
    let mut rows = Vec::new();
    for check in checks {
        if check.findings.is_empty() {
            rows.push(row(check.name, check.verdict.as_str(), &check.summary));
        }
        for (number, Finding { verdict, what, todo }) in check.findings.iter().enumerate() {
            rows.push(row(if number == 0 { check.name } else { "" }, verdict.as_str(), what));
            rows.push(row("", "", &format!("-> {todo}")));
        }
    }
    Ok(print::table(&columns, rows)?)
}
