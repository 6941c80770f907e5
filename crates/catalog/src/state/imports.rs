//! Imports: many items that nobody sees until all of them are there.
//!
//! Staged items are rows of `items` like any other, with the number of their import. What makes
//! them invisible is the state of the import alone, so publishing changes one row, however many
//! items there are; what has to be counted anew are its topics, of which there are few. A lookup
//! of an imported item asks for the state of its import. A search reads the items of a topic in
//! the order of their imports ([`super::schema`]) and leaps over the few that are not finished.
//!
//! Staged items hold their numbers: two imports never publish the same one, and what would fail at
//! the end fails at once. Nothing is staged twice, because every part of an import has a key, and
//! the publication says how many items there must be.
//!
//! A discard drops [`MAX_ITEMS`] items at a time and has to be asked for again until none is left.
//! The row of an import stays for ever: a part of it that was under way for long finds it finished.

use std::collections::{BTreeMap, BTreeSet};

use pygmy_protocol::{
    command::{ImportRefusal, Outcome},
    import::{ImportId, MAX_IMPORT_TOPICS, MAX_ITEMS, MAX_UNFINISHED_IMPORTS, UnfinishedImport},
    invalidation::CacheKey,
    item::{Item, ItemNumber},
};
use rusqlite::{Connection, OptionalExtension, Row, params};
use serde::{Deserialize, Serialize};

use super::{
    apply::Group,
    error::nonsense,
    hash::Canonical,
    rows::{ImportNumber, ItemRow, TableRow, checked, sql, whole},
};

/// How far an import is. The numbers are those of the database and of the state hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum ImportState {
    /// Takes items; nobody sees them.
    Open = 0,
    /// Being discarded; nobody sees what is left.
    Discarding = 1,
    /// Its items are on sale.
    Published = 2,
    /// Nothing is left of it.
    Discarded = 3,
}

/// An import.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ImportRow {
    pub(super) number: ImportNumber,
    pub(super) id: ImportId,
    pub(super) state: ImportState,
    /// Rows of `items` that have its number.
    pub(super) items: u64,
    pub(super) begun_ms: u64,
}

impl ImportRow {
    /// Whether its items are not to be seen.
    pub(super) fn is_unfinished(&self) -> bool {
        matches!(self.state, ImportState::Open | ImportState::Discarding)
    }

    fn find_id(db: &Connection, id: &ImportId) -> rusqlite::Result<Option<ImportRow>> {
        Self::find(db, "id = ?1", id.as_str())
    }

    fn find_number(db: &Connection, number: ImportNumber) -> rusqlite::Result<Option<ImportRow>> {
        Self::find(db, "import = ?1", sql(number))
    }
}

impl TableRow for ImportRow {
    const SELECT: &str = "SELECT import, id, state, items, begun_ms, checksum FROM imports";

    fn read(row: &Row<'_>) -> rusqlite::Result<ImportRow> {
        let state = match row.get(2)? {
            0 => ImportState::Open,
            1 => ImportState::Discarding,
            2 => ImportState::Published,
            3 => ImportState::Discarded,
            other => return Err(rusqlite::Error::IntegralValueOutOfRange(2, other)),
        };
        let import = ImportRow {
            number: whole(row, 0)?,
            id: row.get_ref(1)?.as_str()?.parse().map_err(nonsense)?,
            state,
            items: whole(row, 3)?,
            begun_ms: whole(row, 4)?,
        };
        checked(row, 5, import)
    }

    fn insert(&self, db: &Connection) -> rusqlite::Result<()> {
        let mut statement = db.prepare_cached(
            "INSERT INTO imports (import, id, state, items, begun_ms, checksum) \
             VALUES (?, ?, ?, ?, ?, ?)",
        )?;
        statement.execute(params![
            sql(self.number),
            self.id.as_str(),
            self.state as u8,
            sql(self.items),
            sql(self.begun_ms),
            self.checksum(),
        ])?;
        Ok(())
    }

    fn hash(&self) -> u128 {
        Canonical::new("import")
            .number(self.number)
            .text(self.id.as_str())
            .number(self.state as u64)
            .number(self.items)
            .number(self.begun_ms)
            .hash()
    }
}

/// The imports whose items are not to be seen, the oldest first.
pub(super) fn unfinished(db: &Connection) -> rusqlite::Result<Vec<ImportRow>> {
    let select = format!("{} WHERE state < 2 ORDER BY import", ImportRow::SELECT);
    let mut statement = db.prepare_cached(&select)?;
    statement.query_map((), ImportRow::read)?.collect()
}

