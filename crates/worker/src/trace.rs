//! What every thread does at which step, in the format of Chrome's and Perfetto's viewers: spans
//! from the pipeline, the steps and the model, written by `tracing-chrome`. It measures nothing and
//! sums nothing up; figures are the report's.
//!
//! Without a trace nobody listens to the spans, and each costs a load and a branch.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tracing::subscriber::Interest;
use tracing::{Metadata, Subscriber};
use tracing_chrome::{ChromeLayerBuilder, FlushGuard};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::dynamic_filter_fn;
use tracing_subscriber::registry::LookupSpan;

use crate::{Error, Result};

/// Steps of a run that are traced, from its first on.
pub(crate) const STEPS_MAX: u64 = 1000;

/// Spans that are written: large batches have many at a step. Two lines of at most 128 bytes for
/// each are 49 MiB in all.
const SPANS_MAX: u64 = 200_000;

/// What spans are for: only those of this target are written.
pub(crate) const TARGET: &str = "dlrm_worker::trace";

/// Begins a span on this thread, which lasts as long as what is returned; none for a step beyond
/// [`STEPS_MAX`].
macro_rules! span {
    ($name:literal, $step:expr) => {{
        let step: u64 = $step;
        if step < $crate::trace::STEPS_MAX {
            tracing::trace_span!(target: $crate::trace::TARGET, $name, step).entered()
        } else {
            tracing::Span::none().entered()
        }
    }};
}
pub(crate) use span;

/// A trace that is being written. It is a list whose end is missing until [`TraceFile::finish`] or
/// drop; viewers take it without one too.
pub struct TraceFile {
    path: PathBuf,
    guard: FlushGuard,
    failed: Failed,
}

/// The first write that failed, which the library's own thread can tell nobody.
type Failed = Arc<Mutex<Option<io::Error>>>;

/// Creates the file, and the layer that a process adds to its subscriber, once. The spans of this
/// crate and of the model are what it listens to, nothing else.
pub fn trace_to<S>(path: &Path) -> Result<(impl Layer<S> + use<S>, TraceFile)>
where
    S: Subscriber + for<'span> LookupSpan<'span> + Send + Sync,
{
    let file = File::create(path).map_err(Error::file("create trace", path))?;
    let failed = Failed::default();
    let sink = Sink { file, failed: Arc::clone(&failed) };
    let chrome = ChromeLayerBuilder::new().writer(sink).include_args(true).include_locations(false);
    let (layer, guard) = chrome.build();
    let left = AtomicU64::new(SPANS_MAX);
    let less_one = move || left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less_one);
    let some = dynamic_filter_fn(move |metadata, _| is_ours(metadata) && less_one().is_ok());
    let ours = some.with_callsite_filter(|metadata| match is_ours(metadata) {
        true => Interest::sometimes(),
        false => Interest::never(),
    });
    Ok((layer.with_filter(ours), TraceFile { path: path.to_owned(), guard, failed }))
}

fn is_ours(metadata: &Metadata<'_>) -> bool {
    matches!(metadata.target(), TARGET | dlrm::TRACE_TARGET)
}

fn less_one(left: u64) -> Option<u64> {
    left.checked_sub(1)
}

impl TraceFile {
    /// Writes what is still in memory and the end of the list, and tells what could not be written.
    pub fn finish(self) -> Result<()> {
        let Self { path, guard, failed } = self;
        drop(guard); // waits for the thread that writes
        let failed = failed.lock().unwrap_or_else(PoisonError::into_inner).take();
        failed.map_or(Ok(()), |error| Err(Error::file("write trace", &path)(error)))
    }
}

/// The file behind the library, which would panic on an error: it is kept for the end instead, and
/// what comes after it is let go.
struct Sink {
    file: File,
    failed: Failed,
}

impl Sink {
    fn keep(&mut self, act: impl FnOnce(&mut File) -> io::Result<()>) {
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        if failed.is_none() {
            *failed = act(&mut self.file).err();
        }
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.keep(|file| file.write_all(bytes));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.keep(File::flush);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    #[test]
    fn a_trace_ends_growing_at_its_limit_and_is_whole() {
        let at = tempfile::tempdir().unwrap();
        let path = at.path().join("trace.json");
        let (layer, trace) = trace_to(&path).unwrap();
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            for step in 0..STEPS_MAX + 1 {
                let _outer = span!("outer", step);
                (0..SPANS_MAX / 900).for_each(|_| drop(span!("a name of usual length", step)));
            }
            tracing::trace!("not for the trace");
        });
        trace.finish().unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let events: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
        let of = |phase: &str| events.iter().filter(|event| event["ph"] == phase).count() as u64;
        assert_eq!((of("B"), of("E")), (SPANS_MAX, SPANS_MAX));
        assert!(text.len() < 49 << 20, "{} bytes", text.len());
    }
}
