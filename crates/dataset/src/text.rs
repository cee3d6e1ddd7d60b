//! Rows from lines of text: Criteo's format and TSV with a header. It does not transform dense
//! values and does not choose rows.

use std::path::Path;

use table::Key;
use xxhash_rust::xxh3::xxh3_64;

use crate::error::{Place, shown};
use crate::lines::{Line, Lines};
use crate::reader::{BadRowCount, Rows};
use crate::{
    Batch, DenseColumns, Error, Jagged, Labels, ReadOptions, Result, RowSelection, Schema,
};

/// The longest line that is read.
pub const LINE_BYTES_MAX: usize = 1 << 20;

const UTF8_MARK: &[u8] = b"\xef\xbb\xbf";

/// The key of a categorical token: the 64-bit XXH3 hash of its bytes with seed 0.
pub fn token_key(token: &[u8]) -> Key {
    Key(xxh3_64(token))
}

/// The key of a string under [`ReadOptions::max_ind_range`].
pub(crate) fn string_key(token: &[u8], max_ind_range: Option<u64>) -> Key {
    match max_ind_range {
        None => token_key(token),
        Some(_) if token.is_empty() => Key(0),
        Some(range) => Key(decimal(token).unwrap_or_else(|| xxh3_64(token)) % range),
    }
}

/// Rows of a text file.
pub(crate) struct TextRows {
    lines: Lines,
    parser: RowParser,
    row: Row,
    keys: Vec<Key>, // [rows, categorical columns]: parsed and not yet in the batch's columns
    selection: RowSelection,
    bad: BadRowCount,
    index: u64, // of the next data row
}

/// Rows whose keys wait to be put into columns: 64 rows of Criteo's take 13 KiB of a cache of 32.
const KEY_ROWS_MAX: usize = 64;

impl TextRows {
    /// Criteo's format.
    pub(crate) fn criteo(path: &Path, options: &ReadOptions) -> Result<(Self, Schema)> {
        let schema = Schema::criteo();
        if options.schema.as_ref().is_some_and(|wanted| *wanted != schema) {
            return Err(Error::Header {
                file: path.to_owned(),
                problem: "Criteo's format has fixed columns, and others were asked for".to_owned(),
                columns: names_of(&schema).join(", "),
            });
        }
        let mut lines = Lines::open(path)?;
        lines.expect_some("rows of a label, 13 integers and 26 tokens")?;
        let unlabelled = schema.dense.len() + schema.categorical.len();
        let mut columns = match options.labels {
            Labels::Read => vec![Column { name: schema.label.clone(), role: Role::Label }],
            Labels::LeftOut if fields(lines.peek()?) == unlabelled => Vec::new(),
            Labels::LeftOut => vec![Column { name: schema.label.clone(), role: Role::LeftOut }],
        };
        for (place, name) in schema.dense.iter().enumerate() {
            columns.push(Column { name: name.clone(), role: Role::Integer(place) });
        }
        for (place, name) in schema.categorical.iter().enumerate() {
            let role = match options.max_ind_range {
                None => Role::Token(place),
                Some(range) => Role::HexIndex(place, range),
            };
            columns.push(Column { name: name.clone(), role });
        }
        Ok((Self::new(lines, columns, &schema, options), schema))
    }

    /// TSV with a header.
    pub(crate) fn tsv(path: &Path, options: &ReadOptions) -> Result<(Self, Schema)> {
        let mut lines = Lines::open(path)?;
        let header = match lines.next()? {
            None => {
                let expected = "a header line of column names, then rows";
                return Err(Error::Empty { file: path.to_owned(), expected });
            }
            Some(Line::Text(header)) => header_names(header),
            Some(Line::TooLong) => {
                let (file, line, limit_bytes) = (path.to_owned(), 1, LINE_BYTES_MAX);
                return Err(Error::LineTooLong { file, line, limit_bytes });
            }
        };
        let schema = choose_columns(path, &header, options)?;
        lines.expect_some("rows after the header")?;
        let columns = header.into_iter().map(|name| {
            let place = |names: &[String]| names.iter().position(|wanted| *wanted == name);
            let role = if name == schema.label {
                match options.labels {
                    Labels::Read => Role::Label,
                    Labels::LeftOut => Role::LeftOut,
                }
            } else if let Some(place) = place(&schema.dense) {
                Role::Float(place)
            } else if let Some(place) = place(&schema.categorical) {
                match options.max_ind_range {
                    None => Role::Token(place),
                    Some(range) => Role::TextIndex(place, range),
                }
            } else {
                Role::LeftOut
            };
            Column { name, role }
        });
        let columns = columns.collect();
        Ok((Self::new(lines, columns, &schema, options), schema))
    }

