//! The readers on small files and on the data that the repository carries. It does not test the
//! generator; `synthetic.rs` does.

#![allow(clippy::unwrap_used, reason = "a test may; Clippy sees only its #[test] functions")]

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::builder::{Float64Builder, Int64Builder, ListBuilder, StringBuilder};
use arrow_array::{ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray, UInt64Array};
use dataset::{
    BadRows, Batch, DenseColumns, DenseTransform, Error, LINE_BYTES_MAX, Labels, Place,
    ReadOptions, Reader, RowSelection, Schema, Shuffle, Source, TransformKind, fit_standardisation,
    fit_transform, open, token_key, write_cache,
};
use flate2::Compression;
use flate2::write::GzEncoder;
use parquet::arrow::ArrowWriter;
use proptest::prelude::*;
use table::Key;
use tempfile::TempDir;

fn carried(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data").join(name)
}

fn flights() -> Source {
    Source::Tsv { path: carried("flights.tsv.gz") }
}

fn file(dir: &TempDir, name: &str, bytes: &[u8]) -> PathBuf {
    let path = dir.path().join(name);
    fs::write(&path, bytes).unwrap();
    path
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn batches(reader: &mut Reader) -> Result<Vec<Batch>, Error> {
    let (mut all, mut batch) = (Vec::new(), Batch::new());
    while reader.next_batch(&mut batch)? {
        all.push(batch.clone());
    }
    assert_eq!(batch.rows(), 0);
    assert!(!reader.next_batch(&mut batch)?, "the end stays the end");
    Ok(all)
}

fn read(source: &Source, options: &ReadOptions) -> Result<Vec<Batch>, Error> {
    batches(&mut open(source, options)?)
}

fn one(source: &Source, options: &ReadOptions) -> Batch {
    let mut all = read(source, options).unwrap();
    assert_eq!(all.len(), 1);
    all.remove(0)
}

fn column(batch: &Batch, feature: usize) -> Vec<u64> {
    batch.features[feature].values.iter().map(|key| key.0).collect()
}

/// A line of Criteo's format: the label, I1 and C1 as given, the other integers 5, the other tokens
/// the column's number.
fn criteo_line(label: &str, i1: &str, c1: &str) -> String {
    let dense: Vec<&str> = std::iter::once(i1).chain([("5"); 12]).collect();
    let tokens = std::iter::once(c1.to_owned()).chain((2..=26).map(|c| format!("{c:08x}")));
    format!("{label}\t{}\t{}", dense.join("\t"), tokens.collect::<Vec<_>>().join("\t"))
}

#[test]
fn flights_have_their_columns_rows_and_clicks() {
    let mut options = ReadOptions::new(4096);
    options.dense_columns = DenseColumns::First(13);
    let mut reader = open(&flights(), &options).unwrap();
    assert_eq!((reader.schema().dense.len(), reader.schema().categorical.len()), (13, 16));
    assert_eq!(reader.schema().dense[12], "seats");
    assert_eq!(reader.schema().categorical[0], "carrier");
    let (mut batch, mut late, mut next) = (Batch::new(), 0.0, 0);
    while reader.next_batch(&mut batch).unwrap() {
        assert_eq!(batch.first_row, next);
        next += batch.rows() as u64;
        late += batch.labels.iter().map(|&label| f64::from(label)).sum::<f64>();
    }
    assert_eq!((reader.rows_read(), reader.rows_skipped(), reader.progress()), (327_346, 0, 1.0));
    assert_eq!(late, 77_630.0, "23.71 % of the rows");
}

#[test]
fn flights_split_into_parts_that_share_no_row() {
    let labels = |rows| {
        let mut options = ReadOptions::new(10_000);
        options.dense_columns = DenseColumns::First(13);
        options.rows = rows;
        let batches = read(&flights(), &options).unwrap();
        batches.into_iter().flat_map(|batch| batch.labels).collect::<Vec<f32>>()
    };
    let all = labels(RowSelection::All);
    for (rows, count) in [
        (RowSelection::Train, 261_879),
        (RowSelection::Valid, 32_738),
        (RowSelection::Test, 32_729),
    ] {
        let expected = (0..).zip(&all).filter(|(index, _)| rows.contains(*index));
        let expected: Vec<f32> = expected.map(|(_, &label)| label).collect();
        let found = labels(rows);
        assert_eq!(found.len(), count, "{rows}");
        assert!(found == expected, "{rows}");
    }
}

#[test]
fn flights_standardise_to_mean_zero_and_spread_one() {
    let mut options = ReadOptions::new(8192);
    options.dense_columns = DenseColumns::First(13);
    options.rows = RowSelection::Test;
    let kind = TransformKind::SignedLog1pStandard;
    options.dense_transform = fit_transform(&flights(), &options, kind).unwrap();
    options.missing_indicator = true;
    let (mut sums, mut squares, mut held) = ([0.0_f64; 13], [0.0_f64; 13], [0.0_f64; 13]);
    for batch in read(&flights(), &options).unwrap() {
        assert_eq!(batch.dense_width, 26);
        for row in batch.dense.chunks(26) {
            for c in 0..13 {
                let missing = row[13 + c];
                assert!(missing == 0.0 || (missing == 1.0 && row[c] == 0.0));
                held[c] += 1.0 - f64::from(missing);
                sums[c] += f64::from(row[c]);
                squares[c] += f64::from(row[c]).powi(2);
            }
        }
    }
    assert!(held[7] < 20_000.0, "gusts are often missing: {held:?}");
    for c in 0..13 {
        assert!((sums[c] / held[c]).abs() < 1e-4, "column {c}: mean {}", sums[c] / held[c]);
        assert!((squares[c] / held[c] - 1.0).abs() < 1e-3, "column {c}");
    }
}

#[test]
fn criteo_lines_become_labels_logarithms_and_hashes() {
    let dir = TempDir::new().unwrap();
    let text = [
        criteo_line("1", "7", "68fd1e64"),
        criteo_line("0", "-2", ""),
        criteo_line("0", "", "xyz"),
    ];
    let text = text.join("\r\n"); // no end of the last line
    let mut options = ReadOptions::new(10);
    options.dense_transform = DenseTransform::Log1p;
    options.missing_indicator = true;
    for bytes in [text.clone().into_bytes(), gzip(text.as_bytes())] {
        let source = Source::Criteo { path: file(&dir, "day_0", &bytes) };
        let batch = one(&source, &options);
        assert_eq!(batch.labels, [1.0, 0.0, 0.0]);
        assert_eq!(batch.dense_width, 26);
        let (ln8, ln6) = (8f64.ln() as f32, 6f64.ln() as f32);
        assert_eq!(batch.dense[..2], [ln8, ln6]);
        assert_eq!(batch.dense[26..28], [0.0, ln6], "negative is 0");
        assert_eq!(batch.dense[52..54], [0.0, ln6], "missing is 0");
        assert_eq!(batch.dense[52 + 13..52 + 15], [1.0, 0.0], "and told apart");
        assert_eq!(batch.features.len(), 26);
        let tokens = [&b"68fd1e64"[..], b"", b"xyz"];
        assert_eq!(batch.features[0].values, tokens.map(token_key));
        assert_eq!(batch.features[0].offsets, [0, 1, 2, 3]);
        assert_eq!(batch.features[1].values, [token_key(b"00000002"); 3]);
    }
    // the empty input's hash as XXH3's own test vectors have it
    assert_eq!(token_key(b""), Key(0x2d06_8005_38d3_94c2));
}

#[test]
fn max_ind_range_folds_criteo_tokens_as_hexadecimal() {
    let dir = TempDir::new().unwrap();
    let text = [criteo_line("1", "7", "68fd1e64"), criteo_line("0", "1", "")].join("\n");
    let source = Source::Criteo { path: file(&dir, "day_0", text.as_bytes()) };
    let mut options = ReadOptions::new(10);
    options.max_ind_range = Some(1000);
    assert_eq!(column(&one(&source, &options), 0), [0x68fd_1e64 % 1000, 0]);
    let text = criteo_line("1", "7", "xyz");
    let source = Source::Criteo { path: file(&dir, "day_1", text.as_bytes()) };
    let error = read(&source, &options).unwrap_err();
    assert!(matches!(&error, Error::Value { column: 15, name, .. } if name == "C1"), "{error}");
}

#[test]
fn a_bad_line_names_file_line_and_column() {
    let dir = TempDir::new().unwrap();
    let good = criteo_line("0", "1", "a");
    let cases = [
        (criteo_line("2", "1", "a"), "column 1 (label): found \"2\", expected a label from 0 to 1"),
        (
            criteo_line("0", "1.5", "a"),
            "column 2 (I1): found \"1.5\", expected an integer or nothing",
        ),
        (criteo_line("0", "99999999999999999999", "a"), "column 2 (I1)"),
        ("0\t1\t2".to_owned(), "3 columns, expected 40 separated by tabs"),
        (criteo_line("0", "1", "a\tb"), "41 columns, expected 40"),
        (criteo_line("0", "x\t1", "a"), "41 columns, expected 40"),
        (String::new(), "1 columns, expected 40"),
        ("x".repeat(LINE_BYTES_MAX + 1), "longer than 1048576 bytes"),
    ];
    for (bad, expected) in cases {
        let text = format!("{good}\n{bad}\n{good}\n");
        let path = file(&dir, "day_0", text.as_bytes());
        let source = Source::Criteo { path: path.clone() };
        let mut options = ReadOptions::new(10);
        let error = read(&source, &options).unwrap_err();
        let message = error.to_string();
        assert!(error.is_bad_input());
        assert!(message.starts_with(&format!("{}, line 2", path.display())), "{message}");
        assert!(message.contains(expected), "{message}");
        options.bad_rows = BadRows::Skip { rows_max: 1 };
        let mut reader = open(&source, &options).unwrap();
        assert_eq!(batches(&mut reader).unwrap()[0].rows(), 2);
        assert_eq!((reader.rows_read(), reader.rows_skipped()), (2, 1));
    }
}

#[test]
fn more_bad_rows_than_allowed_end_the_reading() {
    let dir = TempDir::new().unwrap();
    let text = "label\tI1\tC1\n1\t2\ta\n?\t2\ta\n0\t2\tb\n0\t2\n1\t2\tc\n";
    let source = Source::Tsv { path: file(&dir, "a.tsv", text.as_bytes()) };
    let mut options = ReadOptions::new(1);
    options.bad_rows = BadRows::Skip { rows_max: 2 };
    let found = read(&source, &options).unwrap();
    // bad rows keep their place in the count
    assert_eq!(found.iter().map(|batch| batch.first_row).collect::<Vec<_>>(), [0, 2, 4]);
    options.bad_rows = BadRows::Skip { rows_max: 1 };
    let error = read(&source, &options).unwrap_err();
    assert!(matches!(&error, Error::TooManyBadRows { rows_max: 1, .. }), "{error}");
    assert!(error.to_string().contains("line 5: 2 columns"), "{error}");
}

#[test]
fn a_bad_row_of_another_part_is_passed_over() {
    let dir = TempDir::new().unwrap();
    let test_row = (0..).find(|&index| RowSelection::Test.contains(index)).unwrap();
    let mut text = String::from("label\tI1\tC1\n");
    for index in 0..20 {
        text += if index == test_row { "bad\n" } else { "1\t2\ta\n" };
    }
    let source = Source::Tsv { path: file(&dir, "a.tsv", text.as_bytes()) };
    let mut options = ReadOptions::new(100);
    options.rows = RowSelection::Train;
    assert!(read(&source, &options).is_ok());
    options.rows = RowSelection::Test;
    assert!(read(&source, &options).is_err());
}

#[test]
fn truncated_gzip_is_an_error_even_with_bad_rows_skipped() {
    let dir = TempDir::new().unwrap();
    let text: String = (0..2000).map(|i| criteo_line("0", &i.to_string(), "ab") + "\n").collect();
    let whole = gzip(text.as_bytes());
    let path = file(&dir, "day_0.gz", &whole[..whole.len() / 2]);
    let mut options = ReadOptions::new(64);
    options.bad_rows = BadRows::Skip { rows_max: 1_000_000 };
    let error = read(&Source::Criteo { path: path.clone() }, &options).unwrap_err();
    assert!(matches!(error, Error::Truncated { .. }), "{error}");
    let message = error.to_string();
    assert!(message.contains("truncated") && message.contains("day_0.gz"), "{message}");
    assert!(error.is_bad_input());
}

#[test]
fn headers_that_do_not_fit_list_the_columns() {
    let dir = TempDir::new().unwrap();
    let header = |text: &str, options: &ReadOptions| {
        let path = file(&dir, "a.tsv", format!("{text}\n1\t2\t3\n").as_bytes());
        let error = open(&Source::Tsv { path }, options).err().unwrap();
        assert!(matches!(error, Error::Header { .. }), "{error}");
        error.to_string()
    };
    let mut options = ReadOptions::new(1);
    let message = header("click\tI1\tC1", &options);
    assert!(message.contains("\"click\" is neither") && message.contains("click, I1, C1"));
    assert!(header("label\tI1\tI1", &options).contains("\"I1\" comes twice"));
    assert!(header("label\tage\tC1", &options).contains("say which columns are dense"));
    options.dense_columns = DenseColumns::First(3);
    assert!(header("label\tI1\tC1", &options).contains("3 dense columns were asked for"));
    options.dense_columns = DenseColumns::Named(vec!["age".to_owned()]);
    let message = header("label\tI1\tC1", &options);
    assert!(
        message.contains("\"age\" is wanted and missing; the file's columns are: label, I1, C1")
    );
    options.dense_columns = DenseColumns::Named(vec!["I1".to_owned(), "I1".to_owned()]);
    assert!(header("label\tI1\tC1", &options).contains("wanted twice"));
    options.label_column = "click".to_owned();
    options.dense_columns = DenseColumns::First(1);
    assert!(header("label\tI1\tC1", &options).contains("\"click\" is wanted and missing"));
}

#[test]
fn a_schema_chooses_and_orders_the_columns() {
    let dir = TempDir::new().unwrap();
    let text = "C2\tI1\tlabel\tI2\tC1\nb\t1\t0\t2\t77\n\t\t1\t\t\n";
    let source = Source::Tsv { path: file(&dir, "a.tsv", text.as_bytes()) };
    let mut options = ReadOptions::new(10);
    let batch = one(&source, &options);
    assert_eq!(batch.dense, [1.0, 2.0, 0.0, 0.0]);
    assert_eq!(batch.features[0].values, [token_key(b"b"), token_key(b"")]);
    options.schema = Some(Schema {
        label: "label".to_owned(),
        dense: vec!["I2".to_owned()],
        categorical: vec!["C1".to_owned(), "C2".to_owned()],
    });
    options.max_ind_range = Some(50);
    let mut reader = open(&source, &options).unwrap();
    assert_eq!(Some(reader.schema()), options.schema.as_ref());
    let batch = batches(&mut reader).unwrap().remove(0);
    assert_eq!(batch.dense, [2.0, 0.0]);
    assert_eq!(column(&batch, 0), [27, 0], "decimal digits are a number, missing is 0");
    assert_eq!(column(&batch, 1), [token_key(b"b").0 % 50, 0]);
}

#[test]
fn without_labels_a_label_may_be_missing_and_is_not_looked_at() {
    let dir = TempDir::new().unwrap();
    let line = |label: &str| criteo_line(label, "7", "0badcafe");
    let bare = |label: &str| line(label).split_once('\t').unwrap().1.to_owned();
    let criteo = |name: &str, lines: [String; 2]| Source::Criteo {
        path: file(&dir, name, (lines.join("\n") + "\n").as_bytes()),
    };
    let tsv = |name: &str, text: &str| Source::Tsv { path: file(&dir, name, text.as_bytes()) };
    let parquet = |name: &str, label: Option<Vec<i64>>| {
        let folder = dir.path().join(name);
        fs::create_dir(&folder).unwrap();
        let label = label.map(|values| ("label", Arc::new(Int64Array::from(values)) as ArrayRef));
        let dense = ("I1", Arc::new(Float64Array::from(vec![1.5, 2.5])) as ArrayRef);
        let id = ("C1", Arc::new(Int64Array::from(vec![3, 4])) as ArrayRef);
        let columns = [dense].into_iter().chain(label).chain([id]).collect();
        parquet_file_at(&folder.join("a.parquet"), columns)
    };
    let cases = [
        [
            criteo("with", [line("0"), line("1")]),
            criteo("odd", [line("?"), line("")]),
            criteo("without", [bare("0"), bare("1")]),
        ],
        [
            tsv("with.tsv", "C1\tlabel\tI1\nx\t0\t3\n\t1\t4\n"),
            tsv("odd.tsv", "C1\tlabel\tI1\nx\t?\t3\n\t\t4\n"),
            tsv("without.tsv", "C1\tI1\nx\t3\n\t4\n"),
        ],
        [
            parquet("with.p", Some(vec![0, 1])),
            parquet("odd.p", Some(vec![7, -1])),
            parquet("without.p", None),
        ],
    ];
    for [with, odd, without] in cases {
        let mut options = ReadOptions::new(10);
        let expected = one(&with, &options);
        assert_eq!(expected.labels, [0.0, 1.0]);
        assert!(read(&odd, &options).is_err() && read(&without, &options).is_err(), "{with}");
        options.labels = Labels::LeftOut;
        for source in [&with, &odd, &without] {
            let found = one(source, &options);
            assert_eq!(found.rows(), 2, "{source}");
            assert_eq!((&found.dense, &found.features), (&expected.dense, &expected.features));
        }
    }
    let options = ReadOptions { labels: Labels::LeftOut, ..ReadOptions::new(10) };
    let short = criteo("short", [line("0").split_once('\t').unwrap().1[2..].to_owned(), bare("1")]);
    let Error::ColumnCount { line: 1, found: 38, expected: 40, .. } =
        read(&short, &options).unwrap_err()
    else {
        panic!("a line of 38 fields is neither");
    };
    let mixed = criteo("mixed", [bare("0"), line("1")]);
    let Error::ColumnCount { line: 2, found: 40, expected: 39, .. } =
        read(&mixed, &options).unwrap_err()
    else {
        panic!("all lines are as the first is");
    };
}

#[test]
fn empty_files_and_missing_files_are_errors() {
    let dir = TempDir::new().unwrap();
    let options = ReadOptions::new(1);
    for bytes in [Vec::new(), gzip(b"")] {
        let path = file(&dir, "empty", &bytes);
        for source in [Source::Criteo { path: path.clone() }, Source::Tsv { path: path.clone() }] {
            let error = open(&source, &options).err().unwrap();
            assert!(matches!(error, Error::Empty { .. }), "{error}");
        }
    }
    let path = file(&dir, "header.tsv", b"label\tI1\tC1\n");
    let error = open(&Source::Tsv { path }, &options).err().unwrap();
    assert!(matches!(error, Error::Empty { .. }), "{error}");
    for format in ["criteo", "tsv", "parquet"] {
        let source: Source = format!("{format}:{}/none", dir.path().display()).parse().unwrap();
        let error = open(&source, &options).err().unwrap();
        assert!(error.is_bad_input() && error.to_string().contains("none"), "{error}");
    }
    let path = file(&dir, "text.parquet", b"label\tI1\n1\t2\n");
    let error = open(&Source::Parquet { path }, &options).err().unwrap();
    assert!(error.is_bad_input() && error.to_string().contains("text.parquet"), "{error}");
}

#[test]
fn options_out_of_range_are_refused() {
    let dir = TempDir::new().unwrap();
    let source = Source::Tsv { path: file(&dir, "a.tsv", b"label\tI1\n1\t2\n") };
    assert!(open(&source, &ReadOptions::new(0)).is_err());
    let mut options = ReadOptions::new(1);
    options.max_ind_range = Some(0);
    assert!(open(&source, &options).is_err());
    options.max_ind_range = None;
    let fit = dataset::Standardisation { mean: vec![0.0; 2], std: vec![1.0; 2] };
    options.dense_transform = DenseTransform::Standard(fit);
    let error = open(&source, &options).err().unwrap();
    assert!(matches!(error, Error::StandardisationWidth { found: 2, expected: 1 }), "{error}");
}

#[test]
fn batches_max_stops_early_and_no_features_is_fine() {
    let dir = TempDir::new().unwrap();
    let source = Source::Tsv { path: file(&dir, "a.tsv", b"label\tI1\n1\t2\n0\t3\n1\t4\n") };
    let mut options = ReadOptions::new(1);
    options.batches_max = Some(2);
    assert_eq!(read(&source, &options).unwrap().len(), 2);
    let fit = fit_standardisation(&source, &options).unwrap();
    assert_eq!((fit.mean[0], fit.std[0]), (2.5, 0.5));
    let source = Source::Tsv { path: file(&dir, "b.tsv", b"label\tC1\n1\t2\n") };
    let batch = one(&source, &ReadOptions::new(5));
    assert_eq!((batch.dense_width, batch.dense.len(), batch.features.len()), (0, 0, 1));
}

fn parquet_file(dir: &TempDir, columns: Vec<(&str, ArrayRef)>) -> Source {
    parquet_file_at(&dir.path().join("a.parquet"), columns)
}

fn parquet_file_at(path: &Path, columns: Vec<(&str, ArrayRef)>) -> Source {
    let batch =
        RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(n, a)| (n, a, true)));
    let batch = batch.unwrap();
    let mut writer =
        ArrowWriter::try_new(fs::File::create(path).unwrap(), batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    Source::Parquet { path: path.to_owned() }
}

