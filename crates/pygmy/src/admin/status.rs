//! `pygmy admin status` and `pygmy admin servers`: what all servers say of themselves and of one
//! another.

use std::{collections::BTreeMap, time::Duration};

use pygmy_client::store::StoreError;
use pygmy_protocol::{
    Env,
    registration::{CatalogStatus, Role, ServerStatus, Servers},
};

use super::{
    Cluster,
    ask::{Answers, NoAnswer, answered, for_json},
};
use crate::{
    config::Part,
    print::{self, Column},
    runtime::block_on,
};

/// Longest wait for one server's status: one that hangs must not hide the others.
pub(super) const STATUS_TIMEOUT: Duration = Duration::from_secs(2);
/// Digits of a state hash that people compare.
const HASH_DIGITS: usize = 12;
/// Characters in the column of a server's health: more, and the table would not fit a terminal of
/// 80 columns. Longer reasons get lines of their own.
const HEALTH_CHARS: usize = 22;
/// Stands where nothing can be known.
const NOTHING: &str = "-";

/// `pygmy admin status`: the replicas, and one table of what all balancers know.
pub(super) fn status(env: &Env, cluster: &Cluster, json: bool) -> anyhow::Result<()> {
    let secret = cluster.secret()?;
    let (catalogs, balancers) = block_on(env, async {
        let balancers = cluster.balancers.clone();
        let balancers = for_json(env, &secret, balancers, "/servers", STATUS_TIMEOUT).await;
        let replicas = replicas(cluster, &balancers);
        (for_json(env, &secret, replicas, "/status", STATUS_TIMEOUT).await, balancers)
    })?;
    let print = || {
        if json {
            return print_json(&catalogs, &balancers);
        }
        print_catalogs(&catalogs)?;
        print::line("")?;
        print_servers(&balancers)
    };
    let printed = print();
    // Also for those who read only the beginning of what is printed.
    check_any(silence(&catalogs).chain(silence(&balancers))).and(printed)
}

/// `pygmy admin servers`: a table for each balancer.
pub(super) fn servers(env: &Env, cluster: &Cluster, json: bool) -> anyhow::Result<()> {
    let secret = cluster.secret()?;
    let balancers = cluster.balancers.clone();
    let asking = for_json(env, &secret, balancers, "/servers", STATUS_TIMEOUT);
    let balancers = block_on(env, asking)?;
    let printed = match json {
        true => print_json(&Vec::new(), &balancers),
        false => balancers.iter().try_for_each(print_view),
    };
    check_any(silence(&balancers)).and(printed)
}

/// What one balancer says.
fn print_view(answer: &(Part, Result<Servers, NoAnswer>)) -> anyhow::Result<()> {
    match answer {
        (_, Ok(servers)) => {
            print::line(format_args!("as {} sees them:", servers.balancer))?;
            print_servers(std::slice::from_ref(answer))?;
        }
        (Part { name, url }, Err(why)) => {
            print::line(format_args!("{name} at {}: {}", place(url), in_short(why)))?;
        }
    }
    Ok(print::line("")?)
}

/// What a table says of a server that tells nothing.
fn in_short(why: &NoAnswer) -> &'static str {
    match why {
        why if why.is_secret_required() => "wrong secret",
        _ => "no answer",
    }
}

/// The URL of each server, and why it does not answer if it does not.
fn silence<T>(answers: &Answers<T>) -> impl Iterator<Item = (&str, Option<&NoAnswer>)> {
    answers.iter().map(|(part, answer)| (&*part.url, answer.as_ref().err()))
}

/// Checks that any server tells something. One that refuses to is there, at least, and says why.
fn check_any<'a>(
    servers: impl Iterator<Item = (&'a str, Option<&'a NoAnswer>)>,
) -> anyhow::Result<()> {
    let (mut tried, mut reason, mut refusal) = (Vec::new(), String::new(), None);
    for (url, silent) in servers {
        match silent {
            None => return Ok(()),
            Some(NoAnswer::Problem(problem)) => refusal = Some(problem),
            Some(NoAnswer::Failed(why)) => reason.clone_from(why),
        }
        tried.push(url.to_owned());
    }
    match refusal {
        Some(problem) => Err(StoreError::Problem(problem.clone()).into()),
        None => Err(StoreError::Unreachable { tried, reason }.into()),
    }
}

