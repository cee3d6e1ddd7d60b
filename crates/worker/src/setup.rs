//! From what was typed to what runs: the model, its tables at the server, how data is read. Each
//! function checks that the flags fit the data and the server; none starts a thread.

use std::num::NonZeroUsize;
use std::path::Path;

use dataset::{Labels, ReadOptions, Reader, RowSelection, Schema, Source};
use dlrm::{
    Architecture, DenseOptimizer, Found, Interaction, LearningRate, Loss, Model, Network, Place,
    device_at,
};
use table::{Admission, Expiry, Initializer, Optimizer, TableId, TableSpec};
use wire::Session;

use crate::card::{Card, Interrupted, Order, Reached, format_of};
use crate::cli::{
    ArchArgs, DataArgs, DenseOptimizerName, DeviceArgs, FeatureArgs, InteractionOp, LossFunction,
    OptimizerArgs, OptimizerName, Pooling, SavedModelArgs, TrainArgs,
};
use crate::report::Bayes;
use crate::train::Rates;
use crate::weights;
use crate::{Error, Result};

/// PyTorch's constants, so that runs agree with facebookresearch/dlrm's.
const ADAGRAD_EPS: f32 = 1e-10;
const ADAM: (f32, f32, f32) = (0.9, 0.999, 1e-8);
/// What a new model has where flags say nothing: facebookresearch/dlrm's Kaggle setting.
const SPARSE_FEATURE_SIZE: usize = 16;
const MLP_BOTTOM: &str = "13-512-256-64-16";
const MLP_TOP: &str = "512-256-1";
const SEED: u64 = 1;
/// Half the width of new rows where nothing is known of the table's size.
const UNIFORM_BOUND: f32 = 0.05;

/// A training that is ready to run.
pub(crate) struct Training {
    pub card: Card,
    pub model: Network,
    /// Where the model is computed, as the report has it.
    pub device: String,
    pub tables: Vec<TableId>,
    pub source: Source,
    pub read: ReadOptions,
    pub evaluation: Option<(Source, ReadOptions)>,
    pub rates: Rates,
    pub threads: usize,
    /// What decides which rows a step has, and the step behind which the training begins.
    pub order: Order,
    pub after: Reached,
}

/// A saved model that is ready to predict.
pub(crate) struct Inference {
    pub card: Card,
    pub model: Network,
    /// Where the model is computed, as the report has it.
    pub device: String,
    pub tables: Vec<TableId>,
    pub source: Source,
    pub read: ReadOptions,
    pub threads: usize,
}

impl Training {
    pub(crate) fn begin(args: &TrainArgs, session: &dyn Session) -> Result<Training> {
        check_lookahead(args.lookahead, session)?;
        check_expiry(args.expire_after, args.lookahead, None)?;
        if args.shuffle_window > 0
            && let Source::Cache { .. } = args.data.data
        {
            let window = args.shuffle_window;
            return Err(Error::Input(format!(
                "--shuffle-window {window}: expected 0, for the order of a cache is fixed; shuffle \
                 when it is written (dlrm-worker cache --shuffle-window {window})"
            )));
        }
        check_tests(args)?;
        let threads = threads(args.threads)?;
        let rates = rates(&args.optimizer)?;
        let mut card = match &args.load_model {
            Some(folder) => {
                let card = Card::load(folder)?;
                check_same_model(args, &card, folder)?;
                card
            }
            None => new_card(args)?,
        };
        let read = read_options(&card, &args.data, args.mini_batch_size);
        let source = args.data.source()?;
        check_schema(&dataset::open(&source, &read)?, &card, &source)?;
        let order = Order {
            data: source.to_string(),
            rows: args.data.rows,
            mini_batch_size: args.mini_batch_size,
            shuffle_window: args.shuffle_window,
        };
        let after = go_on(card.interrupted.take(), &order);
        let evaluation = evaluation(args, &card)?;
        let batch_max = match evaluation {
            Some(_) => args.mini_batch_size.max(args.test_mini_batch_size),
            None => args.mini_batch_size,
        };
        let computing = Computing::settle(&args.device)?;
        let tables = create_tables(args, &card, session)?;
        let host_max = computing.host_batch_max(batch_max);
        let mut model = match &args.load_model {
            Some(folder) => weights::load_model(folder, &card, host_max, threads)?,
            None => {
                let architecture = card.architecture.clone();
                Model::new(architecture, card.dense_optimizer, host_max, card.seed, threads)?
            }
        };
        if let Some(path) = &args.init_from {
            weights::init_from(path, &mut model, &tables, session)?;
        }
        let (model, device) = computing.take(model, batch_max)?;
        Ok(Training {
            card,
            model,
            device,
            tables,
            source,
            read,
            evaluation,
            rates,
            threads,
            order,
            after,
        })
    }
}

