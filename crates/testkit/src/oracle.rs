//! The store as it would be if memory were endless: a map from (table, key) to the row. It caches,
//! evicts and persists nothing; what it answers is right by inspection.

use std::collections::BTreeMap;
use std::sync::Mutex;

use table::{Key, KeyBatch, RowStatus, TableId, TableSpec};

use crate::contract::{Outcome, RowStore};

/// Tables and rows in ordered maps.
#[derive(Debug, Default)]
pub struct OracleStore {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    tables: Vec<TableSpec>,
    rows: BTreeMap<(TableId, Key), Vec<f32>>, // embedding and state
}

/// A staged step: its keys.
#[derive(Debug, Clone)]
pub struct OracleStaged {
    keys: KeyBatch,
}

impl OracleStore {
    /// A store without tables.
    pub fn new() -> Self {
        Self::default()
    }

    /// The whole row of a key, embedding and state, if it was ever touched.
    pub fn row(&self, table: TableId, key: Key) -> Option<Vec<f32>> {
        self.state().rows.get(&(table, key)).cloned()
    }

    /// Every row's name, in order.
    pub fn row_names(&self) -> Vec<(TableId, Key)> {
        self.state().rows.keys().copied().collect()
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("no test panics while it holds the oracle")
    }
}

impl State {
    fn spec(&self, table: TableId) -> Outcome<TableSpec> {
        let spec = self.tables.get(table.0 as usize).cloned();
        spec.ok_or_else(|| format!("{table} does not exist").into())
    }

    /// The parts of a flat buffer, one for each key.
    fn parts(&self, keys: &KeyBatch) -> Outcome<Vec<(TableId, Key, usize)>> {
        let mut parts = Vec::new();
        for (table, range) in keys.runs() {
            let dim = self.spec(table)?.dim as usize;
            parts.extend(keys.keys()[range].iter().map(|&key| (table, key, dim)));
        }
        Ok(parts)
    }
}

impl RowStore for OracleStore {
    type Staged = OracleStaged;

    fn create_table(&self, spec: &TableSpec) -> Outcome<TableId> {
        spec.validate()?;
        let mut state = self.state();
        if let Some(id) = state.tables.iter().position(|known| known.name == spec.name) {
            if state.tables[id] != *spec {
                return Err(format!("table {} exists with another specification", spec.name).into());
            }
            return Ok(TableId(id as u32));
        }
        state.tables.push(spec.clone());
        Ok(TableId(state.tables.len() as u32 - 1))
    }

    fn stage(&self, keys: &KeyBatch) -> Outcome<OracleStaged> {
        let mut state = self.state();
        for (table, key, _) in state.parts(keys)? {
            let spec = state.spec(table)?;
            state.rows.entry((table, key)).or_insert_with(|| {
                let mut row = vec![0.0; spec.layout().floats()];
                spec.initial_row(key, &mut row);
                row
            });
        }
        Ok(OracleStaged { keys: keys.clone() })
    }

    fn pull(&self, staged: &OracleStaged) -> Outcome<Vec<f32>> {
        let state = self.state();
        let parts = state.parts(&staged.keys)?;
        let row = |(table, key, dim)| state.rows[&(table, key)][..dim].to_vec();
        Ok(parts.into_iter().flat_map(row).collect())
    }

    fn push(&self, staged: &OracleStaged, gradients: &[f32], learning_rate: f32) -> Outcome<()> {
        let mut state = self.state();
        let parts = state.parts(&staged.keys)?;
        if gradients.len() != parts.iter().map(|part| part.2).sum::<usize>() {
            return Err(format!("{} gradients for {} rows", gradients.len(), parts.len()).into());
        }
        if !learning_rate.is_finite() || gradients.iter().any(|x| !x.is_finite()) {
            return Err("a gradient or the rate is not finite".into());
        }
        let mut rest = gradients;
        for (table, key, dim) in parts {
            let (gradient, after) = rest.split_at(dim);
            rest = after;
            let optimizer = state.spec(table)?.optimizer;
            let row = state.rows.get_mut(&(table, key)).ok_or("a staged row is missing")?;
            optim::update_row(&optimizer, row, gradient, learning_rate);
        }
        Ok(())
    }

    fn lookup(&self, keys: &KeyBatch) -> Outcome<(Vec<f32>, Vec<RowStatus>)> {
        let state = self.state();
        let (mut rows, mut statuses) = (Vec::new(), Vec::new());
        for (table, key, dim) in state.parts(keys)? {
            if let Some(row) = state.rows.get(&(table, key)) {
                rows.extend_from_slice(&row[..dim]);
                statuses.push(RowStatus::Host);
            } else {
                let start = rows.len();
                rows.resize(start + dim, 0.0);
                state.spec(table)?.initial_embedding(key, &mut rows[start..]);
                statuses.push(RowStatus::Initialised);
            }
        }
        Ok((rows, statuses))
    }

    fn assign(&self, keys: &KeyBatch, rows: &[f32]) -> Outcome<()> {
        let mut state = self.state();
        let mut rest = rows;
        for (table, key, dim) in state.parts(keys)? {
            let (embedding, after) = rest.split_at(dim);
            rest = after;
            let spec = state.spec(table)?;
            let mut row = vec![spec.optimizer.initial_state(); spec.layout().floats()];
            row[..dim].copy_from_slice(embedding);
            state.rows.insert((table, key), row);
        }
        Ok(())
    }

    fn row_count(&self, table: TableId) -> Outcome<u64> {
        Ok(self.state().rows.range((table, Key(0))..=(table, Key(u64::MAX))).count() as u64)
    }
}
