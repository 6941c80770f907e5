//! Which line of the file a key stands on.

use std::{collections::BTreeMap, ops::Range};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

/// The lines of all keys, by their paths (`balancer.probe_ms`, `server.0.name`).
#[derive(Debug)]
pub(super) struct Lines(BTreeMap<String, usize>);

impl Lines {
    pub(super) fn of(text: &str) -> Result<Lines, toml::de::Error> {
        let mut lines = Lines(BTreeMap::new());
        lines.add_table(text, "", DeTable::parse(text)?.get_ref());
        Ok(lines)
    }

    /// The line of the byte at `offset`, counted from 1.
    pub(super) fn line_at(text: &str, offset: usize) -> usize {
        1 + text.bytes().take(offset).filter(|byte| *byte == b'\n').count()
    }

    /// The line of exactly this key.
    pub(super) fn get(&self, key: &str) -> Option<usize> {
        self.0.get(key).copied()
    }

    /// The line of the key, or of the table that it would stand in.
    pub(super) fn nearest(&self, key: &str) -> Option<usize> {
        let table = || key.rsplit_once('.').and_then(|(table, _)| self.nearest(table));
        self.get(key).or_else(table)
    }

    fn add_table(&mut self, text: &str, prefix: &str, table: &DeTable<'_>) {
        for (key, value) in table {
            let path = format!("{prefix}{}", key.get_ref());
            self.add_value(text, path, key.span(), value);
        }
    }

    fn add_value(
        &mut self,
        text: &str,
        path: String,
        key: Range<usize>,
        value: &Spanned<DeValue<'_>>,
    ) {
        match value.get_ref() {
            DeValue::Table(table) => self.add_table(text, &format!("{path}."), table),
            DeValue::Array(array) => {
                for (index, element) in array.iter().enumerate() {
                    self.add_value(text, format!("{path}.{index}"), element.span(), element);
                }
            }
            _ => {}
        }
        self.0.insert(path, Lines::line_at(text, key.start));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_have_their_lines() {
        let text =
            "[cluster]\ncurrency = \"EUR\"\n\n[[server]]\nname = \"a\"\n[[server]]\nname=\"b\"\n";
        let lines = Lines::of(text).unwrap();
        assert_eq!(lines.get("cluster.currency"), Some(2));
        assert_eq!(lines.get("server.1.name"), Some(7));
        assert_eq!(lines.nearest("server.0.url"), Some(4));
        assert_eq!(lines.nearest("server.1.url"), Some(6));
        assert_eq!(lines.get("cluster.secret_file"), None);
    }
}
