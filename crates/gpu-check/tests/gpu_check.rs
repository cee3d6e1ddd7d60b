//! The real `gpu-check`: without CUDA, and against a pretended one that runs the kernels' own
//! source on the CPU. Whether a device does the same is for a machine that has one.
#![allow(clippy::unwrap_used)] // a test that cannot go on fails

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use gpu::vectors::{Case, encode};
use gpu_check::vectors::{TOLERANCE, cases};
use serde_json::Value;
use testkit::{CppProgram, PretendedCuda};

#[test]
fn without_a_driver_it_says_no_device() {
    if gpu::probe().is_ok() {
        return; // this machine has one
    }
    let output = gpu_check(None, &[], &[]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.starts_with("gpu-check: no device: "), "{said}");
}

#[test]
fn every_kernel_agrees_with_the_host_on_the_cpu() {
    let shim = CppProgram::build(&shim("run.cpp"), &[]);
    let cases: Vec<Case> = cases();
    let output = shim.run(&encode(&cases));
    assert!(output.status.success(), "{output:?}");
    let expected = format!("{} cases, 0 wrong\n", cases.len());
    assert_eq!(String::from_utf8_lossy(&output.stdout), expected);
}

#[test]
fn a_float_beyond_the_tolerance_is_found() {
    use gpu::vectors::Argument;
    let shim = CppProgram::build(&shim("run.cpp"), &[]);
    let mut case = cases().into_iter().find(|case| case.kernel == "interact_backward").unwrap();
    let Argument::Floats { after, .. } = &mut case.arguments[2] else { panic!("not the result") };
    after[100] += 2.0 * TOLERANCE * (1.0 + after[100].abs());
    let output = shim.run(&encode(&[case]));
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("interact_backward: buffer 2 differs at byte 400 of"), "{said}");
}

#[test]
fn all_of_it_runs_against_a_pretended_cuda() {
    let out = tempfile::tempdir().unwrap();
    let (folder, code) = (out.path().join("json"), out.path().join("code"));
    let (folder_text, code_text) = (folder.to_str().unwrap(), code.to_str().unwrap());
    let arguments = ["--quick", "--out", folder_text, "--code", code_text];
    let output = gpu_check(Some(PretendedCuda::get()), &arguments, &[]);
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{said}\n{output:?}");
    assert!(said.ends_with("gpu-check: all is right\n"), "{said}");

    let text = std::fs::read_to_string(folder.join("gpu-check.json")).unwrap();
    let json: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(json["bench"], "gpu-check, quick");
    assert!(json["machine"].as_str().unwrap().starts_with("a pretended device"), "{text}");
    let ids: Vec<&str> =
        json["rows"].as_array().unwrap().iter().map(|row| row["id"].as_str().unwrap()).collect();
    for id in [
        "vectors.update_adam",
        "vectors.interact_backward",
        "vectors.interact_backward_tf32",
        "vectors.product_bf16",
        "vectors.layer_bf16",
        "vectors.far_rows",
        "vectors.sum_of_one",
        "vectors.move_rows",
        "tier.bits_all",
        "tier.bits_part",
        "tier.bits_least",
        "tier.pull_hits",
        "processes.bits",
        "processes.turns",
        "processes.copy",
        "training.tiny.adagrad",
        "training.auc.bf16",
        "training.kaggle_tf32",
        "training.kaggle_bf16.tensor_interaction",
        "training.tier_bits",
        "training.tier_all",
        "training.tier_part.resident",
        "copy.from_device",
        "product.tf32",
        "gather.device_64",
        "gather.device_512",
        "gather.pinned_512",
        "update.rowwise_adagrad_64",
        "interact.kaggle",
        "interact_backward_bf16.terabyte",
    ] {
        assert!(ids.contains(&id), "{id} is not among {ids:?}");
    }
    assert_eq!(std::fs::read_dir(&code).unwrap().count(), 6, "the code of each source is kept");
    let again = gpu_check(Some(PretendedCuda::get()), &arguments, &[]);
    assert!(again.status.success(), "with code from the folder: {again:?}");
}

#[test]
fn a_kernel_that_comes_out_wrong_fails_and_is_named_first() {
    let wrong = [("FLIP_A_BIT_OF", "update_sgd")];
    let output = gpu_check(Some(PretendedCuda::get()), &["--quick"], &wrong);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let said = String::from_utf8_lossy(&output.stdout);
    let last = said.lines().last().unwrap();
    assert!(last.contains("failed first: vectors.update_sgd"), "{said}");
}

