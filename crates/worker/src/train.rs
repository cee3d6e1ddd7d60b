//! `dlrm-worker train`: the loop over steps. Stage, pull, compute, push; the threads that run ahead
//! are in `pipeline`, what the flags mean in `setup`. Where session and network are on one device,
//! rows and gradients stay there, and the loop is a step ahead of it.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::Scope;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, Sender, bounded};
use dataset::{ReadOptions, Reader, Shuffle, Source};
use dlrm::{FeatureRows, LearningRate, Network, PulledInput};
use table::{Counters, Step, TableId};
use wire::{Pulled, Session};

use crate::card::{Card, Interrupted, Reached};
use crate::cli::{Pooling, TrainArgs};
use crate::curves::{LossCurve, write_curves};
use crate::evaluate::evaluate;
use crate::pipeline::{Ahead, Course, Staged, Tally, spawn, stage_ahead};
use crate::progress::Progress;
use crate::report::{Report, Test};
use crate::setup::{Training, bayes_of};
use crate::tensorboard::EventFile;
use crate::trace::{STEPS_MAX, span};
use crate::{Error, Result, places, weights};

/// Trains as `args` say, evaluates if asked to, saves, and returns the report. `stop` ends the
/// training after the step at hand; what was trained is then saved all the same.
pub fn train_command(
    args: &TrainArgs,
    session: &dyn Session,
    stop: &AtomicBool,
) -> Result<(Report, String)> {
    let mut training = Training::begin(args, session)?;
    let mut report = Report {
        command: "train",
        threads: training.threads,
        seed: training.card.seed,
        device: training.device.clone(),
        losses: args.report_losses.then(Vec::new),
        ..Report::default()
    };
    let mut curve = LossCurve::default();
    let mut events = match &args.tensor_board_filename {
        Some(folder) => Some(EventFile::create(folder, args.print_freq, counters(session)?)?),
        None => None,
    };
    let reached =
        train(&mut training, args, session, stop, &mut report, &mut curve, events.as_mut())?;
    training.card.steps += report.steps;
    let order = training.order.clone();
    training.card.interrupted = report.interrupted.then_some(Interrupted { order, after: reached });
    report.set_store(session.status().map_err(Error::session("ask for status"))?);
    if let (Some((source, options)), false) = (&training.evaluation, report.interrupted) {
        report.quality = Some(match report.tests.last() {
            Some(test) if test.step == report.steps => test.quality, // nothing moved since
            _ => {
                let reader = dataset::open(source, options)?;
                let (model, pooling) = (&mut training.model, training.card.pooling);
                evaluate(reader, &training.tables, session, model, pooling)?
            }
        });
        report.bayes = bayes_of(source, options)?;
    }
    if let (Some(events), Some(quality)) = (&mut events, &report.quality)
        && report.tests.last().is_none_or(|test| test.step < report.steps)
    {
        events.test(training.card.steps, quality)?;
    }
    if let Some(path) = &args.save_model
        && !keeps_best(args, &report)
    {
        weights::save(path, &training.card, training.model.host()?, &training.tables, session)?;
    }
    if let Some(path) = &args.report {
        let loss = training.card.architecture.loss;
        report.curves = write_curves(path, &report, &curve, loss)?;
        report.write(path)?;
    }
    let lines = report.lines();
    Ok((report, lines))
}

/// Whether an earlier test has written the file to keep: its AUC is above what the end has.
fn keeps_best(args: &TrainArgs, report: &Report) -> bool {
    let whole = args.save_model.as_ref().is_some_and(|path| weights::is_whole(path));
    let best = report.tests.iter().filter_map(|test| test.quality.auc).fold(None, f64_max);
    let end = report.quality.and_then(|quality| quality.auc);
    whole && best.is_some() && best >= end
}

/// What the store has counted, all tables together.
fn counters(session: &dyn Session) -> Result<Counters> {
    Ok(session.status().map_err(Error::session("ask for status"))?.totals())
}

fn f64_max(best: Option<f64>, auc: f64) -> Option<f64> {
    Some(best.map_or(auc, |best| best.max(auc)))
}

