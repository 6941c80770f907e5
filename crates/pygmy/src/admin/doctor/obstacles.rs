//! What stands in the way of an examination: a single cause, for which nearly everything would be
//! found wrong, and nothing of that would be to the point.

use super::{super::ask::answered, Check, Finding, facts::Facts};

/// The check that names the cause, if there is one.
pub(super) fn obstacle(facts: &Facts) -> Option<Check> {
    wrong_secret(facts).or_else(|| no_cluster(facts))
}

/// Nobody takes the secret. Where only some do not, [`servers`](super::servers::servers) names them.
fn wrong_secret(facts: &Facts) -> Option<Check> {
    facts.refusing().next()?;
    let taken = answered(&facts.balancers).count() + answered(&facts.replicas).count();
    (taken == 0).then(|| {
        let finding = Finding::wrong(
            format!("the servers do not take the secret in {}", facts.secret_file),
            "name the file with the store's secret with --secret-file",
        );
        Check::new("secret", "", vec![finding])
    })
}

/// All replicas answer, and none has ever been told of the others.
fn no_cluster(facts: &Facts) -> Option<Check> {
    let blank = answered(&facts.replicas).filter(|status| status.role == "blank").count();
    (blank > 0 && blank == facts.replicas.len()).then(|| {
        let finding = Finding::wrong(
            "the replicas belong to no cluster yet",
            "run `pygmy admin bootstrap` once; if they did belong to one, their directories are not \
             those they had: give them these back first",
        );
        Check::new("members", "", vec![finding])
    })
}