/// Those of the configuration and those that the balancers know: they may have been added later.
pub(super) fn replicas(cluster: &Cluster, balancers: &Answers<Servers>) -> Vec<Part> {
    let configured = cluster.config.iter().flat_map(|config| config.parts(Role::Catalog));
    let mut named: BTreeMap<_, _> = configured.map(|part| (part.name, part.url)).collect();
    for server in answered(balancers).flat_map(|balancer| &balancer.servers) {
        if server.role == Role::Catalog {
            named.insert(server.name.clone(), server.url.clone());
        }
    }
    named.into_iter().map(|(name, url)| Part { name, url }).collect()
}

fn print_json(
    catalogs: &Answers<CatalogStatus>,
    balancers: &Answers<Servers>,
) -> anyhow::Result<()> {
    let unanswered: Vec<_> = unanswered(balancers).chain(unanswered(catalogs)).collect();
    Ok(print::json(&serde_json::json!({
        "catalogs": answered(catalogs).collect::<Vec<_>>(),
        "balancers": answered(balancers).collect::<Vec<_>>(),
        "unanswered": unanswered,
    }))?)
}

/// A sentence for each server that tells nothing.
fn unanswered<T>(answers: &Answers<T>) -> impl Iterator<Item = String> {
    answers.iter().filter_map(|(Part { name, url }, answer)| {
        let why = answer.as_ref().err()?;
        Some(format!("no status from {name} at {url}: {why}"))
    })
}

fn print_catalogs(catalogs: &Answers<CatalogStatus>) -> anyhow::Result<()> {
    let columns = [
        Column::Text("CATALOG"),
        Column::Text("ROLE"),
        Column::Number("TERM"),
        Column::Number("LOG"),
        Column::Number("APPLIED"),
        Column::Number("ORDERS"),
        Column::Text("STATE"),
    ];
    let leader = answered(catalogs).filter(|status| status.role == "leader").max_by_key(|s| s.term);
    let rows = catalogs.iter().map(|(Part { name, .. }, answer)| match answer {
        Ok(status) => vec![
            status.name.clone(),
            role(status, leader).to_owned(),
            status.term.to_string(),
            status.last_log_index.to_string(),
            status.applied_index.to_string(),
            status.orders.to_string(),
            status.state_hash.chars().take(HASH_DIGITS).collect(),
        ],
        Err(why) => {
            let mut row = vec![name.clone(), in_short(why).to_owned()];
            row.resize(columns.len(), NOTHING.to_owned());
            row
        }
    });
    print::table(&columns, rows)?;
    let mut fresh: Vec<_> =
        answered(catalogs).flat_map(|status| status.front_ends.iter().cloned()).collect();
    if !fresh.is_empty() {
        fresh.sort_unstable();
        fresh.dedup();
        print::line(format_args!("caches kept fresh: {}", fresh.join(", ")))?;
    }
    Ok(())
}

/// What a replica is: what it says, unless it follows a leader that does not know it. One that was
/// removed may never hear of that.
fn role<'a>(status: &'a CatalogStatus, leader: Option<&CatalogStatus>) -> &'a str {
    let is_member =
        |leader: &CatalogStatus| leader.members.iter().any(|member| member.id == status.id);
    match leader {
        Some(leader) if status.role == "follower" && !is_member(leader) => "removed",
        _ => &status.role,
    }
}

/// What the balancers say of one server, each with its name.
type Views<'a> = Vec<(&'a str, &'a ServerStatus)>;

