//! The command line as typed, in the words of facebookresearch/dlrm. It checks the form of each
//! flag; what flags mean together is settled in `setup`.

use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand, ValueEnum};
use dataset::{BadRows, DenseColumns, Lookups, RowSelection, Source, TransformKind};
use dlrm::{DeviceOptions, Place, Precision};
use serde::{Deserialize, Serialize};
use table::{Admission, Expiry, units};

/// Trains and runs a DLRM whose embedding tables live in embedding-ps.
#[derive(Debug, Parser)]
#[command(name = "dlrm-worker", version, after_help = EXAMPLES)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const EXAMPLES: &str = "\
Examples:
  Train on a tab-separated file with a header, tables under 16 MiB of RAM, then evaluate:
    dlrm-worker train --ps embedded:runs/ps --host-ram 16MiB --data tsv:flights.tsv.gz \\
        --dense-columns 13 --dense-transform standard --rows train --eval-rows test \\
        --shuffle-window 300000 \\
        --arch-mlp-bot 13-64-16 --arch-mlp-top 128-64-1 --optimizer rwsadagrad \\
        --learning-rate 0.05 --save-model runs/model
  Predict with what was trained:
    dlrm-worker predict --ps embedded:runs/ps --load-model runs/model \\
        --data tsv:flights.tsv.gz --rows test --output runs/probabilities.txt
  Parse once, train often: no text is parsed again, and the server learns when keys come back:
    dlrm-worker cache --data criteo:day_0.gz --mini-batch-size 2048 --output day_0.cache
    dlrm-worker train --ps embedded:runs/ps --data cache:day_0.cache --mini-batch-size 2048 \\
        --nepochs 3
  Lists of ids (multi-hot), generated in MLPerf's sizes, each list pooled to its mean:
    dlrm-worker train --ps embedded:runs/ps --data synthetic:rows=100000 \\
        --multi-hot-sizes mlperf --pooling mean
  Criteo's own files, as facebookresearch/dlrm trains them, through a server:
    embedding-ps --data-dir /data/ps --host-ram 8GiB &
    dlrm-worker train --ps http://127.0.0.1:7070 --data criteo:day_0.gz \\
        --arch-mlp-bot 13-512-256-64-16 --arch-mlp-top 512-256-1 --mini-batch-size 2048";

/// What the worker does.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Train on data; then, with --eval-data or --eval-rows, evaluate.
    Train(Box<TrainArgs>),
    /// Evaluate a trained model: AUC, logloss, accuracy.
    Eval(EvalArgs),
    /// Write a probability for each row, in input order.
    Predict(PredictArgs),
    /// Write the whole model as safetensors under facebookresearch/dlrm's names.
    Export(ExportArgs),
    /// Parse data once into a binary file of batches, for training with --data cache:PATH.
    Cache(CacheArgs),
    /// Write a file of generated Criteo-like data and tell what the best model could reach on it.
    Generate(GenerateArgs),
}

/// Where the tables are.
#[derive(Debug, Args)]
pub struct PsArgs {
    /// The parameter server: embedded:DIR | http://HOST:PORT | unix:PATH
    #[arg(long, value_name = "ENDPOINT")]
    pub ps: String,
    /// Bytes of host RAM for rows and their index (embedded only)
    #[arg(long, default_value = "1GiB", value_parser = units::parse_bytes)]
    pub host_ram: u64,
    /// Bytes of RAM for RocksDB's block cache and the rows that left RAM last (embedded only)
    #[arg(long, default_value = "64MiB", value_parser = units::parse_bytes)]
    pub ssd_memory: u64,
    /// GPU memory for rows, taken at start, on the GPU that --device names: it is refused without
    /// one, for rows there are for a network that is computed there; 0: none (embedded only)
    #[arg(long, value_name = "SIZE", default_value = "0", value_parser = units::parse_bytes)]
    pub gpu_cache: u64,
    /// What may be written to files on SSD a second, merging included, such as 200MiB/s, or off: as
    /// fast as the device takes it; the log of `--durability log` comes on top (embedded only)
    #[arg(long, value_name = "RATE", default_value = "off", value_parser = parse_rate)]
    pub ssd_write_rate: Rate,
    /// Threads that read rows from SSD (embedded only)
    #[arg(long, value_name = "N", default_value_t = 16)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub ssd_read_threads: u32,
    /// When a row that left RAM is safe from a crash: at a clean end, or from a moment after it
    /// left (embedded only)
    #[arg(long, value_enum, default_value = "flush")]
    pub durability: Safety,
    /// Lock rows in physical memory, so that the system can't swap them out (embedded only)
    #[arg(long)]
    pub lock_memory: bool,
}

