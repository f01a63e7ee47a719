//! What the commands print: tables for people, JSON for programs.

use std::io::{self, Write};

use serde::Serialize;

/// How a command prints its result.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, clap::ValueEnum)]
pub enum OutputFormat {
    /// Columns with upper-case headers.
    #[default]
    Table,
    /// One JSON document.
    Json,
}

/// A table with a fixed set of columns.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Table {
    headers: &'static [&'static str],
    rows: Vec<Vec<String>>,
}

impl Table {
    /// An empty table.
    pub fn new(headers: &'static [&'static str]) -> Self {
        Self {
            headers,
            rows: Vec::new(),
        }
    }

    /// Appends a row; it has one cell per header.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        const GAP: u16 = 3;
        let mut table = comfy_table::Table::new();
        table.load_preset(comfy_table::presets::NOTHING);
        table.set_header(self.headers.iter().map(|header| header.to_uppercase()));
        table.add_rows(&self.rows);
        for column in table.column_iter_mut() {
            column.set_padding((0, GAP));
        }
        for line in table.lines() {
            writeln!(formatter, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// Writes `value` to standard output like [`write()`]. It is not an error if the reader, such as
/// `head`, closes the pipe early.
pub fn print<T: Serialize>(
    format: OutputFormat,
    value: &T,
    table: impl FnOnce(&T) -> Table,
) -> io::Result<()> {
    ignore_closed_pipe(write(&mut io::stdout().lock(), format, value, table))
}

/// Writes a line to standard output. Handles a closed pipe like [`print()`].
pub fn print_line(line: &str) -> io::Result<()> {
    ignore_closed_pipe(writeln!(io::stdout().lock(), "{line}"))
}

fn ignore_closed_pipe(written: io::Result<()>) -> io::Result<()> {
    match written {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}

/// Writes `value` to `out`, as JSON or as the table that `table` returns for it.
pub fn write<T: Serialize>(
    out: &mut impl Write,
    format: OutputFormat,
    value: &T,
    table: impl FnOnce(&T) -> Table,
) -> io::Result<()> {
    match format {
        OutputFormat::Table => write!(out, "{}", table(value)),
        OutputFormat::Json => {
            serde_json::to_writer_pretty(&mut *out, value)?;
            writeln!(out)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printed(format: OutputFormat) -> String {
        let mut out = Vec::new();
        write(&mut out, format, &["a", "long name"], |names| {
            let mut table = Table::new(&["name", "length"]);
            for name in names {
                table.row([(*name).to_owned(), name.len().to_string()]);
            }
            table
        })
        .unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_table_has_aligned_columns() {
        assert_eq!(
            printed(OutputFormat::Table),
            "NAME        LENGTH\na           1\nlong name   9\n"
        );
    }

    #[test]
    fn json_output_is_the_serialized_value() {
        assert_eq!(printed(OutputFormat::Json), "[\n  \"a\",\n  \"long name\"\n]\n");
    }
}