/// Trains to the end of the data or until it is stopped, and tells behind which batch that was.
fn train(
    training: &mut Training,
    args: &TrainArgs,
    session: &dyn Session,
    stop: &AtomicBool,
    report: &mut Report,
    curve: &mut LossCurve,
    events: Option<&mut EventFile>,
) -> Result<Reached> {
    let course = Course {
        tables: &training.tables,
        epochs: args.nepochs,
        after: training.after,
        lookahead: args.lookahead,
        test_every: training.evaluation.as_ref().and(args.test_freq),
    };
    let (source, read, seed) = (&training.source, &training.read, training.card.seed);
    let (window_rows, epochs) = (args.shuffle_window, args.nepochs);
    let tally = Tally::default();
    let on_device = places::share(session, &mut training.model)?;
    report.rows_on_device = on_device;
    let mut steps = Steps {
        session,
        model: &mut training.model,
        on_device,
        late: VecDeque::new(),
        ahead: None,
        pulls_ahead: false,
        tests: training.evaluation.as_ref().zip(args.test_freq).map(|(evaluation, every)| Tests {
            evaluation,
            every,
            auc_threshold: args.mlperf_auc_threshold,
            best_path: args.save_model.as_deref().filter(|path| weights::is_whole(path)),
            tables: &training.tables,
            card: &training.card,
        }),
        print_freq: args.print_freq,
        batches_known: args.data.num_batches,
        reached: training.after,
        test_time: Duration::ZERO,
        started: Instant::now(),
        rates: training.rates,
        stop,
        first_step: training.card.steps,
        pooling: training.card.pooling,
        features: Vec::new(),
        report,
        curve,
        events,
    };
    let outcome = std::thread::scope(|scope| {
        let open = |epoch: u64| {
            // each pass in an order of its own, which follows from the seed
            let seed = seed.wrapping_add(epoch.wrapping_mul(0x9e37_79b9_7f4a_7c15));
            let shuffle = (window_rows > 0).then_some(Shuffle { window_rows, seed });
            let more_passes = epoch + 1 < epochs;
            let options = ReadOptions { shuffle, more_passes, ..read.clone() };
            Ok::<Reader, Error>(dataset::open(source, &options)?)
        };
        let ahead = stage_ahead(scope, session, &course, &tally, open)?;
        let mut pusher = Pusher::start(scope, session)?;
        let outcome = steps.run(&ahead, &mut pusher);
        tally.cancel.store(true, Ordering::Relaxed);
        let Ahead { staged, tested, .. } = ahead;
        drop(tested); // no test is waited for any more
        if steps.pulls_ahead {
            let _ = pusher.pulled(); // nobody waits for its rows any more
        }
        for left in steps.ahead.take().into_iter().chain(&staged).flatten() {
            let _ = session.release(Step(left.step)); // the outcome tells what went wrong first
        }
        outcome
    });
    let reached = steps.reached;
    report.train_s = steps.train_time().as_secs_f64();
    report.samples_per_s = report.samples as f64 / report.train_s;
    report.stage_s = tally.stage_ns.load(Ordering::Relaxed) as f64 * 1e-9;
    report.rows_skipped = tally.rows_skipped.load(Ordering::Relaxed);
    report.interrupted = stop.load(Ordering::Relaxed);
    let taken_back = if on_device { places::take_back(session) } else { Ok(()) };
    outcome.and(taken_back).map(|()| reached)
}

/// A pull of fewer floats is over before another thread has woken up for it.
const FLOATS_BESIDE: usize = 1 << 18;

/// The learning rates of the dense part and of the tables.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rates {
    pub dense: LearningRate,
    pub tables: LearningRate,
}

/// What `--test-freq` asks for.
struct Tests<'a> {
    evaluation: &'a (Source, ReadOptions),
    /// Steps from one test to the next.
    every: u64,
    auc_threshold: Option<f64>,
    /// Where the model with the best AUC goes.
    best_path: Option<&'a Path>,
    tables: &'a [TableId],
    card: &'a Card,
}

