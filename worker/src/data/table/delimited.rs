//! Delimited text: what separates its cells and whether its first line names the columns are found out.

use std::{
    collections::HashSet,
    fs::File,
    io::{BufReader, Read},
    path::{Path, PathBuf},
};

use convoy_proto::config::{Input, input::Header};
use csv::{ByteRecord, Reader, ReaderBuilder, Trim};

use super::{
    DataError, files,
    rows::{At, Cell, Rows, Visit, parse},
};

/// What may separate cells, if it is not said.
const DELIMITERS: [u8; 4] = *b",;\t|";
/// Bytes and rows that are looked at to find out.
const LOOKED_AT: u64 = 256 << 10;
const MOST_LOOKED_AT: u64 = 64 << 20;
const ROWS_LOOKED_AT: usize = 200;

/// A delimited file.
#[derive(Debug)]
pub struct Delimited {
    path: PathBuf,
    delimiter: u8,
    has_header: bool,
    names: Vec<String>,
}

impl Delimited {
    /// Opens a file and finds out its form.
    ///
    /// # Errors
    /// A file that cannot be read, is empty, or is no text.
    pub fn open(path: PathBuf, input: &Input) -> Result<Delimited, DataError> {
        let start = start_of(&path)?;
        files::check_unpacked(&path, &start)?;
        if let Some(at) = start.iter().position(|byte| *byte == 0) {
            return Err(DataError::malformed(&path, at as u64, "a zero byte: this is no text"));
        }
        let delimiter = input.delimiter.unwrap_or_else(|| find_delimiter(&start));
        let sample = sample(&start, delimiter);
        let Some(first) = sample.first() else {
            return Err(DataError::read(&path, "it has no rows"));
        };
        let has_header = match input.header {
            Header::Yes => true,
            Header::No => false,
            Header::Auto => has_header(&sample, has_decimal_comma(delimiter)),
        };
        let names = match has_header {
            true => unique(first),
            false => (0..first.len()).map(|column| column.to_string()).collect(),
        };
        if names.len() < 2 {
            let told = "found one column only; a label needs features beside it. Is --delimiter right?";
            return Err(DataError::read(&path, told));
        }
        Ok(Delimited { path, delimiter, has_header, names })
    }

    fn reader(&self) -> Result<Reader<BufReader<File>>, DataError> {
        let file = files::open(&self.path)?;
        Ok(builder(self.delimiter).has_headers(self.has_header).from_reader(BufReader::new(file)))
    }

    fn at_line(&self, line: u64, problem: impl ToString) -> DataError {
        DataError::Row { path: self.path.clone(), place: format!("line {line}"), problem: problem.to_string() }
    }
}

/// The start of a file: whole lines, and at least three of them if there are as many.
fn start_of(path: &Path) -> Result<Vec<u8>, DataError> {
    let (mut file, mut start) = (files::open(path)?, Vec::new());
    let mut wanted = LOOKED_AT;
    loop {
        let count =
            file.by_ref().take(wanted).read_to_end(&mut start).map_err(|problem| DataError::read(path, problem))?;
        let lines = start.iter().filter(|byte| **byte == b'\n').count();
        if (count as u64) < wanted {
            return Ok(start);
        }
        if lines >= 3 || start.len() as u64 >= MOST_LOOKED_AT {
            let end = start.iter().rposition(|byte| *byte == b'\n').map_or(start.len(), |at| at + 1);
            start.truncate(end);
            return Ok(start);
        }
        wanted = start.len() as u64;
    }
}

/// Lines of a text in quotes: more are a quote that nobody closed.
const LONGEST: u64 = 100;

fn builder(delimiter: u8) -> ReaderBuilder {
    let mut builder = ReaderBuilder::new();
    builder.delimiter(delimiter).flexible(true).trim(Trim::All);
    builder
}

/// The first rows, as text.
fn sample(start: &[u8], delimiter: u8) -> Vec<Vec<String>> {
    let text = start.strip_prefix(b"\xef\xbb\xbf").unwrap_or(start);
    let mut reader = builder(delimiter).has_headers(false).from_reader(text);
    let row = |record: csv::Result<ByteRecord>| {
        let record = record.ok()?;
        Some(record.iter().map(|cell| String::from_utf8_lossy(cell).into_owned()).collect())
    };
    reader.byte_records().take(ROWS_LOOKED_AT).map_while(row).collect()
}

/// The one that cuts the most rows into as many cells as the first, and those into the most.
fn find_delimiter(start: &[u8]) -> u8 {
    let score = |delimiter: u8| {
        let rows = sample(start, delimiter);
        let cells = rows.first().map_or(0, Vec::len);
        let alike = rows.iter().filter(|row| row.len() == cells).count();
        if cells < 2 { (0, 0) } else { (alike, cells) }
    };
    // Of equals the first, which is the comma.
    DELIMITERS.into_iter().rev().max_by_key(|delimiter| score(*delimiter)).unwrap_or(b',')
}

