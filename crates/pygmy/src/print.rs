//! Output: tables for people, JSON for programs.

use std::{
    env,
    io::{self, IsTerminal, Write},
};

use comfy_table::{Attribute, Cell, CellAlignment, ContentArrangement, Table, presets};
use serde::Serialize;

/// How output may look.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Style {
    /// Whether it may have colours and other attributes.
    pub(crate) colours: bool,
}

impl Style {
    fn of_stdout() -> Style {
        Style::of(io::stdout().is_terminal())
    }

    pub(crate) fn of_stderr() -> Style {
        Style::of(io::stderr().is_terminal())
    }

    /// See <https://no-color.org>.
    fn of(terminal: bool) -> Style {
        let refused = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let dumb = env::var_os("TERM").is_some_and(|value| value == "dumb");
        Style { colours: terminal && !refused && !dumb }
    }
}

/// One column of a table.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Column {
    /// Text, from the left.
    Text(&'static str),
    /// A number, to the right.
    Number(&'static str),
}

/// Prints a line to stdout.
///
/// # Errors
/// Nobody reads it any more, for example.
pub(crate) fn line(text: impl std::fmt::Display) -> io::Result<()> {
    writeln!(io::stdout().lock(), "{text}")
}

/// Prints a table to stdout, as wide as the terminal at most.
///
/// # Errors
/// As [`line()`].
pub(crate) fn table<R>(columns: &[Column], rows: R) -> io::Result<()>
where
    R: IntoIterator<Item = Vec<String>>,
{
    let style = Style::of_stdout();
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    if io::stdout().is_terminal() {
        table.set_content_arrangement(ContentArrangement::Dynamic);
    }
    if !style.colours {
        table.force_no_tty();
    }
    table.set_header(columns.iter().map(|column| header(*column)).collect::<Vec<_>>());
    for row in rows {
        let cells = row.into_iter().zip(columns).map(|(text, column)| cell(text, *column));
        table.add_row(cells.collect::<Vec<_>>());
    }
    for (index, column) in table.column_iter_mut().enumerate() {
        let last = index + 1 == columns.len();
        column.set_padding((0, if last { 0 } else { 2 }));
    }
    let mut out = io::stdout().lock();
    for line in table.lines() {
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

fn header(column: Column) -> Cell {
    let (Column::Text(name) | Column::Number(name)) = column;
    cell(name.to_owned(), column).add_attribute(Attribute::Bold)
}

fn cell(text: String, column: Column) -> Cell {
    let alignment = match column {
        Column::Text(_) => CellAlignment::Left,
        Column::Number(_) => CellAlignment::Right,
    };
    Cell::new_owned(without_controls(&text)).set_alignment(alignment)
}

/// Titles come from anyone: what would move the cursor or change colours is made visible.
pub(crate) fn without_controls(text: &str) -> String {
    let shown = |c: char| if c.is_control() && c != '\n' { '\u{fffd}' } else { c };
    text.chars().map(shown).collect()
}

/// Prints `value` as JSON to stdout.
///
/// # Errors
/// As [`line()`].
pub(crate) fn json(value: &impl Serialize) -> io::Result<()> {
    line(serde_json::to_string_pretty(value).map_err(io::Error::other)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_title_cannot_drive_the_terminal() {
        assert_eq!(without_controls("a\u{1b}[2Jb\r"), "a\u{fffd}[2Jb\u{fffd}");
        assert_eq!(without_controls("Größe"), "Größe");
    }
}