struct Steps<'a> {
    session: &'a dyn Session,
    model: &'a mut Network,
    /// Whether rows go between session and model on the device.
    on_device: bool,
    /// Steps whose loss the device has yet to tell.
    late: VecDeque<Late>,
    /// The next step, if it was there before this one was done.
    ahead: Option<Result<Staged>>,
    /// Whether its rows are on their way.
    pulls_ahead: bool,
    tests: Option<Tests<'a>>,
    print_freq: Option<u64>,
    /// Batches of an epoch, once they are known.
    batches_known: Option<u64>,
    /// The batch that the last step trained.
    reached: Reached,
    /// Wall time of tests: no part of training.
    test_time: Duration,
    started: Instant,
    rates: Rates,
    stop: &'a AtomicBool,
    /// Steps trained before this run: the schedule goes on where it was.
    first_step: u64,
    pooling: Pooling,
    /// The memory of a step's list, empty between steps.
    features: Vec<FeatureRows<'static>>,
    report: &'a mut Report,
    curve: &'a mut LossCurve,
    events: Option<&'a mut EventFile>,
}

impl Steps<'_> {
    fn run(&mut self, ahead: &Ahead, pusher: &mut Pusher) -> Result<()> {
        let Ahead { staged, spare, tested } = ahead;
        let mut progress = Progress::new("train", None);
        let mut told = Told::default();
        while !self.stop.load(Ordering::Relaxed) {
            let waiting = Instant::now();
            let next = match self.ahead.take() {
                Some(next) => Ok(next),
                None => {
                    let _span = span!("wait for a staged step", self.report.steps);
                    staged.recv()
                }
            };
            let Ok(next) = next else { break };
            let next = next?;
            self.report.wait_s += waiting.elapsed().as_secs_f64();
            let stepped = if self.on_device {
                self.step_on_device(&next)
            } else {
                self.step(&next, staged, pusher).map(Some)
            };
            let stepped = stepped.map_err(|error| {
                let _ = self.session.release(Step(next.step));
                self.divergence().unwrap_or(error) // which may be why
            });
            if let Some(trained) = stepped? {
                self.tell(trained, &mut told, &mut progress)?;
            }
            self.reached = next.at;
            let (ends_pass, is_tested) = (next.ends_pass, next.is_tested(self.test_every()));
            let _ = spare.try_send(next); // a full ring of buffers lets one go
            let is_over = self.reached.is_tested(self.test_every())
                && self.test(&mut told, pusher, &mut progress)?
                || ends_pass
                    && !self.stop.load(Ordering::Relaxed)
                    && self.end_epoch(&mut told, pusher, &mut progress)?;
            if is_over {
                break;
            }
            if is_tested {
                let _ = tested.send(()); // behind the last step nobody waits
            }
        }
        self.tell_late(&mut told, &mut progress)?;
        self.report.push_s += pusher.wait()?.as_secs_f64();
        self.session.settle().map_err(Error::session("settle pushes"))?;
        progress.finish(&told.shown.describe(self.session));
        let trained = self.train_time();
        if let Some(events) = &mut self.events {
            let step = self.first_step + self.report.steps;
            events.finish(step, trained, &counters(self.session)?)?;
        }
        Ok(())
    }

    /// Tells whoever wants to know of a step's loss.
    fn tell(&mut self, trained: Trained, told: &mut Told, progress: &mut Progress) -> Result<()> {
        let Trained { loss, rows, at } = trained;
        told.shown.add(loss);
        progress.advance(rows, || told.shown.describe(self.session));
        let trained = self.train_time();
        if let Some(events) = &mut self.events {
            let count = || counters(self.session);
            events.add(self.first_step + self.report.steps, rows, loss, trained, count)?;
        }
        told.printed.add(loss, rows, at);
        if self.print_freq.is_some_and(|every| at.batch.is_multiple_of(every)) {
            self.print(told, progress);
        }
        Ok(())
    }

    /// Tells of the steps since the last such line, in facebookresearch/dlrm's words.
    fn print(&self, told: &mut Told, progress: &Progress) {
        let Printed { at, loss_sum, samples, steps, since } = std::mem::take(&mut told.printed);
        let trained = self.train_time();
        told.printed.since = trained;
        if steps == 0 || self.print_freq.is_none() {
            return;
        }
        let ms = 1e3 * trained.saturating_sub(since).as_secs_f64() / steps as f64;
        let place = self.told_place(at);
        let loss = loss_sum / samples as f64;
        progress.tell(&format!("Finished training it {place}, {ms:.2} ms/it, loss {loss:.6}"));
    }

    /// A step's place in facebookresearch/dlrm's words.
    fn told_place(&self, at: Reached) -> String {
        let Reached { epoch, batch } = at;
        let of = self.batches_known.map_or(String::new(), |batches| format!("/{batches}"));
        format!("{batch}{of} of epoch {epoch}")
    }

    /// At the end of an epoch: what is left to tell, and a test. True where its AUC ends the
    /// training.
    fn end_epoch(
        &mut self,
        told: &mut Told,
        pusher: &mut Pusher,
        progress: &mut Progress,
    ) -> Result<bool> {
        self.tell_late(told, progress)?;
        self.batches_known = Some(self.reached.batch);
        self.print(told, progress);
        let tested = self.report.tests.last().is_some_and(|test| test.step == self.report.steps);
        if self.tests.is_none() || tested || self.report.steps == 0 {
            return Ok(false);
        }
        self.test(told, pusher, progress)
    }

    /// Waits for the losses that the device has yet to tell, and tells them.
    fn tell_late(&mut self, told: &mut Told, progress: &mut Progress) -> Result<()> {
        while let Some(trained) = self.late_loss()? {
            self.tell(trained, told, progress)?;
        }
        Ok(())
    }

    /// Wall time of training so far, tests apart.
    fn train_time(&self) -> Duration {
        self.started.elapsed().saturating_sub(self.test_time)
    }

    /// Batches of an epoch from one test to the next.
    fn test_every(&self) -> Option<u64> {
        self.tests.as_ref().map(|tests| tests.every)
    }

    /// Evaluates, and tells whether the AUC to stop at is passed. No step is staged meanwhile.
    fn test(
        &mut self,
        told: &mut Told,
        pusher: &mut Pusher,
        progress: &mut Progress,
    ) -> Result<bool> {
        self.tell_late(told, progress)?;
        self.print(told, progress);
        let Some(tests) = &self.tests else { return Ok(false) };
        let step = self.report.steps;
        let _span = span!("test", step - 1);
        self.report.push_s += pusher.wait()?.as_secs_f64();
        self.session.settle().map_err(Error::session("settle pushes"))?;
        let testing = Instant::now();
        let train_s = self.train_time().as_secs_f64();
        let (source, options) = tests.evaluation;
        let reader = dataset::open(source, options)?;
        let quality = evaluate(reader, tests.tables, self.session, self.model, self.pooling)?;
        let past = self.report.tests.iter().filter_map(|test| test.quality.auc);
        let best = past.fold(None, f64_max);
        if let (Some(path), true) = (tests.best_path, quality.auc > best) {
            let steps = tests.card.steps + step;
            let card = Card { steps, ..tests.card.clone() };
            weights::save(path, &card, self.model.host()?, tests.tables, self.session)?;
        }
        if let Some(events) = &mut self.events {
            events.test(self.first_step + step, &quality)?;
        }
        self.report.tests.push(Test { step, train_s, quality });
        self.test_time += testing.elapsed();
        let place = self.told_place(self.reached);
        progress.tell(&format!("Testing at - {place}, {quality}"));
        let passed = quality.auc.zip(tests.auc_threshold).is_some_and(|(auc, most)| auc > most);
        self.report.auc_reached |= passed;
        Ok(passed)
    }

    /// One step: the pull sees the push before it. The push, and the next step's pull behind it,
    /// run beside what of the step needs no row: the dense gradients' sums and their update, and
    /// what the network computes of the next step without rows.
    fn step(
        &mut self,
        staged: &Staged,
        later: &Receiver<Result<Staged>>,
        pusher: &mut Pusher,
    ) -> Result<Trained> {
        let (step, dim) = (staged.step, self.model.architecture().sparse_feature_size);
        let floats = staged.unique.keys.len() * dim;
        self.model.trace_step((step < STEPS_MAX).then_some(step));
        let pulled = if std::mem::take(&mut self.pulls_ahead) || self.pull_beside(staged, pusher) {
            self.begin_beside_pull(staged, pusher)?
        } else {
            self.pull(Step(step), floats, pusher)?
        };
        self.report.count_pull(staged.at.epoch, pulled.stalled > Duration::ZERO);

        let computing = Instant::now();
        let features = feature_rows(staged, self.pooling, std::mem::take(&mut self.features));
        let input = PulledInput {
            labels: &staged.batch.labels,
            dense: &staged.batch.dense,
            features: &features,
        };
        let gradients = pusher.buffer(floats);
        let loss = {
            let _span = span!("forward and backward", step);
            self.model.forward_backward(&input, gradients)?
        };
        self.features = emptied(features);
        let schedule = self.first_step + step;
        let rows = staged.batch.labels.len() as u64;
        let late = Late { step: schedule, rows, at: staged.at };
        let trained = self.trained(late, loss)?;
        pusher.push(Step(step), self.rates.tables.at(schedule));
        if let Ok(next) = later.try_recv() {
            self.pulls_ahead = next.as_ref().is_ok_and(|next| self.pull_beside(next, pusher));
            self.ahead = Some(next);
        }
        {
            let _span = span!("dense update", step);
            self.model.apply_dense(self.rates.dense.at(schedule))?;
        }
        self.report.compute_s += computing.elapsed().as_secs_f64();
        Ok(trained)
    }

    /// One step whose rows stay on the device: all of it is ordered there and nothing waited for
    /// but the loss of the step before, which it gives back.
    fn step_on_device(&mut self, staged: &Staged) -> Result<Option<Trained>> {
        let (step, rows) = (staged.step, staged.unique.keys.len());
        let pulling = Instant::now();
        let features = feature_rows(staged, self.pooling, std::mem::take(&mut self.features));
        let terms = features.iter().map(|feature| feature.indices.len()).sum();
        let place = self.model.next_place(rows, terms)?;
        if let Some(moved) = &place.moved {
            self.session.share_device(moved).map_err(Error::session("share the device"))?;
        }
        let pulled = {
            let _span = span!("pull", step);
            let pulled = self.session.pull_on_device(Step(step), place.slot);
            pulled.map_err(Error::session(format_args!("pull step {step}")))?
        };
        self.report.pull_s += pulling.elapsed().as_secs_f64();
        self.report.count_pull(staged.at.epoch, pulled.stalled > Duration::ZERO);

        let computing = Instant::now();
        let input = PulledInput {
            labels: &staged.batch.labels,
            dense: &staged.batch.dense,
            features: &features,
        };
        {
            let _span = span!("order forward and backward", step);
            self.model.forward_backward_there(&input, place.slot, rows)?;
        }
        let schedule = self.first_step + step;
        {
            let _span = span!("push", step);
            let rate = self.rates.tables.at(schedule);
            let pushed = self.session.push_on_device(Step(step), place.slot, rate);
            pushed.map_err(Error::session(format_args!("push step {step}")))?;
        }
        self.features = emptied(features);
        self.model.apply_dense(self.rates.dense.at(schedule))?;
        let rows = staged.batch.labels.len() as u64;
        self.late.push_back(Late { step: schedule, rows, at: staged.at });
        let trained = if self.late.len() > 1 {
            let _span = span!("wait for the loss before", step);
            self.late_loss()?
        } else {
            None
        };
        self.report.compute_s += computing.elapsed().as_secs_f64();
        Ok(trained)
    }

    /// Waits for the oldest loss that the device has yet to tell.
    fn late_loss(&mut self) -> Result<Option<Trained>> {
        let Some(late) = self.late.pop_front() else { return Ok(None) };
        let loss = self.model.take_loss()?.expect("every step that was ordered has a loss");
        self.trained(late, loss).map(Some)
    }

    /// Whether a loss that the device has yet to tell is why something was refused.
    fn divergence(&mut self) -> Option<Error> {
        loop {
            match self.late_loss() {
                Ok(Some(_)) => {}
                Err(error @ Error::Diverged { .. }) => return Some(error),
                Ok(None) | Err(_) => return None,
            }
        }
    }

    /// Takes note of a step, whose loss is known.
    fn trained(&mut self, late: Late, loss: f32) -> Result<Trained> {
        let Late { step, rows, at } = late;
        if !loss.is_finite() {
            return Err(Error::Diverged { step, loss });
        }
        self.report.steps += 1;
        self.report.samples += rows;
        self.curve.add(loss);
        if let Some(losses) = &mut self.report.losses {
            losses.push(loss);
        }
        Ok(Trained { loss, rows, at })
    }

    /// Pulls a step's rows to where the network wants them, after the push under way.
    fn pull(&mut self, step: Step, floats: usize, pusher: &mut Pusher) -> Result<Pulled> {
        {
            let _span = span!("wait for the push", step.0);
            self.report.push_s += pusher.wait()?.as_secs_f64();
        }
        let pulling = Instant::now();
        let _span = span!("pull", step.0);
        let pulled = self.session.pull(step, self.model.rows(floats)?); // [n_unique, dim]
        self.report.pull_s += pulling.elapsed().as_secs_f64();
        pulled.map_err(Error::session(format_args!("pull {step}")))
    }

    /// Has a step's rows pulled on another thread, after the push under way, if they are many
    /// enough; tells whether.
    fn pull_beside(&mut self, staged: &Staged, pusher: &Pusher) -> bool {
        let floats = staged.unique.keys.len() * self.model.architecture().sparse_feature_size;
        let rows = if floats < FLOATS_BESIDE { None } else { self.model.take_rows(floats) };
        let beside = rows.is_some();
        if let Some(rows) = rows {
            pusher.pull(Step(staged.step), rows);
        }
        beside
    }

    /// Computes what needs no rows, then waits for those that are on their way.
    fn begin_beside_pull(&mut self, staged: &Staged, pusher: &mut Pusher) -> Result<Pulled> {
        let beginning = Instant::now();
        let begun = {
            let _span = span!("forward without rows", staged.step);
            self.model.begin(&staged.batch.dense)
        };
        self.report.compute_s += beginning.elapsed().as_secs_f64();
        {
            let _span = span!("wait for the push", staged.step);
            self.report.push_s += pusher.wait()?.as_secs_f64();
        }
        let pulling = Instant::now();
        let (rows, pulled) = {
            let _span = span!("wait for the pull", staged.step);
            pusher.pulled()?
        };
        self.report.pull_s += pulling.elapsed().as_secs_f64();
        self.model.put_rows(rows);
        begun?;
        Ok(pulled)
    }
}

