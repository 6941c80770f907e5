//! Does the index lead to every order, and to nothing else?

use rusqlite::Connection;

use super::{
    super::{
        query::Shared,
        rows::{OrderRow, sql, whole},
    },
    Entry, KeyIndexConfig,
};

/// Orders that are looked up at a time: some 500 microseconds, for which a group of buys may have
/// to wait.
const LOOKUPS: usize = 1024;

/// Compares the index with orders, run by run.
pub(in super::super) struct Check<'a> {
    db: &'a Connection,
    shared: &'a Shared,
    config: KeyIndexConfig,
    /// Orders that should be in the table.
    indexed: u64,
    /// The orders of a run, until all are there.
    run: Vec<Entry>,
    runs: u64,
    complaint: Option<String>,
}

impl<'a> Check<'a> {
    /// Begins a check of what the read transaction on `db` sees. What is in memory may be ahead
    /// of that: it must lead to every order, and will lead to more.
    pub(in super::super) fn begin(
        db: &'a Connection,
        shared: &'a Shared,
    ) -> rusqlite::Result<Check<'a>> {
        let indexed = db.query_row("SELECT indexed_orders FROM meta", (), |row| whole(row, 0))?;
        let config = shared.keys().config;
        Ok(Check { db, shared, config, indexed, run: Vec::new(), runs: 0, complaint: None })
    }

    /// The next order.
    pub(in super::super) fn order(&mut self, row: &OrderRow) -> rusqlite::Result<()> {
        self.run.push(((self.config.hash)(&row.key), row.order.order_number.0));
        match self.run.len() as u64 == self.config.run_orders {
            true => self.end_of_run(),
            false => Ok(()),
        }
    }

    /// There are no more orders. Gives what is wrong with the index.
    pub(in super::super) fn finish(mut self) -> rusqlite::Result<Option<String>> {
        if self.runs * self.config.run_orders < self.indexed {
            self.complain("the index of keys speaks of more orders than there are".to_owned());
        }
        self.end_of_run()?;
        Ok(self.complaint)
    }

    fn end_of_run(&mut self) -> rusqlite::Result<()> {
        for entries in self.run.chunks(LOOKUPS) {
            let keys = self.shared.keys();
            let lost = entries.iter().find(|entry| !keys.leads_to(entry));
            drop(keys);
            if let Some((_, number)) = lost {
                let complaint = format!("order {number} is not to be found by its key");
                self.complaint.get_or_insert(complaint);
            }
        }
        if self.runs * self.config.run_orders < self.indexed {
            let mut statement = self.db.prepare_cached(
                "SELECT hash, order_number FROM key_index WHERE run = ? ORDER BY hash, order_number",
            )?;
            let rows = statement
                .query_map([sql(self.runs)], |row| Ok((whole(row, 0)?, whole(row, 1)?)))?
                .collect::<rusqlite::Result<Vec<Entry>>>()?;
            self.run.sort_unstable();
            if rows != self.run {
                self.complain(format!("run {} of the index of keys is not what it was", self.runs));
            }
        }
        self.runs += 1;
        self.run.clear();
        Ok(())
    }

    fn complain(&mut self, complaint: String) {
        self.complaint.get_or_insert(complaint);
    }
}