/// Where semicolons separate cells, a comma separates decimals: so spreadsheets write in most of Europe.
fn has_decimal_comma(delimiter: u8) -> bool {
    delimiter == b';'
}

/// Whether the first row names the columns: it holds no number, and a column below it holds numbers; or, where all is
/// text, it holds no name twice and none of its cells comes again in its column.
fn has_header(rows: &[Vec<String>], decimal_comma: bool) -> bool {
    let Some((first, rest)) = rows.split_first() else { return false };
    let is_number = |cell: &String| matches!(parse(cell, decimal_comma), Cell::Number(..));
    if rest.is_empty() || first.iter().any(is_number) || first.iter().all(String::is_empty) {
        return false;
    }
    let distinct = first.iter().collect::<HashSet<_>>().len() == first.len();
    let column = |at: usize| rest.iter().filter_map(move |row| row.get(at)).filter(|cell| !cell.is_empty());
    let numeric = (0..first.len()).any(|at| column(at).next().is_some() && column(at).all(is_number));
    numeric || distinct && (0..first.len()).all(|at| column(at).all(|cell| *cell != first[at]))
}

/// Names, those that are empty or come again being numbered.
fn unique(names: &[String]) -> Vec<String> {
    let mut seen = HashSet::new();
    let name = |(at, name): (usize, &String)| {
        let name = if name.is_empty() { at.to_string() } else { name.clone() };
        if seen.insert(name.clone()) { name } else { format!("{name}.{at}") }
    };
    names.iter().enumerate().map(name).collect()
}

impl Rows for Delimited {
    fn path(&self) -> &Path {
        &self.path
    }

    fn names(&self) -> &[String] {
        &self.names
    }

    fn form(&self) -> String {
        let separator =
            if self.delimiter == b'\t' { "tabs".into() } else { format!("`{}`", char::from(self.delimiter)) };
        let names = if self.has_header { "columns named by the first line" } else { "no line of names" };
        format!(" ({separator} between cells, {names})")
    }

    fn place(&self, line: u64) -> String {
        format!("line {line}")
    }

    fn scan(&self, visit: &mut Visit<'_>) -> Result<(), DataError> {
        let mut reader = self.reader()?;
        let mut record = ByteRecord::new();
        let mut row = 0;
        loop {
            let more = reader.read_byte_record(&mut record);
            let line = record.position().map_or(row + 1, csv::Position::line);
            if !more.map_err(|problem| self.at_line(line, problem))? {
                return Ok(());
            }
            let lines = reader.position().line().saturating_sub(line);
            if lines > LONGEST && record.iter().any(|cell| cell.contains(&b'\n')) {
                let problem = format!("a quote is opened here, and not closed for {lines} lines");
                return Err(self.at_line(line, problem));
            }
            let (got, want) = (record.len(), self.names.len());
            if got != want {
                let problem = format!("{got} cells, but the first row has {want}");
                return Err(self.at_line(line, problem));
            }
            let texts = record
                .iter()
                .map(|cell| std::str::from_utf8(cell).map_err(|_| self.at_line(line, "a cell is no UTF-8 text")));
            let decimal_comma = has_decimal_comma(self.delimiter);
            let cells = texts.map(|text| Ok(parse(text?, decimal_comma))).collect::<Result<Vec<_>, DataError>>()?;
            visit(At { row, line }, &cells)?;
            row += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn form(text: &str) -> (char, bool) {
        let delimiter = find_delimiter(text.as_bytes());
        (delimiter.into(), has_header(&sample(text.as_bytes(), delimiter), has_decimal_comma(delimiter)))
    }

    #[test]
    fn the_form_is_found_out() {
        for (text, delimiter, header) in [
            ("a,b,c\n1,2,x\n3,4,y\n", ',', true),
            ("5.1,3.5,setosa\n4.9,3.0,setosa\n", ',', false),
            ("1;2,5;x\n3;4,5;y\n", ';', false),
            ("a\tb\n1\t2\n", '\t', true),
            ("colour|size\nred|big\nblue|small\nred|big\n", '|', true),
            ("red|big\nblue|small\nred|big\n", '|', false),
            ("\"a, b\";c\n\"x, y\";1\n", ';', true),
            ("a,a\n1,2\n", ',', true),
            (",a,b\n0,1,x\n1,2,y\n", ',', true),
            ("a,a\nx,y\n", ',', false),
            ("1,5;2,5\n2,5;3\n", ';', false),
            ("länge;breite\n1,5;2,5\n", ';', true),
        ] {
            assert_eq!(form(text), (delimiter, header), "{text:?}");
        }
    }
}
