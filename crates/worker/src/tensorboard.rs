//! A training's curves as an event file for TensorBoard, written while it runs.
//! It decides nothing, and what it holds stands in the report too.

use std::fs::{self, File};
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use table::{Counters, TierCounters};
use tfrecord::protobuf::Event;
use tfrecord::protobuf::event::What;
use tfrecord::{EventMeta, RecordWriter, Summary};

use crate::quality::Quality;
use crate::{Error, Result};

/// What the first record of a file says that TensorBoard reads.
const VERSION: &str = "brain.Event:2";
/// Steps in a point, where `--print-freq` says nothing: some 150 bytes for each so many steps.
const STEPS_IN_POINT: u64 = 100;

/// An event file that is being written. Every point is in the file once it is made, so that
/// TensorBoard shows a training that still runs.
pub(crate) struct EventFile {
    path: PathBuf,
    writer: RecordWriter<Event, BufWriter<File>>,
    steps_in_point: u64,
    point: Stretch,
    /// What the store had counted at the last point.
    counted: Counters,
}

/// Steps since the last point.
#[derive(Default)]
struct Stretch {
    steps: u64,
    rows: u64,
    loss_sum: f64,
    /// Wall time of the training when it began.
    began: Duration,
}

impl EventFile {
    /// Creates a file of its own in `folder`, which is made if it is not there. `counted` is what
    /// the store has counted so far.
    pub(crate) fn create(
        folder: &Path,
        steps_in_point: Option<u64>,
        counted: Counters,
    ) -> Result<EventFile> {
        let doing = "create event file";
        fs::create_dir_all(folder).map_err(Error::file(doing, folder))?;
        let now_s = now_s();
        // TensorBoard takes the files whose names hold this word; a run that goes on has another
        let name = format!("events.out.tfevents.{now_s:.6}.{}", std::process::id());
        let path = folder.join(name);
        let file = File::create_new(&path).map_err(Error::file(doing, &path))?;
        let writer = RecordWriter::from_writer(BufWriter::new(file));
        let mut events = EventFile {
            writer: writer.map_err(|error| failed(&path, error))?,
            path,
            steps_in_point: steps_in_point.unwrap_or(STEPS_IN_POINT),
            point: Stretch::default(),
            counted,
        };
        let what = Some(What::FileVersion(VERSION.to_owned()));
        events.send(Event { what, ..EventMeta::new(0, now_s).build_empty() })?;
        events.flush()?;
        Ok(events)
    }

    /// Takes in a step of `rows` rows, the `step`-th of the model, after so much wall time of
    /// training. `count` is asked where this completes a point.
    pub(crate) fn add(
        &mut self,
        step: u64,
        rows: u64,
        loss: f32,
        trained: Duration,
        count: impl FnOnce() -> Result<Counters>,
    ) -> Result<()> {
        let point = &mut self.point;
        (point.steps, point.rows) = (point.steps + 1, point.rows + rows);
        point.loss_sum += f64::from(loss);
        if point.steps < self.steps_in_point {
            return Ok(());
        }
        self.end_point(step, trained, &count()?)
    }

    /// Writes the point that the last steps of a training began.
    pub(crate) fn finish(
        &mut self,
        step: u64,
        trained: Duration,
        counters: &Counters,
    ) -> Result<()> {
        if self.point.steps == 0 { Ok(()) } else { self.end_point(step, trained, counters) }
    }

    /// Writes what an evaluation found after `step` steps of the model.
    pub(crate) fn test(&mut self, step: u64, quality: &Quality) -> Result<()> {
        let values = [
            ("Test/AUC", quality.auc),
            ("Test/LogLoss", Some(quality.logloss)),
            ("Test/NormalisedEntropy", quality.normalised_entropy),
            ("Test/Calibration", quality.calibration),
            ("Test/Acc", Some(quality.accuracy)),
        ];
        self.scalars(step, values)
    }

    fn end_point(&mut self, step: u64, trained: Duration, counters: &Counters) -> Result<()> {
        let point =
            std::mem::replace(&mut self.point, Stretch { began: trained, ..<_>::default() });
        let seconds = trained.saturating_sub(point.began).as_secs_f64();
        let before = std::mem::replace(&mut self.counted, *counters);
        let values = [
            ("Train/Loss", Some(point.loss_sum / point.steps as f64)),
            ("Train/SamplesPerSecond", (seconds > 0.0).then(|| point.rows as f64 / seconds)),
            ("Tiers/GpuHitRate", hit_rate(&before.gpu, &counters.gpu)),
            ("Tiers/HostHitRate", hit_rate(&before.host, &counters.host)),
            ("Tiers/SsdHitRate", hit_rate(&before.ssd, &counters.ssd)),
        ];
        self.scalars(step, values)
    }

