//! Checking a whole file before anything of it is sent.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::bail;
use pygmy_protocol::import::MAX_IMPORT_TOPICS;

use super::{
    count,
    file::{BadLine, ItemsFile},
};

/// Most items of one file: their numbers are in memory while it is checked, 16 bytes each.
const MAX_FILE_ITEMS: usize = 10_000_000;
/// Bad lines that are shown; all are counted.
const SHOWN: usize = 20;

/// What a good file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Checked {
    /// Items, at least 1.
    pub(crate) items: u64,
    /// Topics, at least 1.
    pub(crate) topics: usize,
    /// A hash of the file's bytes.
    pub(crate) hash: u128,
}

/// Reads all of `file`.
///
/// # Errors
/// Its bad lines: the first of them, and how many there are.
pub(crate) fn check(file: &mut ItemsFile) -> anyhow::Result<Checked> {
    let mut bad = BadLines::default();
    let mut numbers: Vec<(u64, u64)> = Vec::new();
    let mut topics = BTreeSet::new();
    let mut ascending = true;
    while let Some(next) = file.next()? {
        let (line, item) = match next {
            Ok(found) => found,
            Err(line) => {
                bad.add(line);
                continue;
            }
        };
        let number = item.item_number.get();
        ascending &= numbers.last().is_none_or(|(last, _)| *last < number);
        numbers.push((number, line));
        if numbers.len() > MAX_FILE_ITEMS {
            bail!(
                "{} has more than {}",
                file.path().display(),
                count(MAX_FILE_ITEMS as u64, "item")
            );
        }
        if topics.len() <= MAX_IMPORT_TOPICS
            && topics.insert(item.topic)
            && topics.len() > MAX_IMPORT_TOPICS
        {
            let most = count(MAX_IMPORT_TOPICS as u64, "topic");
            bad.add(BadLine::new(line, "topic", format!("a file may have {most}")));
        }
    }
    if !ascending {
        for (line, reason) in repeated(&mut numbers) {
            bad.add(BadLine::new(line, "itemNumber", reason));
        }
    }
    bad.refuse(file)?;
    if numbers.is_empty() {
        bail!("{} has no items; nothing was loaded", file.path().display());
    }
    Ok(Checked { items: numbers.len() as u64, topics: topics.len(), hash: file.hash() })
}

/// The lines whose number stands on an earlier line.
fn repeated(numbers: &mut [(u64, u64)]) -> impl Iterator<Item = (u64, String)> {
    numbers.sort_unstable();
    numbers.windows(2).filter(|pair| pair[0].0 == pair[1].0).map(|pair| {
        let [(number, first), (_, line)] = [pair[0], pair[1]];
        (line, format!("item {number} stands on line {first} already"))
    })
}

#[derive(Default)]
struct BadLines {
    /// By line and column.
    first: BTreeMap<(u64, Option<String>), BadLine>,
    count: u64,
}

impl BadLines {
    fn add(&mut self, bad: BadLine) {
        self.count += 1;
        self.first.insert((bad.line, bad.column.clone()), bad);
        if self.first.len() > SHOWN {
            self.first.pop_last();
        }
    }

    fn refuse(self, file: &ItemsFile) -> anyhow::Result<()> {
        if self.count == 0 {
            return Ok(());
        }
        let mut text = String::new();
        for bad in self.first.values() {
            text += &format!("\n  {bad}");
        }
        let hidden = self.count - self.first.len() as u64;
        if hidden > 0 {
            text += &format!("\n  and {} more", count(hidden, "bad line"));
        }
        bail!("{} cannot be used; nothing was loaded{text}", file.path().display())
    }
}

#[cfg(test)]
mod tests;