impl Inference {
    pub(crate) fn begin(
        args: &SavedModelArgs,
        data: &DataArgs,
        labels: Labels,
        session: &dyn Session,
    ) -> Result<Inference> {
        let threads = threads(args.threads)?;
        let card = Card::load(&args.load_model)?;
        let read = ReadOptions { labels, ..read_options(&card, data, args.test_mini_batch_size) };
        let source = data.source()?;
        check_schema(&dataset::open(&source, &read)?, &card, &source)?;
        let (computing, batch_max) = (Computing::settle(&args.device)?, args.test_mini_batch_size);
        let host_max = computing.host_batch_max(batch_max);
        let model = weights::load_model(&args.load_model, &card, host_max, threads)?;
        let (model, device) = computing.take(model, batch_max)?;
        let tables = find_tables(&card, session)?;
        Ok(Inference { card, model, device, tables, source, read, threads })
    }
}

/// Where a model will be computed, settled before any table is made.
struct Computing<'a> {
    args: &'a DeviceArgs,
    found: Found,
}

impl Computing<'_> {
    fn settle(args: &DeviceArgs) -> Result<Computing<'_>> {
        let found = device_at(args.device)?.with_code_dir(args.code_dir());
        match (args.device, found.device()) {
            (Place::Auto, None) => tracing::warn!(reason = found.about(), "computing on the cpu"),
            (_, place) => {
                let place = place.unwrap_or(Place::Cpu).to_string();
                tracing::info!(place, about = found.about(), "computing");
            }
        }
        Ok(Computing { args, found })
    }

    /// A device has memory for batches of its own.
    fn host_batch_max(&self, batch_max: usize) -> usize {
        if self.found.device().is_some() { 1 } else { batch_max }
    }

    /// The model there, and what the report says of the place.
    fn take(self, model: Model, batch_max: usize) -> Result<(Network, String)> {
        let about = match self.found.device() {
            None => "cpu".to_owned(),
            Some(place) => format!("{place}, {}", self.found.about()),
        };
        let model = Network::new(model, self.found, batch_max, self.args.options())?;
        Ok((model, about))
    }
}

/// Where a training begins: behind the last step of one that was interrupted in the same data.
fn go_on(interrupted: Option<Interrupted>, order: &Order) -> Reached {
    let Some(Interrupted { order: before, after }) = interrupted else { return Reached::default() };
    let Reached { epoch, batch } = after;
    if before == *order {
        tracing::info!(epoch, batch, "going on behind the last batch of an interrupted training");
        after
    } else {
        tracing::warn!(
            before = before.data,
            epoch,
            batch,
            "the model's training was interrupted in other data or another order: the data begins \
             at its first batch"
        );
        Reached::default()
    }
}