    /// Writes the values that there are.
    fn scalars<const N: usize>(
        &mut self,
        step: u64,
        values: [(&'static str, Option<f64>); N],
    ) -> Result<()> {
        let meta = EventMeta::new(step.cast_signed(), now_s());
        for (tag, value) in values {
            let Some(value) = value else { continue };
            let summary = Summary::from_scalar(tag, value as f32);
            let summary = summary.map_err(|error| failed(&self.path, error))?;
            self.send(meta.build_with_summary(summary))?;
        }
        self.flush()
    }

    fn send(&mut self, event: Event) -> Result<()> {
        self.writer.send(event).map_err(|error| failed(&self.path, error))
    }

    fn flush(&mut self) -> Result<()> {
        self.writer.flush().map_err(|error| failed(&self.path, error))
    }
}

/// Hits among what a tier was asked for between two counts; none where it was asked for nothing.
fn hit_rate(before: &TierCounters, now: &TierCounters) -> Option<f64> {
    let (hits, misses) = (now.hits - before.hits, now.misses - before.misses);
    (hits + misses > 0).then(|| hits as f64 / (hits + misses) as f64)
}

/// Seconds since 1970, as TensorBoard counts them.
fn now_s() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

fn failed(path: &Path, error: tfrecord::Error) -> Error {
    let source = if let tfrecord::Error::IoError(source) = error {
        source
    } else {
        std::io::Error::other(error)
    };
    Error::file("write event file", path)(source)
}

#[cfg(test)]
mod tests {
    use tfrecord::RecordReaderConfig;
    use tfrecord::protobuf::summary::value::Value;

    use super::*;

    /// Tag, step and value of every scalar in the one file of a folder, its sums checked.
    fn scalars(folder: &Path) -> Vec<(String, i64, f32)> {
        let files: Vec<_> = fs::read_dir(folder).unwrap().collect();
        assert_eq!(files.len(), 1);
        let path = files[0].as_ref().unwrap().path();
        let config = RecordReaderConfig { check_integrity: true };
        let records = tfrecord::RecordIter::<Event, _>::open(path, config).unwrap();
        let mut events = records.map(|event| event.unwrap());
        assert_eq!(events.next().unwrap().what, Some(What::FileVersion(VERSION.to_owned())));
        let mut found = Vec::new();
        for event in events {
            let Some(What::Summary(summary)) = event.what else { panic!("{:?}", event.what) };
            for value in summary.value {
                let Some(Value::SimpleValue(scalar)) = value.value else { panic!("{value:?}") };
                found.push((value.tag, event.step, scalar));
            }
        }
        found
    }

    fn counted(hits: u64, misses: u64) -> Counters {
        let host = TierCounters { hits, misses, ..TierCounters::default() };
        Counters { host, ..Counters::default() }
    }

    fn expected(points: &[(&str, i64, f32)]) -> Vec<(String, i64, f32)> {
        points.iter().map(|&(tag, step, value)| (tag.to_owned(), step, value)).collect()
    }

    #[test]
    fn a_point_is_the_mean_of_its_steps_and_is_there_at_once() {
        let at = tempfile::tempdir().unwrap();
        let folder = at.path().join("made/here");
        let mut events = EventFile::create(&folder, Some(2), counted(5, 5)).unwrap();
        let second = Duration::from_secs;
        events.add(11, 10, 4.0, second(1), || panic!("no point yet")).unwrap();
        events.add(12, 20, 2.0, second(2), || Ok(counted(8, 6))).unwrap();
        let mut points = expected(&[
            ("Train/Loss", 12, 3.0),
            ("Train/SamplesPerSecond", 12, 15.0),
            ("Tiers/HostHitRate", 12, 0.75),
        ]);
        assert_eq!(scalars(&folder), points, "before the file is closed");
        events.add(13, 6, 1.0, second(4), || panic!("no point yet")).unwrap();
        events.finish(13, second(5), &counted(8, 6)).unwrap();
        events.finish(13, second(5), &counted(8, 6)).unwrap();
        points.extend(expected(&[("Train/Loss", 13, 1.0), ("Train/SamplesPerSecond", 13, 2.0)]));
        assert_eq!(scalars(&folder), points);
    }

    #[test]
    fn a_test_has_what_could_be_computed() {
        let at = tempfile::tempdir().unwrap();
        let mut events = EventFile::create(at.path(), None, Counters::default()).unwrap();
        let quality = Quality {
            rows: 4,
            base_rate: 0.0,
            auc: None,
            logloss: 0.5,
            base_logloss: 0.0,
            normalised_entropy: None,
            calibration: Some(1.5),
            accuracy: 0.25,
        };
        events.test(7, &quality).unwrap();
        let points =
            [("Test/LogLoss", 7, 0.5), ("Test/Calibration", 7, 1.5), ("Test/Acc", 7, 0.25)];
        assert_eq!(scalars(at.path()), expected(&points));
    }

    #[test]
    fn a_folder_that_can_not_be_is_an_error_that_names_it() {
        let at = tempfile::tempdir().unwrap();
        let path = at.path().join("a file");
        fs::write(&path, "").unwrap();
        let error = EventFile::create(&path, None, Counters::default()).err().unwrap();
        assert!(error.to_string().contains("a file"), "{error}");
    }
}