#[test]
fn parquet_ids_strings_and_lists_become_keys() {
    let dir = TempDir::new().unwrap();
    let mut lists = ListBuilder::new(Int64Builder::new());
    lists.append_value([Some(3), None, Some(9)]);
    lists.append_value([]);
    lists.append_null();
    let mut words = ListBuilder::new(StringBuilder::new());
    words.append_value([Some("a"), Some("b")]);
    words.append_value([None::<&str>]);
    words.append_value([Some("c")]);
    let source = parquet_file(
        &dir,
        vec![
            ("C1", Arc::new(Int64Array::from(vec![Some(7), None, Some(i64::MAX)]))),
            ("C2", Arc::new(StringArray::from(vec![Some("x"), None, Some("")]))),
            ("I1", Arc::new(Float64Array::from(vec![Some(1.5), None, Some(-2.0)]))),
            ("C3", Arc::new(lists.finish())),
            ("C4", Arc::new(words.finish())),
            ("C5", Arc::new(UInt64Array::from(vec![u64::MAX, 1, 2]))),
            ("label", Arc::new(Int64Array::from(vec![1, 0, 1]))),
        ],
    );
    let mut options = ReadOptions::new(10);
    options.missing_indicator = true;
    let batch = one(&source, &options);
    assert_eq!(batch.labels, [1.0, 0.0, 1.0]);
    assert_eq!(batch.dense, [1.5, 0.0, 0.0, 1.0, -2.0, 0.0]);
    assert_eq!(column(&batch, 0), [7, 0, i64::MAX as u64]);
    assert_eq!(batch.features[1].values, [&b"x"[..], b"", b""].map(token_key));
    assert_eq!(column(&batch, 2), [3, 0, 9]);
    assert_eq!(batch.features[2].offsets, [0, 3, 3, 3]);
    assert_eq!(batch.features[3].row(0), [token_key(b"a"), token_key(b"b")]);
    assert_eq!(batch.features[3].row(1), [token_key(b"")]);
    assert_eq!(column(&batch, 4), [u64::MAX, 1, 2]);
    options.max_ind_range = Some(5);
    let batch = one(&source, &options);
    assert_eq!(column(&batch, 2), [3, 0, 4]);
    assert_eq!(column(&batch, 1), [token_key(b"x").0 % 5, 0, 0]);
}