/// As [`unfinished`], for `GET /imports`.
pub(super) fn list(db: &Connection) -> rusqlite::Result<Vec<UnfinishedImport>> {
    let imports = unfinished(db)?.into_iter().map(|row| UnfinishedImport {
        discarding: row.state == ImportState::Discarding,
        id: row.id,
        items: row.items,
        begun_ms: row.begun_ms,
    });
    Ok(imports.collect())
}

/// The unfinished import that hides the items of `import`, if they are hidden.
pub(super) fn hiding(db: &Connection, import: ImportNumber) -> rusqlite::Result<Option<ImportRow>> {
    if import == 0 {
        return Ok(None);
    }
    Ok(ImportRow::find_number(db, import)?.filter(ImportRow::is_unfinished))
}

/// The import of an item, hidden or not; `None` if there is no such item.
pub(super) fn import_of(
    db: &Connection,
    item: ItemNumber,
) -> rusqlite::Result<Option<ImportNumber>> {
    let mut statement = db.prepare_cached("SELECT import FROM items WHERE item_number = ?")?;
    statement.query_row([sql(item.get())], |row| whole(row, 0)).optional()
}

/// Counts `items` more of `topic`: under 0, or under their import as long as that is unfinished.
pub(super) fn count_topic(
    db: &Connection,
    import: ImportNumber,
    topic: &str,
    items: u64,
) -> rusqlite::Result<()> {
    let mut statement = db.prepare_cached(
        "INSERT INTO topics (import, topic, items) VALUES (?, ?, ?) \
         ON CONFLICT (import, topic) DO UPDATE SET items = items + excluded.items",
    )?;
    statement.execute(params![sql(import), topic, sql(items)])?;
    Ok(())
}

