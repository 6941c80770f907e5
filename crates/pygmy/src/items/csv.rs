//! CSV as RFC 4180 has it, strictly: a quote in the wrong place is an error and no guess.
//!
//! Of our own, because an error must name its line, and because a quote without an end must not
//! read the rest of a large file into one field.

use std::io::{self, Write};

/// Splits one line, without its `\n`, into fields. A quoted field may hold line breaks: then the
/// record goes on with the next line. An `\r` at the end of a record belongs to its line break; in
/// quotes it is text like any other.
#[derive(Debug, Default)]
pub(super) struct Record {
    pub(super) fields: Vec<String>,
    /// The quoted field that the lines so far end in.
    open: Option<String>,
}

impl Record {
    /// Takes the next line. Gives whether the record is complete.
    ///
    /// # Errors
    /// What is wrong, and in which field, from 0.
    pub(super) fn take(&mut self, line: &str) -> Result<bool, (usize, &'static str)> {
        let mut rest = line;
        loop {
            let field = match self.open.take() {
                Some(begun) => Some(begun),
                None => rest.strip_prefix('"').map(|after| {
                    rest = after;
                    String::new()
                }),
            };
            let (field, after) = match field {
                None => plain(rest),
                Some(begun) => match quoted(begun, rest) {
                    Ok(field_and_rest) => Ok(field_and_rest),
                    Err(unfinished) => {
                        self.open = Some(unfinished + "\n");
                        return Ok(false);
                    }
                },
            }
            .map_err(|reason| (self.fields.len(), reason))?;
            self.fields.push(field);
            match after.strip_prefix(',') {
                Some(next) => rest = next,
                None if after.is_empty() || after == "\r" => return Ok(true),
                None => {
                    let reason = "there is text behind the closing quote";
                    return Err((self.fields.len() - 1, reason));
                }
            }
        }
    }
}

/// A field without quotes, and what follows it.
fn plain(text: &str) -> Result<(String, &str), &'static str> {
    let end = text.strip_suffix('\r').unwrap_or(text).len();
    let (field, rest) = text.split_at(text.find(',').unwrap_or(end));
    match field.contains('"') {
        true => Err("a quote stands within the text; put the whole in quotes and double it"),
        false => Ok((field.to_owned(), rest)),
    }
}

/// The rest of a quoted field, and what follows its closing quote; without one, the field so far.
fn quoted(mut field: String, mut text: &str) -> Result<(String, &str), String> {
    loop {
        let Some((before, after)) = text.split_once('"') else {
            field.push_str(text);
            return Err(field);
        };
        field.push_str(before);
        match after.strip_prefix('"') {
            Some(more) => {
                field.push('"');
                text = more;
            }
            None => return Ok((field, after)),
        }
    }
}

/// Writes one field.
///
/// # Errors
/// As `out` says.
pub(super) fn write(out: &mut impl Write, field: &str) -> io::Result<()> {
    // Spaces at the ends are kept by us, and dropped by some.
    let plain = !field.contains(['"', ',', '\n', '\r']) && field.trim() == field;
    match plain {
        true => out.write_all(field.as_bytes()),
        false => write!(out, "\"{}\"", field.replace('"', "\"\"")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(lines: &[&str]) -> Result<Option<Vec<String>>, (usize, &'static str)> {
        let mut record = Record::default();
        let mut complete = false;
        for line in lines {
            assert!(!complete, "it went on");
            complete = record.take(line)?;
        }
        Ok(complete.then_some(record.fields))
    }

    #[test]
    fn fields_are_split() {
        for (lines, expected) in [
            (&["a,b"][..], &["a", "b"][..]),
            (&[""], &[""]),
            (&[",,"], &["", "", ""]),
            (&[r#""a,b",c"#], &["a,b", "c"]),
            (&[r#""he said ""no""","""#], &["he said \"no\"", ""]),
            (&[r#""""#], &[""]),
            (&[r#""""""#], &["\""]),
            (&[r#"x,"one"#, r#"two",y"#], &["x", "one\ntwo", "y"]),
            (&[r#"""#, "", r#"""#], &["\n\n"]),
            (&[" a , b "], &[" a ", " b "]),
            (&["a,b\r"], &["a", "b"]),
            (&["a,\"b\"\r"], &["a", "b"]),
            (&["a,\r"], &["a", ""]),
            (&["\r"], &[""]),
            (&["a\r,b\r\r"], &["a\r", "b\r"]),
            (&["\"one\r", "two\r\",b\r"], &["one\r\ntwo\r", "b"]),
        ] {
            assert_eq!(fields(lines).unwrap().unwrap(), expected, "{lines:?}");
        }
        assert_eq!(fields(&["a,\"b"]).unwrap(), None);
    }

    #[test]
    fn quotes_in_the_wrong_place_are_errors() {
        for (line, field) in [(r#"a"b,c"#, 0), (r#"a,"b"c"#, 1), (r#"a, "b""#, 1)] {
            assert_eq!(fields(&[line]).unwrap_err().0, field, "{line}");
        }
    }

    #[test]
    fn what_is_written_reads_the_same() {
        let breaks = ["a\nb", "a\r\nb", "\r\n", "a\r", "\ra", "\n\r\n\r"];
        for text in ["", "a", "a,b", "\"", " a ", "ä\"\",\"", "'"].into_iter().chain(breaks) {
            for line_break in ["", "\r"] {
                let mut out = Vec::new();
                write(&mut out, text).unwrap();
                let written = String::from_utf8(out).unwrap() + line_break;
                let lines: Vec<_> = written.split('\n').collect();
                assert_eq!(fields(&lines).unwrap().unwrap(), [text]);
            }
        }
    }
}