#[test]
fn parquet_weights_stand_beside_their_ids_wherever_they_go() {
    let dir = TempDir::new().unwrap();
    let lists = |rows: &[Option<Vec<i64>>]| -> ArrayRef {
        let mut lists = ListBuilder::new(Int64Builder::new());
        rows.iter()
            .for_each(|row| lists.append_option(row.clone().map(|r| r.into_iter().map(Some))));
        Arc::new(lists.finish())
    };
    let weights = |rows: &[&[Option<f64>]]| -> ArrayRef {
        let mut lists = ListBuilder::new(Float64Builder::new());
        rows.iter().for_each(|row| lists.append_value(row.iter().copied()));
        Arc::new(lists.finish())
    };
    let labels = || -> ArrayRef { Arc::new(Int64Array::from(vec![1, 0, 1])) };
    let ids = lists(&[Some(vec![3, 3, 9]), None, Some(vec![4])]);
    let file = |of_c1: ArrayRef| {
        let single: ArrayRef = Arc::new(Int64Array::from(vec![7, 8, 9]));
        let of_c2: ArrayRef = Arc::new(Float64Array::from(vec![0.25, -1.0, 0.0]));
        let columns = vec![
            ("label", labels()),
            ("C1", ArrayRef::clone(&ids)),
            ("C1_weights", of_c1),
            ("C2", ArrayRef::clone(&single)),
            ("C2_weights", of_c2),
            ("C3", single),
        ];
        parquet_file(&dir, columns)
    };
    let sound = || weights(&[&[Some(0.5), Some(2.0), Some(-1.5)], &[], &[Some(3.0)]]);
    let weighted = ReadOptions { weights: true, ..ReadOptions::new(3) };
    let source = file(sound());
    let batch = one(&source, &weighted);
    assert_eq!(column(&batch, 0), [3, 3, 9, 4]);
    assert_eq!(batch.features[0].weights, [0.5, 2.0, -1.5, 3.0]);
    assert_eq!(batch.features[0].row_weights(2), [3.0]);
    assert_eq!(batch.features[1].weights, [0.25, -1.0, 0.0]);
    assert!(batch.features[2].weights.is_empty() && batch.features.len() == 3);
    // shuffled, and through a cache
    let shuffle = Some(Shuffle { window_rows: 3, seed: 2 });
    let options = ReadOptions { shuffle, ..weighted.clone() };
    let shuffled = one(&source, &options);
    for row in 0..3 {
        let feature = &shuffled.features[0];
        let expected: &[f32] = match feature.row(row).len() {
            3 => &[0.5, 2.0, -1.5],
            1 => &[3.0],
            _ => &[],
        };
        assert_eq!(feature.row_weights(row), expected);
    }
    let path = dir.path().join("a.cache");
    write_cache(&source, &weighted, &path, &mut |_| true).unwrap().unwrap();
    let cache = Source::Cache { path };
    assert!(one(&cache, &weighted).features == batch.features);
    let error = read(&cache, &ReadOptions::new(3)).unwrap_err().to_string();
    assert!(error.contains("\"without weights\": expected with weights"), "{error}");
    // not asked for: a column of floats is no feature
    assert!(read(&source, &ReadOptions::new(3)).is_err());
    for (of_c1, expected) in [
        (weights(&[&[Some(0.5)], &[], &[Some(3.0)]]), "1 weights of 3 ids"),
        (weights(&[&[Some(0.5), None, None], &[], &[Some(3.0)]]), "null"),
        (weights(&[&[Some(1e300), None, None], &[], &[Some(3.0)]]), "a finite weight"),
    ] {
        let source = file(of_c1);
        let error = read(&source, &weighted).unwrap_err().to_string();
        assert!(error.contains("C1_weights") && error.contains(expected), "{error}");
        let skip = ReadOptions { bad_rows: BadRows::Skip { rows_max: 1 }, ..weighted.clone() };
        let batch = one(&source, &skip);
        assert_eq!((batch.rows(), &batch.features[0].weights[..]), (2, &[3.0][..]));
    }
    let bare = parquet_file(&dir, vec![("label", labels()), ("C1", ids)]);
    let error = read(&bare, &weighted).unwrap_err().to_string();
    assert!(error.contains("weights are asked for"), "{error}");
    let error = read(&flights(), &weighted).unwrap_err().to_string();
    assert!(error.contains("no other source has weights"), "{error}");
}