impl Group<'_> {
    /// Stages `items`, all or none.
    pub(super) fn stage(
        &mut self,
        time_ms: u64,
        id: &ImportId,
        items: &[Item],
    ) -> rusqlite::Result<Outcome> {
        let found = ImportRow::find_id(self.db, id)?;
        if let Some(ImportRow { state, .. }) = found
            && state != ImportState::Open
        {
            return Ok(Outcome::ImportRefused(ImportRefusal::NotOpen));
        }
        if found.is_none() && unfinished(self.db)?.len() >= MAX_UNFINISHED_IMPORTS {
            return Ok(Outcome::ImportRefused(ImportRefusal::TooMany));
        }
        if let Some(refusal) = self.first_taken(items)? {
            return Ok(refusal);
        }
        let before = match found {
            Some(row) => row,
            None => self.begin_import(time_ms, id, ImportState::Open)?,
        };
        let mut topics = BTreeMap::<&str, u64>::new();
        for item in items {
            self.insert(&ItemRow::new(item.clone(), before.number))?;
            *topics.entry(&item.topic).or_default() += 1;
        }
        for (topic, items) in topics {
            count_topic(self.db, before.number, topic, items)?;
        }
        self.meta.items += items.len() as u64;
        let items = before.items + items.len() as u64;
        self.change_import(&before, ImportRow { items, ..before.clone() })?;
        Ok(Outcome::Imported { items, replayed: false })
    }

    /// Puts what is staged on sale.
    pub(super) fn publish(
        &mut self,
        id: &ImportId,
        items: u64,
        changed: &mut BTreeSet<CacheKey>,
    ) -> rusqlite::Result<Outcome> {
        let refused = |refusal| Ok(Outcome::ImportRefused(refusal));
        let found = ImportRow::find_id(self.db, id)?;
        let Some(before) = found.filter(|row| row.state == ImportState::Open) else {
            return refused(ImportRefusal::NotOpen);
        };
        if before.items != items {
            return refused(ImportRefusal::Incomplete { items: before.items });
        }
        let topics = self.topics_of(before.number, MAX_IMPORT_TOPICS + 1)?;
        if topics.len() > MAX_IMPORT_TOPICS {
            return refused(ImportRefusal::TooManyTopics);
        }
        // The items themselves are in no cache: there is no page with them, and what is not found
        // is not cached.
        changed.insert(CacheKey::Topics);
        for (topic, items) in topics {
            count_topic(self.db, 0, &topic, items)?;
            changed.insert(CacheKey::Topic(topic));
        }
        let mut forget = self.db.prepare_cached("DELETE FROM topics WHERE import = ?")?;
        forget.execute([sql(before.number)])?;
        let published = ImportRow { state: ImportState::Published, ..before.clone() };
        self.change_import(&before, published)?;
        Ok(Outcome::Imported { items, replayed: false })
    }

    /// Drops some of what is staged. The name of an import that never began is taken from now on:
    /// its first part may still be under way.
    pub(super) fn discard(&mut self, time_ms: u64, id: &ImportId) -> rusqlite::Result<Outcome> {
        let before = match ImportRow::find_id(self.db, id)? {
            Some(row) if row.state == ImportState::Published => {
                return Ok(Outcome::ImportRefused(ImportRefusal::NotOpen));
            }
            Some(row) => row,
            None => self.begin_import(time_ms, id, ImportState::Discarded)?,
        };
        let mut room = MAX_ITEMS;
        while room > 0
            && let Some((topic, counted)) = self.topics_of(before.number, 1)?.pop()
        {
            let dropped = self.drop_staged(before.number, &topic, room)?;
            if dropped == 0 {
                return Err(nonsense(format!("topic {topic:?} of an import is counted wrongly")));
            }
            self.uncount_topic(before.number, &topic, counted, dropped)?;
            room -= dropped;
        }
        let dropped = (MAX_ITEMS - room) as u64;
        self.meta.items -= dropped;
        let items = before.items - dropped;
        let state = if items == 0 { ImportState::Discarded } else { ImportState::Discarding };
        self.change_import(&before, ImportRow { state, items, ..before.clone() })?;
        Ok(Outcome::Imported { items, replayed: false })
    }

    /// The refusal for the first of `items` whose number is taken, also by another of them.
    fn first_taken(&self, items: &[Item]) -> rusqlite::Result<Option<Outcome>> {
        let mut numbers = BTreeSet::new();
        for item in items {
            let number = item.item_number;
            if !numbers.insert(number) {
                return Ok(Some(Outcome::ItemExists { item: number, import: None }));
            }
            if let Some(import) = import_of(self.db, number)? {
                let import = hiding(self.db, import)?.map(|row| row.id);
                return Ok(Some(Outcome::ItemExists { item: number, import }));
            }
        }
        Ok(None)
    }

    fn begin_import(
        &mut self,
        begun_ms: u64,
        id: &ImportId,
        state: ImportState,
    ) -> rusqlite::Result<ImportRow> {
        let mut last = self.db.prepare_cached("SELECT coalesce(max(import), 0) FROM imports")?;
        let number = last.query_one((), |row| whole(row, 0))? + 1;
        let row = ImportRow { number, id: id.clone(), state, items: 0, begun_ms };
        self.insert(&row)?;
        Ok(row)
    }

    fn change_import(&mut self, before: &ImportRow, after: ImportRow) -> rusqlite::Result<()> {
        let mut statement = self.db.prepare_cached(
            "UPDATE imports SET state = ?, items = ?, checksum = ? WHERE import = ?",
        )?;
        let ImportRow { number, state, items, .. } = &after;
        statement.execute(params![*state as u8, sql(*items), after.checksum(), sql(*number)])?;
        self.rehash(before.hash(), after.hash());
        Ok(())
    }

    fn topics_of(&self, import: ImportNumber, most: usize) -> rusqlite::Result<Vec<(String, u64)>> {
        let mut statement = self.db.prepare_cached(
            "SELECT topic, items FROM topics WHERE import = ? ORDER BY topic LIMIT ?",
        )?;
        let rows = statement.query_map(params![sql(import), sql(most as u64)], |row| {
            Ok((row.get(0)?, whole(row, 1)?))
        })?;
        rows.collect()
    }

    /// Drops up to `most` items of an import from a topic, those with the lowest numbers.
    fn drop_staged(
        &mut self,
        import: ImportNumber,
        topic: &str,
        most: usize,
    ) -> rusqlite::Result<usize> {
        let mut select = self.db.prepare_cached(&format!(
            "{} WHERE topic = ? AND import = ? ORDER BY item_number LIMIT ?",
            ItemRow::SELECT
        ))?;
        let found =
            select.query_map(params![topic, sql(import), sql(most as u64)], ItemRow::read)?;
        let rows = found.collect::<rusqlite::Result<Vec<ItemRow>>>()?;
        let mut delete = self.db.prepare_cached("DELETE FROM items WHERE item_number = ?")?;
        for row in &rows {
            delete.execute([sql(row.item.item_number.get())])?;
            self.rehash(row.hash(), 0);
        }
        Ok(rows.len())
    }

    fn uncount_topic(
        &self,
        import: ImportNumber,
        topic: &str,
        counted: u64,
        dropped: usize,
    ) -> rusqlite::Result<()> {
        let left = counted.saturating_sub(dropped as u64);
        if left == 0 {
            let forget = "DELETE FROM topics WHERE import = ? AND topic = ?";
            self.db.prepare_cached(forget)?.execute(params![sql(import), topic])?;
            return Ok(());
        }
        let mut update =
            self.db.prepare_cached("UPDATE topics SET items = ? WHERE import = ? AND topic = ?")?;
        update.execute(params![sql(left), sql(import), topic])?;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