/// Flags that say what a model is may stand beside a saved one, and must say what it is.
fn check_same_model(args: &TrainArgs, card: &Card, folder: &Path) -> Result<()> {
    let differs = |flag: &str, found: String, expected: String| {
        let folder = folder.display();
        Err(Error::Input(format!(
            "{flag} {found}: expected {expected}, as the model in {folder} has it, or no such flag"
        )))
    };
    let TrainArgs { arch, features, optimizer, .. } = args;
    let of = &card.architecture;
    if let Some(size) = arch.arch_sparse_feature_size.filter(|&n| n != of.sparse_feature_size) {
        let (found, expected) = (size.to_string(), of.sparse_feature_size.to_string());
        return differs("--arch-sparse-feature-size", found, expected);
    }
    for (flag, text, expected) in [
        ("--arch-mlp-bot", &arch.arch_mlp_bot, &of.mlp_bottom),
        ("--arch-mlp-top", &arch.arch_mlp_top, &of.mlp_top),
    ] {
        let Some(text) = text else { continue };
        if widths(text, flag)? != *expected {
            let expected = expected.iter().map(usize::to_string).collect::<Vec<_>>().join("-");
            return differs(flag, text.clone(), expected);
        }
    }
    if arch.arch_interaction_op.is_some() || arch.arch_interaction_itself {
        let asked = interaction(arch)?;
        if asked != of.interaction {
            let (found, expected) = (format!("{asked:?}"), format!("{:?}", of.interaction));
            return differs("--arch-interaction-op", found, expected);
        }
    }
    if let Some(asked) = arch.loss_function.filter(|&name| loss(name) != of.loss) {
        return differs("--loss-function", format!("{asked:?}"), format!("{:?}", of.loss));
    }
    if optimizer.optimizer.is_some() || optimizer.dense_optimizer.is_some() {
        let asked = dense_optimizer(optimizer);
        if asked != card.dense_optimizer {
            let (found, expected) = (format!("{asked:?}"), format!("{:?}", card.dense_optimizer));
            return differs("the MLPs' optimizer", found, expected);
        }
    }
    if let Some(pooling) = features.pooling.filter(|&pooling| pooling != card.pooling) {
        return differs("--pooling", format!("{pooling:?}"), format!("{:?}", card.pooling));
    }
    if features.missing_indicator && !card.missing_indicator {
        return differs("--missing-indicator", "true".to_owned(), "none".to_owned());
    }
    if let Some(range) = features.max_ind_range.filter(|&n| Some(n) != card.max_ind_range) {
        let expected = card.max_ind_range.map_or("none".to_owned(), |range| range.to_string());
        return differs("--max-ind-range", range.to_string(), expected);
    }
    let transform = card.dense_transform.kind();
    if let Some(asked) = features.dense_transform.filter(|&asked| asked != transform) {
        return differs("--dense-transform", asked.to_string(), transform.to_string());
    }
    if let Some(text) = &arch.arch_embedding_size {
        let rows = parse_rows(text, card.tables().len())?;
        if let Some(expected) = card.embedding_rows.as_ref().filter(|expected| **expected != rows) {
            let expected = expected.iter().map(u64::to_string).collect::<Vec<_>>().join("-");
            return differs("--arch-embedding-size", text.clone(), expected);
        }
    }
    match args.seed.filter(|&seed| seed != card.seed) {
        Some(seed) => differs("--seed", seed.to_string(), card.seed.to_string()),
        None => Ok(()),
    }
}

/// The tables of a saved model at the server: each must be there, with the model's dimension.
pub(crate) fn find_tables(card: &Card, session: &dyn Session) -> Result<Vec<TableId>> {
    let there = session.tables().map_err(Error::session("list tables"))?;
    let dim = card.architecture.sparse_feature_size;
    let find = |name: &String| match there.iter().find(|(_, spec)| spec.name == *name) {
        None => Err(Error::Input(format!(
            "the parameter server has no table {name}: is --ps the one that the model was trained \
             with?"
        ))),
        Some((_, spec)) if spec.dim as usize != dim => Err(Error::Input(format!(
            "table {name} has dimension {} at the parameter server, the model expects {dim}",
            spec.dim
        ))),
        Some((id, _)) => Ok(*id),
    };
    card.tables().iter().map(find).collect()
}