#[test]
fn parquet_values_that_no_row_may_hold_name_row_and_column() {
    let dir = TempDir::new().unwrap();
    let cases = [
        (
            vec![0.0, 1.0],
            vec![1.0, 1.0],
            vec![4, -1],
            "column 3 (C1): found -1, expected an id of 0",
        ),
        (vec![0.0, 3.0], vec![1.0, 1.0], vec![4, 1], "column 1 (label): found 3"),
        (vec![0.0, 1.0], vec![1.0, f64::NAN], vec![4, 1], "column 2 (I1): found NaN"),
    ];
    for (labels, dense, ids, expected) in cases {
        let source = parquet_file(
            &dir,
            vec![
                ("label", Arc::new(Float64Array::from(labels))),
                ("I1", Arc::new(Float64Array::from(dense))),
                ("C1", Arc::new(Int64Array::from(ids))),
            ],
        );
        let mut options = ReadOptions::new(10);
        let error = read(&source, &options).unwrap_err();
        assert!(matches!(error, Error::Value { place: Place::Row(1), .. }), "{error}");
        assert!(error.to_string().contains(expected), "{error}");
        options.bad_rows = BadRows::Skip { rows_max: 1 };
        let batch = one(&source, &options);
        assert_eq!((batch.rows(), batch.dense.len(), batch.features[0].values.len()), (1, 1, 1));
    }
}