/// `--ssd-write-rate`: bytes a second, or no bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate(pub Option<u64>);

fn parse_rate(text: &str) -> Result<Rate, table::Error> {
    units::parse_rate(text).map(Rate)
}

/// `--durability`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Safety {
    /// From the next flush or clean end on.
    Flush,
    /// From a moment after it left RAM on: each row goes through a log. It outlives the process,
    /// and is not waited for until the device has it.
    Log,
}

/// Which rows to read, and how.
#[derive(Debug, Args)]
pub struct DataArgs {
    /// criteo:PATH[.gz] | tsv:PATH[.gz] (with a header) | parquet:PATH | synthetic:NAME=VALUE,... |
    /// cache:PATH, as `dlrm-worker cache` wrote it; its batches, order and columns are fixed
    #[arg(long)]
    pub data: Source,
    /// all, or one part of the ten-bucket split: train (buckets 0-7) | valid (8) | test (9)
    #[arg(long, default_value = "all")]
    pub rows: RowSelection,
    /// Stop after so many batches
    #[arg(long)]
    pub num_batches: Option<u64>,
    /// Malformed rows: "error", or "skip:N" to count and pass over up to N
    #[arg(long, default_value = "error")]
    pub bad_rows: BadRows,
    /// How many ids generated rows have.
    #[command(flatten)]
    pub lookups: LookupArgs,
}

/// How many ids of a feature generated rows have; for `synthetic:` alone.
#[derive(Debug, Args)]
pub struct LookupArgs {
    /// Generated data: ids of each feature in a row, a random number from 1 to this
    #[arg(long, value_name = "N")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=i64::from(Lookups::MAX)))]
    pub num_indices_per_lookup: Option<u32>,
    /// Generated data: exactly --num-indices-per-lookup ids, not a random number
    #[arg(long, value_name = "BOOL", requires = "num_indices_per_lookup")]
    #[arg(num_args = 0..=1, default_missing_value = "true")]
    #[arg(value_parser = clap::builder::BoolishValueParser::new())]
    pub num_indices_per_lookup_fixed: Option<bool>,
    /// Generated data: for each feature as many ids as a data set has. mlperf: 1 to 100, as in
    /// MLPerf's multi-hot Criteo data, 214 in all
    #[arg(long, conflicts_with = "num_indices_per_lookup")]
    pub multi_hot_sizes: Option<MultiHotSizes>,
}

/// `--multi-hot-sizes`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum MultiHotSizes {
    /// 3,2,1,2,6,1,1,1,1,7,3,8,1,6,9,5,1,1,1,12,100,27,10,3,1,1
    Mlperf,
}

/// How columns become features. Kept with the model, so only `train` asks.
#[derive(Debug, Args)]
pub struct FeatureArgs {
    /// Dense columns of a file with a header: how many follow the label, or their names with commas
    /// "auto" for those named I1, I2, ...
    #[arg(long, default_value = "auto", value_name = "N|NAMES|auto")]
    pub dense_columns: DenseColumns,
    /// none | log1p | signed-log1p | standard | signed-log1p+standard
    /// [default: log1p for Criteo data, none otherwise]
    #[arg(long)]
    pub dense_transform: Option<TransformKind>,
    /// Add, for each dense column, one that is 1 where the value is missing
    #[arg(long)]
    pub missing_indicator: bool,
    /// Take categorical ids modulo this, as facebookresearch/dlrm does; else keys have 64 bits
    #[arg(long, value_name = "N")]
    pub max_ind_range: Option<u64>,
    /// How the rows of a list of ids become one vector. weighted: each times its weight, from
    /// columns of numbers named as their feature with _weights behind it (Parquet: C1_weights)
    /// [default: sum]
    #[arg(long)]
    pub pooling: Option<Pooling>,
}

