//! How the commands print: tables, sizes, failures.

use crate::flags::in_flags;
use std::fmt;

/// Why a command ends without success.
#[derive(Debug)]
pub enum Failure {
    /// Exit 1: it ran and the result is bad; what there is to say was printed.
    BadResult(String),
    /// Exit 2: bad input or environment.
    BadInput(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BadResult(message) | Self::BadInput(message) => f.write_str(message),
        }
    }
}

impl Failure {
    /// Bad input or environment; fields are named by their flags.
    pub fn input(message: impl fmt::Display) -> Self {
        Self::BadInput(in_flags(&message.to_string()))
    }
}

/// Result of a command.
pub type Outcome = Result<(), Failure>;

/// Turns any error into bad input.
pub trait OrInput<T> {
    /// Bad input, with the error's own message.
    fn or_input(self) -> Result<T, Failure>;
}

impl<T, E: fmt::Display> OrInput<T> for Result<T, E> {
    fn or_input(self) -> Result<T, Failure> {
        self.map_err(Failure::input)
    }
}

/// Rows of cells, printed with aligned columns: the first to the left, others to the right.
#[derive(Default)]
pub struct Table {
    rows: Vec<Vec<String>>,
    left: usize,
}

impl Table {
    /// A table whose first `left` columns are text.
    pub fn new<const N: usize>(left: usize, header: [&str; N]) -> Self {
        Self {
            rows: vec![header.map(str::to_owned).to_vec()],
            left,
        }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            self.rows
                .iter()
                .filter_map(|row| row.get(column))
                .map(|cell| cell.chars().count())
                .max()
        };
        let widths: Vec<_> = (0..columns)
            .map(|column| width(column).unwrap_or(0))
            .collect();
        for row in &self.rows {
            let mut line = String::new();
            for (column, cell) in row.iter().enumerate() {
                let pad = " ".repeat(widths[column] - cell.chars().count());
                line += if column == 0 { "" } else { "  " };
                line += &if column < self.left {
                    format!("{cell}{pad}")
                } else {
                    format!("{pad}{cell}")
                };
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// A count with a decimal prefix: `1.50 G`.
pub fn si(value: f64) -> String {
    for (factor, prefix) in [(1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")] {
        if value >= factor {
            return format!("{:.2} {prefix}", value / factor);
        }
    }
    format!("{value:.0} ")
}

/// Bytes with a decimal prefix: `1.50 GB`.
pub fn bytes(value: f64) -> String {
    format!("{}B", si(value))
}

/// Items with commas between.
pub fn joined(items: &[impl ToString]) -> String {
    let items: Vec<_> = items.iter().map(ToString::to_string).collect();
    items.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_align() {
        let mut table = Table::new(1, ["name", "size"]);
        table.row(["a".to_owned(), "1".to_owned()]);
        table.row(["longer".to_owned(), "12345".to_owned()]);
        assert_eq!(
            table.to_string(),
            "name     size\na           1\nlonger  12345\n"
        );
    }

    #[test]
    fn sizes_have_prefixes() {
        assert_eq!(bytes(999.0), "999 B");
        assert_eq!(bytes(1500.0), "1.50 kB");
        assert_eq!(bytes(2.5e9), "2.50 GB");
    }
}
