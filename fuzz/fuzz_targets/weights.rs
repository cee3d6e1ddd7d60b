//! The fuzzer's way into `weights` of `targets`; it holds nothing of its own.
#![no_main]

#[path = "../targets.rs"]
#[allow(dead_code)] // one target of them
mod targets;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| targets::weights(bytes));
