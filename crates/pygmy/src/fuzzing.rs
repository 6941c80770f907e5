//! What the fuzz targets in `fuzz/` call: each function takes any bytes and panics if a promise
//! about them is broken.

use std::{fs, path::Path};

use tempfile::TempDir;

use crate::{
    config::{Config, Settings},
    items::{Format, ItemsFile},
};

/// Reads `bytes` as a configuration file. It is one, or it is refused with a reason, and with a
/// line only if the file has it.
pub fn config(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    match Config::parse(Path::new("pygmy.toml"), text, &Settings::default()) {
        Ok(config) => assert!(!config.settings().is_empty()),
        Err(error) => {
            let said = error.to_string();
            let reason = said.strip_prefix("pygmy.toml:").expect("it names the file");
            let line = reason.split_once(':').and_then(|(line, _)| line.parse::<usize>().ok());
            let lines = text.split('\n').count();
            assert!(line.is_none_or(|line| (1..=lines).contains(&line)), "{said}");
            assert!(reason.len() > 5, "{said}");
        }
    }
}

/// Reads `bytes` as a file of items, twice, as an import does. It is read to its end both times,
/// and gives the same good items and bad lines.
pub fn items(dir: &ItemsDir, bytes: &[u8]) {
    let Some((format, bytes)) = bytes.split_first() else { return };
    let format = [None, Some(Format::Csv), Some(Format::Jsonl)][usize::from(*format) % 3];
    let path = dir.0.path().join("items");
    fs::write(&path, bytes).expect("the disk has room");
    let mut file = ItemsFile::open(&path, format).expect("it is a file");
    let first = read(&mut file, bytes.len());
    let hash = file.hash();
    file.rewind().expect("it is a file");
    assert_eq!(read(&mut file, bytes.len()), first);
    assert_eq!(file.hash(), hash);
}

/// Where [`items`] keeps its file.
pub struct ItemsDir(TempDir);

impl ItemsDir {
    /// A fresh directory, in memory if the machine has such a file system.
    #[must_use]
    pub fn new() -> ItemsDir {
        let made = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
        ItemsDir(made.expect("there is room for a file"))
    }
}

impl Default for ItemsDir {
    fn default() -> ItemsDir {
        ItemsDir::new()
    }
}

/// What is in the file, as text. Every record takes a byte at least.
fn read(file: &mut ItemsFile, bytes: usize) -> Vec<String> {
    let mut found = Vec::new();
    while let Some(next) = file.next().expect("it can be read") {
        found.push(match next {
            Ok((line, item)) => {
                item.check().expect("only good items come through");
                format!("{line}: {item:?}")
            }
            Err(bad) => bad.to_string(),
        });
        assert!(found.len() <= bytes + 1, "it comes to an end");
    }
    found
}
