//! `train --trace`: a file that viewers take, in which the threads' work overlaps; bounded, and
//! whole where the run ends with an error.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::Value;

use crate::binaries::{WORKER, fail, json, refuse, succeed, text};

const STEPS: u64 = 64;
const MODEL: [&str; 4] = ["--arch-mlp-bot", "13-64-16", "--arch-mlp-top", "64-1"];
/// What happens once at every step, in this order for any one step.
const ONCE: [&str; 6] =
    ["read and parse", "unique and inverse", "stage", "pull", "forward and backward", "push"];

struct Span {
    name: String,
    /// The thread's name.
    thread: String,
    step: u64,
    begin_us: f64,
    end_us: f64,
}

impl Span {
    fn overlaps(&self, other: &Span) -> bool {
        self.begin_us < other.end_us && other.begin_us < self.end_us
    }
}

/// The spans of a trace. On each thread they have to nest, and each has to end.
fn spans(path: &Path) -> Vec<Span> {
    let trace = json(path);
    let events = trace.as_array().expect("a trace is a list");
    let word = |event: &Value, name: &str| event[name].as_str().expect("text").to_owned();
    let thread = |event: &Value| event["tid"].as_u64().expect("a thread's number");
    let named = events.iter().filter(|event| event["ph"] == "M");
    let names: BTreeMap<u64, String> =
        named.map(|event| (thread(event), word(&event["args"], "name"))).collect();
    let (mut spans, mut open) = (Vec::new(), BTreeMap::<u64, Vec<Span>>::new());
    for event in events.iter().filter(|event| event["ph"] != "M") {
        let (name, at_us) = (word(event, "name"), event["ts"].as_f64().expect("a time"));
        let stack = open.entry(thread(event)).or_default();
        if event["ph"] == "B" {
            let step = word(&event["args"], "step").parse().expect("a step's number");
            let thread = names[&thread(event)].clone();
            stack.push(Span { name, thread, step, begin_us: at_us, end_us: at_us });
        } else {
            assert_eq!(event["ph"], "E");
            let mut span = stack.pop().expect("a span ends that has begun");
            assert_eq!((&span.name, span.begin_us <= at_us), (&name, true));
            span.end_us = at_us;
            spans.push(span);
        }
    }
    assert!(open.values().all(Vec::is_empty), "every span ends");
    spans
}

fn train(at: &Path, data: &str, more: &[&str]) -> Vec<String> {
    let (ps, trace) = (at.join("ps"), at.join("trace.json"));
    let ps = format!("embedded:{}", text(&ps));
    let arguments = ["train", "--ps", &ps, "--data", data, "--trace", text(&trace)];
    [&arguments[..], &MODEL, more].concat().iter().map(|&word| word.to_owned()).collect()
}

fn words(arguments: &[String]) -> Vec<&str> {
    arguments.iter().map(String::as_str).collect()
}

#[test]
fn a_trace_shows_threads_that_work_at_the_same_time() {
    let at = tempfile::tempdir().expect("make folder");
    let data = format!("synthetic:scale=0.001,rows={},seed=3", STEPS * 256);
    let flags = ["--mini-batch-size", "256", "--threads", "2", "--host-ram", "2MiB"];
    succeed(WORKER, &words(&train(at.path(), &data, &flags)));
    let spans = spans(&at.path().join("trace.json"));

    for name in ONCE {
        let of = spans.iter().filter(|span| span.name == name);
        let steps: Vec<u64> = of.map(|span| span.step).filter(|&step| step < STEPS).collect();
        assert_eq!(steps, (0..STEPS).collect::<Vec<u64>>(), "{name}");
    }
    for step in 0..STEPS {
        let of = |name: &str| spans.iter().find(|span| (&*span.name, span.step) == (name, step));
        let of: Vec<&Span> = ONCE.iter().filter_map(|name| of(name)).collect();
        let in_order = of.windows(2).all(|pair| pair[0].end_us <= pair[1].begin_us);
        assert!(in_order, "step {step}: each thing begins when the one before it has ended");
    }
    let threads: BTreeSet<&str> = spans.iter().map(|span| &*span.thread).collect();
    assert_eq!(threads, BTreeSet::from(["dlrm-1", "main", "push", "read", "stage"]));
    for name in ["forward", "backward", "sum weight gradients", "sum row gradients"] {
        let of = spans.iter().filter(|span| span.name == name);
        let steps: BTreeSet<u64> = of.map(|span| span.step).collect();
        assert_eq!(steps, (0..STEPS).collect(), "{name}");
    }

    // the pipeline: a later step is read or staged while an earlier one computes
    let computing = || spans.iter().filter(|span| span.name == "forward and backward");
    let ahead = |name: &str| {
        let of = || spans.iter().filter(|span| span.name == name);
        let beside = |span: &Span| of().any(|s| s.step > span.step && s.overlaps(span));
        computing().filter(|&span| beside(span)).count()
    };
    let overlaps = ["read and parse", "unique and inverse", "stage"].map(ahead);
    // such a step computes for a fraction of a millisecond: not each has company
    assert!(overlaps.iter().sum::<usize>() as u64 >= STEPS / 8, "{overlaps:?} of {STEPS} steps");
    let pushes = || spans.iter().filter(|span| span.name == "push");
    let updates = || spans.iter().filter(|span| span.name == "dense update");
    let beside = pushes().filter(|push| updates().any(|update| update.overlaps(push))).count();
    assert!(beside > 0, "no push runs beside a dense update");
}

#[test]
fn a_trace_has_the_first_thousand_steps_and_no_more() {
    let at = tempfile::tempdir().expect("make folder");
    let flags = ["--mini-batch-size", "2", "--threads", "1"];
    let data = "synthetic:scale=0.001,rows=2100,seed=3";
    succeed(WORKER, &words(&train(at.path(), data, &flags)));
    let path = at.path().join("trace.json");
    let steps: BTreeSet<u64> = spans(&path).iter().map(|span| span.step).collect();
    assert_eq!(steps, (0..1000).collect(), "of 1050 steps");
}

#[test]
fn a_run_that_fails_leaves_a_whole_trace() {
    let at = tempfile::tempdir().expect("make folder");
    let data = "synthetic:scale=0.001,rows=65536,seed=3";
    let flags = ["--mini-batch-size", "64", "--learning-rate", "1e30", "--learning-rate-tables=0"];
    let arguments = train(at.path(), data, &flags);
    refuse(WORKER, &words(&arguments), &["the loss is"]);
    let spans = spans(&at.path().join("trace.json"));
    assert!(spans.iter().any(|span| span.name == "forward and backward"));
}

#[test]
fn a_trace_that_cannot_be_written_is_told() {
    let at = tempfile::tempdir().expect("make folder");
    let data = "synthetic:scale=0.001,rows=1024,seed=3";
    let place = |path: &str| {
        let mut arguments = train(at.path(), data, &["--mini-batch-size", "64"]);
        let last = arguments.iter().position(|word| word == "--trace").expect("the flag") + 1;
        path.clone_into(&mut arguments[last]);
        arguments
    };
    let nowhere = text(&at.path().join("none/trace.json")).to_owned();
    refuse(WORKER, &words(&place(&nowhere)), &["create trace", "none/trace.json"]);
    if Path::new("/dev/full").exists() {
        fail(WORKER, &words(&place("/dev/full")), 1, &["write trace /dev/full", "space"]);
    }
}
