//! A file of items, read line by line.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read, Seek},
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use clap::ValueEnum;
use pygmy_protocol::{
    Problem,
    item::{Item, ItemNumber, MAX_NUMBER, MAX_TEXT_BYTES, parse_whole_number},
};
use serde::Deserialize;
use serde_json::{Value, error::Category};
use xxhash_rust::xxh3::Xxh3Default;

use super::csv::Record;

/// The columns of a CSV file, and the fields of a JSON line.
pub(super) const COLUMNS: [&str; 5] = ["itemNumber", "title", "topic", "stock", "cost"];
const ITEM_NUMBER: usize = 0;
const TITLE: usize = 1;
const TOPIC: usize = 2;
const STOCK: usize = 3;
const COST: usize = 4;
/// Characters of a wrong value that are shown.
const SHOWN_CHARS: usize = 30;
/// Longest record: a title and a topic of 500 bytes each, written as clumsily as can be, have 6 KB.
const MAX_RECORD_BYTES: usize = 64 * 1024;
const BUFFER_BYTES: usize = 64 * 1024;
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// How the items stand in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Comma-separated, with the header itemNumber,title,topic,stock,cost
    Csv,
    /// One JSON object on each line
    Jsonl,
}

impl Format {
    /// What the name of a file says about its format.
    pub(crate) fn of_name(path: &Path) -> Option<Format> {
        let extension = path.extension()?.to_str()?.to_ascii_lowercase();
        match extension.as_str() {
            "csv" => Some(Format::Csv),
            "jsonl" | "ndjson" | "json" => Some(Format::Jsonl),
            _ => None,
        }
    }
}

/// What is wrong with a line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}{}: {reason}", column.as_ref().map_or(String::new(), |c| format!(", column {c}")))]
pub(crate) struct BadLine {
    /// Its number, from 1.
    pub(super) line: u64,
    /// The name of the column, or the character of a JSON line; none if it is about the whole.
    pub(super) column: Option<String>,
    /// What is wrong.
    pub(super) reason: String,
}

impl BadLine {
    pub(super) fn new(line: u64, column: impl ToString, reason: impl Into<String>) -> BadLine {
        BadLine { line, column: Some(column.to_string()), reason: reason.into() }
    }

    fn whole(line: u64, reason: impl Into<String>) -> BadLine {
        BadLine { line, column: None, reason: reason.into() }
    }
}

/// What comes next, if anything does, and whether it is good.
pub(crate) type Next<T> = Option<Result<T, BadLine>>;

/// A file that is being read.
pub(crate) struct ItemsFile {
    path: PathBuf,
    reader: BufReader<File>,
    format: Format,
    /// For each column of the file, which of [`COLUMNS`] it is.
    columns: Vec<usize>,
    /// Lines read so far.
    line: u64,
    buffer: Vec<u8>,
    /// Of all bytes read so far.
    hash: Xxh3Default,
    /// Nothing more is read: it would make no sense.
    ended: bool,
}