#[test]
fn parquet_columns_of_another_type_are_refused() {
    let dir = TempDir::new().unwrap();
    let source = parquet_file(
        &dir,
        vec![
            ("label", Arc::new(Float64Array::from(vec![1.0]))),
            ("I1", Arc::new(StringArray::from(vec!["1"]))),
        ],
    );
    let error = open(&source, &ReadOptions::new(1)).err().unwrap();
    assert!(error.to_string().contains("\"I1\" has the type Utf8"), "{error}");
}

#[test]
fn the_reference_batches_are_read_as_they_are() {
    for (folder, rows, ids) in
        [("tiny", 4096, vec![100, 50, 7]), ("kaggle-shape", 8192, vec![u64::MAX; 26])]
    {
        let source =
            Source::Parquet { path: carried("reference").join(folder).join("batches.parquet") };
        let mut reader = open(&source, &ReadOptions::new(128)).unwrap();
        assert_eq!(reader.dense_width(), 13);
        assert_eq!(reader.schema().categorical.len(), ids.len());
        let batches = batches(&mut reader).unwrap();
        assert_eq!(reader.rows_read(), rows);
        assert_eq!(batches.len() as u64, rows / 128);
        for (number, batch) in (0..).zip(&batches) {
            assert_eq!(batch.first_row, 128 * number);
            assert!(batch.dense.iter().all(|x| x.is_finite()));
            for (feature, &rows) in batch.features.iter().zip(&ids) {
                assert!(feature.values.iter().all(|key| key.0 < rows));
                assert!(feature.offsets.iter().copied().eq(0..=128));
            }
        }
    }
}