    fn new(lines: Lines, columns: Vec<Column>, schema: &Schema, options: &ReadOptions) -> Self {
        let row = Row {
            label: f32::NAN, // stays where labels are left out
            dense: vec![0.0; schema.dense.len()],
            keys: vec![Key(0); schema.categorical.len()],
        };
        let (parser, selection) = (RowParser { columns }, options.rows);
        let (keys, bad) = (Vec::new(), BadRowCount::new(options.bad_rows));
        Self { lines, parser, row, keys, selection, bad, index: 0 }
    }
}

impl Rows for TextRows {
    fn fill(&mut self, rows_max: usize, batch: &mut Batch, dense: &mut Vec<f64>) -> Result<()> {
        self.keys.clear();
        while batch.rows() < rows_max {
            let Some(line) = self.lines.next()? else { break };
            let index = self.index;
            self.index += 1;
            if !self.selection.contains(index) {
                continue;
            }
            let parsed = match line {
                Line::Text(text) => match self.parser.parse_quickly(text, &mut self.row) {
                    Some(()) => Ok(()),
                    None => self.parser.parse(text, &mut self.row), // to say what is wrong with it
                },
                Line::TooLong => Err(Fault::TooLong),
            };
            if let Err(fault) = parsed {
                let error = self.parser.error(fault, self.lines.path(), self.lines.number());
                self.bad.count(self.lines.path(), error)?;
                continue;
            }
            if batch.labels.is_empty() {
                batch.first_row = index;
            }
            batch.labels.push(self.row.label);
            dense.extend_from_slice(&self.row.dense);
            self.keys.extend_from_slice(&self.row.keys);
            if self.keys.len() >= KEY_ROWS_MAX * self.row.keys.len() {
                into_columns(&mut self.keys, &mut batch.features);
            }
        }
        into_columns(&mut self.keys, &mut batch.features);
        Ok(())
    }

    fn rows_skipped(&self) -> u64 {
        self.bad.rows()
    }

    fn progress(&self) -> f64 {
        self.lines.progress()
    }
}

/// Moves `keys` [rows, features] to the ends of the features' columns.
fn into_columns(keys: &mut Vec<Key>, features: &mut [Jagged]) {
    let width = features.len();
    for (place, feature) in features.iter_mut().enumerate() {
        let (start, column) = (feature.values.len() as u32, keys.iter().skip(place));
        feature.values.extend(column.step_by(width));
        feature.offsets.extend(start + 1..feature.values.len() as u32 + 1);
    }
    keys.clear();
}

impl Lines {
    /// An error unless a line is left.
    fn expect_some(&mut self, expected: &'static str) -> Result<()> {
        if self.at_end()? {
            return Err(Error::Empty { file: self.path().to_owned(), expected });
        }
        Ok(())
    }
}

/// The columns of a file by its names and the options. Also used for Parquet.
pub(crate) fn choose_columns(
    path: &Path,
    names: &[String],
    options: &ReadOptions,
) -> Result<Schema> {
    let wrong = |problem: String| {
        let columns = names.iter().map(|name| name.escape_debug().to_string()).collect::<Vec<_>>();
        Err(Error::Header { file: path.to_owned(), problem, columns: columns.join(", ") })
    };
    for (place, name) in names.iter().enumerate() {
        if names[..place].contains(name) {
            return wrong(format!("column {name:?} comes twice"));
        }
    }
    let schema = match &options.schema {
        Some(schema) => schema.clone(),
        None => match split_columns(names, &options.label_column, &options.dense_columns) {
            Ok(schema) => schema,
            Err(problem) => return wrong(problem),
        },
    };
    let wanted = names_of(&schema);
    let left_out = |name: &String| options.labels == Labels::LeftOut && *name == schema.label;
    for (place, name) in wanted.iter().enumerate() {
        if !names.contains(name) && !left_out(name) {
            return wrong(format!("column {name:?} is wanted and missing"));
        }
        if wanted[..place].contains(name) {
            return wrong(format!("column {name:?} is wanted twice"));
        }
    }
    Ok(schema)
}

