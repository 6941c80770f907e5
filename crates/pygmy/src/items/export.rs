//! Writing all items into a file that can be imported.
//!
//! Page by page, each as the catalog was at one moment and fresh when it was asked for. Of a store
//! that sells meanwhile, different pages show different moments.

use std::{
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::Path,
};

use anyhow::Context;
use pygmy_client::operator::Operator;
use pygmy_protocol::item::Item;

use super::{
    csv,
    file::{COLUMNS, Format},
};

/// Writes all items to `path`, whole or not at all; without one, to stdout. Gives how many.
///
/// # Errors
/// The store cannot be read, or the file not be written.
pub(crate) async fn export(
    operator: &Operator,
    path: Option<&Path>,
    format: Option<Format>,
) -> anyhow::Result<u64> {
    let by_name = || path.and_then(Format::of_name);
    let format = format.or_else(by_name).unwrap_or(Format::Csv);
    match path {
        None => {
            let out = BufWriter::new(io::stdout().lock());
            write_all(operator, format, out).await.map(|w| w.0)
        }
        Some(path) if is_no_file(path) => {
            let cannot = || format!("cannot write {}", path.display());
            let file = File::options().write(true).open(path).with_context(cannot)?;
            write_all(operator, format, BufWriter::new(file)).await.map(|w| w.0)
        }
        Some(path) => write_file(operator, path, format).await,
    }
}

/// Whether something that takes bytes and keeps none stands at `path`, as `/dev/null` or a named
/// pipe: a file in its place would be a loss.
fn is_no_file(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|there| !there.is_file())
}

async fn write_file(operator: &Operator, path: &Path, format: Format) -> anyhow::Result<u64> {
    let mut unfinished = path.as_os_str().to_owned();
    unfinished.push(".new");
    let cannot = || format!("cannot write {}", path.display());
    let file = File::create(&unfinished).with_context(cannot)?;
    let written = async {
        let (items, out) = write_all(operator, format, BufWriter::new(file)).await?;
        let file = out.into_inner().map_err(io::IntoInnerError::into_error).with_context(cannot)?;
        file.sync_all().and_then(|()| fs::rename(&unfinished, path)).with_context(cannot)?;
        Ok(items)
    };
    let written = written.await;
    if written.is_err() {
        // Half a file is worth nothing; if it stays, the next export overwrites it.
        let _ = fs::remove_file(&unfinished);
    }
    written
}

async fn write_all<W: Write>(
    operator: &Operator,
    format: Format,
    mut out: W,
) -> anyhow::Result<(u64, W)> {
    write_header(&mut out, format)?;
    let (mut items, mut cursor) = (0, None);
    loop {
        let page = operator.all_items(cursor.as_deref()).await?;
        for item in &page.items {
            write_item(&mut out, format, item)?;
        }
        items += page.items.len() as u64;
        cursor = page.next;
        if cursor.is_none() {
            out.flush()?;
            return Ok((items, out));
        }
    }
}

fn write_header(out: &mut impl Write, format: Format) -> io::Result<()> {
    match format {
        Format::Csv => writeln!(out, "{}", COLUMNS.join(",")),
        Format::Jsonl => Ok(()),
    }
}

fn write_item(out: &mut impl Write, format: Format, item: &Item) -> io::Result<()> {
    match format {
        Format::Csv => write_csv(out, item),
        Format::Jsonl => {
            serde_json::to_writer(&mut *out, item)?;
            writeln!(out)
        }
    }
}

fn write_csv(out: &mut impl Write, item: &Item) -> io::Result<()> {
    write!(out, "{},", item.item_number)?;
    csv::write(out, &item.title)?;
    write!(out, ",")?;
    csv::write(out, &item.topic)?;
    writeln!(out, ",{},{}", item.stock, item.cost)
}

#[cfg(test)]
mod tests {
    use std::os::unix::{fs::symlink, net::UnixListener};

    use super::{super::ItemsFile, *};

    #[test]
    fn only_a_file_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("file"), "").unwrap();
        symlink("/dev/null", at("device")).unwrap();
        let _socket = UnixListener::bind(at("socket")).unwrap();
        assert!(!is_no_file(&at("file")) && !is_no_file(&at("missing")));
        assert!(is_no_file(&at("device")) && is_no_file(&at("socket")));
    }

    #[test]
    fn line_breaks_in_texts_read_as_they_were_written() {
        let texts = ["a\r\nb", "\r\n", "a\r", "\n\r", "a\n", "\r\r\n\r", "a,\r\n\"b\""];
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.csv");
        for format in [Format::Csv, Format::Jsonl] {
            let items = texts.iter().zip(1..).map(|(text, number)| Item {
                item_number: number.try_into().unwrap(),
                title: (*text).to_owned(),
                topic: (*text).to_owned(),
                stock: 1,
                cost: 2,
            });
            let mut out = Vec::new();
            write_header(&mut out, format).unwrap();
            let items: Vec<_> =
                items.inspect(|item| write_item(&mut out, format, item).unwrap()).collect();
            fs::write(&path, out).unwrap();
            let mut file = ItemsFile::open(&path, Some(format)).unwrap();
            let read: Vec<_> = std::iter::from_fn(|| file.next().unwrap()).collect();
            let read: Vec<_> = read.into_iter().map(|next| next.unwrap().1).collect();
            assert_eq!(read, items);
        }
    }
}
