//! Reads the JSON that LVM's reports are printed in.
//!
//! All values of a report are strings, so this reads objects, arrays and strings, and takes
//! anything else for what it is: not a report. What follows the report (LVM can be configured to
//! print its log there) is passed over.

/// A row: field names and values, in the order printed.
pub(crate) type Row = Vec<(String, String)>;

/// How deep a report may be nested. LVM's have four levels.
const DEPTH_MAX: u32 = 16;

/// The rows of a report on logical volumes; what is wrong with it, if it is none.
pub(crate) fn rows(text: &[u8]) -> Result<Vec<Row>, &'static str> {
    let text = std::str::from_utf8(text).map_err(|_| "it is not text")?;
    let mut reader = Reader { rest: text };
    let mut found = None;
    reader.object(&mut |reader, key| {
        if key == "report" && found.is_none() {
            found = Some(reader.report()?);
            Ok(())
        } else {
            reader.skip(0)
        }
    })?;
    if !reader.rest.trim().is_empty() {
        return Err("something follows its end");
    }
    found.ok_or("it holds no report")
}

struct Reader<'a> {
    rest: &'a str,
}

impl Reader<'_> {
    /// The next character that is not blank, not yet taken.
    fn peek(&mut self) -> Option<char> {
        self.rest = self.rest.trim_start();
        self.rest.chars().next()
    }

    fn take(&mut self, wanted: char) -> Result<(), &'static str> {
        match self.peek() {
            Some(c) if c == wanted => {
                self.rest = &self.rest[c.len_utf8()..];
                Ok(())
            }
            Some(_) => Err("it is not the JSON that LVM prints"),
            None => Err("it ends too early"),
        }
    }

    /// Whether another item follows; `end` closes the list.
    fn more(&mut self, end: char) -> Result<bool, &'static str> {
        if self.peek() == Some(end) {
            self.take(end)?;
            return Ok(false);
        }
        self.take(',')?;
        Ok(true)
    }

    fn object(
        &mut self,
        item: &mut dyn FnMut(&mut Self, &str) -> Result<(), &'static str>,
    ) -> Result<(), &'static str> {
        self.take('{')?;
        if self.peek() == Some('}') {
            return self.take('}');
        }
        loop {
            let key = self.string()?;
            self.take(':')?;
            item(self, &key)?;
            if !self.more('}')? {
                return Ok(());
            }
        }
    }

    fn array(
        &mut self,
        item: &mut dyn FnMut(&mut Self) -> Result<(), &'static str>,
    ) -> Result<(), &'static str> {
        self.take('[')?;
        if self.peek() == Some(']') {
            return self.take(']');
        }
        loop {
            item(self)?;
            if !self.more(']')? {
                return Ok(());
            }
        }
    }

    /// `[ {"lv": [ {row}, … ]}, … ]`
    fn report(&mut self) -> Result<Vec<Row>, &'static str> {
        let mut rows = Vec::new();
        self.array(&mut |reader| {
            reader.object(&mut |reader, key| {
                if key != "lv" {
                    return reader.skip(0);
                }
                reader.array(&mut |reader| {
                    let mut row = Row::new();
                    reader.object(&mut |reader, field| {
                        row.push((field.to_owned(), reader.string()?));
                        Ok(())
                    })?;
                    rows.push(row);
                    Ok(())
                })
            })
        })?;
        Ok(rows)
    }

    /// Passes over a value.
    fn skip(&mut self, depth: u32) -> Result<(), &'static str> {
        if depth > DEPTH_MAX {
            return Err("it is nested too deeply");
        }
        match self.peek() {
            Some('{') => self.object(&mut |reader, _| reader.skip(depth + 1)),
            Some('[') => self.array(&mut |reader| reader.skip(depth + 1)),
            _ => self.string().map(|_| ()),
        }
    }

    fn string(&mut self) -> Result<String, &'static str> {
        self.take('"')?;
        let mut text = String::new();
        let mut chars = self.rest.char_indices();
        loop {
            match chars.next() {
                None => return Err("it ends too early"),
                Some((at, '"')) => {
                    self.rest = &self.rest[at + 1..];
                    return Ok(text);
                }
                Some((_, '\\')) => match chars.next() {
                    Some((_, c @ ('"' | '\\' | '/'))) => text.push(c),
                    Some((_, 'n' | 'r' | 't' | 'b' | 'f')) => text.push(' '),
                    _ => return Err("it has an escape that LVM does not print"),
                },
                Some((_, c)) => text.push(c),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    //! Goal: a report is read as it stands, and nothing else is taken for one. Method: reports
    //! recorded from LVM 2.03.16, and every way of cutting one short.

    use super::*;

    const LOGGED: &str = r#"  {
      "report": [
          {
              "lv": [
                  {"lv_name":"tk", "lv_tags":"a,b=c:d/e", "origin":""},
                  {"lv_name":"[m]", "lv_tags":"", "origin":"tk"}
              ]
          }
      ]
      ,
      "log": [
          {"log_seq_num":"1", "log_message":"Failed to find logical volume \"vg/nope\""}
      ]
  }
"#;

    #[test]
    fn rows_are_read() {
        let rows = rows(LOGGED.as_bytes()).expect("a report");
        let field = |row: usize, name: &str| {
            rows[row].iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
        };
        assert_eq!(rows.len(), 2);
        assert_eq!(field(0, "lv_tags"), Some("a,b=c:d/e"));
        assert_eq!(field(1, "lv_name"), Some("[m]"));
        assert_eq!(field(1, "origin"), Some("tk"));
        assert_eq!(field(1, "nothing"), None);
    }

    #[test]
    fn an_empty_report_has_no_rows() {
        let empty = "  {\n  \"report\": [\n  {\n  \"lv\": [\n  ]\n  }\n  ]\n  }\n";
        assert_eq!(rows(empty.as_bytes()), Ok(Vec::new()));
        assert_eq!(rows(b"{\"report\": [ ]}"), Ok(Vec::new()));
    }

    #[test]
    fn what_is_no_report_is_not_read() {
        let whole = LOGGED.trim_end();
        for cut in 0..whole.len() {
            let read = rows(&whole.as_bytes()[..cut]);
            assert!(read.is_err(), "{cut} bytes of a report were read as {read:?}");
        }
        let deep = format!("{{\"log\": {}", "[".repeat(100_000));
        let bad: [&[u8]; 9] = [
            b"",
            b"rubbish",
            b"{}",
            b"[]",
            b"{\"report\": [{\"lv\": [{\"lv_size\": 4}]}]}",
            b"{\"report\": [{\"lv\": [{\"lv_name\": \"\\u0041\"}]}]}",
            b"{\"report\": []} {\"report\": []}",
            b"{\"report\": [{\"lv\": [{\"lv_name\": \"\xff\"}]}]}",
            deep.as_bytes(),
        ];
        for text in bad {
            let shown = String::from_utf8_lossy(&text[..text.len().min(80)]);
            assert!(rows(text).is_err(), "{shown} was read");
        }
    }
}