/// `--pooling`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pooling {
    /// Their sum.
    #[default]
    Sum,
    /// Their sum, divided by how many they are.
    Mean,
    /// The sum of each times its weight.
    Weighted,
}

/// The network.
#[derive(Debug, Args)]
pub struct ArchArgs {
    /// Floats in an embedding row [default: 16]
    #[arg(long, value_name = "N")]
    pub arch_sparse_feature_size: Option<usize>,
    /// Rows of each table, 1460-583-...: for initialisation by rows, and for export
    #[arg(long, value_name = "N-N-...")]
    pub arch_embedding_size: Option<String>,
    /// Bottom MLP: the number of dense inputs first, the embedding's size last
    /// [default: 13-512-256-64-16]
    #[arg(long, value_name = "N-N-...")]
    pub arch_mlp_bot: Option<String>,
    /// Top MLP: its input's width follows from the interaction and is left out [default: 512-256-1]
    #[arg(long, value_name = "N-N-...")]
    pub arch_mlp_top: Option<String>,
    /// How features meet [default: dot]
    #[arg(long)]
    pub arch_interaction_op: Option<InteractionOp>,
    /// With dot: each vector with itself too
    #[arg(long)]
    pub arch_interaction_itself: bool,
    /// The loss [default: bce]
    #[arg(long)]
    pub loss_function: Option<LossFunction>,
    /// New rows: by-rows (±sqrt(1/rows)) | uniform:BOUND | normal:STD | zeros
    /// [default: by-rows where the tables' rows are known, else uniform:0.05]
    #[arg(long)]
    pub embedding_init: Option<String>,
}

/// How the weights move.
#[derive(Debug, Args)]
pub struct OptimizerArgs {
    /// The optimizer; rwsadagrad trains the MLPs with SGD, as facebookresearch/dlrm does
    /// [default: sgd]
    #[arg(long)]
    pub optimizer: Option<OptimizerName>,
    /// The optimizer of the MLPs, if another
    #[arg(long)]
    pub dense_optimizer: Option<DenseOptimizerName>,
    /// Learning rate
    #[arg(long, default_value_t = 0.1)]
    pub learning_rate: f32,
    /// Learning rate of the tables, if another
    #[arg(long)]
    pub learning_rate_tables: Option<f32>,
    /// Steps of linear warm-up
    #[arg(long, default_value_t = 0)]
    pub lr_num_warmup_steps: u64,
    /// First step of the quadratic decay
    #[arg(long, default_value_t = 0)]
    pub lr_decay_start_step: u64,
    /// Steps of decay; 0 for none
    #[arg(long, default_value_t = 0)]
    pub lr_num_decay_steps: u64,
}

/// Where the network is computed.
#[derive(Debug, Args)]
pub struct DeviceArgs {
    /// cpu | cuda[:N] | auto: the first CUDA device where there is one with NVRTC and cuBLASLt,
    /// else the CPU
    #[arg(long, value_name = "PLACE", default_value = "cpu")]
    pub device: Place,
    /// In which numbers a device makes matrix products; all else is f32 on both
    #[arg(long, value_enum, default_value = "f32")]
    pub precision: ProductPrecision,
    /// Order a device's work piece by piece in every step, not as one CUDA graph
    #[arg(long)]
    pub no_cuda_graph: bool,
    /// Keep the code that is compiled for a device in this folder, that of an embedded store's GPU
    /// memory too [default: embedding-ps/kernels among this user's caches]
    #[arg(long, value_name = "DIR")]
    pub gpu_code_dir: Option<PathBuf>,
}

impl DeviceArgs {
    /// The folder that keeps compiled code, if there is any.
    pub(crate) fn code_dir(&self) -> Option<PathBuf> {
        self.gpu_code_dir.clone().or_else(dlrm::usual_code_dir)
    }
}

/// `--precision`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ProductPrecision {
    /// 32-bit floats.
    F32,
    /// 32-bit floats, of which 10 bits of fraction are multiplied.
    Tf32,
    /// 16-bit brain floats, summed in 32 bits.
    Bf16,
}

