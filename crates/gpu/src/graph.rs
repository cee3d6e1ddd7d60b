//! Work of a stream, recorded once and then played as one. It does not look at what is recorded:
//! addresses and numbers of a launch are played as they were.
#![allow(unsafe_code)]

use std::sync::Arc;

use cudarc::driver::{result, sys};

use crate::device::{Context, RecordingTurn, Stream, said};
use crate::{Error, Result};

/// Recorded work. Whatever it reads and writes has to outlive it.
#[derive(Debug)]
pub struct Graph {
    context: Arc<Context>,
    raw: sys::CUgraphExec,
}

// SAFETY: the driver's graph handles may be used from any thread, one at a time: it is not `Sync`.
unsafe impl Send for Graph {}

impl Graph {
    /// Records what `work` orders in the stream, none of which is done. It may launch kernels and
    /// products, fill and copy in that stream, and do nothing else with the device. Other threads
    /// may, but wait meanwhile where they wait for the whole device, as a buffer that is read,
    /// written or dropped does.
    pub fn record<E: From<Error>>(
        stream: &Stream,
        work: impl FnOnce() -> std::result::Result<(), E>,
    ) -> std::result::Result<Self, E> {
        let capture = Capture::begin(stream)?;
        let worked = work();
        let graph = match (worked, capture.end()) {
            (Ok(()), graph) => graph?,
            (Err(error), Ok(graph)) => {
                // SAFETY: it was made just above, and is destroyed here alone.
                let _ = unsafe { result::graph::destroy(graph) };
                return Err(error);
            }
            (Err(error), Err(_)) => return Err(error), // the first is the one to tell
        };
        let flags = sys::CUgraphInstantiate_flags_enum(0);
        // SAFETY: the graph was made just above, and is destroyed here alone.
        let raw = unsafe {
            let made = said("cuGraphInstantiate", result::graph::instantiate(graph, flags));
            let _ = result::graph::destroy(graph);
            made?
        };
        Ok(Self { context: Arc::clone(&stream.context), raw })
    }

    /// Plays it, in order with the stream's work.
    pub fn play(&self, stream: &Stream) -> Result<()> {
        self.context.enter()?;
        // SAFETY: graph and stream live.
        said("cuGraphLaunch", unsafe { result::graph::launch(self.raw, stream.raw) })
    }
}

/// A stream that is recorded. The recording ends with it, whatever the work did.
struct Capture<'a> {
    stream: &'a Stream,
    ended: bool,
    _turn: RecordingTurn<'a>,
}

impl<'a> Capture<'a> {
    fn begin(stream: &'a Stream) -> Result<Self> {
        let turn = stream.context.recording.begin();
        stream.context.enter()?;
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream lives.
        said("cuStreamBeginCapture", unsafe { result::stream::begin_capture(stream.raw, mode) })?;
        Ok(Self { stream, ended: false, _turn: turn })
    }

    fn end(mut self) -> Result<sys::CUgraph> {
        self.ended = true;
        self.stream.context.enter()?;
        // SAFETY: the stream lives and is recorded since `begin`.
        said("cuStreamEndCapture", unsafe { result::stream::end_capture(self.stream.raw) })
    }
}

impl Drop for Capture<'_> {
    fn drop(&mut self) {
        if self.ended || self.stream.context.enter().is_err() {
            return;
        }
        // the work panicked
        // SAFETY: as in `end`; the graph is destroyed here alone.
        unsafe {
            if let Ok(graph) = result::stream::end_capture(self.stream.raw) {
                let _ = result::graph::destroy(graph);
            }
        }
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        if self.context.settle().is_ok() {
            // SAFETY: made in `record`, destroyed here alone, with no work under way.
            let _ = unsafe { result::graph::exec_destroy(self.raw) };
        }
    }
}
