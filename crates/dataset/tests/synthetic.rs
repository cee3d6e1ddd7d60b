//! The generator through its readers and writers: what is written reads back as what was made.

#![allow(clippy::unwrap_used, reason = "a test may; Clippy sees only its #[test] functions")]

use std::path::Path;

use dataset::{
    Batch, DenseTransform, Generator, ReadOptions, RowBlock, RowSelection, Source, SyntheticSpec,
    TransformKind, open, write, write_criteo_tsv,
};
use tempfile::TempDir;

fn read(source: &Source, options: &ReadOptions) -> Batch {
    let mut reader = open(source, options).unwrap();
    let mut batch = Batch::new();
    assert!(reader.next_batch(&mut batch).unwrap());
    let mut none = Batch::new();
    assert!(!reader.next_batch(&mut none).unwrap(), "one batch takes all");
    assert_eq!(reader.progress(), 1.0);
    batch
}

#[test]
fn files_read_back_as_the_rows_that_were_made() {
    let dir = TempDir::new().unwrap();
    let spec: SyntheticSpec = "scale=0.001,rows=3000,seed=4".parse().unwrap();
    let mut options = ReadOptions::new(5000);
    options.dense_transform = DenseTransform::Log1p;
    options.missing_indicator = true;
    options.max_ind_range = Some(1 << 32);
    let made = read(&Source::Synthetic(spec.clone()), &options);
    assert_eq!((made.rows(), made.dense_width, made.features.len()), (3000, 26, 26));
    for target in [
        "criteo:day_0",
        "criteo:day_0.gz",
        "tsv:named.tsv",
        "tsv:named.tsv.gz",
        "parquet:a.parquet",
    ] {
        let (format, name) = target.split_once(':').unwrap();
        let target: Source =
            format!("{format}:{}", dir.path().join(name).display()).parse().unwrap();
        assert_eq!(write(&spec, RowSelection::All, &target).unwrap(), 3000);
        assert!(read(&target, &options) == made, "{target}");
    }
    // Parquet's integers need no folding
    let parquet = Source::Parquet { path: dir.path().join("a.parquet") };
    options.max_ind_range = None;
    assert!(read(&parquet, &options) == made);
    let mut names: Vec<_> =
        dir.path().read_dir().unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names.len(), 5, "nothing half-written stays: {names:?}");
    let first = std::fs::read(dir.path().join("day_0.gz")).unwrap();
    assert_eq!(first[..2], [0x1f, 0x8b]);
}

#[test]
fn a_selection_is_written_as_it_is_read() {
    let spec: SyntheticSpec = "scale=0.001,rows=2000,test-rows=500".parse().unwrap();
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("test.txt");
    let mut text = Vec::new();
    assert_eq!(write_criteo_tsv(&spec, RowSelection::Test, &mut text).unwrap(), 500);
    std::fs::write(&path, &text).unwrap();
    let mut options = ReadOptions::new(1000);
    options.max_ind_range = Some(1 << 40);
    let written = read(&Source::Criteo { path }, &options);
    options.rows = RowSelection::Test;
    let made = read(&Source::Synthetic(spec), &options);
    assert_eq!(made.first_row, 2000);
    assert!(Batch { first_row: 2000, ..written } == made);
}

#[test]
fn batches_are_the_generators_rows_whatever_their_size() {
    let spec: SyntheticSpec = "rows=3000,seed=11".parse().unwrap();
    let generator = Generator::new(&spec).unwrap();
    let mut block = RowBlock::new();
    block.rows.extend((0..3000).filter(|&row| RowSelection::Train.contains(row)));
    generator.fill(&mut block);
    for batch_rows in [1, 7, 512, 513, 3000] {
        let mut options = ReadOptions::new(batch_rows);
        options.rows = RowSelection::Train;
        let mut reader = open(&Source::Synthetic(spec.clone()), &options).unwrap();
        assert_eq!(reader.table_rows(), Some(&spec.table_rows()[..]));
        let (mut batch, mut at) = (Batch::new(), 0);
        while reader.next_batch(&mut batch).unwrap() {
            let end = at + batch.rows();
            assert_eq!(batch.first_row, block.rows[at]);
            assert_eq!(batch.labels, block.labels[at..end]);
            for (f, feature) in batch.features.iter().enumerate() {
                assert!(feature.values.iter().map(|key| key.0).eq(block.ids(f)[at..end].to_vec()));
            }
            for (c, &x) in batch.dense.iter().enumerate() {
                let count = block.counts(c % 13)[at + c / 13];
                assert_eq!(x, if count == RowBlock::MISSING { 0.0 } else { count as f32 });
            }
            at = end;
        }
        assert_eq!(at, block.rows.len());
    }
}

#[test]
fn validation_rows_are_refused_where_there_are_none() {
    let source: Source = "synthetic:rows=10,test-rows=5".parse().unwrap();
    assert_eq!(source.usual_transform(), TransformKind::Log1p);
    let mut options = ReadOptions::new(10);
    options.rows = RowSelection::Valid;
    let error = open(&source, &options).err().unwrap();
    assert!(error.to_string().contains("no validation rows"), "{error}");
}

#[test]
fn a_target_that_cannot_be_made_is_named() {
    let spec: SyntheticSpec = "rows=10".parse().unwrap();
    let path = Path::new("/nonexistent/folder/day_0").to_owned();
    for target in [Source::Criteo { path: path.clone() }, Source::Parquet { path }] {
        let error = write(&spec, RowSelection::All, &target).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/folder/day_0"), "{error}");
    }
    assert!(write(&spec, RowSelection::All, &Source::Synthetic(spec.clone())).is_err());
}