/// One table of what the balancers know: their counts added up. Below it, what needs more words.
fn print_servers(balancers: &[(Part, Result<Servers, NoAnswer>)]) -> anyhow::Result<()> {
    let mut views: BTreeMap<(Role, &str), Views<'_>> = BTreeMap::new();
    let mut rows = BTreeMap::new();
    for (part, answer) in balancers {
        match answer {
            Ok(Servers { balancer, servers }) => {
                for server in servers {
                    let seen = views.entry((server.role, &server.name)).or_default();
                    seen.push((balancer, server));
                }
            }
            Err(why) => {
                let row = row(&part.name, Role::Balancer, &part.url, in_short(why), None);
                rows.insert((Role::Balancer, part.name.as_str()), row);
            }
        }
    }
    let (mut reasons, mut respawned) = (Vec::new(), Vec::new());
    for ((role, name), seen) in views {
        let Some((_, first)) = seen.first() else { continue };
        let Health { short, long } = Health::of(&seen);
        reasons.extend(long.map(|long| vec![name.to_owned(), long]));
        respawned.extend(respawns(name, &seen));
        // Customers come to the front ends by themselves: the balancers see none of that.
        let counted = (role != Role::Frontend).then(|| counts(&seen));
        rows.insert((role, name), row(name, role, &first.url, &short, counted));
    }
    let columns = [
        Column::Text("SERVER"),
        Column::Text("ROLE"),
        Column::Text("AT"),
        Column::Text("HEALTH"),
        Column::Number("BUSY"),
        Column::Number("SERVED"),
    ];
    print::table(&columns, rows.into_values())?;
    if !reasons.is_empty() {
        print::line("")?;
        print::table(&[Column::Text("SERVER"), Column::Text("WHY")], reasons)?;
    }
    if !respawned.is_empty() {
        print::line(format_args!("started again: {}", respawned.join(", ")))?;
    }
    Ok(())
}

/// How often a server was started again, if it was; a balancer may have been away meanwhile.
fn respawns(name: &str, seen: &Views<'_>) -> Option<String> {
    match seen.iter().map(|(_, server)| server.respawns).max()? {
        0 => None,
        1 => Some(format!("{name} once")),
        times => Some(format!("{name} {times} times")),
    }
}

/// Requests in flight and answered.
fn counts(seen: &Views<'_>) -> (u64, u64) {
    let sum = |count: fn(&ServerStatus) -> u64| seen.iter().map(|(_, server)| count(server)).sum();
    (sum(|server| server.in_flight), sum(|server| server.served))
}

fn row(name: &str, role: Role, url: &str, health: &str, counts: Option<(u64, u64)>) -> Vec<String> {
    let (busy, served) = counts
        .map_or((NOTHING.to_owned(), NOTHING.to_owned()), |(busy, served)| {
            (busy.to_string(), served.to_string())
        });
    vec![name.to_owned(), role.to_string(), place(url).to_owned(), health.to_owned(), busy, served]
}

/// Host and port: the scheme is always the same, and the path says the role once more.
pub(super) fn place(url: &str) -> &str {
    let authority = url.trim_start_matches("http://");
    authority.split('/').next().unwrap_or(authority)
}

/// How the balancers see a server.
#[derive(Debug, PartialEq, Eq)]
struct Health {
    /// Fits the table.
    short: String,
    /// What does not fit it.
    long: Option<String>,
}