/// `1460-583-...`, one for each of `tables` tables.
pub(crate) fn parse_rows(text: &str, tables: usize) -> Result<Vec<u64>> {
    let fault = |found: String| {
        Error::Input(format!(
            "--arch-embedding-size {text}: expected the rows of {tables} tables as N-N-..., found \
             {found}"
        ))
    };
    let rows: Vec<u64> = text
        .split('-')
        .map(|n| n.parse().ok().filter(|n| *n > 0).ok_or_else(|| fault(format!("{n:?}"))))
        .collect::<Result<_>>()?;
    if rows.len() == tables { Ok(rows) } else { Err(fault(format!("{}", rows.len()))) }
}

/// What the generator's own probabilities reach on the rows that were evaluated.
pub(crate) fn bayes_of(source: &Source, read: &ReadOptions) -> Result<Option<Bayes>> {
    let Source::Synthetic(spec) = source else { return Ok(None) };
    if read.batches_max.is_some() {
        return Ok(None); // a part of the rows: its best is not computed
    }
    let bayes = spec.bayes(read.rows)?;
    Ok(Some(Bayes { bayes_auc: bayes.auc, bayes_logloss: bayes.logloss }))
}

fn check_lookahead(lookahead: usize, session: &dyn Session) -> Result<()> {
    // in the queue, in the stager's hand, at the step's, and being pushed
    let (staged, max) = (lookahead as u64 + 3, u64::from(session.limits().staged_steps_max));
    if lookahead == 0 || staged > max {
        return Err(Error::Input(format!(
            "--lookahead {lookahead}: expected 1 to {}, for the server allows {max} staged steps",
            max.saturating_sub(3)
        )));
    }
    Ok(())
}

/// A row that a step ahead makes anew must not be one that a step behind still trains. `table` is
/// one that is there already.
fn check_expiry(expiry: Expiry, lookahead: usize, table: Option<&str>) -> Result<()> {
    let Expiry::Steps(steps) = expiry else { return Ok(()) };
    // from the step that is being pushed to the one in the stager's hand
    let apart = lookahead as u64 + 2;
    if u64::from(steps) < apart {
        let what = match table {
            Some(name) => format!("table {name}, whose rows expire after {steps}steps"),
            None => format!("--expire-after {steps}steps"),
        };
        return Err(Error::Input(format!(
            "{what}: expected at least {apart}steps with --lookahead {lookahead}, for so far apart \
             are steps that are under way"
        )));
    }
    Ok(())
}

fn check_tests(args: &TrainArgs) -> Result<()> {
    if let (Some(steps), None, None) = (args.test_freq, &args.eval_data, args.eval_rows) {
        let message = format!("--test-freq {steps}: expected --eval-data or --eval-rows with it");
        return Err(Error::Input(message));
    }
    match args.mlperf_auc_threshold {
        Some(auc) if !(auc > 0.0 && auc <= 1.0) => {
            let message = format!("--mlperf-auc-threshold {auc}: expected above 0, at most 1");
            Err(Error::Input(message))
        }
        _ => Ok(()),
    }
}

fn threads(asked: Option<usize>) -> Result<usize> {
    let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    match asked {
        Some(0) => Err(Error::Input("--threads 0: expected at least 1".into())),
        Some(threads) => Ok(threads),
        None => Ok(cores),
    }
}

fn rates(args: &OptimizerArgs) -> Result<Rates> {
    let rate = |base: f32, flag: &str| {
        if !base.is_finite() || base < 0.0 {
            let message = format!("{flag} {base}: expected a finite number, not negative");
            return Err(Error::Input(message));
        }
        let (warmup, start) = (args.lr_num_warmup_steps, args.lr_decay_start_step);
        Ok(LearningRate::new(base, warmup, start, args.lr_num_decay_steps)?)
    };
    let dense = rate(args.learning_rate, "--learning-rate")?;
    let tables = match args.learning_rate_tables {
        Some(base) => rate(base, "--learning-rate-tables")?,
        None => dense,
    };
    Ok(Rates { dense, tables })
}

/// How the data is read, all that its head and the flags leave open settled.
pub(crate) struct Features {
    /// With a dense transform that is fitted if it needs to be.
    pub read: ReadOptions,
    pub columns: Schema,
    /// The number of ids of each feature, where the source knows it.
    pub table_rows: Option<Vec<u64>>,
}