fn split_columns(
    names: &[String],
    label: &str,
    dense_columns: &DenseColumns,
) -> std::result::Result<Schema, String> {
    let numbered = |name: &str, letter: char| {
        let digits = name.strip_prefix(letter).unwrap_or("");
        !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
    };
    let others = || names.iter().filter(|name| *name != label).cloned();
    let (dense, categorical) = match dense_columns {
        DenseColumns::Prefixed => {
            if let Some(odd) = others().find(|name| !numbered(name, 'I') && !numbered(name, 'C')) {
                return Err(format!(
                    "column {odd:?} is neither {label:?} nor named I1, I2, .. or C1, C2, ..: \
                     say which columns are dense"
                ));
            }
            others().partition(|name| numbered(name, 'I'))
        }
        DenseColumns::First(count) if *count > others().count() => {
            return Err(format!("{count} dense columns were asked for"));
        }
        DenseColumns::First(count) => {
            (others().take(*count).collect(), others().skip(*count).collect())
        }
        DenseColumns::Named(dense) => {
            (dense.clone(), others().filter(|name| !dense.contains(name)).collect())
        }
    };
    Ok(Schema { label: label.to_owned(), dense, categorical })
}

fn names_of(schema: &Schema) -> Vec<String> {
    let label = std::iter::once(&schema.label);
    label.chain(&schema.dense).chain(&schema.categorical).cloned().collect()
}

fn header_names(line: &[u8]) -> Vec<String> {
    let line = line.strip_prefix(UTF8_MARK).unwrap_or(line);
    line.split(|&byte| byte == b'\t').map(|name| String::from_utf8_lossy(name).into()).collect()
}

/// One row, parsed.
struct Row {
    label: f32,
    dense: Vec<f64>, // NaN is missing
    keys: Vec<Key>,
}

struct Column {
    name: String,
    role: Role,
}

/// What a column of the file is to the batch; the number is its place there.
#[derive(Clone, Copy)]
enum Role {
    Label,
    Integer(usize),
    Float(usize),
    Token(usize),
    HexIndex(usize, u64),
    TextIndex(usize, u64),
    LeftOut,
}

/// Why a line is not a row.
enum Fault {
    Count { found: usize },
    Value { column: usize, found: String, expected: &'static str },
    TooLong,
}

struct RowParser {
    columns: Vec<Column>, // as the file has them
}

impl RowParser {
    /// What `parse` does, in one walk over the line that finds the fields as it reads them. None
    /// wherever `parse` would tell a fault.
    fn parse_quickly(&self, line: &[u8], row: &mut Row) -> Option<()> {
        let mut at = 0;
        for column in &self.columns {
            let rest = line.get(at..)?; // past the end: a field too few
            let quick = match column.role {
                Role::Token(place) => quick_token(rest).map(|(key, bytes)| {
                    row.keys[place] = key;
                    bytes
                }),
                Role::Integer(place) => quick_integer(rest).map(|(value, bytes)| {
                    row.dense[place] = value;
                    bytes
                }),
                Role::Float(_)
                | Role::HexIndex(..)
                | Role::TextIndex(..)
                | Role::Label
                | Role::LeftOut => None,
            };
            at += 1 + match quick {
                Some(bytes) => bytes,
                None => {
                    let bytes = memchr::memchr(b'\t', rest).unwrap_or(rest.len());
                    column.role.take(&rest[..bytes], row).ok()?;
                    bytes
                }
            };
        }
        (at == line.len() + 1).then_some(()) // short of the end: a field too many
    }

    fn parse(&self, line: &[u8], row: &mut Row) -> std::result::Result<(), Fault> {
        let mut start = 0;
        let mut columns = self.columns.iter().enumerate();
        for end in memchr::memchr_iter(b'\t', line).chain(std::iter::once(line.len())) {
            let field = &line[start..end];
            start = end + 1;
            let Some((place, column)) = columns.next() else {
                return Err(Fault::Count { found: fields(line) });
            };
            if let Err(expected) = column.role.take(field, row) {
                return Err(if fields(line) == self.columns.len() {
                    Fault::Value { column: place, found: shown(field), expected }
                } else {
                    // a value in the wrong place says less than the number of columns
                    Fault::Count { found: fields(line) }
                });
            }
        }
        match columns.next() {
            None => Ok(()),
            Some(_) => Err(Fault::Count { found: fields(line) }),
        }
    }