/// A step whose loss is not known yet.
#[derive(Debug, Clone, Copy)]
struct Late {
    step: u64,
    rows: u64,
    at: Reached,
}

/// A step whose loss is known.
#[derive(Debug, Clone, Copy)]
struct Trained {
    loss: f32,
    rows: u64,
    at: Reached,
}

/// What was told of losses so far.
#[derive(Default)]
struct Told {
    shown: Shown,
    printed: Printed,
}

/// Of the steps since a line of `--print-freq`.
#[derive(Default)]
struct Printed {
    /// The last of them.
    at: Reached,
    /// Over their samples.
    loss_sum: f64,
    samples: u64,
    steps: u64,
    /// How long had been trained before.
    since: Duration,
}

impl Printed {
    fn add(&mut self, loss: f32, samples: u64, at: Reached) {
        self.loss_sum += f64::from(loss) * samples as f64;
        (self.samples, self.steps, self.at) = (self.samples + samples, self.steps + 1, at);
    }
}

/// Each feature's places in the unique rows, and how they are pooled, in the memory of an empty
/// list.
pub(crate) fn feature_rows<'a>(
    staged: &'a Staged,
    pooling: Pooling,
    mut list: Vec<FeatureRows<'a>>,
) -> Vec<FeatureRows<'a>> {
    let inverse = staged.unique.inverse.iter();
    list.extend(inverse.zip(&staged.batch.features).map(|(indices, feature)| {
        let pooling = match pooling {
            Pooling::Mean => dlrm::Pooling::Mean,
            // a feature without weights counts each of its rows once
            Pooling::Weighted if !feature.weights.is_empty() => {
                dlrm::Pooling::Weighted(&feature.weights)
            }
            Pooling::Sum | Pooling::Weighted => dlrm::Pooling::Sum,
        };
        FeatureRows { indices, offsets: &feature.offsets, pooling }
    }));
    list
}