/// Reads the head of the data and settles how it is read; of a cache, as it was written.
pub(crate) fn settle_features(
    data: &DataArgs,
    features: &FeatureArgs,
    batch_rows: usize,
) -> Result<Features> {
    let source = &data.source()?;
    let mut read = ReadOptions {
        rows: data.rows,
        bad_rows: data.bad_rows,
        dense_columns: features.dense_columns.clone(),
        missing_indicator: features.missing_indicator,
        max_ind_range: features.max_ind_range,
        weights: features.pooling == Some(Pooling::Weighted),
        ..ReadOptions::new(batch_rows)
    };
    if let Source::Cache { path } = source {
        let card = dataset::cache_card(path)?;
        let written = card.dense_transform.kind();
        if let Some(asked) = features.dense_transform.filter(|asked| *asked != written) {
            return Err(Error::Input(format!(
                "--dense-transform {asked}: {source} was written with {written}"
            )));
        }
        read.dense_transform = card.dense_transform;
        read.missing_indicator |= card.missing_indicator;
        read.max_ind_range = read.max_ind_range.or(card.max_ind_range);
    }
    let reader = dataset::open(source, &read)?; // of a cache, it refuses what still differs
    let (columns, table_rows) = (reader.schema().clone(), reader.table_rows().map(<[u64]>::to_vec));
    if !matches!(source, Source::Cache { .. }) {
        let transform = features.dense_transform.unwrap_or(source.usual_transform());
        read.dense_transform = dataset::fit_transform(source, &read, transform)?;
    }
    Ok(Features { read, columns, table_rows })
}

/// Reads the head of the data and settles what the model is.
fn new_card(args: &TrainArgs) -> Result<Card> {
    let Features { read, columns, table_rows } =
        settle_features(&args.data, &args.features, args.mini_batch_size)?;
    let tables = columns.categorical.len();
    let architecture = architecture(&args.arch, tables)?;
    let known = match read.max_ind_range {
        Some(range) => Some(vec![range; tables]),
        None => table_rows,
    };
    let embedding_rows = embedding_rows(args, known, &architecture, tables)?;
    let pooling = args.features.pooling.unwrap_or_default();
    Ok(Card {
        format: format_of(pooling),
        architecture,
        columns,
        dense_transform: read.dense_transform,
        missing_indicator: read.missing_indicator,
        max_ind_range: read.max_ind_range,
        pooling,
        embedding_rows,
        dense_optimizer: dense_optimizer(&args.optimizer),
        seed: args.seed.unwrap_or(SEED),
        steps: 0,
        interrupted: None,
    })
}

fn architecture(args: &ArchArgs, features: usize) -> Result<Architecture> {
    let (bottom, top) = (args.arch_mlp_bot.as_deref(), args.arch_mlp_top.as_deref());
    let architecture = Architecture {
        sparse_feature_size: args.arch_sparse_feature_size.unwrap_or(SPARSE_FEATURE_SIZE),
        features,
        mlp_bottom: widths(bottom.unwrap_or(MLP_BOTTOM), "--arch-mlp-bot")?,
        mlp_top: widths(top.unwrap_or(MLP_TOP), "--arch-mlp-top")?,
        interaction: interaction(args)?,
        loss: args.loss_function.map_or(Loss::Bce, loss),
    };
    architecture.validate()?;
    Ok(architecture)
}

fn widths(text: &str, flag: &str) -> Result<Vec<usize>> {
    dlrm::parse_widths(text).map_err(|error| Error::Input(format!("{flag} {text}: {error}")))
}

fn interaction(args: &ArchArgs) -> Result<Interaction> {
    match (args.arch_interaction_op, args.arch_interaction_itself) {
        (None | Some(InteractionOp::Dot), false) => Ok(Interaction::Dot),
        (None | Some(InteractionOp::Dot), true) => Ok(Interaction::DotWithItself),
        (Some(InteractionOp::Cat), false) => Ok(Interaction::Cat),
        (Some(InteractionOp::Cat), true) => {
            let message = "--arch-interaction-itself goes with --arch-interaction-op dot";
            Err(Error::Input(message.into()))
        }
    }
}

