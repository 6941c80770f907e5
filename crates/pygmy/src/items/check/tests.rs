use std::{fs, path::PathBuf};

use pygmy_protocol::item::{Item, MAX_NUMBER};
use tempfile::TempDir;

use super::{super::Format, *};

struct Fixture {
    _dir: TempDir,
    path: PathBuf,
}

fn file(name: &str, text: impl AsRef<[u8]>) -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    fs::write(&path, text).unwrap();
    Fixture { _dir: dir, path }
}

impl Fixture {
    fn open(&self) -> ItemsFile {
        ItemsFile::open(&self.path, None).unwrap()
    }

    fn check(&self) -> Result<Checked, String> {
        check(&mut self.open()).map_err(|e| e.to_string())
    }

    /// The items, each with its line; the file must be a good one.
    fn items(&self) -> Vec<(u64, Item)> {
        let mut file = self.open();
        assert_eq!(check(&mut file).unwrap().items, {
            file.rewind().unwrap();
            std::iter::from_fn(|| file.next().unwrap()).count() as u64
        });
        file.rewind().unwrap();
        std::iter::from_fn(|| file.next().unwrap()).map(Result::unwrap).collect()
    }
}

fn item(n: u64, title: &str, topic: &str, stock: u64, cost: u64) -> Item {
    let item_number = n.try_into().unwrap();
    Item { item_number, title: title.into(), topic: topic.into(), stock, cost }
}

const HEADER: &str = "itemNumber,title,topic,stock,cost\n";

#[test]
fn good_files_are_read() {
    let expected = [item(1, "A, \"b\"", "t", 3, 2000), item(2, "ö", "two\nlines", 0, 0)];
    let csv = "1,\"A, \"\"b\"\"\",t,3,2000\n2,ö,\"two\nlines\",0,0\n";
    let reordered =
        "cost,stock,topic,title,itemNumber\n2000,3,t,\"A, \"\"b\"\"\",1\n0,0,\"two\nlines\",ö,2";
    let json = r#"{"itemNumber":1,"title":"A, \"b\"","topic":"t","stock":3,"cost":2000}
{"cost":0,"itemNumber":2,"title":"\u00f6","topic":"two\nlines","stock":0}"#;
    for (name, text) in [
        ("a.csv", format!("{HEADER}{csv}")),
        ("no-line-break-at-the-end.csv", format!("{HEADER}{}", csv.trim_end())),
        ("byte-order-mark.csv", format!("\u{feff}{HEADER}{csv}")),
        ("reordered.csv", reordered.to_owned()),
        ("empty-lines.csv", format!("\n{HEADER}\n\n{csv}\n\n")),
        ("a.jsonl", json.to_owned()),
        ("a.ndjson", format!("\u{feff}{}\r\n", json.replace('\n', "\r\n\r\n"))),
        ("by-its-first-byte", json.to_owned()),
        ("by-its-first-byte-too", format!("{HEADER}{csv}")),
    ] {
        let file = file(name, text);
        let items: Vec<_> = file.items().into_iter().map(|(_, item)| item).collect();
        assert_eq!(items, expected, "{name}");
        let checked = file.check().unwrap();
        assert_eq!((checked.items, checked.topics), (2, 2), "{name}");
    }
    // A line break within quotes stays as it is in a file from elsewhere, too.
    let windows = format!("\n{HEADER}\n\n{csv}\n\n").replace('\n', "\r\n");
    let windows = file("windows.csv", windows);
    let items = [(5, expected[0].clone()), (6, item(2, "ö", "two\r\nlines", 0, 0))];
    assert_eq!(windows.items(), items);
}

#[test]
fn the_same_bytes_have_the_same_hash() {
    let text = format!("{HEADER}1,a,t,1,1\n");
    let (one, two) = (file("a.csv", &text), file("b.csv", &text));
    assert_eq!(one.check().unwrap(), two.check().unwrap());
    let other = file("a.csv", format!("{HEADER}1,a,t,1,2\n"));
    assert_ne!(one.check().unwrap().hash, other.check().unwrap().hash);
}