/// A list's memory for entries of another step: a collection of as large ones stays in place.
fn emptied<'a>(mut list: Vec<FeatureRows<'_>>) -> Vec<FeatureRows<'a>> {
    list.clear();
    list.into_iter().map(|_| unreachable!("the list is empty")).collect()
}

/// What a person is told while steps go by.
#[derive(Default)]
struct Shown {
    loss_sum: f64,
    losses: u64,
}

impl Shown {
    fn add(&mut self, loss: f32) {
        // a moving mean over some hundred steps, so that the figure is calm and still moves
        if self.losses == 200 {
            self.loss_sum /= 2.0;
            self.losses /= 2;
        }
        self.loss_sum += f64::from(loss);
        self.losses += 1;
    }

    fn describe(&self, session: &dyn Session) -> String {
        let loss = self.loss_sum / self.losses.max(1) as f64;
        let Ok(status) = session.status() else { return format!("loss {loss:.4}") };
        let sums = status.totals();
        let share = |hits: u64, misses: u64| 100.0 * hits as f64 / (hits + misses).max(1) as f64;
        format!(
            "loss {loss:.4} host hits {:.1}% ssd hits {:.1}%",
            share(sums.host.hits, sums.host.misses),
            share(sums.ssd.hits, sums.ssd.misses)
        )
    }
}

