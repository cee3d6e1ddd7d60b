//! The fuzzer's targets on stable Rust: each decoder is given valid input, what once went wrong,
//! and random mutations of both. It sees no coverage; `fuzz/README.md` tells how the fuzzer is run.
//!
//! `EMBEDDING_PS_MUTATIONS=N` asks for so many mutations of each, of another seed each time.

#![allow(clippy::unwrap_used)] // as in any test; clippy takes functions beside tests for code

#[path = "../fuzz/targets.rs"]
mod targets;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use targets::TARGETS;
use testkit::Random;

/// Mutations of each target in a usual run.
const MUTATIONS: u64 = 3000;
const SEED: u64 = 77;
/// The longest input that mutations make.
const BYTES_MAX: usize = 1 << 16;

/// Runs one target; a failure shows the input.
fn hold(name: &str) {
    let (_, target, seeds) = TARGETS.iter().find(|target| target.0 == name).unwrap();
    let mut inputs = seeds();
    assert!(!inputs.is_empty(), "{name} begins from valid input");
    inputs.extend(targets::regressions(&corpus(), name));
    inputs.push(Vec::new());
    let try_one = |input: &[u8]| {
        if catch_unwind(AssertUnwindSafe(|| target(input))).is_err() {
            panic!("{name} fails on {} bytes: {}", input.len(), input.escape_ascii());
        }
    };
    inputs.iter().for_each(|input| try_one(input));
    let (mutations, seed) = match std::env::var("EMBEDDING_PS_MUTATIONS") {
        Ok(count) => {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
            (count.parse().unwrap(), now.as_nanos() as u64)
        }
        Err(_) => (MUTATIONS, SEED),
    };
    let mut random = Random::new(seed);
    for _ in 0..mutations {
        let mut input = inputs[random.below(inputs.len() as u64) as usize].clone();
        for _ in 0..=random.below(4) {
            mutate(&mut input, &inputs, &mut random);
        }
        input.truncate(BYTES_MAX);
        try_one(&input);
    }
}

/// One change: of a bit, of a number, of the length, or a piece of another input.
fn mutate(input: &mut Vec<u8>, others: &[Vec<u8>], random: &mut Random) {
    let at = random.below(input.len() as u64 + 1) as usize;
    match random.below(8) {
        0 if at < input.len() => input[at] ^= 1 << random.below(8),
        1 if at < input.len() => input[at] = random.next_u64() as u8,
        2 => {
            // numbers at which sums and products go over
            let words = [0, 1, u64::MAX, 1 << 31, u64::from(u32::MAX), 1 << 63, i64::MAX as u64];
            let word = words[random.below(words.len() as u64) as usize].to_le_bytes();
            let bytes = [1, 2, 4, 8][random.below(4) as usize];
            let end = (at + bytes).min(input.len());
            input[at..end].copy_from_slice(&word[..end - at]);
        }
        3 => input.truncate(at),
        4 => {
            let end = (at + random.below(16) as usize).min(input.len());
            input.drain(at..end);
        }
        5 => {
            let end = (at + random.below(64) as usize).min(input.len());
            let copy = input[at..end].to_vec();
            input.splice(at..at, copy);
        }
        6 => {
            let other = &others[random.below(others.len() as u64) as usize];
            let from = random.below(other.len() as u64 + 1) as usize;
            input.truncate(at);
            input.extend_from_slice(&other[from..]);
        }
        _ => {
            let words: [&[u8]; 8] =
                [b"-", b"\t", b"\n", b"99999999999999999999", b"NaN", b"[", b"\"", b"\xff\x80"];
            let word = words[random.below(words.len() as u64) as usize];
            input.splice(at..at, word.iter().copied());
        }
    }
}

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus")
}

#[test]
fn messages_are_refused_or_sound() {
    hold("messages");
}

#[test]
fn text_is_refused_or_sound() {
    hold("text");
}

#[test]
fn caches_are_refused_or_sound() {
    hold("cache");
}

#[test]
fn weights_are_refused_or_sound() {
    hold("weights");
}

#[test]
fn records_are_refused_or_sound() {
    hold("records");
}

#[test]
fn flags_are_refused_or_sound() {
    hold("flags");
}

#[test]
fn every_target_is_the_fuzzers_too() {
    for (name, ..) in TARGETS {
        let path = format!("fuzz/fuzz_targets/{name}.rs");
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains(&format!("targets::{name}(bytes)")), "{}", path.display());
    }
}

/// Valid input as files, for the fuzzer to begin from.
#[test]
#[ignore = "needs EMBEDDING_PS_FUZZ_CORPUS"]
fn seeds_are_written() {
    let folder = std::env::var_os("EMBEDDING_PS_FUZZ_CORPUS").unwrap();
    for (name, _, seeds) in TARGETS {
        let folder = Path::new(&folder).join(name);
        std::fs::create_dir_all(&folder).unwrap();
        for (number, seed) in seeds().iter().enumerate() {
            std::fs::write(folder.join(format!("seed-{number}")), seed).unwrap();
        }
    }
}