/// `dlrm-worker train`.
#[derive(Debug, Args)]
pub struct TrainArgs {
    /// Where the tables are.
    #[command(flatten)]
    pub ps: PsArgs,
    /// What to train on.
    #[command(flatten)]
    pub data: DataArgs,
    /// What to evaluate on afterwards [default: --data, if --eval-rows is given]
    #[arg(long)]
    pub eval_data: Option<Source>,
    /// Which of its rows
    #[arg(long)]
    pub eval_rows: Option<RowSelection>,
    /// How columns become features.
    #[command(flatten)]
    pub features: FeatureArgs,
    /// The network.
    #[command(flatten)]
    pub arch: ArchArgs,
    /// How the weights move.
    #[command(flatten)]
    pub optimizer: OptimizerArgs,
    /// Where the network is computed.
    #[command(flatten)]
    pub device: DeviceArgs,
    /// Rows in a step
    #[arg(long, default_value_t = 2048)]
    pub mini_batch_size: usize,
    /// Rows in a batch of evaluation
    #[arg(long, default_value_t = 16384)]
    pub test_mini_batch_size: usize,
    /// Shuffle rows within windows of so many (as many as the data has: shuffle it whole); 0 keeps
    /// the order of the data
    #[arg(long, default_value_t = 0, value_name = "ROWS")]
    pub shuffle_window: usize,
    /// Passes over the data
    #[arg(long, default_value_t = 1)]
    pub nepochs: u64,
    /// Steps staged ahead of the one that computes, their rows held in RAM. More ride out a slower
    /// SSD; fewer leave more of the RAM to rows that are worth keeping
    #[arg(long, default_value_t = 8)]
    pub lookahead: usize,
    /// Evaluate after every so many steps of an epoch, and at its end. With --save-model
    /// FILE.safetensors the model that had the best AUC is the one saved; a folder always has the
    /// end, as the server's rows do
    #[arg(long, value_name = "STEPS")]
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    pub test_freq: Option<u64>,
    /// Tell the mean loss and the time of a step after every so many steps of an epoch, at its end
    /// and before each test, on standard error
    #[arg(long, value_name = "STEPS")]
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    pub print_freq: Option<u64>,
    /// End the training once an evaluation by --test-freq has an AUC above this
    #[arg(long, value_name = "AUC", requires = "test_freq")]
    pub mlperf_auc_threshold: Option<f64>,
    /// Give a key its row the N-th time that it is seen, 1 to 15; until then it has the floats of a
    /// new row and learns nothing. Without it, the first time
    #[arg(long, value_name = "N", conflicts_with = "load_model")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=i64::from(Admission::SIGHTS_MAX)))]
    pub admit_after: Option<u32>,
    /// Forget a row that no step has named for so many steps or so long: 1000000steps, 7d, 12h,
    /// 90s; at least two steps more than --lookahead
    #[arg(long, value_name = "AGE", default_value = "never", conflicts_with = "load_model")]
    pub expire_after: Expiry,
    /// Start from these weights (safetensors under facebookresearch/dlrm's names)
    #[arg(long, value_name = "FILE", conflicts_with = "load_model")]
    pub init_from: Option<PathBuf>,
    /// Go on from a saved model, whose rows are in the parameter server. Flags of the model may be
    /// left out, and are refused where they say otherwise. A training that was interrupted goes on
    /// behind its last step, if the data is the same; else the data begins anew
    #[arg(long, value_name = "DIR")]
    pub load_model: Option<PathBuf>,
    /// Save the model: a folder (the dense part; rows stay in the server), or a .safetensors file
    /// (everything; needs --arch-embedding-size)
    #[arg(long, value_name = "DIR|FILE.safetensors")]
    pub save_model: Option<PathBuf>,
    /// Seed of weights, rows and order [default: 1]
    #[arg(long)]
    pub seed: Option<u64>,
    /// Threads that compute [default: one a core]
    #[arg(long)]
    pub threads: Option<usize>,
    /// Write a JSON report, and beside it curves of the loss and of the test AUC: NAME.loss.svg and
    /// NAME.auc.svg
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// With --report: the loss of every step
    #[arg(long, requires = "report")]
    pub report_losses: bool,
    /// Write an event file for TensorBoard into this folder, while the training runs: mean loss,
    /// samples/s and hit rates of every --print-freq steps (else 100), and each test's quality
    #[arg(long, value_name = "DIR")]
    pub tensor_board_filename: Option<PathBuf>,
    /// Write what every thread does at which step, for ui.perfetto.dev or chrome://tracing:
    /// reading, unique keys, staging, waits, pull, compute, push. Of the run's first 1000 steps,
    /// and 200000 spans of theirs at most: 49 MiB
    #[arg(long, value_name = "FILE.json")]
    pub trace: Option<PathBuf>,
}

