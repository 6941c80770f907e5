//! Watching the processes of the cluster, and starting those again that are lost.
//!
//! A process is a `[[server]]` of the configuration: with all tiers in it, it lives and dies as
//! one. Balancers watch all processes that are no balancers, front ends watch the balancers, and a
//! process with all tiers watches the others of both kinds, once.
//!
//! A [`Watcher`] asks every other process for `/livez`, again and again. What the answers say of
//! one process is kept as its [`target`]: alive; dead, when its host refuses the connection; or
//! silent. What is to be done about it is [`decide`]d from these facts and the clock alone:
//!
//! * One that is dead is started, by the first of its watchers that are alive, in the order of
//!   their names. The second does it a second later if nothing has come of that, and so on.
//! * One that is silent for `after_ms` is restarted, which ends it if it still runs. So this wants
//!   more: every other watcher that answers has found the same, and this one hears from more than
//!   half of all processes. Who is cut off ends nobody.
//! * One that is starting is left alone, and so is one that has said that it leaves ([`mod@leave`]).
//! * One that is lost again and again is started less and less often, down to once in
//!   `backoff_max_ms`.
//!
//! Starting is done by a command of the operator's ([`command`]): a process that has no
//! command is only watched. `GET /watched` shows what a watcher knows. Watchers read
//! that of one another: before they act; and now and then ([`Watcher::run`]), so that all of them
//! can tell how a process was lost and came back, also one that has just started, also of itself.

mod command;
mod decide;
mod leave;
mod respawn;
mod routes;
mod settings;
mod target;
mod watcher;

#[cfg(test)]
mod tests;

pub use command::{Fill, check_command, fill};
pub use leave::leave;
pub use respawn::run_command;
pub use routes::routes;
pub use settings::Settings;
pub use watcher::{Config, Watcher};

use pygmy_protocol::registration::Role;

/// A process of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Its name in the configuration.
    pub name: String,
    /// What it does.
    pub role: Role,
    /// The base URL of its `/livez` and `/readyz`.
    pub url: String,
    /// The base URL of its `/watched`, if it watches.
    pub watcher_url: Option<String>,
    /// The names under which its tiers register; its own, if it has only one.
    pub parts: Vec<String>,
    /// The command that starts it again, with placeholders; empty if there is none.
    pub command: Vec<String>,
}

impl Process {
    /// Whether it watches `other`.
    pub fn watches(&self, other: &Process) -> bool {
        let by_role = match self.role {
            Role::Balancer => other.role != Role::Balancer,
            Role::Frontend => other.role == Role::Balancer,
            Role::All => true,
            Role::Order | Role::Catalog => false,
        };
        by_role && self.name != other.name
    }
}
