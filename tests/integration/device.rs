//! Training with the network on a device, which is a pretended one: the real worker, the kernels'
//! own source on the CPU. It agrees with the PyTorch runs as training on the CPU does, and gives
//! the same bits again. Whether a device does the same is for a machine that has one.

use std::ffi::OsStr;
use std::path::Path;

use serde_json::Value;
use testkit::PretendedCuda;

use crate::binaries::{WORKER, data, json, losses, refuse, run_with, succeed, text};
use crate::reference::{Case, Folder, KAGGLE, OPTIMIZERS, Run, TINY, assert_agrees};

/// Runs the worker, which finds the pretended CUDA and must succeed; what it logged.
fn work(arguments: &[&str], variables: &[(&str, &str)]) -> String {
    let mut all = PretendedCuda::get().variables().to_vec();
    all.extend(variables.iter().map(|(name, value)| (*name, OsStr::new(value))));
    let output = run_with(WORKER, arguments, &all);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {}\n{said}", arguments.join(" "), output.status);
    said.into_owned()
}

/// Trains in a folder with further flags and variables: losses, weights, report.
fn train(
    at: &Folder,
    case: Case,
    optimizer: (&str, &str),
    flags: &[&str],
    variables: &[(&str, &str)],
) -> (Vec<f64>, Vec<u8>, Value) {
    let ps = format!("embedded:{}", text(&at.path("ps")));
    let (model, report) = (at.path("model.safetensors"), at.path("report.json"));
    let run = Run { ps: &ps, host_ram: "64MiB", threads: "1", save_model: &model, report: &report };
    let arguments = run.arguments(case, optimizer);
    let arguments: Vec<&str> =
        arguments.iter().map(String::as_str).chain(flags.iter().copied()).collect();
    work(&arguments, variables);
    let report = json(&report);
    (losses(&report), std::fs::read(&model).expect("weights"), report)
}

fn agrees(case: Case) {
    for optimizer in OPTIMIZERS {
        let at = Folder::new();
        let ps = format!("embedded:{}", text(&at.path("ps")));
        let (model, report) = (at.path("model"), at.path("report.json"));
        let run =
            Run { ps: &ps, host_ram: "64MiB", threads: "1", save_model: &model, report: &report };
        let arguments = run.arguments(case, optimizer);
        let arguments: Vec<&str> =
            arguments.iter().map(String::as_str).chain(["--device", "cuda"]).collect();
        work(&arguments, &[]);
        let report = json(&report);
        assert_eq!(report["device"], "cuda:0, a pretended device");
        // predicted on the CPU, with the weights and rows that were trained on the device
        assert_agrees(case, optimizer.0, &ps, &report, &model, &at);

        // and the same on the device
        let batches = data(&format!("reference/{}/batches.parquet", case.folder));
        let batches = format!("parquet:{}", text(&batches));
        let predict = |output: &Path, device: &str| {
            let arguments = ["predict", "--ps", &ps, "--load-model", text(&model), "--data"];
            let rest = [&batches, "--output", text(output), "--device", device];
            work(&[&arguments[..], &rest].concat(), &[]);
            let lines = std::fs::read_to_string(output).expect("predictions");
            lines.lines().map(|line| line.parse().expect("a number")).collect::<Vec<f64>>()
        };
        let (here, there) = (at.path("here.txt"), at.path("there.txt"));
        let (here, there) = (predict(&here, "cpu"), predict(&there, "auto"));
        assert_eq!(here.len(), there.len());
        let apart = here.iter().zip(&there).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(apart < 1e-5, "{optimizer:?}: {apart}");
    }
}

#[test]
fn tiny_agrees_with_pytorch_on_a_device() {
    agrees(TINY);
}

#[test]
fn kaggle_shape_agrees_with_pytorch_on_a_device() {
    agrees(KAGGLE);
}

#[test]
fn recorded_steps_give_the_same_bits_and_so_does_the_next_run() {
    let optimizer = OPTIMIZERS[1];
    let flags = ["--device", "cuda", "--dense-optimizer", "adam"];
    let graphs = train(&Folder::new(), TINY, optimizer, &flags, &[]);
    let again = train(&Folder::new(), TINY, optimizer, &flags, &[]);
    let plain = [&flags[..], &["--no-cuda-graph"]].concat();
    let plain = train(&Folder::new(), TINY, optimizer, &plain, &[]);
    for other in [again, plain] {
        assert_eq!(graphs.0, other.0);
        assert!(graphs.1 == other.1, "weights");
    }
    // kernels in place of the library's own bias, ReLU and gradients
    let kernels = train(&Folder::new(), TINY, optimizer, &flags, &[("REFUSE_EPILOGUES", "1")]);
    let host = train(&Folder::new(), TINY, optimizer, &["--dense-optimizer", "adam"], &[]);
    // the same where the library has advice for what it then refuses: all, the gradient of a ReLU
    for late in ["all", "152"] {
        let late = train(&Folder::new(), TINY, optimizer, &flags, &[("REFUSE_LATE", late)]);
        assert_eq!(late.0, kernels.0);
        assert!(late.1 == kernels.1, "weights");
    }
    for other in [kernels, host] {
        let apart = graphs.0.iter().zip(&other.0).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(apart > 0.0 && apart < 2e-5, "{apart}");
    }
}

