//! Tables for people.

use std::io;

/// Writes rows in aligned columns under their titles.
pub(super) fn write<const N: usize>(
    out: &mut impl io::Write,
    titles: [&str; N],
    rows: &[[String; N]],
) -> io::Result<()> {
    let mut widths = titles.map(|title| title.chars().count());
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut write_row = |cells: [&str; N]| {
        let mut line = String::new();
        for (width, cell) in widths.iter().zip(cells) {
            line.push_str(cell);
            let padding = 2 + width - cell.chars().count();
            line.extend(std::iter::repeat_n(' ', padding));
        }
        writeln!(out, "{}", line.trim_end())
    };
    write_row(titles)?;
    for row in rows {
        write_row(row.each_ref().map(String::as_str))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut out = Vec::new();
        let rows = [["a".to_owned(), "é".to_owned()], ["longer".to_owned(), "-".to_owned()]];
        write(&mut out, ["X", "Y"], &rows).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "X       Y\na       é\nlonger  -\n");
    }
}
