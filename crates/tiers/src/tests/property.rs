//! Random runs against the oracle, bit for bit.

use std::collections::VecDeque;

use proptest::prelude::*;
use table::{KeyBatch, TableId, TableSpec};
use testkit::{OracleStaged, OracleStore, Random, RowStore, random_gradients, random_key_batch};

use super::{ADAGRAD, ADAM, HUGE, ROW_WISE, Scratch, TINY, spec};
use crate::{Error, Staged};

/// Long rows, so that a few fill a tiny budget: 27, 27, 18 and 1 to a block; and one short row.
fn specs() -> Vec<TableSpec> {
    vec![
        spec("long", 600, table::Optimizer::Sgd),
        spec("long_too", 300, ADAGRAD),
        spec("adam", 300, ADAM),
        spec("whole_block", 4096, ADAM),
        spec("short", 2, ROW_WISE),
    ]
}

#[derive(Debug, Clone)]
enum Op {
    Stage { keys_max: u64, universe: u64 },
    Finish { push: bool },
    PullNewest,
    Lookup,
    Assign,
    Flush,
    Reopen,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        8 => (1_u64..12, prop_oneof![Just(8_u64), Just(150)])
            .prop_map(|(keys_max, universe)| Op::Stage { keys_max, universe }),
        6 => prop::bool::weighted(0.85).prop_map(|push| Op::Finish { push }),
        2 => Just(Op::PullNewest),
        2 => Just(Op::Lookup),
        1 => Just(Op::Assign),
        1 => Just(Op::Flush),
        1 => Just(Op::Reopen),
    ]
}

struct Pair {
    scratch: Scratch,
    oracle: OracleStore,
    tables: Vec<TableId>,
    staged: VecDeque<(Staged, OracleStaged)>,
    random: Random,
}

impl Pair {
    fn new(budget: u64, seed: u64) -> Self {
        let (scratch, oracle) = (Scratch::new(budget), OracleStore::new());
        let mut tables = Vec::new();
        for spec in specs() {
            tables.push(scratch.create_table(&spec).unwrap());
            oracle.create_table(&spec).unwrap();
        }
        Self { scratch, oracle, tables, staged: VecDeque::new(), random: Random::new(seed) }
    }

    fn keys(&mut self, universe: u64, keys_max: u64) -> KeyBatch {
        // the table whose rows take a whole block each comes seldom, else no batch would fit
        let tables: Vec<TableId> = self
            .tables
            .iter()
            .copied()
            .filter(|table| self.random.below(if table.0 == 3 { 4 } else { 2 }) == 0)
            .collect();
        random_key_batch(&mut self.random, &tables, universe, keys_max)
    }

    fn run(&mut self, op: &Op) {
        match *op {
            Op::Stage { keys_max, universe } => self.stage(universe, keys_max),
            Op::Finish { push } => self.finish(push),
            Op::PullNewest => {
                if let Some((staged, mirror)) = self.staged.back() {
                    let rows = self.scratch.pull(staged).unwrap();
                    assert_bits(&rows, &self.oracle.pull(mirror).unwrap());
                }
            }
            Op::Lookup => {
                let keys = self.keys(200, 30);
                let rows = self.scratch.lookup(&keys).unwrap().0;
                assert_bits(&rows, &self.oracle.lookup(&keys).unwrap().0);
            }
            Op::Assign => self.assign(),
            Op::Flush => self.scratch.store().flush().unwrap(),
            Op::Reopen => {
                self.staged.clear();
                self.scratch.close_and_reopen();
                assert!(self.scratch.store().status().opened_clean);
            }
        }
        self.check_counts();
    }

    fn stage(&mut self, universe: u64, keys_max: u64) {
        let keys = self.keys(universe, keys_max);
        loop {
            match self.scratch.store().stage(&keys) {
                Ok(staged) => {
                    let mirror = self.oracle.stage(&keys).unwrap();
                    assert_bits(
                        &self.scratch.pull(&staged).unwrap(),
                        &self.oracle.pull(&mirror).unwrap(),
                    );
                    self.staged.push_back((staged, mirror));
                    return;
                }
                Err(Error::SlowDown { .. }) => {
                    assert!(!self.staged.is_empty(), "nothing is held, yet there is no room");
                    self.finish(true);
                }
                Err(Error::BatchTooLarge { .. }) => return,
                Err(error) => panic!("{error}"),
            }
        }
    }