#[test]
fn what_the_library_of_products_refuses_is_told_once_and_kernels_are_kept() {
    let at = Folder::new();
    let ps = format!("embedded:{}", text(&at.path("ps")));
    let (model, report) = (at.path("model.safetensors"), at.path("report.json"));
    let run = Run { ps: &ps, host_ram: "64MiB", threads: "1", save_model: &model, report: &report };
    let mut arguments = run.arguments(TINY, OPTIMIZERS[0]);
    let code = at.path("code");
    arguments.extend(["--device", "cuda", "--gpu-code-dir", text(&code)].map(str::to_owned));
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let said = work(&arguments, &[("REFUSE_EPILOGUES", "1")]);
    // the bias of each of four layers, and the ReLU's gradient of two with a layer behind them
    let told = said.matches("the library of matrix products does not do it").count();
    assert_eq!(told, 6, "{said}");
    let kept = std::fs::read_dir(&code).expect("a folder").count();
    assert_eq!(kept, 6, "the code of each source");
}

#[test]
fn waits_that_are_forgotten_are_seen() {
    let at = Folder::new();
    let ps = format!("embedded:{}", text(&at.path("ps")));
    let (model, report) = (at.path("model.safetensors"), at.path("report.json"));
    let run = Run { ps: &ps, host_ram: "64MiB", threads: "1", save_model: &model, report: &report };
    let mut arguments = run.arguments(TINY, OPTIMIZERS[0]);
    arguments.extend(["--device", "cuda"].map(str::to_owned));
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let mut variables = PretendedCuda::get().variables().to_vec();
    variables.push(("IGNORE_WAITS", OsStr::new("1")));
    // what is computed from is not there yet: it crashes, diverges, or comes out wrong
    if run_with(WORKER, &arguments, &variables).status.success() {
        let right = train(&Folder::new(), TINY, OPTIMIZERS[0], &["--device", "cuda"], &[]).0;
        assert_ne!(right, losses(&json(&report)));
    }
}

#[test]
fn shapes_that_differ_train_as_on_the_cpu() {
    let synthetic = "synthetic:scale=0.001,rows=700,seed=3";
    for flags in [
        &["--arch-interaction-op", "cat", "--loss-function", "mse", "--arch-mlp-bot", "13-9"][..],
        &["--arch-interaction-itself", "--num-indices-per-lookup", "9", "--pooling", "mean"],
        &["--arch-sparse-feature-size", "7", "--arch-mlp-bot", "13-7", "--arch-mlp-top", "1"],
        &["--num-indices-per-lookup", "40"], // more than there was room for, and rows of many
    ] {
        let trained = |device: &str| {
            let at = Folder::new();
            let (ps, report) =
                (format!("embedded:{}", text(&at.path("ps"))), at.path("report.json"));
            let fixed = [
                ["train", "--ps"],
                [&ps, "--data"],
                [synthetic, "--mini-batch-size"],
                ["200", "--threads"],
                ["1", "--device"],
                [device, "--report"],
                [text(&report), "--report-losses"],
            ];
            let defaults = ["--arch-mlp-bot", "13-32-16", "--arch-mlp-top", "24-1"];
            let mut arguments = fixed.concat();
            for pair in defaults.chunks(2).filter(|pair| !flags.contains(&pair[0])) {
                arguments.extend(pair);
            }
            arguments.extend(flags);
            work(&arguments, &[]);
            losses(&json(&report))
        };
        let (here, there) = (trained("cpu"), trained("cuda:0"));
        assert_eq!(here.len(), 4, "the last batch is a short one");
        let apart = here.iter().zip(&there).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(apart < 2e-5, "{flags:?}: {apart}");
    }
}

#[test]
fn products_in_fewer_bits_stay_near() {
    let losses = |flags: &[&str]| train(&Folder::new(), TINY, OPTIMIZERS[0], flags, &[]).0;
    let exact = losses(&["--device", "cuda"]);
    for (precision, bound) in [("tf32", 1e-3), ("bf16", 1e-2)] {
        let brief = losses(&["--device", "cuda", "--precision", precision]);
        let apart = exact.iter().zip(&brief).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(apart > 1e-7 && apart < bound, "{precision}: {apart}");
    }
}

#[test]
fn a_device_that_is_not_there_is_refused_and_auto_goes_on() {
    let at = Folder::new();
    let (ps, report) = (format!("embedded:{}", text(&at.path("ps"))), at.path("report.json"));
    let arguments = |device| {
        let data = "synthetic:scale=0.001,rows=100,seed=1";
        ["train", "--ps", &ps, "--data", data, "--report", text(&report), "--device", device]
            .map(str::to_owned)
    };

    let there = arguments("cuda:3");
    let there = there.each_ref().map(String::as_str);
    let output = run_with(WORKER, &there, &PretendedCuda::get().variables());
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("there is no device 3"), "{said}");

    let odd = arguments("gpu");
    refuse(WORKER, &odd.each_ref().map(String::as_str), &["cuda:N"]);
    let here = arguments("cuda");
    let auto = arguments("auto");
    if run_with(WORKER, &here.each_ref().map(String::as_str), &[]).status.success() {
        return; // this machine has a device
    }
    refuse(WORKER, &here.each_ref().map(String::as_str), &["no device", "CUDA"]);
    succeed(WORKER, &auto.each_ref().map(String::as_str));
    assert_eq!(json(&report)["device"], "cpu");
}