    #[cold]
    fn error(&self, fault: Fault, path: &Path, line: u64) -> Error {
        let file = path.to_owned();
        match fault {
            Fault::Count { found } => {
                Error::ColumnCount { file, line, found, expected: self.columns.len() }
            }
            Fault::TooLong => Error::LineTooLong { file, line, limit_bytes: LINE_BYTES_MAX },
            Fault::Value { column, found, expected } => {
                let (place, name) = (Place::Line(line), self.columns[column].name.clone());
                Error::Value { file, place, column: column + 1, name, found, expected }
            }
        }
    }
}

/// The key of a first field of 8 bytes, as Criteo's tokens are, or of none; and the field's bytes.
#[inline]
fn quick_token(rest: &[u8]) -> Option<(Key, usize)> {
    const TABS: u64 = u64::from_ne_bytes([b'\t'; 8]);
    const ONES: u64 = u64::from_ne_bytes([1; 8]);
    if let Some((token, after)) = rest.split_first_chunk::<8>() {
        let others = u64::from_ne_bytes(*token) ^ TABS; // a byte of 0 is a tab
        let any_tab = others.wrapping_sub(ONES) & !others & (ONES << 7) != 0;
        if !any_tab && after.first().is_none_or(|&byte| byte == b'\t') {
            return Some((token_key(token), 8));
        }
    }
    None
}

/// The value of a first field of few digits, or of none, which is missing; and the field's bytes.
#[inline]
fn quick_integer(rest: &[u8]) -> Option<(f64, usize)> {
    const BYTES_MAX: usize = 10; // below 2^53, and no overflow
    let mut value = 0_u64;
    for (place, &byte) in rest.iter().take(BYTES_MAX).enumerate() {
        let digit = byte.wrapping_sub(b'0');
        if digit <= 9 {
            value = value * 10 + u64::from(digit);
        } else if byte == b'\t' {
            return Some((if place == 0 { f64::NAN } else { value as f64 }, place));
        } else {
            return None;
        }
    }
    None
}

fn fields(line: &[u8]) -> usize {
    memchr::memchr_iter(b'\t', line).count() + 1
}

impl Role {
    /// Puts the field where it belongs in the row; the error is what was expected.
    #[inline]
    fn take(self, field: &[u8], row: &mut Row) -> std::result::Result<(), &'static str> {
        match self {
            Role::Token(place) => row.keys[place] = token_key(field),
            Role::Integer(place) => {
                row.dense[place] = match field {
                    [] => f64::NAN,
                    _ => integer(field).ok_or("an integer or nothing")? as f64,
                };
            }
            Role::Float(place) => {
                row.dense[place] = match field {
                    [] => f64::NAN,
                    _ => float(field).ok_or("a finite number or nothing")?,
                };
            }
            Role::HexIndex(place, range) => {
                row.keys[place] = match field {
                    [] => Key(0),
                    _ => {
                        Key(hexadecimal(field).ok_or("1 to 16 hexadecimal digits or nothing")?
                            % range)
                    }
                };
            }
            Role::TextIndex(place, range) => row.keys[place] = string_key(field, Some(range)),
            Role::Label => row.label = label(field).ok_or("a label from 0 to 1")?,
            Role::LeftOut => {}
        }
        Ok(())
    }
}

fn label(field: &[u8]) -> Option<f32> {
    match field {
        b"0" => Some(0.0),
        b"1" => Some(1.0),
        _ => float(field).filter(|x| (0.0..=1.0).contains(x)).map(|x| x as f32),
    }
}

/// An optional sign and decimal digits that fit an `i64`.
fn integer(field: &[u8]) -> Option<i64> {
    let (negative, digits) = match field {
        [b'-', digits @ ..] => (true, digits),
        [b'+', digits @ ..] => (false, digits),
        digits => (false, digits),
    };
    let magnitude = decimal(digits)?;
    if negative { 0_i64.checked_sub_unsigned(magnitude) } else { magnitude.try_into().ok() }
}

/// Decimal digits that fit a `u64`.
fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    let mut value = 0_u64;
    for &byte in digits {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            return None;
        }
        value = value.checked_mul(10)?.checked_add(u64::from(digit))?;
    }
    Some(value)
}

fn hexadecimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || digits.len() > 16 {
        return None;
    }
    digits.iter().try_fold(0, |value, &byte| {
        (byte as char).to_digit(16).map(|digit| value << 4 | u64::from(digit))
    })
}

