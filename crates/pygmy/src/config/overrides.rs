//! What lies over the file: variables of the environment, and over these the flags.
//!
//! Every setting of a table can be set by a variable: `PYGMY_` and its name in capitals
//! (`balancer.probe_ms`: `PYGMY_BALANCER_PROBE_MS`); those of `[cluster]` go without the table's
//! name (`PYGMY_SECRET_FILE`). The flag is `--set balancer.probe_ms=100`.

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
};

use toml::{Table, Value};

use super::{ConfigError, Document, document::in_our_words, show::flatten};

/// Variables of ours that are no settings: the log's filter, and what stands in for flags.
const OTHER_VARIABLES: [&str; 3] = ["PYGMY_LOG", "PYGMY_SERVER", "PYGMY_CONFIG"];

/// What the environment and the command line say.
#[derive(Debug, Clone, Default)]
pub(crate) struct Settings {
    variables: BTreeMap<String, String>,
    flags: Vec<(String, String)>,
}

/// Which keys were set, and by what.
#[derive(Debug, Default)]
pub(super) struct Overrides(BTreeMap<String, By>);

/// What set a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum By {
    Variable(String),
    Flag,
}

impl Overrides {
    pub(super) fn contains(&self, key: &str) -> bool {
        self.0.contains_key(key)
    }

    pub(super) fn get(&self, key: &str) -> Option<&By> {
        self.0.get(key)
    }
}

impl Settings {
    /// The environment of this process, and `KEY=VALUE` flags.
    pub(crate) fn of_process(flags: &[(String, String)]) -> Settings {
        let ours = |name: &String| name.starts_with("PYGMY_");
        let variables = env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .filter(|(name, value)| ours(name) && !value.is_empty());
        Settings { variables: variables.collect(), flags: flags.to_vec() }
    }

    /// Refuses a variable that looks like a setting and is none: a slip would go unnoticed.
    pub(crate) fn check_variables(&self) -> Result<(), ConfigError> {
        let known: BTreeSet<_> = known_keys().iter().map(|key| variable_of(key)).collect();
        let unknown = self.variables.keys().find(|name| {
            let other = OTHER_VARIABLES.contains(&name.as_str()) || is_of_kubernetes(name);
            !known.contains(*name) && !other
        });
        let Some(name) = unknown else { return Ok(()) };
        let message = "no setting has this variable; correct its name, as in \
                       PYGMY_BALANCER_PROBE_FAILURES for balancer.probe_failures, or remove it";
        Err(ConfigError { place: name.clone(), message: message.to_owned() })
    }

    /// Lays them over `document`, one by one, so that an error names what caused it.
    pub(super) fn lay_over(
        &self,
        mut document: Document,
    ) -> Result<(Document, Overrides), ConfigError> {
        let mut overrides = Overrides::default();
        for key in known_keys() {
            let variable = variable_of(&key);
            if let Some(text) = self.variables.get(&variable) {
                document = set(&document, &key, text, &variable)?;
                overrides.0.insert(key, By::Variable(variable));
            }
        }
        for (key, text) in &self.flags {
            document = set(&document, key, text, &format!("--set {key}={text}"))?;
            overrides.0.insert(key.clone(), By::Flag);
        }
        Ok((document, overrides))
    }
}

/// The keys of all tables.
fn known_keys() -> Vec<String> {
    flatten(&Document::default()).into_keys().collect()
}

/// The variable that sets `key`.
fn variable_of(key: &str) -> String {
    let key = key.strip_prefix("cluster.").unwrap_or(key);
    format!("PYGMY_{}", key.replace('.', "_").to_uppercase())
}

/// Kubernetes gives every container of a namespace with a service `pygmy` such variables
/// (`PYGMY_SERVICE_HOST`, `PYGMY_PORT_80_TCP`), and nobody can be blamed for them.
fn is_of_kubernetes(name: &str) -> bool {
    name.contains("_SERVICE_") || name.contains("_PORT")
}

fn set(document: &Document, key: &str, text: &str, place: &str) -> Result<Document, ConfigError> {
    let wrong = |message: String| ConfigError { place: place.to_owned(), message };
    let Some((table, name)) = key.split_once('.').filter(|(table, _)| *table != "server") else {
        return Err(wrong(format!("{key:?} is no setting; name it as table.key")));
    };
    let mut whole = Table::try_from(document).map_err(|e| wrong(e.to_string()))?;
    let Some(Value::Table(values)) = whole.get_mut(table) else {
        return Err(wrong(format!("there is no table [{table}]")));
    };
    values.insert(name.to_owned(), value_of(text));
    Value::Table(whole).try_into().map_err(|e: toml::de::Error| wrong(in_our_words(e.message())))
}

/// Numbers and the like as in the file; whatever else it is, is text, and needs no quotes here.
fn value_of(text: &str) -> Value {
    let parsed = format!("value = {text}").parse::<Table>().ok();
    let value = parsed.and_then(|mut table| table.remove("value"));
    value.unwrap_or_else(|| Value::String(text.to_owned()))
}

#[cfg(test)]
impl Settings {
    pub(super) fn of(variables: &[(&str, &str)], flags: &[(&str, &str)]) -> Settings {
        let owned = |(a, b): &(&str, &str)| ((*a).to_owned(), (*b).to_owned());
        Settings {
            variables: variables.iter().map(owned).collect(),
            flags: flags.iter().map(owned).collect(),
        }
    }
}
