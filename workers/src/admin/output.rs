//! How commands print: fields and tables, every cell on one line, or one JSON object.

use std::fmt::Write as _;
use std::io::Write as _;

use anyhow::Context;
use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::printable;

pub(super) fn print(text: &str) -> anyhow::Result<()> {
    std::io::stdout().write_all(text.as_bytes()).context("cannot print")
}

pub(super) fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    print(&(printable::json(&serde_json::to_string(value)?) + "\n"))
}

/// Writes fields, one a line, their values from the column `width` on.
pub(super) fn write_fields<'a>(
    text: &mut String,
    width: usize,
    fields: impl IntoIterator<Item = (&'a str, String)>,
) -> std::fmt::Result {
    for (name, value) in fields {
        writeln!(text, "{name:<width$}{}", printable::line(value))?;
    }
    Ok(())
}

/// A moment to the second.
pub(super) fn moment(at: OffsetDateTime) -> anyhow::Result<String> {
    Ok(at.replace_nanosecond(0)?.format(&Rfc3339)?)
}

/// The value, or a dash for none.
pub(super) fn or_dash<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

/// The longest cell of a table, in characters: longer than any id that is valid, short enough that one record with a key of a
/// megabyte does not hide the others.
const LONGEST_CELL: usize = 300;

/// Rows of cells. A column is as wide as its longest cell; numbers end at its right. What is longer than [`LONGEST_CELL`] ends with an
/// ellipsis: JSON has it in full.
pub(super) struct Table {
    indent: &'static str,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(super) fn new<const N: usize>(heads: [&str; N]) -> Self {
        Self {
            indent: "",
            rows: vec![heads.map(str::to_owned).into()],
        }
    }

    /// A table without heads, below a line of its own.
    pub(super) fn indented() -> Self {
        Self {
            indent: "  ",
            rows: Vec::new(),
        }
    }

    pub(super) fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.map(|cell| cut(printable::line(cell))).into());
    }

    pub(super) fn write(&self, text: &mut String) -> std::fmt::Result {
        let columns = self.rows.first().map_or(0, Vec::len);
        let widths: Vec<_> = (0..columns).map(|column| self.width(column)).collect();
        for row in &self.rows {
            let mut line = self.indent.to_owned();
            for (column, cell) in row.iter().enumerate() {
                let width = widths[column];
                match self.is_number(column) {
                    true => write!(line, "{cell:>width$} ")?,
                    false => write!(line, "{cell:<width$} ")?,
                }
            }
            writeln!(text, "{}", line.trim_end())?;
        }
        Ok(())
    }

    fn width(&self, column: usize) -> usize {
        let cells = self.rows.iter().map(|row| row[column].chars().count());
        cells.max().unwrap_or_default()
    }

    fn is_number(&self, column: usize) -> bool {
        let heads = usize::from(self.indent.is_empty());
        let mut cells = self.rows.iter().skip(heads).map(|row| &row[column]);
        self.rows.len() > heads && cells.all(|cell| !cell.is_empty() && cell.bytes().all(|byte| byte.is_ascii_digit()))
    }
}

fn cut(mut cell: String) -> String {
    if let Some((end, _)) = cell.char_indices().nth(LONGEST_CELL) {
        cell.truncate(end);
        cell.push('…');
    }
    cell
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_of_a_megabyte_hides_no_other_row() {
        let mut table = Table::indented();
        table.row(["0/1".into(), "é".repeat(1 << 20), "too large".into()]);
        table.row(["0/2".into(), "A-1".into(), "7".repeat(1 << 20)]);
        let mut text = String::new();
        table.write(&mut text).unwrap();
        let widths: Vec<_> = text.lines().map(|line| line.chars().count()).collect();
        assert_eq!(widths, [2 + 4 + 302 + 9, 2 + 4 + 302 + 301], "{text}");
        assert!(text.lines().next().unwrap().ends_with("é… too large"), "{text}");
    }

    #[test]
    fn a_column_is_as_wide_as_its_longest_cell_and_a_cell_is_one_line() {
        let mut table = Table::new(["ID", "KEY", "REASON"]);
        table.row(["7".into(), "A\n1".into(), "-".into()]);
        table.row(["12".into(), "B".into(), "late".into()]);
        let mut text = String::new();
        table.write(&mut text).unwrap();
        assert_eq!(text, "ID KEY  REASON\n 7 A\\n1 -\n12 B    late\n");
    }
}
