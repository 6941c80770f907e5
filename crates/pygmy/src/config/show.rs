//! Every effective value and where it came from.

use std::collections::BTreeMap;

use serde::Serialize;
use toml::{Table, Value};

use super::{Config, overrides::By};

/// One value of the configuration.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Setting {
    /// `table.key`, or `server.NAME.key`.
    pub(crate) key: String,
    /// As it would stand in the file.
    pub(crate) value: Value,
    /// `default`, `FILE:LINE`, a variable, or a flag.
    pub(crate) origin: String,
}

impl Config {
    /// All of them: the tables in the order of their names, then the servers as in the file.
    pub(crate) fn settings(&self) -> Vec<Setting> {
        let tables = flatten(&self.document).into_iter();
        let tables = tables.filter(|(key, _)| !key.starts_with("server."));
        let mut settings: Vec<_> =
            tables.map(|(key, value)| Setting { origin: self.origin(&key), key, value }).collect();
        for (index, server) in self.document.servers.iter().enumerate() {
            for (key, value) in flatten(server) {
                let origin = self.origin(&format!("server.{index}.{key}"));
                settings.push(Setting {
                    key: format!("server.{}.{key}", server.name),
                    value,
                    origin,
                });
            }
        }
        settings
    }

    fn origin(&self, key: &str) -> String {
        match (self.overrides.get(key), self.lines.get(key)) {
            (Some(By::Flag), _) => format!("--set {key}"),
            (Some(By::Variable(name)), _) => name.clone(),
            (None, Some(line)) => format!("{}:{line}", self.path.display()),
            (None, None) => "default".to_owned(),
        }
    }
}

/// Every value in `value` by its path.
pub(super) fn flatten(value: &impl Serialize) -> BTreeMap<String, Value> {
    let mut values = BTreeMap::new();
    // Numbers, texts and tables only: they always have a TOML form.
    for (key, value) in Table::try_from(value).unwrap_or_default() {
        add(&mut values, key, value);
    }
    values
}

fn add(values: &mut BTreeMap<String, Value>, path: String, value: Value) {
    match value {
        Value::Table(table) => {
            for (key, value) in table {
                add(values, format!("{path}.{key}"), value);
            }
        }
        Value::Array(array) if path == "server" => {
            for (index, value) in array.into_iter().enumerate() {
                add(values, format!("{path}.{index}"), value);
            }
        }
        value => {
            values.insert(path, value);
        }
    }
}
