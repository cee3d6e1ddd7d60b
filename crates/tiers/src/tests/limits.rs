//! Arguments that the store refuses, and that it stays well.

use table::{Key, KeyBatch, Optimizer, RowStatus, TableId};
use testkit::RowStore;

use super::{Scratch, TINY, batch, spec};
use crate::{Error, Store, StoreConfig};

#[test]
fn a_configuration_out_of_range_is_refused_by_field() {
    let dir = tempfile::tempdir().unwrap();
    let good = StoreConfig::new(dir.path().join("store"), TINY);
    let cases = [
        ("host_ram_bytes", StoreConfig { host_ram_bytes: TINY - 1, ..good.clone() }),
        ("ssd_memory_bytes", StoreConfig { ssd_memory_bytes: 1 << 20, ..good.clone() }),
        ("tables_max", StoreConfig { tables_max: 0, ..good.clone() }),
    ];
    for (name, config) in cases {
        let error = Store::open(config).err().unwrap();
        assert!(matches!(error, Error::Config { field, .. } if field == name), "{error}");
    }
    assert!(!good.data_dir.exists(), "a refused configuration makes no directory");
}

#[test]
fn tables_have_a_limit() {
    let mut scratch = Scratch::new(TINY);
    scratch.config.tables_max = 2;
    scratch.close_and_reopen();
    for name in ["a", "b"] {
        scratch.create_table(&spec(name, 1, Optimizer::Sgd)).unwrap();
    }
    let error = scratch.store().create_table(&spec("c", 1, Optimizer::Sgd)).unwrap_err();
    assert!(matches!(error, Error::TooManyTables { tables_max: 2, .. }), "{error}");
    scratch.create_table(&spec("b", 1, Optimizer::Sgd)).unwrap();
}

#[test]
fn wrong_shapes_and_values_name_what_was_expected() {
    let scratch = Scratch::new(TINY);
    let store = scratch.store();
    let table = scratch.create_table(&spec("t", 4, Optimizer::Sgd)).unwrap();
    let keys = batch(table, [10, 20, 30]);
    let staged = store.stage(&keys).unwrap();
    let shape = |error: Error, expected| {
        assert!(
            matches!(error, Error::InvalidArgument { expected: e, .. } if e == expected),
            "{error}"
        );
    };
    shape(store.pull(&staged, &mut [0.0; 11]).unwrap_err(), 12);
    shape(store.push(&staged, &[0.0; 13], 0.1).unwrap_err(), 12);
    shape(store.assign(&keys, &[0.0; 4]).unwrap_err(), 12);
    shape(store.lookup(&keys, &mut [0.0; 12], &mut [RowStatus::Failed; 2]).unwrap_err(), 3);
    let mut gradients = [0.0; 12];
    gradients[6] = f32::INFINITY;
    for error in [store.push(&staged, &gradients, 0.1), store.assign(&keys, &gradients)] {
        let error = error.unwrap_err();
        assert!(matches!(error, Error::NotFinite { key: Key(20), position: 2, .. }), "{error}");
    }
    let error = store.push(&staged, &[0.0; 12], f32::NAN).unwrap_err();
    assert!(matches!(error, Error::LearningRate { .. }), "{error}");
    let error = store.stage(&batch(TableId(7), [1])).err().unwrap();
    assert!(matches!(error, Error::UnknownTable { table: TableId(7), tables: 1 }), "{error}");
}

#[test]
fn an_empty_batch_is_a_batch() {
    let scratch = Scratch::new(TINY);
    let staged = scratch.store().stage(&KeyBatch::new()).unwrap();
    scratch.store().pull(&staged, &mut []).unwrap();
    scratch.store().push(&staged, &[], 0.1).unwrap();
}

#[test]
fn more_rows_are_assigned_than_the_budget_holds() {
    let scratch = Scratch::new(TINY);
    let table = scratch.create_table(&spec("t", 600, Optimizer::Sgd)).unwrap();
    let keys = batch(table, 0..1000);
    let rows: Vec<f32> = (0..1000 * 600).map(|i| i as f32).collect();
    scratch.assign(&keys, &rows).unwrap();
    assert_eq!(scratch.lookup(&keys).unwrap().0, rows);
}