/// A thread that hands gradients to the session while the dense part is updated, and then pulls the
/// next step's rows. It does one after the other, so that a pull sees the push: a run stays exact.
struct Pusher {
    work: Sender<Work>,
    done: Receiver<(Push, Result<()>)>,
    pulls: Receiver<(Vec<f32>, Result<Pulled>)>,
    under_way: bool,
    push: Option<Push>,
}

enum Work {
    Push(Push),
    Pull(Step, Vec<f32>), // [n_unique, dim]
}

#[derive(Default)]
struct Push {
    step: u64,
    gradients: Vec<f32>, // [n_unique, dim]
    learning_rate: f32,
}

impl Pusher {
    fn start<'scope, 'env>(
        scope: &'scope Scope<'scope, 'env>,
        session: &'env dyn Session,
    ) -> Result<Pusher> {
        let (work, works) = bounded::<Work>(2); // a push, and the pull after it
        let (answer, done) = bounded(1);
        let (rows_of, pulls) = bounded(1);
        spawn(scope, "push", move || {
            for work in works.iter() {
                let wanted = match work {
                    Work::Push(push) => {
                        let step = Step(push.step);
                        let pushed = {
                            let _span = span!("push", step.0);
                            session.push(step, &push.gradients, push.learning_rate)
                        };
                        let pushed = pushed.map_err(Error::session(format_args!("push {step}")));
                        answer.send((push, pushed)).is_ok()
                    }
                    Work::Pull(step, mut rows) => {
                        let pulled = {
                            let _span = span!("pull", step.0);
                            session.pull(step, &mut rows)
                        };
                        let pulled = pulled.map_err(Error::session(format_args!("pull {step}")));
                        rows_of.send((rows, pulled)).is_ok()
                    }
                };
                if !wanted {
                    return;
                }
            }
        })?;
        Ok(Pusher { work, done, pulls, under_way: false, push: Some(Push::default()) })
    }