/// `dlrm-worker eval`.
#[derive(Debug, Args)]
pub struct EvalArgs {
    /// Where the tables are.
    #[command(flatten)]
    pub ps: PsArgs,
    /// What to evaluate on.
    #[command(flatten)]
    pub data: DataArgs,
    /// The model that `train --save-model DIR` saved.
    #[command(flatten)]
    pub model: SavedModelArgs,
    /// Write a JSON report
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
}

/// `dlrm-worker predict`.
#[derive(Debug, Args)]
pub struct PredictArgs {
    /// Where the tables are.
    #[command(flatten)]
    pub ps: PsArgs,
    /// What to predict.
    #[command(flatten)]
    pub data: DataArgs,
    /// The model that `train --save-model DIR` saved.
    #[command(flatten)]
    pub model: SavedModelArgs,
    /// One probability a line, in input order
    #[arg(long, value_name = "FILE")]
    pub output: PathBuf,
}

/// `dlrm-worker export`.
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// Where the tables are.
    #[command(flatten)]
    pub ps: PsArgs,
    /// The model that `train --save-model DIR` saved
    #[arg(long, value_name = "DIR")]
    pub load_model: PathBuf,
    /// Rows of each table, if the model does not know them: ids 0 to N-1 are written
    #[arg(long, value_name = "N-N-...")]
    pub arch_embedding_size: Option<String>,
    /// The safetensors file
    #[arg(long, value_name = "FILE")]
    pub output: PathBuf,
}

/// `dlrm-worker cache`.
#[derive(Debug, Args)]
pub struct CacheArgs {
    /// What to parse.
    #[command(flatten)]
    pub data: DataArgs,
    /// How columns become features.
    #[command(flatten)]
    pub features: FeatureArgs,
    /// Rows in a batch: a step's, when the cache is trained on
    #[arg(long, default_value_t = 2048)]
    pub mini_batch_size: usize,
    /// Shuffle rows within windows of so many; 0 keeps the order of the data. Every pass over the
    /// cache has this order
    #[arg(long, default_value_t = 0, value_name = "ROWS")]
    pub shuffle_window: usize,
    /// Seed of the shuffle: the order is that of the first epoch of `train` with the same seed
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// The file
    #[arg(long, value_name = "PATH", visible_alias = "out")]
    pub output: PathBuf,
}

/// `dlrm-worker generate`.
#[derive(Debug, Args)]
pub struct GenerateArgs {
    /// synthetic:NAME=VALUE,...
    #[arg(long)]
    pub data: Source,
    /// How many ids its rows have.
    #[command(flatten)]
    pub lookups: LookupArgs,
    /// Where to: criteo:PATH[.gz] | tsv:PATH[.gz] | parquet:PATH; without it only the best quality
    /// is told
    #[arg(long)]
    pub output: Option<Source>,
}

/// A saved model and how to run it.
#[derive(Debug, Args)]
pub struct SavedModelArgs {
    /// The model that `train --save-model DIR` saved
    #[arg(long, value_name = "DIR")]
    pub load_model: PathBuf,
    /// Rows in a batch
    #[arg(long, default_value_t = 16384)]
    pub test_mini_batch_size: usize,
    /// Threads that compute [default: one a core]
    #[arg(long)]
    pub threads: Option<usize>,
    /// Where the network is computed.
    #[command(flatten)]
    pub device: DeviceArgs,
}

/// `--arch-interaction-op`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum InteractionOp {
    /// Pairwise dot products.
    Dot,
    /// Concatenation.
    Cat,
}

/// `--loss-function`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LossFunction {
    /// Binary cross-entropy.
    Bce,
    /// Mean squared error.
    Mse,
}

/// `--optimizer`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OptimizerName {
    /// Stochastic gradient descent.
    Sgd,
    /// Adagrad, an accumulator for each element.
    Adagrad,
    /// Adagrad with one accumulator a row.
    Rwsadagrad,
    /// Adam.
    Adam,
}