/// A finite number; few digits without exponent are read without the general algorithm.
fn float(field: &[u8]) -> Option<f64> {
    const DIGITS_EXACT: usize = 15; // below 2^53
    if field.len() <= DIGITS_EXACT
        && let Some(value) = decimal(field)
    {
        return Some(value as f64);
    }
    let text = std::str::from_utf8(field).ok()?;
    text.parse().ok().filter(|x: &f64| x.is_finite())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parser(roles: &[Role]) -> RowParser {
        let columns = roles.iter().map(|&role| Column { name: "x".to_owned(), role }).collect();
        RowParser { columns }
    }

    fn parsed(parse: impl FnOnce(&mut Row) -> bool) -> Option<(u32, Vec<u64>, Vec<Key>)> {
        let mut row = Row { label: 0.0, dense: vec![0.0; 3], keys: vec![Key(0); 4] };
        parse(&mut row).then(|| {
            (row.label.to_bits(), row.dense.iter().map(|x| x.to_bits()).collect(), row.keys)
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]
        #[test]
        fn the_quick_walk_reads_what_the_plain_one_reads(
            fields in prop::collection::vec(
                "(|0|1|-?[0-9]{1,20}|[0-9a-f]{8}|[a-f\u{80}]{0,9})",
                6..10,
            ),
            order in prop::sample::subsequence(vec![0, 1, 2, 3, 4, 5, 6, 7], 7),
        ) {
            let roles = [
                Role::Label,
                Role::Integer(0),
                Role::Token(0),
                Role::Integer(1),
                Role::HexIndex(1, 1000),
                Role::Float(2),
                Role::Token(2),
                Role::TextIndex(3, 77),
            ];
            let roles: Vec<Role> = order.iter().map(|&place| roles[place]).collect();
            let (parser, line) = (parser(&roles), fields.join("\t"));
            let plain = parsed(|row| parser.parse(line.as_bytes(), row).is_ok());
            let quick = parsed(|row| parser.parse_quickly(line.as_bytes(), row).is_some());
            prop_assert_eq!(plain, quick, "{:?}", line);
        }

        #[test]
        fn good_lines_agree_too(fields in prop::collection::vec(
            ("-?[0-9]{0,12}", "[0-9a-f]{8}|[0-9a-f]{0,9}"), 1..4)) {
            let number = |field: &str| field.strip_suffix('-').unwrap_or(field).to_owned();
            let mut roles = Vec::new();
            let mut texts = Vec::new();
            for (place, (integer, token)) in fields.iter().enumerate() {
                roles.extend([Role::Integer(place), Role::Token(place)]);
                texts.extend([number(integer), token.clone()]);
            }
            let (parser, line) = (parser(&roles), texts.join("\t"));
            let plain = parsed(|row| parser.parse(line.as_bytes(), row).is_ok());
            let quick = parsed(|row| parser.parse_quickly(line.as_bytes(), row).is_some());
            prop_assert!(plain.is_some(), "{:?}", line);
            prop_assert_eq!(plain, quick, "{:?}", line);
        }
    }

    #[test]
    fn integers_at_their_limits() {
        assert_eq!(integer(b"9223372036854775807"), Some(i64::MAX));
        assert_eq!(integer(b"-9223372036854775808"), Some(i64::MIN));
        assert_eq!(integer(b"+7"), Some(7));
        assert_eq!(integer(b"-0"), Some(0));
        for bad in ["9223372036854775808", "-9223372036854775809", "", "-", "+", "1.0", "1 ", "--1"]
        {
            assert_eq!(integer(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn floats_are_finite_and_exact() {
        for (text, value) in
            [("0.1", 0.1), ("123456789012345", 123_456_789_012_345.0), ("-2.5e-3", -2.5e-3)]
        {
            assert_eq!(float(text.as_bytes()), Some(value));
        }
        for bad in ["nan", "inf", "-infinity", "1e999", "1,5", "0x1", " 1", "1_0"] {
            assert_eq!(float(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn labels_lie_between_zero_and_one() {
        for (text, value) in
            [("0", Some(0.0)), ("1", Some(1.0)), ("0.25", Some(0.25)), ("1.0", Some(1.0))]
        {
            assert_eq!(label(text.as_bytes()), value);
        }
        for bad in ["2", "-1", "", "yes", "1.01"] {
            assert_eq!(label(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn strings_fold_by_number_or_by_hash() {
        assert_eq!(string_key(b"0123", None), token_key(b"0123"));
        assert_eq!(string_key(b"", None), token_key(b""));
        assert_eq!(string_key(b"1234", Some(1000)), Key(234));
        assert_eq!(string_key(b"", Some(1000)), Key(0));
        assert_eq!(string_key(b"JFK", Some(1000)), Key(token_key(b"JFK").0 % 1000));
        let huge = b"99999999999999999999999"; // no u64: a name like any other
        assert_eq!(string_key(huge, Some(1000)), Key(token_key(huge).0 % 1000));
    }

    #[test]
    fn hexadecimal_takes_up_to_sixteen_digits_in_either_case() {
        assert_eq!(hexadecimal(b"68fd1e64"), Some(0x68fd_1e64));
        assert_eq!(hexadecimal(b"FFFFFFFFFFFFFFFF"), Some(u64::MAX));
        for bad in [&b""[..], b"00000000000000000", b"12g4", b"\xff\xfe"] {
            assert_eq!(hexadecimal(bad), None);
        }
    }
}
