//! The configuration: one TOML file that names every server of the cluster.
//!
//! [`Config::load`] reads the [`document`], lays what the environment and the command
//! line say [over it](overrides), and [checks](check) the whole. Whatever is wrong names the file
//! and the line (found through [`lines`]), or the variable or flag. [`topology`] answers the
//! questions that servers ask of the result: who is where.

mod check;
pub(crate) mod command;
mod document;
mod lines;
mod overrides;
mod show;
mod topology;

#[cfg(test)]
mod tests;

pub(crate) use document::{Document, ServerEntry};
pub(crate) use overrides::Settings;
pub(crate) use topology::Part;

use std::{
    fmt,
    path::{Path, PathBuf},
};

use self::{lines::Lines, overrides::Overrides};
use crate::money::Currency;

/// A configuration that was read and checked.
pub(crate) struct Config {
    path: PathBuf,
    document: Document,
    lines: Lines,
    overrides: Overrides,
}

/// What is wrong with a configuration, and where.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ConfigError {
    place: String,
    message: String,
}

impl ConfigError {
    fn in_file(path: &Path, line: Option<usize>, message: impl Into<String>) -> ConfigError {
        let place = match line {
            Some(line) => format!("{}:{line}", path.display()),
            None => path.display().to_string(),
        };
        ConfigError { place, message: message.into() }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.message)
    }
}

impl std::error::Error for ConfigError {}

impl Config {
    /// Reads the file at `path`, under what `settings` says.
    pub(crate) fn load(path: &Path, settings: &Settings) -> Result<Config, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|e| {
            let message = format!(
                "cannot read the configuration: {e}; name another file with --config, or make \
                 one with `pygmy demo --dir DIR`"
            );
            ConfigError::in_file(path, None, message)
        })?;
        Config::parse(path, &text, settings)
    }

    /// As [`Config::load`], of the text of the file.
    pub(crate) fn parse(
        path: &Path,
        text: &str,
        settings: &Settings,
    ) -> Result<Config, ConfigError> {
        let (document, lines) = document::parse(path, text)?;
        let (document, overrides) = settings.lay_over(document)?;
        let config = Config { path: path.to_owned(), document, lines, overrides };
        config.check()?;
        Ok(config)
    }

    /// The file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The same, from the root: for commands, which may run elsewhere.
    pub(crate) fn absolute_path(&self) -> String {
        let path = std::path::absolute(&self.path).unwrap_or_else(|_| self.path.clone());
        path.to_string_lossy().into_owned()
    }

    /// Everything in it, with what lies over it.
    pub(crate) fn document(&self) -> &Document {
        &self.document
    }

    /// The file of the cluster's secret. One that is named in the file is beside the file; one
    /// that is named by a variable or flag is where the process is.
    pub(crate) fn secret_file(&self) -> PathBuf {
        let secret_file = &self.document.cluster.secret_file;
        if self.overrides.contains("cluster.secret_file") {
            return secret_file.clone();
        }
        self.dir().join(secret_file)
    }

    /// The data directory of a server.
    pub(crate) fn data_dir(&self, server: &ServerEntry) -> PathBuf {
        self.dir().join(server.dir.as_deref().unwrap_or(Path::new(&server.name)))
    }

    /// How prices are written.
    pub(crate) fn currency(&self) -> Currency {
        let cluster = &self.document.cluster;
        Currency { name: cluster.currency.clone(), digits: cluster.currency_digits }
    }

    fn dir(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new(""))
    }
}
