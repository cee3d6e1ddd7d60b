//! `trait Session`: all that a worker knows of a parameter server. It holds no rows and no sockets;
//! `server` implements it over the tiers in this process, [`crate::client`] over a connection.

use std::time::Duration;

use table::{
    DeviceId, DevicePlaces, KeyBatch, Limits, RowStatus, Step, StoreStatus, TableId, TableSpec,
};

use crate::{Code, Error, Result};

/// One worker's conversation with a parameter server.
///
/// A training step goes `stage`, `pull`, `push`. Stages run ahead: one thread may stage steps k+1,
/// k+2, … while another pulls and pushes step k. Steps are staged in ascending order and pulled in
/// the order they were staged.
///
/// What is exact: a pull sees every push that this session made before it, and nothing of one made
/// after it.
pub trait Session: Send + Sync {
    /// What this server allows. Known since the session opened; costs nothing.
    fn limits(&self) -> Limits;

    /// Every table of the server, in the order of their numbers.
    fn tables(&self) -> Result<Vec<(TableId, TableSpec)>>;

    /// Makes a table, or finds the one of that name. A table of that name with another
    /// specification is an error that names the field.
    fn create_table(&self, spec: &TableSpec) -> Result<TableId>;

    /// Announces the keys of a step. The server resolves each key once (in RAM, from SSD, or made
    /// anew), pins its row and remembers the plan. Returns when the request is on its way; what
    /// goes wrong later is told by the step's `pull`.
    ///
    /// The caller guarantees that `step` is greater than every step staged before it, and that no
    /// more than [`Limits::staged_steps_max`] steps are staged and neither pushed nor released;
    /// beyond it the session answers [`crate::Code::SlowDown`] and the step is not staged.
    ///
    /// [`KeyBatch::next_uses`], where the caller knows them, help the server to keep the right
    /// rows. No result depends on them.
    fn stage(&self, step: Step, keys: &KeyBatch) -> Result<()>;

    /// Gathers the rows of a staged step, waiting for its staging to end.
    ///
    /// `rows` is [Σ runs, dim of the run's table] in the order of the staged keys. It may be called
    /// more than once before the push. A row that could not be read is an error: no row is silently
    /// replaced.
    fn pull(&self, step: Step, rows: &mut [f32]) -> Result<Pulled>;

    /// As [`Self::pull`], and tells of each row where the step's staging found it: in which tier,
    /// made anew ([`RowStatus::Initialised`]), or kept out by its table's admission
    /// ([`RowStatus::NotAdmitted`]: the floats are those of its initial row, and what is pushed to
    /// it is dropped and counted). A row that could not be read is [`RowStatus::Failed`], its
    /// floats are NaN, and the step can't be pushed; the others are what they are.
    ///
    /// `statuses` is [Σ runs].
    fn pull_with_statuses(
        &self,
        step: Step,
        rows: &mut [f32],
        statuses: &mut [RowStatus],
    ) -> Result<Pulled>;

    /// Applies one gradient to each row of a staged step with its table's optimizer, then unpins
    /// the rows and forgets the step. `gradients` has the shape of the pull's `rows`.
    ///
    /// The session may return before the server has answered; an error is then told by the next
    /// `pull`, `push` or `settle`. A push with a gradient that is not finite changes no row.
    fn push(&self, step: Step, gradients: &[f32], learning_rate: f32) -> Result<()>;

    /// Unpins the rows of a staged step without a push and forgets the step.
    fn release(&self, step: Step) -> Result<()>;

    /// Waits until every push and release so far is answered, and tells the first error among them.
    fn settle(&self) -> Result<()>;

    /// Reads rows without staging: never creates, never pins, never evicts. A key never touched
    /// answers with the row its first touch would create and [`RowStatus::Initialised`]; one that
    /// can't be read, with NaN and [`RowStatus::Failed`], and the others are what they are.
    ///
    /// `rows` is shaped as for `pull`; `statuses` is [Σ runs].
    fn lookup(&self, keys: &KeyBatch, rows: &mut [f32], statuses: &mut [RowStatus]) -> Result<()>;

    /// Sets embeddings, with the optimizer state of new rows: how trained weights come in.
    /// `rows` is shaped as for `pull`. The keys must not be staged.
    fn assign(&self, keys: &KeyBatch, rows: &[f32]) -> Result<()>;

    /// Rows, bytes and counters of every table and tier.
    fn status(&self) -> Result<StoreStatus>;

    /// The device that the session's rows are on, as far as they find room there; none where they
    /// are in host RAM alone, or where rows can't be handed over on a device. Known since the
    /// session opened; costs nothing.
    fn device(&self) -> Option<DeviceId> {
        None
    }

    /// Whether [`Self::device`] is worked with in another process, so that slots are shared as
    /// [`table::DeviceSlots::Shared`].
    fn is_elsewhere(&self) -> bool {
        false
    }

    /// Says where the worker's slots lie on [`Self::device`]: once after opening, and again when
    /// they moved. No step may be pulled there and neither pushed nor released. What was said
    /// before is forgotten, and not used after this returns but by work that is under way.
    fn share_device(&self, _places: &DevicePlaces) -> Result<()> {
        Err(no_device())
    }

    /// As [`Self::pull`], into the rows of a slot that was shared. It returns when the work is
    /// ordered, not when it is done: rows are there behind the slot's `session_done`.
    fn pull_on_device(&self, _step: Step, _slot: u32) -> Result<Pulled> {
        Err(no_device())
    }

    /// As [`Self::push`], of the gradients in a slot that was shared, which are there behind the
    /// slot's `worker_done`. It returns when the work is ordered.
    ///
    /// A push with a gradient that is not finite changes no row here too. Whether one was is seen
    /// when the device has done with it, and told by the first `pull_on_device`, `push_on_device`
    /// or `settle` from then on; `settle` waits for all of them. The step is forgotten at once, all
    /// the same.
    fn push_on_device(&self, _step: Step, _slot: u32, _learning_rate: f32) -> Result<()> {
        Err(no_device())
    }
}

fn no_device() -> Error {
    let message = "this session has no rows on a device: pull and push through the host";
    Error::new(Code::InvalidArgument, message)
}

/// What a pull tells besides the rows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pulled {
    /// How long the pull had to wait for the step's staging; zero when it had ended before.
    pub stalled: Duration,
}