impl ItemsFile {
    /// Opens the file at `path`; without a `format`, its name or its first byte tells which it is.
    pub(crate) fn open(path: &Path, format: Option<Format>) -> anyhow::Result<ItemsFile> {
        let cannot = || format!("cannot read {}", path.display());
        let file = match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => bail!(
                "there is no file {}; name one with items, as CSV with the header {} or as JSON \
                 lines; `pygmy admin export FILE` writes one",
                path.display(),
                COLUMNS.join(",")
            ),
            file => file.with_context(cannot)?,
        };
        if !file.metadata().with_context(cannot)?.is_file() {
            // It is read twice.
            bail!("{} is no file: save the items in one first", path.display());
        }
        let mut reader = BufReader::with_capacity(BUFFER_BYTES, file);
        let first = reader.fill_buf().with_context(cannot)?;
        let first = first.strip_prefix(BYTE_ORDER_MARK).unwrap_or(first).first();
        let by_content = if first == Some(&b'{') { Format::Jsonl } else { Format::Csv };
        let format = format.or_else(|| Format::of_name(path)).unwrap_or(by_content);
        Ok(ItemsFile {
            path: path.to_owned(),
            reader,
            format,
            columns: Vec::new(),
            line: 0,
            buffer: Vec::new(),
            hash: Xxh3Default::new(),
            ended: false,
        })
    }

    /// Begins again.
    pub(crate) fn rewind(&mut self) -> anyhow::Result<()> {
        self.reader.rewind().with_context(|| format!("cannot read {}", self.path.display()))?;
        (self.line, self.ended) = (0, false);
        self.columns.clear();
        self.hash.reset();
        Ok(())
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// A hash of all bytes that were read.
    pub(crate) fn hash(&self) -> u128 {
        self.hash.digest128()
    }

    /// The next item, with the line on which it begins.
    ///
    /// # Errors
    /// The file cannot be read. What is wrong with a line is no error of the whole.
    pub(crate) fn next(&mut self) -> anyhow::Result<Next<(u64, Item)>> {
        if self.ended {
            return Ok(None);
        }
        let next = match self.format {
            Format::Csv => self.next_of_csv(),
            Format::Jsonl => self.next_of_json(),
        };
        next.with_context(|| format!("cannot read {}", self.path.display()))
    }

    fn next_of_json(&mut self) -> io::Result<Next<(u64, Item)>> {
        loop {
            match self.next_line(MAX_RECORD_BYTES)? {
                None => return Ok(None),
                Some(Err(bad)) => return Ok(Some(Err(bad))),
                Some(Ok(())) if self.buffer.trim_ascii().is_empty() => {}
                Some(Ok(())) => return Ok(Some(self.json_item())),
            }
        }
    }

    fn json_item(&mut self) -> Result<(u64, Item), BadLine> {
        if self.buffer.trim_ascii_start().starts_with(b"[") {
            // Of what follows each line would be as bad, and for the same reason.
            self.ended = true;
            let reason = "this is a JSON array; write an object for each item, on a line of its \
                          own, without brackets around them or commas between";
            return Err(BadLine::whole(self.line, reason));
        }
        let read: JsonLine = serde_json::from_slice(&self.buffer)
            .map_err(|e| BadLine::new(self.line, e.column(), what_is_wrong(&e)))?;
        let number = |column: usize, value: &Value| {
            let read = number(column, value.as_u64(), &start_of(&value.to_string()));
            read.map_err(|reason| self.bad(column, reason))
        };
        let text = |column: usize, value: Value| match value {
            Value::String(read) => text(read).map_err(|reason| self.bad(column, reason)),
            other => {
                let shown = start_of(&other.to_string());
                Err(self.bad(column, format!("{shown} is no text; write it in quotes")))
            }
        };
        let item = Item {
            item_number: number(ITEM_NUMBER, &read.item_number)
                .and_then(|n| item_number(n).map_err(|reason| self.bad(ITEM_NUMBER, reason)))?,
            title: text(TITLE, read.title)?,
            topic: text(TOPIC, read.topic)?,
            stock: number(STOCK, &read.stock)?,
            cost: number(COST, &read.cost)?,
        };
        Ok((self.line, item))
    }

    fn bad(&self, column: usize, reason: String) -> BadLine {
        BadLine::new(self.line, COLUMNS[column], reason)
    }

    fn next_of_csv(&mut self) -> io::Result<Next<(u64, Item)>> {
        if self.columns.is_empty() {
            match self.header()? {
                Ok(columns) => self.columns = columns,
                Err(bad) => {
                    self.ended = true;
                    return Ok(Some(Err(bad)));
                }
            }
        }
        match self.record()? {
            None => Ok(None),
            Some(Err(bad)) => Ok(Some(Err(bad))),
            Some(Ok((line, fields))) => {
                Ok(Some(self.csv_item(line, &fields).map(|item| (line, item))))
            }
        }
    }

    /// Which column is which. They may stand in any order.
    fn header(&mut self) -> io::Result<Result<Vec<usize>, BadLine>> {
        let expected = format!("the header is {}", COLUMNS.join(","));
        let (line, names) = match self.record()? {
            None => return Ok(Err(BadLine::whole(1, format!("the file is empty; {expected}")))),
            Some(Err(bad)) => return Ok(Err(bad)),
            Some(Ok(record)) => record,
        };
        let mut columns = Vec::new();
        for name in &names {
            match COLUMNS.iter().position(|column| column == name) {
                Some(column) if !columns.contains(&column) => columns.push(column),
                _ => return Ok(Err(BadLine::new(line, name, expected))),
            }
        }
        Ok(match COLUMNS.get(columns.len()..) {
            Some([]) => Ok(columns),
            _ => Err(BadLine::whole(line, format!("columns are missing; {expected}"))),
        })
    }

    /// The fields of the next record, and the line on which it begins.
    fn record(&mut self) -> io::Result<Next<(u64, Vec<String>)>> {
        let mut record = Record::default();
        let (mut begin, mut room) = (0, MAX_RECORD_BYTES);
        loop {
            match self.next_line(room)? {
                None if begin == 0 => return Ok(None),
                None => return Ok(Some(Err(BadLine::whole(begin, "a quote has no end")))),
                // Within a quote the lines that follow would make no sense.
                Some(Err(bad)) if begin > 0 => {
                    self.ended = true;
                    let reason = format!("a quote has no end: {}", bad.reason);
                    return Ok(Some(Err(BadLine::whole(begin, reason))));
                }
                Some(Err(bad)) => return Ok(Some(Err(bad))),
                Some(Ok(())) if begin == 0 && matches!(&self.buffer[..], b"" | b"\r") => continue,
                Some(Ok(())) => {}
            }
            if begin == 0 {
                begin = self.line;
            }
            room = room.saturating_sub(self.buffer.len() + 1);
            let text = match std::str::from_utf8(&self.buffer) {
                Ok(text) => text,
                Err(_) => return Ok(Some(Err(BadLine::whole(self.line, "it is no UTF-8")))),
            };
            match record.take(text) {
                Ok(true) => return Ok(Some(Ok((begin, record.fields)))),
                Ok(false) => {}
                Err((field, reason)) => {
                    let name = match self.columns.get(field) {
                        Some(column) => COLUMNS[*column].to_owned(),
                        None => (field + 1).to_string(),
                    };
                    return Ok(Some(Err(BadLine::new(self.line, name, reason))));
                }
            }
        }
    }

    fn csv_item(&self, line: u64, fields: &[String]) -> Result<Item, BadLine> {
        if fields.len() != COLUMNS.len() {
            let reason = format!("it has {} fields instead of {}", fields.len(), COLUMNS.len());
            return Err(BadLine::whole(line, reason));
        }
        let mut of_column = [""; COLUMNS.len()];
        for (field, column) in fields.iter().zip(&self.columns) {
            of_column[*column] = field;
        }
        let bad = |column: usize| move |reason| BadLine::new(line, COLUMNS[column], reason);
        let whole = |column: usize| {
            let text = of_column[column];
            number(column, parse_whole_number(text), &format!("{:?}", start_of(text)))
                .map_err(bad(column))
        };
        let text = |column: usize| text(of_column[column].to_owned()).map_err(bad(column));
        Ok(Item {
            item_number: whole(ITEM_NUMBER)
                .and_then(|n| item_number(n).map_err(bad(ITEM_NUMBER)))?,
            title: text(TITLE)?,
            topic: text(TOPIC)?,
            stock: whole(STOCK)?,
            cost: whole(COST)?,
        })
    }

    /// Reads the next line into the buffer, without its `\n`; of at most `room` bytes, of which an
    /// `\r` before that is none.
    fn next_line(&mut self, room: usize) -> io::Result<Next<()>> {
        self.buffer.clear();
        let read = (&mut self.reader).take(room as u64 + 2).read_until(b'\n', &mut self.buffer)?;
        if read == 0 {
            return Ok(None);
        }
        self.line += 1;
        self.hash.update(&self.buffer);
        if self.line == 1 && self.buffer.starts_with(BYTE_ORDER_MARK) {
            self.buffer.drain(..BYTE_ORDER_MARK.len());
        }
        if self.buffer.last() == Some(&b'\n') {
            self.buffer.pop();
        }
        let text = self.buffer.strip_suffix(b"\r").unwrap_or(&self.buffer);
        if text.len() > room {
            self.ended = true;
            let reason = format!("a record may have {} KiB", MAX_RECORD_BYTES / 1024);
            return Ok(Some(Err(BadLine::whole(self.line, reason))));
        }
        Ok(Some(Ok(())))
    }
}