#[test]
fn a_bad_line_is_named_with_its_column_and_reason() {
    let long = "x".repeat(501);
    let very_long = "x".repeat(70_000);
    for (lines, message) in [
        ("0,a,t,1,1", "line 2, column itemNumber: \"0\" is no whole number from 1 to 90071"),
        ("x,a,t,1,1", "line 2, column itemNumber: \"x\" is no whole number from 1"),
        ("9007199254740992,a,t,1,1", "line 2, column itemNumber: \"9007199254740992\" is no"),
        ("1,,t,1,1", "line 2, column title: it has 0 bytes; 1 to 500 are allowed"),
        (&format!("1,a,{long},1,1"), "line 2, column topic: it has 501 bytes"),
        ("1,a,t,-1,1", "line 2, column stock: \"-1\" is no whole number from 0 to 90071"),
        ("1,a,t,1,15.00", "line 2, column cost: \"15.00\" is no cost; that is in the minor unit"),
        ("1,a,t,1, 5", "line 2, column cost: \" 5\" is no whole number"),
        ("1,a,t,1,9007199254740992", "line 2, column cost: \"9007199254740992\" is no"),
        ("1,a,t,1", "line 2: it has 4 fields instead of 5"),
        ("1,a,t,1,1,", "line 2: it has 6 fields instead of 5"),
        ("1,a\"b,t,1,1", "line 2, column title: a quote stands within"),
        ("1,\"a\"b,t,1,1", "line 2, column title: there is text behind"),
        ("2,a,t,1,1\n1,\"a\n\n,t,1,1", "line 3: a quote has no end"),
        (&format!("2,a,t,1,1\n1,\"a\n{very_long}"), "line 3: a quote has no end: a record may"),
        (&format!("2,a,t,1,1\n{very_long}"), "line 3: a record may have 64 KiB"),
        ("1,a,t,1,1\n2,a,t,1,1\n1,b,t,1,1", "line 4, column itemNumber: item 1 stands on line 2"),
    ] {
        let error = file("a.csv", format!("{HEADER}{lines}\n")).check().unwrap_err();
        let told = error.lines().nth(1).unwrap_or_default().trim_start();
        assert!(told.starts_with(message), "{lines:.50}: {error}");
        assert!(error.contains("nothing was loaded"), "{error}");
    }
    let error = file("a.csv", [HEADER.as_bytes(), b"1,\xff,t,1,1\n"].concat()).check();
    assert!(error.unwrap_err().contains("line 2: it is no UTF-8"));
}

#[test]
fn a_bad_line_of_json_is_named_with_its_column_and_reason() {
    let good = r#"{"itemNumber":1,"title":"a","topic":"t","stock":1,"cost":1}"#;
    for (line, message) in [
        (good.replace("\"cost\":1", "\"price\":1"), "unknown field `price`"),
        (good.replace(",\"cost\":1", ""), "missing field `cost`"),
        (good.replace("\"stock\":1", "\"stock\":1.5"), "stock: 1.5 is no whole number from 0"),
        (good.replace("\"stock\":1", "\"stock\":\"1\""), "stock: \"1\" is no whole number from"),
        (
            good.replace("\"cost\":1", "\"cost\":12.50"),
            "cost: 12.5 is no cost; that is in the minor",
        ),
        (good.replace("\"a\"", "7"), "title: 7 is no text; write it in quotes"),
        (good.replace("\"stock\":1", "\"stock\":9007199254740992"), "stock: 90071"),
        (
            good.replace("\"itemNumber\":1", "\"itemNumber\":0"),
            "itemNumber: 0 is no whole number from 1",
        ),
        (good.replace("\"a\"", "\"\""), "title: it has 0 bytes"),
        (format!("{good}{good}"), "more behind the JSON object"),
        (format!("{good},"), "more behind the JSON object"),
        (good[..20].to_owned(), "the JSON object has no end on this line"),
        (good.replace('"', "'"), "it is no JSON object: key must be a string"),
        ("1".to_owned(), "it is no JSON object"),
        (good.to_owned(), "itemNumber: item 1 stands on line 1 already"),
    ] {
        let error = file("a.jsonl", format!("{good}\n{line}\n")).check().unwrap_err();
        let told = error.lines().nth(1).unwrap_or_default().trim_start();
        assert!(told.starts_with("line 2, column ") && told.contains(message), "{line}: {error}");
    }
}

