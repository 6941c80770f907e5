//! Which servers a demo has, and where.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::bail;
use pygmy_protocol::registration::Role;
use serde::Serialize;

use crate::{
    cli::LayoutName,
    config::{Config, ServerEntry},
};

/// The first port of the default layout.
const BASE_PORT: u16 = 8080;

const HEAD: &str = "\
# The servers of this demo. `pygmy demo --dir` with this directory starts what stands here;
# settings may be added: `pygmy config show` on this file lists them all with their values.

";

/// What the command line says about the layout.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Asked {
    pub(super) layout: Option<LayoutName>,
    pub(super) base_port: Option<u16>,
}

const RESPAWN: &str = r#"# A server that is lost is started again: those that watch it run this, which asks the demo.
[respawn]
command = [
  "{program}", "respawn", "{reason}", "{name}", "--watcher", "{watcher}", "--config", "{config}",
]

"#;

#[derive(Serialize)]
struct Servers {
    server: Vec<ServerEntry>,
}

impl Asked {
    /// The text of a new configuration.
    pub(super) fn configuration(&self) -> anyhow::Result<String> {
        Ok(format!("{HEAD}{RESPAWN}{}", toml::to_string(&Servers { server: self.servers() })?))
    }

    /// Refuses a configuration with other servers than those that were asked for: their data
    /// belongs together.
    pub(super) fn check_against(&self, config: &Config) -> anyhow::Result<()> {
        let asked = self.layout.is_some() || self.base_port.is_some();
        if asked && config.servers() != self.servers() {
            bail!(
                "{} has other servers than --layout and --base-port ask for; choose another --dir, \
                 or leave the two out to run the servers that it has",
                config.path().display()
            );
        }
        Ok(())
    }

    fn servers(&self) -> Vec<ServerEntry> {
        let first = self.base_port.unwrap_or(BASE_PORT);
        match self.layout.unwrap_or(LayoutName::Tiers) {
            LayoutName::Tiers => tiers(first),
            LayoutName::Nodes => nodes(first),
        }
    }
}

fn tiers(first: u16) -> Vec<ServerEntry> {
    let servers = [
        ("balancer-1", Role::Balancer),
        ("frontend-1", Role::Frontend),
        ("catalog-1", Role::Catalog),
        ("catalog-2", Role::Catalog),
        ("catalog-3", Role::Catalog),
        ("order-1", Role::Order),
        ("order-2", Role::Order),
        ("balancer-2", Role::Balancer),
        ("frontend-2", Role::Frontend),
    ];
    let ports = first..;
    servers.iter().zip(ports).map(|((name, role), port)| server(name, *role, port)).collect()
}

fn nodes(first: u16) -> Vec<ServerEntry> {
    let node = |number: u16| ServerEntry {
        public_listen: Some(loopback(first + number)),
        ..server(&format!("node-{number}"), Role::All, first + 10 + number)
    };
    (1..=3).map(node).collect()
}

fn server(name: &str, role: Role, port: u16) -> ServerEntry {
    let listen = loopback(port);
    ServerEntry {
        name: name.to_owned(),
        role,
        listen,
        public_listen: None,
        url: None,
        dir: None,
        respawn: None,
    }
}

fn loopback(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::Settings;

    fn config(asked: &Asked) -> Config {
        let text = asked.configuration().unwrap();
        Config::parse(Path::new("pygmy.toml"), &text, &Settings::default()).unwrap()
    }

    #[test]
    fn every_tier_has_its_ports() {
        let config = config(&Asked::default());
        let port = |name: &str| config.server(name).unwrap().listen.port();
        assert_eq!(port("balancer-1"), 8080);
        assert_eq!(port("frontend-1"), 8081);
        assert_eq!([port("catalog-1"), port("catalog-2"), port("catalog-3")], [8082, 8083, 8084]);
        assert_eq!([port("order-1"), port("order-2")], [8085, 8086]);
        assert_eq!([port("balancer-2"), port("frontend-2")], [8087, 8088]);
        assert_eq!(config.servers().len(), 9);
        assert_eq!(config.public_urls(), ["http://127.0.0.1:8081", "http://127.0.0.1:8088"]);
    }

    #[test]
    fn nodes_have_a_public_and_an_internal_port() {
        let asked = Asked { layout: Some(LayoutName::Nodes), base_port: Some(9080) };
        let config = config(&asked);
        let urls: Vec<_> = [9081, 9082, 9083].map(|p| format!("http://127.0.0.1:{p}")).into();
        assert_eq!(config.public_urls(), urls);
        assert_eq!(config.urls(Role::Catalog)[2], "http://127.0.0.1:9093/catalog");
        assert_eq!(config.parts(Role::Balancer)[0].name, "node-1-balancer");
    }

    #[test]
    fn a_directory_keeps_its_layout() {
        let made = config(&Asked { layout: Some(LayoutName::Nodes), base_port: None });
        assert!(Asked::default().check_against(&made).is_ok());
        let same = Asked { layout: Some(LayoutName::Nodes), base_port: Some(8080) };
        assert!(same.check_against(&made).is_ok());
        let other = Asked { layout: Some(LayoutName::Tiers), base_port: None };
        assert!(other.check_against(&made).is_err());
    }
}
