//! What stands in the file.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use pygmy_client::watch;
use pygmy_protocol::{http::Limits, registration::Role};
use serde::{Deserialize, Serialize};

use super::{ConfigError, lines::Lines};

/// The whole file.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Document {
    pub(crate) cluster: Cluster,
    pub(crate) limits: Limits,
    pub(crate) balancer: pygmy_balancer::Settings,
    pub(crate) frontend: pygmy_frontend::Settings,
    pub(crate) catalog: pygmy_catalog::Settings,
    pub(crate) respawn: watch::Settings,
    #[serde(rename = "server", skip_serializing_if = "Vec::is_empty")]
    pub(crate) servers: Vec<ServerEntry>,
}

/// `[cluster]`: what all servers share.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Cluster {
    /// The file with the cluster's secret, relative to the configuration.
    pub(crate) secret_file: PathBuf,
    /// Written after a price.
    pub(crate) currency: String,
    /// Digits after the point: how many the minor unit has.
    pub(crate) currency_digits: u32,
    /// Time between heartbeats to the balancers.
    pub(crate) heartbeat_ms: u64,
    /// Longest time for one attempt on one server, within `limits.request_timeout_ms`.
    pub(crate) attempt_timeout_ms: u64,
}

impl Default for Cluster {
    fn default() -> Cluster {
        Cluster {
            secret_file: "secret".into(),
            currency: "USD".to_owned(),
            currency_digits: 2,
            heartbeat_ms: 2_000,
            attempt_timeout_ms: 2_000,
        }
    }
}

/// `[[server]]`: one server of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ServerEntry {
    pub(crate) name: String,
    pub(crate) role: Role,
    /// Public for a front end, internal for the others.
    pub(crate) listen: SocketAddr,
    /// Where the front end of a server with the role `all` listens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) public_listen: Option<SocketAddr>,
    /// How other servers reach `listen`; by default `http://` and that address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) url: Option<String>,
    /// The data directory, relative to the configuration; by default the name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) dir: Option<PathBuf>,
    /// The command that starts it again; by default that of `[respawn]`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) respawn: Option<Vec<String>>,
}

/// Reads the text of the file at `path`.
pub(super) fn parse(path: &Path, text: &str) -> Result<(Document, Lines), ConfigError> {
    let wrong = |error: toml::de::Error| {
        let line = error.span().map(|span| Lines::line_at(text, span.start));
        ConfigError::in_file(path, line, in_our_words(error.message()))
    };
    let lines = Lines::of(text).map_err(wrong)?;
    let document = toml::from_str(text).map_err(wrong)?;
    Ok((document, lines))
}

/// What TOML calls keys, serde calls fields.
pub(super) fn in_our_words(message: &str) -> String {
    let message = message.trim_end().replace('\n', "; ");
    message.replacen("unknown field", "unknown key", 1).replacen("missing field", "missing key", 1)
}
