//! Tables of text.

use std::fmt::Write;

/// Lines of a header and rows, the first column to the left and the others to the right, as wide as they need.
pub fn render(header: &[&str], rows: &[Vec<String>]) -> String {
    let head: Vec<String> = header.iter().map(ToString::to_string).collect();
    let all = || std::iter::once(&head).chain(rows);
    let width =
        |column: usize| all().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0);
    let widths: Vec<_> = (0..header.len()).map(width).collect();
    let mut text = String::new();
    for row in all() {
        let mut line = String::new();
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            let _ = if column == 0 { write!(line, "{cell:width$}") } else { write!(line, "  {cell:>width$}") };
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [vec!["a".to_owned(), "1.5".to_owned()], vec!["long µ".to_owned(), "100".to_owned()]];
        assert_eq!(render(&["what", "n"], &rows), "what      n\na       1.5\nlong µ  100\n");
    }
}
