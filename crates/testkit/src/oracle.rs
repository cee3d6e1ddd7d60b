//! The store as it would be if memory were endless: a map from (table, key) to the row. It caches,
//! evicts and persists nothing; what it answers is right by inspection.

use std::collections::BTreeMap;
use std::sync::Mutex;

use table::{Admission, Expiry, Key, KeyBatch, RowStatus, TableId, TableSpec};

use crate::contract::{Outcome, RowStore};

/// Tables and rows in ordered maps.
#[derive(Debug, Default)]
pub struct OracleStore {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    tables: Vec<TableSpec>,
    rows: BTreeMap<(TableId, Key), Row>,
    sights: BTreeMap<(TableId, Key), u32>, // of keys that had no row
    stages: u64,                           // the clock of expiry
}

#[derive(Debug, Clone)]
struct Row {
    floats: Vec<f32>, // embedding and state
    staged: u64,      // when last
}

/// A staged step: its keys, and where their rows were.
#[derive(Debug, Clone)]
pub struct OracleStaged {
    keys: KeyBatch,
    statuses: Vec<RowStatus>,
}

impl OracleStore {
    /// A store without tables.
    pub fn new() -> Self {
        Self::default()
    }

    /// The whole row of a key, embedding and state, if it was ever touched.
    pub fn row(&self, table: TableId, key: Key) -> Option<Vec<f32>> {
        self.state().rows.get(&(table, key)).map(|row| row.floats.clone())
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

    /// Whether a row that was staged then counts as never touched now.
    fn is_expired(&self, spec: &TableSpec, row: &Row) -> bool {
        match spec.expiry {
            Expiry::Never => false,
            Expiry::Steps(most) => self.stages - row.staged > u64::from(most),
            Expiry::Seconds(_) => panic!("the oracle has no clock of seconds"),
        }
    }

    /// The embedding of a key without an update.
    fn initial(spec: &TableSpec, key: Key) -> Vec<f32> {
        let mut embedding = vec![0.0; spec.dim as usize];
        spec.initial_embedding(key, &mut embedding);
        embedding
    }

    /// Finds a key's row or makes it, as its table admits it.
    fn touch(&mut self, table: TableId, key: Key) -> Outcome<RowStatus> {
        let spec = self.spec(table)?;
        let staged = self.stages;
        let there = self.rows.get(&(table, key)).map(|row| !self.is_expired(&spec, row));
        if there == Some(true) {
            self.rows.get_mut(&(table, key)).ok_or("a row is gone")?.staged = staged;
            return Ok(RowStatus::Host);
        }
        if let (None, Admission::AfterSights(least)) = (there, spec.admission) {
            let sights = self.sights.entry((table, key)).or_default();
            *sights += 1;
            if *sights < least {
                return Ok(RowStatus::NotAdmitted);
            }
        }
        let mut floats = vec![0.0; spec.layout().floats()];
        spec.initial_row(key, &mut floats);
        self.rows.insert((table, key), Row { floats, staged });
        Ok(RowStatus::Initialised)
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
        let parts = state.parts(keys)?;
        state.stages += 1;
        let statuses = parts.into_iter().map(|(table, key, _)| state.touch(table, key));
        Ok(OracleStaged { statuses: statuses.collect::<Outcome<_>>()?, keys: keys.clone() })
    }

    fn statuses(&self, staged: &OracleStaged) -> Vec<RowStatus> {
        staged.statuses.clone()
    }

    fn pull(&self, staged: &OracleStaged) -> Outcome<Vec<f32>> {
        let state = self.state();
        let mut rows = Vec::new();
        let parts = state.parts(&staged.keys)?;
        for ((table, key, dim), status) in parts.into_iter().zip(&staged.statuses) {
            if *status == RowStatus::NotAdmitted {
                rows.extend(State::initial(&state.spec(table)?, key));
            } else {
                rows.extend_from_slice(&state.rows[&(table, key)].floats[..dim]);
            }
        }
        Ok(rows)
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
        for ((table, key, dim), status) in parts.into_iter().zip(&staged.statuses) {
            let (gradient, after) = rest.split_at(dim);
            rest = after;
            if *status == RowStatus::NotAdmitted {
                continue;
            }
            let optimizer = state.spec(table)?.optimizer;
            let row = state.rows.get_mut(&(table, key)).ok_or("a staged row is missing")?;
            optim::update_row(&optimizer, &mut row.floats, gradient, learning_rate);
        }
        Ok(())
    }

    fn lookup(&self, keys: &KeyBatch) -> Outcome<(Vec<f32>, Vec<RowStatus>)> {
        let state = self.state();
        let (mut rows, mut statuses) = (Vec::new(), Vec::new());
        for (table, key, dim) in state.parts(keys)? {
            let spec = state.spec(table)?;
            let row = state.rows.get(&(table, key)).filter(|row| !state.is_expired(&spec, row));
            if let Some(row) = row {
                rows.extend_from_slice(&row.floats[..dim]);
                statuses.push(RowStatus::Host);
            } else {
                rows.extend(State::initial(&spec, key));
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
            let mut floats = vec![spec.optimizer.initial_state(); spec.layout().floats()];
            floats[..dim].copy_from_slice(embedding);
            let staged = state.stages;
            state.rows.insert((table, key), Row { floats, staged });
        }
        Ok(())
    }

    fn row_count(&self, table: TableId) -> Outcome<u64> {
        Ok(self.state().rows.range((table, Key(0))..=(table, Key(u64::MAX))).count() as u64)
    }
}
