//! Who is where.
//!
//! A server with the role `all` has a part of every tier in it: `NAME-catalog` at `URL/catalog`,
//! and so on. To the others these parts are servers like any other.

use pygmy_client::watch::Process;
use pygmy_protocol::registration::Role;

use super::{Config, ServerEntry};

/// A server of one tier.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) name: String,
    /// Its base URL.
    pub(crate) url: String,
}

impl ServerEntry {
    /// Its base URL as other servers reach it.
    pub(crate) fn base_url(&self) -> String {
        match &self.url {
            Some(url) => url.trim_end_matches('/').to_owned(),
            None => format!("http://{}", self.listen),
        }
    }

    /// The part of it that does `role`, if it does that.
    pub(crate) fn part(&self, role: Role) -> Option<Part> {
        match self.role {
            Role::All => Some(Part {
                name: format!("{}-{role}", self.name),
                url: format!("{}/{role}", self.base_url()),
            }),
            own if own == role => Some(Part { name: self.name.clone(), url: self.base_url() }),
            _ => None,
        }
    }

    /// What watchers know of it.
    fn process(&self, command: &[String]) -> Process {
        let own = match self.role {
            // The watcher of a process with all tiers is its balancer's.
            Role::All | Role::Balancer => self.part(Role::Balancer),
            Role::Frontend => self.part(Role::Frontend),
            Role::Order | Role::Catalog => None,
        };
        Process {
            name: self.name.clone(),
            role: self.role,
            url: self.base_url(),
            watcher_url: own.map(|part| part.url),
            parts: Role::TIERS.iter().filter_map(|role| Some(self.part(*role)?.name)).collect(),
            command: self.respawn.as_deref().unwrap_or(command).to_vec(),
        }
    }

    /// The base URL of its public routes, if it has any: on the host that other servers know it
    /// by.
    pub(crate) fn public_url(&self) -> Option<String> {
        match (self.role, self.public_listen) {
            (Role::Frontend, _) => Some(self.base_url()),
            (Role::All, Some(public)) if public.ip().is_unspecified() => {
                let url = self.base_url();
                let authority = url.trim_start_matches("http://").split('/').next()?.to_owned();
                let host = authority.rsplit_once(':').map_or(authority.as_str(), |(host, _)| host);
                Some(format!("http://{host}:{}", public.port()))
            }
            (Role::All, Some(public)) => Some(format!("http://{public}")),
            _ => None,
        }
    }
}

impl Config {
    /// All servers, as in the file.
    pub(crate) fn servers(&self) -> &[ServerEntry] {
        &self.document.servers
    }

    /// The server `name`.
    pub(crate) fn server(&self, name: &str) -> Option<&ServerEntry> {
        self.servers().iter().find(|server| server.name == name)
    }

    /// All servers, as their watchers know them.
    pub(crate) fn processes(&self) -> Vec<Process> {
        let command = &self.document.respawn.command;
        self.servers().iter().map(|server| server.process(command)).collect()
    }

    /// The servers of one tier.
    pub(crate) fn parts(&self, role: Role) -> Vec<Part> {
        self.servers().iter().filter_map(|server| server.part(role)).collect()
    }

    /// The base URLs of one tier.
    pub(crate) fn urls(&self, role: Role) -> Vec<String> {
        self.parts(role).into_iter().map(|part| part.url).collect()
    }

    /// The base URLs of the public API.
    pub(crate) fn public_urls(&self) -> Vec<String> {
        self.servers().iter().filter_map(ServerEntry::public_url).collect()
    }
}