/// `--dense-optimizer`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DenseOptimizerName {
    /// Stochastic gradient descent.
    Sgd,
    /// Adagrad.
    Adagrad,
    /// Adam.
    Adam,
}

impl DeviceArgs {
    /// How a device is to work.
    pub(crate) fn options(&self) -> DeviceOptions {
        let precision = match self.precision {
            ProductPrecision::F32 => Precision::F32,
            ProductPrecision::Tf32 => Precision::Tf32,
            ProductPrecision::Bf16 => Precision::Bf16,
        };
        DeviceOptions { precision, graphs: !self.no_cuda_graph, ..DeviceOptions::default() }
    }
}

impl DataArgs {
    /// What to read, with as many ids in generated rows as are asked for.
    pub(crate) fn source(&self) -> crate::Result<Source> {
        self.lookups.apply(&self.data)
    }
}

impl LookupArgs {
    /// The source with as many ids in its rows as are asked for. Only generated data can have
    /// others than it has.
    pub(crate) fn apply(&self, source: &Source) -> crate::Result<Source> {
        let fixed = self.num_indices_per_lookup_fixed.unwrap_or(false);
        let asked = match (self.num_indices_per_lookup, self.multi_hot_sizes) {
            (None, None) => return Ok(source.clone()),
            (Some(1), _) => Lookups::One,
            (Some(ids), _) if fixed => Lookups::Exactly(ids),
            (Some(ids), _) => Lookups::UpTo(ids),
            (None, Some(MultiHotSizes::Mlperf)) => Lookups::Mlperf,
        };
        let Source::Synthetic(spec) = source else {
            return Err(crate::Error::Input(format!(
                "--data {source}: expected synthetic:... with --num-indices-per-lookup or \
                 --multi-hot-sizes, for other data has the ids that it has"
            )));
        };
        if spec.lookups != Lookups::One && spec.lookups != asked {
            return Err(crate::Error::Input(format!(
                "--data {source}: expected indices={asked}, as the flags have it, or none"
            )));
        }
        let mut spec = spec.clone();
        spec.lookups = asked;
        Ok(Source::Synthetic(spec))
    }
}

impl Command {
    /// The GPU whose memory rows may be in: the one that computes.
    pub fn gpu(&self) -> crate::Result<u32> {
        let (ps, device) = match self {
            Command::Train(args) => (&args.ps, args.device.device),
            Command::Eval(args) => (&args.ps, args.model.device.device),
            Command::Predict(args) => (&args.ps, args.model.device.device),
            Command::Export(args) => (&args.ps, Place::Cpu),
            Command::Generate(_) | Command::Cache(_) => return Ok(0),
        };
        match device {
            Place::Cuda(ordinal) => Ok(ordinal),
            Place::Auto => Ok(0),
            Place::Cpu if ps.gpu_cache == 0 => Ok(0),
            Place::Cpu => Err(crate::Error::Input(format!(
                "--gpu-cache {}: expected --device cuda with it, for rows in GPU memory are for a \
                 network that is computed on that GPU",
                units::format_bytes(ps.gpu_cache)
            ))),
        }
    }

    /// The folder that keeps the code that is compiled for it.
    pub fn gpu_code_dir(&self) -> Option<PathBuf> {
        match self {
            Command::Train(args) => args.device.code_dir(),
            Command::Eval(args) => args.model.device.code_dir(),
            Command::Predict(args) => args.model.device.code_dir(),
            Command::Export(_) | Command::Generate(_) | Command::Cache(_) => None,
        }
    }

    /// Where a trace of the run goes, if one is asked for.
    pub fn trace(&self) -> Option<&Path> {
        match self {
            Command::Train(args) => args.trace.as_deref(),
            Command::Eval(_)
            | Command::Predict(_)
            | Command::Export(_)
            | Command::Generate(_)
            | Command::Cache(_) => None,
        }
    }

    /// Where the tables are, for the commands that need any.
    pub fn ps(&self) -> Option<&PsArgs> {
        match self {
            Command::Train(args) => Some(&args.ps),
            Command::Eval(args) => Some(&args.ps),
            Command::Predict(args) => Some(&args.ps),
            Command::Export(args) => Some(&args.ps),
            Command::Generate(_) | Command::Cache(_) => None,
        }
    }
}