fn loss(name: LossFunction) -> Loss {
    match name {
        LossFunction::Bce => Loss::Bce,
        LossFunction::Mse => Loss::Mse,
    }
}

/// Rows of each table: as given, as the weights to start from have them, or as the data tells.
fn embedding_rows(
    args: &TrainArgs,
    known: Option<Vec<u64>>,
    architecture: &Architecture,
    tables: usize,
) -> Result<Option<Vec<u64>>> {
    if let Some(text) = &args.arch.arch_embedding_size {
        return Ok(Some(parse_rows(text, tables)?));
    }
    if let Some(path) = &args.init_from {
        let dim = architecture.sparse_feature_size;
        return Ok(Some(weights::embedding_rows(path, tables, dim)?));
    }
    Ok(known)
}

fn dense_optimizer(args: &OptimizerArgs) -> DenseOptimizer {
    let (beta1, beta2, eps) = ADAM;
    let adam = DenseOptimizer::Adam { beta1, beta2, eps };
    let adagrad = DenseOptimizer::Adagrad { eps: ADAGRAD_EPS };
    match (args.dense_optimizer, args.optimizer) {
        (Some(DenseOptimizerName::Sgd), _) => DenseOptimizer::Sgd,
        (Some(DenseOptimizerName::Adagrad), _) => adagrad,
        (Some(DenseOptimizerName::Adam), _) => adam,
        (None, None | Some(OptimizerName::Sgd | OptimizerName::Rwsadagrad)) => DenseOptimizer::Sgd,
        (None, Some(OptimizerName::Adagrad)) => adagrad,
        (None, Some(OptimizerName::Adam)) => adam,
    }
}

fn table_optimizer(name: OptimizerName) -> Optimizer {
    let (eps, initial_accumulator) = (ADAGRAD_EPS, 0.0);
    let (beta1, beta2, adam_eps) = ADAM;
    match name {
        OptimizerName::Sgd => Optimizer::Sgd,
        OptimizerName::Adagrad => Optimizer::Adagrad { eps, initial_accumulator },
        OptimizerName::Rwsadagrad => Optimizer::RowWiseAdagrad { eps, initial_accumulator },
        OptimizerName::Adam => Optimizer::Adam { beta1, beta2, eps: adam_eps },
    }
}

fn initializer(asked: Option<&str>, rows: Option<u64>) -> Result<Initializer> {
    let fault = |text: &str, why: &str| {
        Error::Input(format!(
            "--embedding-init {text}: {why}; expected by-rows, uniform:BOUND, normal:STD or zeros"
        ))
    };
    let Some(text) = asked else {
        return Ok(match rows {
            Some(rows) => Initializer::UniformByRows { rows },
            None => Initializer::Uniform { bound: UNIFORM_BOUND },
        });
    };
    let (name, number) = text.split_once(':').map_or((text, None), |(n, x)| (n, Some(x)));
    let number = number.map(|x| x.parse().map_err(|_| fault(text, "not a number"))).transpose()?;
    match (name, number, rows) {
        ("by-rows", None, Some(rows)) => Ok(Initializer::UniformByRows { rows }),
        ("by-rows", None, None) => Err(fault(text, "it needs --arch-embedding-size")),
        ("uniform", Some(bound), _) => Ok(Initializer::Uniform { bound }),
        ("normal", Some(std), _) => Ok(Initializer::Normal { mean: 0.0, std }),
        ("zeros", None, _) => Ok(Initializer::Zeros),
        _ => Err(fault(text, "not an initialiser")),
    }
}