#[test]
fn an_array_of_items_is_one_thing_that_is_wrong() {
    let item = r#"{"itemNumber":1,"title":"a","topic":"t","stock":1,"cost":1}"#;
    for text in [format!("[\n{item},\n{item}\n]\n"), format!("[{item}]\n")] {
        let error = file("a.json", text).check().unwrap_err();
        assert_eq!(error.lines().count(), 2, "{error}");
        assert!(error.contains("line 1: this is a JSON array; write an object"), "{error}");
    }
}

#[test]
fn a_header_must_name_the_five_columns() {
    let item = "1,a,t,1,1";
    for (text, message) in [
        (String::new(), "the file is empty; the header is itemNumber,title,topic,stock,cost"),
        (format!("itemNumber,title,topic,stock\n{item}"), "columns are missing; the header is"),
        (format!("itemNumber,title,topic,stock,price\n{item}"), "line 1, column price: the header"),
        (format!("itemNumber,title,topic,stock,stock\n{item}"), "line 1, column stock: the header"),
        (item.to_owned(), "line 1, column 1: the header is"),
    ] {
        let error = file("a.csv", &text).check().unwrap_err();
        assert!(error.contains(message), "{text}: {error}");
    }
    let error = file("a.csv", HEADER).check().unwrap_err();
    assert!(error.contains("has no items"), "{error}");
}

#[test]
fn twenty_bad_lines_are_shown_and_all_are_counted() {
    let lines: String = (0..50).map(|_| "0,a,t,1,1\n").collect();
    let error = file("a.csv", format!("{HEADER}{lines}")).check().unwrap_err();
    assert_eq!(error.matches("is no whole number").count(), SHOWN, "{error}");
    assert!(error.contains("line 2,") && error.contains("line 21,"), "{error}");
    assert!(error.ends_with("and 30 bad lines more"), "{error}");
}

#[test]
fn a_file_has_only_so_many_topics() {
    let lines = |topics: usize| (1..=topics).map(|n| format!("{n},a,topic {n},1,1\n"));
    let most: String = lines(MAX_IMPORT_TOPICS).collect();
    assert_eq!(file("a.csv", format!("{HEADER}{most}")).check().unwrap().topics, MAX_IMPORT_TOPICS);
    let more: String = lines(MAX_IMPORT_TOPICS + 5).collect();
    let error = file("a.csv", format!("{HEADER}{more}")).check().unwrap_err();
    assert!(error.contains("line 10002, column topic: a file may have 10,000 topics"), "{error}");
}

#[test]
fn limits_are_inclusive() {
    let title = "x".repeat(500);
    let line = format!("{MAX_NUMBER},{title},t,{MAX_NUMBER},{MAX_NUMBER}\n");
    let file = file("a.csv", format!("{HEADER}{line}"));
    assert_eq!(file.items(), [(2, item(MAX_NUMBER, &title, "t", MAX_NUMBER, MAX_NUMBER))]);
}

#[test]
fn what_is_no_file_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let missing = ItemsFile::open(&dir.path().join("missing.csv"), None).err().unwrap();
    assert!(missing.to_string().contains("missing.csv; name one with items"), "{missing}");
    assert!(ItemsFile::open(dir.path(), Some(Format::Csv)).is_err());
}