    fn finish(&mut self, push: bool) {
        let Some((staged, mirror)) = self.staged.pop_front() else { return };
        if push {
            let gradients = random_gradients(&mut self.random, staged.rows_floats());
            self.scratch.push(&staged, &gradients, 0.05).unwrap();
            self.oracle.push(&mirror, &gradients, 0.05).unwrap();
        }
        assert_bits(&self.scratch.pull(&staged).unwrap(), &self.oracle.pull(&mirror).unwrap());
    }

    fn assign(&mut self) {
        self.staged.clear();
        let keys = self.keys(100, 60);
        let rows =
            random_gradients(&mut self.random, self.scratch.store().rows_floats(&keys).unwrap());
        self.scratch.assign(&keys, &rows).unwrap();
        self.oracle.assign(&keys, &rows).unwrap();
    }

    fn check_counts(&self) {
        let status = self.scratch.store().status();
        assert!(status.host_ram_used_bytes <= status.host_ram_budget_bytes);
        for table in &status.tables {
            assert_eq!(table.rows, self.oracle.row_count(table.id).unwrap(), "{}", table.id);
            assert!(table.host.rows <= table.rows && table.ssd.rows <= table.rows);
        }
        if self.staged.is_empty() {
            assert_eq!(status.pinned_rows, 0);
        }
    }

    /// Every row, embedding and (through one more push) optimizer state, and that from SSD.
    fn check_all_rows(&mut self) {
        self.staged.clear();
        self.scratch.close_and_reopen();
        self.check_counts();
        for (table, key) in self.oracle.row_names() {
            let keys = super::batch(table, [key.0]);
            let (staged, mirror) =
                (self.scratch.stage(&keys).unwrap(), self.oracle.stage(&keys).unwrap());
            let gradients = random_gradients(&mut self.random, staged.rows_floats());
            self.scratch.push(&staged, &gradients, 0.05).unwrap();
            self.oracle.push(&mirror, &gradients, 0.05).unwrap();
            assert_bits(&self.scratch.pull(&staged).unwrap(), &self.oracle.pull(&mirror).unwrap());
        }
        self.check_counts();
    }
}

/// Equal bits: `==` would take -0 for 0.
fn assert_bits(found: &[f32], expected: &[f32]) {
    let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    assert!(bits(found) == bits(expected), "{found:?}\n{expected:?}");
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 40,
        max_shrink_iters: 200,
        ..ProptestConfig::default()
    })]
    #[test]
    fn a_tiny_store_agrees_with_the_oracle(
        ops in prop::collection::vec(op(), 1..120), seed in any::<u64>(), blocks in 4_u64..9,
    ) {
        let mut pair = Pair::new(blocks * TINY / 4, seed);
        for op in &ops {
            pair.run(op);
        }
        pair.check_all_rows();
    }
}

#[test]
fn a_tiny_budget_and_a_huge_one_give_the_same_bytes_and_only_one_evicts() {
    let run = |budget| {
        let mut pair = Pair::new(budget, 42);
        let mut pulled = Vec::new();
        for _ in 0..150 {
            pair.stage(150, 12);
            if let Some((staged, _)) = pair.staged.back() {
                pulled.extend(pair.scratch.pull(staged).unwrap());
            }
            while !pair.staged.is_empty() {
                pair.finish(true);
            }
        }
        let totals = pair.scratch.store().status().totals();
        pair.check_all_rows();
        (pulled, totals)
    };
    // each of these batches fits both budgets, so that neither run leaves one out
    let (tiny, tiny_totals) = run(4 * TINY);
    let (huge, huge_totals) = run(HUGE);
    assert_bits(&tiny, &huge);
    assert!(tiny_totals.evictions > 1000, "{tiny_totals:?}");
    assert_eq!(huge_totals.evictions, 0);
    assert_eq!(tiny_totals.first_touch, huge_totals.first_touch);
}
