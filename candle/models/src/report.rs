//! What examples show.

use indicatif::{ProgressBar, ProgressStyle};

/// A progress bar of so many steps, on the terminal if there is one.
#[must_use]
pub fn progress(what: &'static str, steps: usize) -> ProgressBar {
    let style = ProgressStyle::with_template("{msg} {bar:40} {pos}/{len} {eta}").expect("a template");
    ProgressBar::new(steps as u64).with_message(what).with_style(style)
}

/// Rows of a table, the first of them its head, in columns: the first to the left, the others to the right.
#[must_use]
pub fn table<const COLUMNS: usize>(rows: &[[String; COLUMNS]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; COLUMNS] = std::array::from_fn(width);
    let mut out = String::new();
    for row in rows {
        for (column, (cell, width)) in row.iter().zip(widths).enumerate() {
            out += &if column == 0 { format!("{cell:width$}") } else { format!("   {cell:>width$}") };
        }
        out.push('\n');
    }
    out
}