/// The values may be anything at first: what is wrong with one is said in words for people.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct JsonLine {
    item_number: Value,
    title: Value,
    topic: Value,
    stock: Value,
    cost: Value,
}

/// What keeps a line from being an object with the five fields.
fn what_is_wrong(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let place = format!(" at line 1 column {}", error.column());
    let text = text.strip_suffix(&place).unwrap_or(&text);
    match error.classify() {
        Category::Eof => "the JSON object has no end on this line".to_owned(),
        Category::Data if text.starts_with("invalid type") => "it is no JSON object".to_owned(),
        Category::Data => text.to_owned(),
        _ if text == "trailing characters" => {
            "there is more behind the JSON object; each stands on a line of its own, and no comma \
             between"
                .to_owned()
        }
        _ => format!("it is no JSON object: {text}"),
    }
}

/// Checks a number of a column: `read`, if it is a whole one, `shown` as it stands in the file.
fn number(column: usize, read: Option<u64>, shown: &str) -> Result<u64, String> {
    let least = u64::from(column == ITEM_NUMBER);
    match read {
        Some(number) if (least..=MAX_NUMBER).contains(&number) => Ok(number),
        // As people write prices.
        _ if column == COST && shown.contains('.') => Err(format!(
            "{shown} is no cost; that is in the minor unit of the currency, a whole number, as 1250 \
             for 12.50"
        )),
        _ => Err(format!("{shown} is no whole number from {least} to {MAX_NUMBER}")),
    }
}

fn item_number(number: u64) -> Result<ItemNumber, String> {
    number.try_into().map_err(|problem: Problem| problem.detail.into_owned())
}

/// As much of a value as fits a message.
fn start_of(text: &str) -> String {
    text.chars().take(SHOWN_CHARS).collect()
}

fn text(text: String) -> Result<String, String> {
    if text.is_empty() || text.len() > MAX_TEXT_BYTES {
        return Err(format!("it has {} bytes; 1 to {MAX_TEXT_BYTES} are allowed", text.len()));
    }
    Ok(text)
}