    /// Has the rows of a step pulled, after the push under way. No other pull is.
    fn pull(&self, step: Step, rows: Vec<f32>) {
        // if the thread is gone, `pulled` tells
        let _ = self.work.send(Work::Pull(step, rows));
    }

    /// Waits for the pull under way.
    fn pulled(&mut self) -> Result<(Vec<f32>, Pulled)> {
        let (rows, pulled) = self.pulls.recv().expect("a thread that pushes ends by a panic alone");
        Ok((rows, pulled?))
    }

    /// Waits for the push under way, if any, and tells its error and how long that took.
    fn wait(&mut self) -> Result<Duration> {
        let started = Instant::now();
        if self.under_way
            && let Ok((push, result)) = self.done.recv()
        {
            self.under_way = false;
            self.push = Some(push);
            result?;
        }
        Ok(started.elapsed())
    }

    /// The buffer of the next push's gradients. No push is under way.
    fn buffer(&mut self, floats: usize) -> &mut [f32] {
        let push = self.push.get_or_insert_default();
        push.gradients.resize(floats, 0.0);
        &mut push.gradients
    }

    /// Sends the buffer off. No push is under way.
    fn push(&mut self, step: Step, learning_rate: f32) {
        let mut push = self.push.take().unwrap_or_default();
        (push.step, push.learning_rate) = (step.0, learning_rate);
        self.under_way = self.work.send(Work::Push(push)).is_ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_emptied_list_keeps_its_memory() {
        let (indices, offsets) = (vec![0], vec![0, 1]);
        let pooling = dlrm::Pooling::Sum;
        let list = vec![FeatureRows { indices: &indices, offsets: &offsets, pooling }; 26];
        let (at, capacity) = (list.as_ptr() as usize, list.capacity());
        let list: Vec<FeatureRows<'static>> = emptied(list);
        assert_eq!((list.as_ptr() as usize, list.len(), list.capacity()), (at, 0, capacity));
    }
}