fn tsv_bytes() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        Just(b"\t".to_vec()),
        Just(b"\n".to_vec()),
        Just(b"\r\n".to_vec()),
        Just(b"1\t2\ta\n".to_vec()),
        Just(b"-".to_vec()),
        Just(b"1e308".to_vec()),
        Just(b"18446744073709551615".to_vec()),
        Just(criteo_line("1", "3", "ff").into_bytes()),
        prop::collection::vec(any::<u8>(), 0..8),
    ];
    prop::collection::vec(piece, 0..60).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn any_bytes_parse_or_are_an_error(
        bytes in tsv_bytes(), header in any::<bool>(), range in prop::option::of(1..1000_u64)
    ) {
        let dir = TempDir::new().unwrap();
        let whole = if header { [b"label\tI1\tC1\n", &bytes[..]].concat() } else { bytes };
        let path = file(&dir, "any", &whole);
        for source in [Source::Tsv { path: path.clone() }, Source::Criteo { path: path.clone() }] {
            for bad_rows in [BadRows::Error, BadRows::Skip { rows_max: 1000 }] {
                let mut options = ReadOptions::new(3);
                options.bad_rows = bad_rows;
                options.max_ind_range = range;
                options.dense_transform = DenseTransform::SignedLog1p;
                if let Ok(mut reader) = open(&source, &options) {
                    let mut batch = Batch::new();
                    while let Ok(true) = reader.next_batch(&mut batch) {
                        let rows = batch.rows();
                        prop_assert!(rows > 0 && rows <= 3);
                        prop_assert_eq!(batch.dense.len(), rows * reader.dense_width());
                        prop_assert!(batch.features.iter().all(|f| f.values.len() == rows));
                        prop_assert!(batch.labels.iter().all(|l| (0.0..=1.0).contains(l)));
                        prop_assert!(batch.dense.iter().all(|x| x.is_finite()));
                    }
                }
            }
        }
    }

    #[test]
    fn any_bytes_as_gzip_are_an_error_or_end(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let dir = TempDir::new().unwrap();
        let path = file(&dir, "any.gz", &[b"\x1f\x8b\x08\x00", &bytes[..]].concat());
        if let Ok(mut reader) = open(&Source::Criteo { path }, &ReadOptions::new(3)) {
            let mut batch = Batch::new();
            while let Ok(true) = reader.next_batch(&mut batch) {}
        }
    }
}