impl Health {
    /// Whether they agree is a matter of what they do, send requests or not: their reasons are
    /// never quite the same.
    fn of(seen: &Views<'_>) -> Health {
        let leads = seen.iter().any(|(_, server)| server.leader);
        let with_leader = |health: &str| format!("{health}{}", if leads { ", leader" } else { "" });
        let Some((_, first)) = seen.first() else {
            return Health { short: NOTHING.to_owned(), long: None };
        };
        if seen.iter().any(|(_, server)| server.health != first.health) {
            let views = seen.iter().map(|(balancer, server)| match &server.reason {
                Some(reason) => format!("{} to {balancer}: {reason}", server.health),
                None => format!("{} to {balancer}", server.health),
            });
            let long = views.collect::<Vec<_>>().join("\n");
            return Health { short: with_leader("not agreed"), long: Some(long) };
        }
        let short = with_leader(&first.health.to_string());
        match seen.iter().find_map(|(_, server)| server.reason.as_ref()) {
            None => Health { short, long: None },
            Some(reason) => {
                let both = format!("{short}: {reason}");
                let fits = both.chars().count() <= HEALTH_CHARS;
                let short_one = Health { short, long: Some(reason.clone()) };
                if fits { Health { short: both, long: None } } else { short_one }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use pygmy_protocol::{Code, Problem, registration::Health as Seen};

    use super::*;

    fn server(health: Seen, reason: Option<&str>) -> ServerStatus {
        ServerStatus {
            name: "catalog-1".into(),
            role: Role::Catalog,
            url: "http://127.0.0.1:8082".into(),
            health,
            reason: reason.map(str::to_owned),
            in_flight: 1,
            served: 2,
            leader: false,
            respawns: 0,
            story: None,
        }
    }

    fn health(one: &ServerStatus, two: &ServerStatus) -> (String, Option<String>) {
        let Health { short, long } = Health::of(&vec![("b-1", one), ("b-2", two)]);
        (short, long)
    }

    #[test]
    fn balancers_that_do_the_same_agree() {
        let (one, two) = (
            server(Seen::Dead, Some("silent for 7 s")),
            server(Seen::Dead, Some("silent for 8 s")),
        );
        assert_eq!(health(&one, &two), ("dead: silent for 7 s".to_owned(), None));
        let leads = ServerStatus { leader: true, ..server(Seen::Ready, None) };
        assert_eq!(health(&leads, &leads), ("ready, leader".to_owned(), None));
    }

    #[test]
    fn what_does_not_fit_the_table_goes_below_it() {
        let reason = "/readyz: not sent: cannot connect";
        let one = server(Seen::Dead, Some(reason));
        assert_eq!(health(&one, &one), ("dead".to_owned(), Some(reason.to_owned())));
        let (short, long) = health(&one, &server(Seen::Ready, None));
        assert_eq!(short, "not agreed");
        assert_eq!(long.unwrap(), format!("dead to b-1: {reason}\nready to b-2"));
    }

    #[test]
    fn a_server_that_was_started_again_is_named() {
        let never = server(Seen::Ready, None);
        let twice = ServerStatus { respawns: 2, ..never.clone() };
        assert_eq!(respawns("order-1", &vec![("b-1", &never), ("b-2", &never)]), None);
        let told = respawns("order-1", &vec![("b-1", &never), ("b-2", &twice)]);
        assert_eq!(told.as_deref(), Some("order-1 2 times"));
    }

    fn asked(answers: [Result<(), NoAnswer>; 2]) -> Result<(), StoreError> {
        let part = Part { name: "n".into(), url: "http://h:1".into() };
        let answers = answers.map(|answer| (part.clone(), answer)).to_vec();
        check_any(silence(&answers)).map_err(|error| error.downcast().unwrap())
    }

    #[test]
    fn that_nobody_answers_is_an_error_that_may_pass() {
        let silent = |why: &str| Err(NoAnswer::Failed(why.to_owned()));
        assert!(asked([silent("gone"), Ok(())]).is_ok());
        let error = asked([silent("gone"), silent("away")]).unwrap_err();
        assert!(error.is_retryable(), "it is its own exit code");
        assert_eq!(error.to_string(), "no server answers at http://h:1, http://h:1: away");
    }

    #[test]
    fn that_the_secret_is_wrong_is_said_whoever_else_is_dead() {
        let problem = Problem::new(Code::SecretRequired, "the secret, please");
        let refusal = || Err(NoAnswer::Problem(problem.clone()));
        let error = asked([refusal(), Err(NoAnswer::Failed("gone".into()))]).unwrap_err();
        assert_eq!(error, StoreError::Problem(problem.clone()));
        assert!(asked([refusal(), Ok(())]).is_ok(), "another one answers");
    }

    #[test]
    fn a_place_is_host_and_port() {
        assert_eq!(place("http://127.0.0.1:8091/catalog"), "127.0.0.1:8091");
    }
}