#[test]
fn after_a_stage_that_fails_the_others_go_on() {
    // a CUDA without its library of matrix products
    let cuda = tempfile::tempdir().unwrap();
    for name in ["libcuda.so", "libnvrtc.so", "libnccl.so.2"] {
        let library = PretendedCuda::get().folder().join("libcuda.so");
        std::os::unix::fs::symlink(library, cuda.path().join(name)).unwrap();
    }
    let out = tempfile::tempdir().unwrap();
    let mut command = command(&["--quick", "--out", out.path().to_str().unwrap()], &[]);
    let output = command.env("LD_LIBRARY_PATH", cuda.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let last = last_line(&output);
    let first = "failed first: products beside loops: no library of matrix products found \
                 (libcublasLt.so)";
    assert!(last.ends_with(first), "{last}");
    let (ids, failures) = json_of(out.path());
    assert!(failures.iter().any(|failed| failed.starts_with("training at full speed: ")));
    for id in ["tier.bits_all", "gather.device_64", "processes.bits", "vectors.sum_of_one"] {
        assert!(ids.iter().any(|found| found == id), "{id} is not among {ids:?}");
    }
}

#[test]
fn after_the_device_is_lost_what_was_found_is_told() {
    let out = tempfile::tempdir().unwrap();
    let arguments = ["--quick", "--out", out.path().to_str().unwrap()];
    let fails = [("FAIL_AFTER_LAUNCHES", "200")];
    let output = gpu_check(Some(PretendedCuda::get()), &arguments, &fails);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let last = last_line(&output);
    assert!(last.contains("failed first: vectors: run "), "{last}");
    let (ids, failures) = json_of(out.path());
    assert!(ids.iter().any(|id| id == "vectors.gather_rows"), "{ids:?}");
    assert!(failures[1].starts_with("vectors: the device is lost after it: "), "{failures:?}");
    assert_eq!(failures.len(), 2, "{failures:?}");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("left out, for the device is lost: memory for benchmarks"), "{said}");
}

#[test]
fn at_the_end_of_its_time_it_tells_what_it_found_and_ends() {
    // with a kernel that never ends, for which an orderly end would wait
    for (seconds, fails) in [("0", None), ("2", Some(("HANG_IN", "find_not_finite")))] {
        let out = tempfile::tempdir().unwrap();
        let folder = out.path().to_str().unwrap();
        let arguments = ["--quick", "--seconds", seconds, "--out", folder];
        let output = gpu_check(Some(PretendedCuda::get()), &arguments, fails.as_slice());
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let last = last_line(&output);
        assert!(last.starts_with(&format!("gpu-check: out of time after {seconds} s, at ")));
        assert!(last.contains("1 failed; failed first: "), "{last}");
        let (_, failures) = json_of(out.path());
        assert!(failures[0].ends_with(&format!(": not done after {seconds} s")), "{failures:?}");
    }
}

#[test]
fn the_vectors_that_it_writes_are_those_that_the_cpu_runs() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("vectors");
    let output = gpu_check(None, &["--write-vectors", file.to_str().unwrap()], &[]);
    assert!(output.status.success(), "{output:?}");
    assert!(std::fs::read(file).unwrap() == encode(&cases()), "not the same bytes");
}

/// Starts `gpu-check`, and has the loader find that CUDA or none.
fn gpu_check(
    cuda: Option<&PretendedCuda>,
    arguments: &[&str],
    variables: &[(&str, &str)],
) -> Output {
    let mut command = command(arguments, variables);
    match cuda {
        Some(cuda) => cuda.tell(&mut command),
        None => command.env_remove("LD_LIBRARY_PATH"),
    };
    command.output().unwrap()
}

fn command(arguments: &[&str], variables: &[(&str, &str)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gpu-check"));
    command.args(arguments).envs(variables.iter().copied());
    command.env("GPU_CHECK_LIBRARIES_TOLD", "1"); // a machine's own libraries are not looked for
    command
}

fn last_line(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).lines().last().unwrap().to_owned()
}

/// The names of the rows, and the failures.
fn json_of(folder: &Path) -> (Vec<String>, Vec<String>) {
    let text = std::fs::read_to_string(folder.join("gpu-check.json")).unwrap();
    let json: Value = serde_json::from_str(&text).unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let ids = json["rows"].as_array().unwrap().iter().map(|row| text(&row["id"]));
    (ids.collect(), json["failures"].as_array().unwrap().iter().map(text).collect())
}

fn shim(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../gpu/shim").join(name)
}