fn create_tables(args: &TrainArgs, card: &Card, session: &dyn Session) -> Result<Vec<TableId>> {
    if args.load_model.is_some() {
        let tables = find_tables(card, session)?;
        check_same_tables(args, card, &tables, session)?;
        return Ok(tables);
    }
    let dim = u32::try_from(card.architecture.sparse_feature_size).unwrap_or(u32::MAX);
    let create = |(t, name): (usize, &String)| {
        let rows = card.embedding_rows.as_ref().map(|rows| rows[t]);
        let optimizer = args.optimizer.optimizer.map_or(Optimizer::Sgd, table_optimizer);
        let initializer = initializer(args.arch.embedding_init.as_deref(), rows)?;
        let spec = TableSpec {
            admission: args.admit_after.map_or(Admission::FirstSight, Admission::AfterSights),
            expiry: args.expire_after,
            ..TableSpec::new(name, dim, optimizer, initializer, card.seed)
        };
        session.create_table(&spec).map_err(Error::session(format_args!("create table {name}")))
    };
    card.tables().iter().enumerate().map(create).collect()
}

/// What flags say of a saved model's tables must be what they are at the server.
fn check_same_tables(
    args: &TrainArgs,
    card: &Card,
    tables: &[TableId],
    session: &dyn Session,
) -> Result<()> {
    let there = session.tables().map_err(Error::session("list tables"))?;
    for (t, id) in tables.iter().enumerate() {
        let Some((_, spec)) = there.iter().find(|(other, _)| other == id) else { continue };
        let differs = |flag: &str, found: String, expected: String| {
            let name = &spec.name;
            Err(Error::Input(format!(
                "{flag} {found}: table {name} has {expected} at the parameter server; give no such \
                 flag, or that"
            )))
        };
        if let Some(name) = args.optimizer.optimizer
            && table_optimizer(name) != spec.optimizer
        {
            return differs("--optimizer", format!("{name:?}"), format!("{:?}", spec.optimizer));
        }
        check_expiry(spec.expiry, args.lookahead, Some(&spec.name))?;
        let rows = card.embedding_rows.as_ref().map(|rows| rows[t]);
        if let Some(text) = &args.arch.embedding_init
            && initializer(Some(text), rows)? != spec.initializer
        {
            return differs("--embedding-init", text.clone(), format!("{:?}", spec.initializer));
        }
    }
    Ok(())
}

fn read_options(card: &Card, data: &DataArgs, batch_rows: usize) -> ReadOptions {
    ReadOptions {
        rows: data.rows,
        bad_rows: data.bad_rows,
        batches_max: data.num_batches,
        schema: Some(card.columns.clone()),
        dense_transform: card.dense_transform.clone(),
        missing_indicator: card.missing_indicator,
        max_ind_range: card.max_ind_range,
        weights: card.pooling == Pooling::Weighted,
        ..ReadOptions::new(batch_rows)
    }
}

fn evaluation(args: &TrainArgs, card: &Card) -> Result<Option<(Source, ReadOptions)>> {
    let source = match (&args.eval_data, args.eval_rows) {
        (None, None) => return Ok(None),
        // the flags of generated rows are for generated data: other test data is as it is
        (Some(source @ Source::Synthetic(_)), _) => args.data.lookups.apply(source)?,
        (Some(source), _) => source.clone(),
        (None, Some(_)) => args.data.source()?,
    };
    let mut read = read_options(card, &args.data, args.test_mini_batch_size);
    read.rows = args.eval_rows.unwrap_or(RowSelection::All);
    read.batches_max = None;
    Ok(Some((source, read)))
}

/// The data must have the model's columns, and its dense width the bottom MLP's.
fn check_schema(reader: &Reader, card: &Card, source: &Source) -> Result<()> {
    let columns = reader.schema();
    if *columns != card.columns {
        return Err(Error::Input(format!(
            "{source}: its columns are {columns:?}, the model's are {:?}",
            card.columns
        )));
    }
    let (width, expected) = (reader.dense_width(), card.architecture.mlp_bottom[0]);
    if width != expected {
        return Err(Error::Input(format!(
            "--arch-mlp-bot begins with {expected}, the data has {width} dense inputs{}",
            if card.missing_indicator { " (indicators for missing values included)" } else { "" }
        )));
    }
    Ok(())
}
