//! Sessions held to what every store of rows must do: in this process, over TCP and over a unix
//! socket, with RAM for all rows and with RAM that rows come and go in.

use std::any::Any;
use std::cell::Cell;
use std::sync::Arc;

use server::{EmbeddedConfig, Server, Size};
use table::{KeyBatch, RowStatus, Step, TableId, TableSpec};
use tempfile::TempDir;
use testkit::{Outcome, RowStore, check_contract};
use wire::{Endpoint, Session};

use crate::{HOST_RAM_BYTES, connect, start, tcp, toml, unix};

/// Three times the least that a store takes: less than the rows of the contract's tables.
const FEW_BYTES: u64 = 3 * tiers::StoreConfig::HOST_RAM_BYTES_MIN;

/// A session as a store of rows. Fields are dropped in their order.
struct Rows {
    session: Arc<dyn Session>,
    next: Cell<u64>,
    _host: Box<dyn Any>, // what the session is of
    _dir: TempDir,
}

/// A step of a session.
struct Staged {
    session: Arc<dyn Session>,
    step: Step,
    keys: KeyBatch,
    statuses: Vec<RowStatus>,
    pushed: Cell<bool>,
}

impl Drop for Staged {
    fn drop(&mut self) {
        if !self.pushed.get() {
            self.session.release(self.step).unwrap();
        }
    }
}

impl Rows {
    fn new(dir: TempDir, session: Arc<dyn Session>, host: impl Any) -> Self {
        Self { session, next: Cell::new(0), _host: Box::new(host), _dir: dir }
    }

    fn here(host_ram_bytes: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = EmbeddedConfig::new(dir.path().join("rows"), host_ram_bytes);
        let embedded = server::open_embedded(config).unwrap();
        Self::new(dir, embedded.session(), embedded)
    }

    fn there(host_ram_bytes: u64, endpoint: fn(&Server) -> Endpoint) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let server =
            start(server::ConfigToml { host_ram: Size(host_ram_bytes), ..toml(dir.path()) });
        let session = Arc::new(connect(&endpoint(&server)));
        Self::new(dir, session, server)
    }

    /// Room for the rows of these keys; a float for each of a table that nobody made.
    fn floats(&self, keys: &KeyBatch) -> Outcome<Vec<f32>> {
        let tables = self.session.tables()?;
        let dim = |id: TableId| tables.get(id.0 as usize).map_or(1, |(_, spec)| spec.dim as usize);
        let floats = keys.runs().map(|(table, range)| range.len() * dim(table)).sum();
        Ok(vec![f32::NAN; floats])
    }
}

impl RowStore for Rows {
    type Staged = Staged;

    fn create_table(&self, spec: &TableSpec) -> Outcome<TableId> {
        Ok(self.session.create_table(spec)?)
    }

    fn stage(&self, keys: &KeyBatch) -> Outcome<Staged> {
        let step = Step(self.next.replace(self.next.get() + 1));
        self.session.stage(step, keys)?;
        let mut staged = Staged {
            session: Arc::clone(&self.session),
            step,
            keys: keys.clone(),
            statuses: vec![RowStatus::Failed; keys.len()],
            pushed: Cell::new(false),
        };
        // what went wrong with a stage is told by its pull
        let mut rows = self.floats(keys)?;
        self.session.pull_with_statuses(step, &mut rows, &mut staged.statuses)?;
        Ok(staged)
    }

    fn statuses(&self, staged: &Staged) -> Vec<RowStatus> {
        staged.statuses.clone()
    }

    /// A session forgets a step that is pushed: then the rows are looked up.
    fn pull(&self, staged: &Staged) -> Outcome<Vec<f32>> {
        if staged.pushed.get() {
            return Ok(self.lookup(&staged.keys)?.0);
        }
        let mut rows = self.floats(&staged.keys)?;
        self.session.pull(staged.step, &mut rows)?;
        Ok(rows)
    }

    fn push(&self, staged: &Staged, gradients: &[f32], learning_rate: f32) -> Outcome<()> {
        self.session.push(staged.step, gradients, learning_rate)?;
        self.session.settle()?; // which tells what the push did not wait for
        staged.pushed.set(true);
        Ok(())
    }

    fn lookup(&self, keys: &KeyBatch) -> Outcome<(Vec<f32>, Vec<RowStatus>)> {
        let (mut rows, mut statuses) = (self.floats(keys)?, vec![RowStatus::Failed; keys.len()]);
        self.session.lookup(keys, &mut rows, &mut statuses)?;
        Ok((rows, statuses))
    }

    fn assign(&self, keys: &KeyBatch, rows: &[f32]) -> Outcome<()> {
        Ok(self.session.assign(keys, rows)?)
    }

    fn row_count(&self, table: TableId) -> Outcome<u64> {
        Ok(self.session.status()?.tables[table.0 as usize].rows)
    }
}

#[test]
fn a_session_in_this_process_keeps_the_contract() {
    for host_ram_bytes in [HOST_RAM_BYTES, FEW_BYTES] {
        check_contract(|| Rows::here(host_ram_bytes));
    }
}

#[test]
fn a_session_over_tcp_keeps_the_contract() {
    for host_ram_bytes in [HOST_RAM_BYTES, FEW_BYTES] {
        check_contract(|| Rows::there(host_ram_bytes, tcp));
    }
}

#[test]
fn a_session_over_a_unix_socket_keeps_the_contract() {
    for host_ram_bytes in [HOST_RAM_BYTES, FEW_BYTES] {
        check_contract(|| Rows::there(host_ram_bytes, unix));
    }
}
