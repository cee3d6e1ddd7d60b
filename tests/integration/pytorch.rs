//! A trained model that leaves as one file predicts the same in plain PyTorch; and a weight that
//! was changed on the way is noticed.

use std::fmt::Write as _;
use std::path::Path;
use std::process::{Command, Output};

use crate::binaries::{WORKER, succeed, text};

const ROWS: usize = 600;
const IDS: u64 = 50;

/// Text with a header: three dense columns, some values missing, and two of ids beyond the range
/// that they are taken modulo.
fn write_data(path: &Path) {
    let mut lines = String::from("label\tI1\tI2\tI3\tC1\tC2\n");
    let mut state = 7_u64;
    let mut draw = |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963);
        (state >> 33) % below
    };
    for row in 0..ROWS {
        let (label, first, second) = (draw(2), draw(100), draw(7));
        let third = if row % 5 == 0 { String::new() } else { draw(1000).to_string() };
        let (a, b) = (draw(3 * IDS), draw(IDS));
        writeln!(lines, "{label}\t{first}\t{second}\t{third}\t{a}\t{b}").expect("write a line");
    }
    std::fs::write(path, lines).expect("write the data");
}

fn compare(python: &Path, at: &Path, weights: &str) -> Output {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("ops/pytorch/compare.py");
    let mut command = Command::new(python);
    command.arg(script).arg("--model").arg(at.join("model"));
    command.arg("--weights").arg(at.join(weights)).arg("--data").arg(at.join("data.tsv"));
    command.arg("--predictions").arg(at.join("p.txt")).output().expect("run python")
}

#[test]
#[ignore = "needs EMBEDDING_PS_PYTHON"]
fn an_exported_model_predicts_the_same_in_pytorch() {
    let python = std::env::var_os("EMBEDDING_PS_PYTHON").expect("EMBEDDING_PS_PYTHON is set");
    let at = tempfile::tempdir().expect("make folder");
    let path = |name: &str| text(&at.path().join(name)).to_owned();
    write_data(&at.path().join("data.tsv"));
    let (ps, data) = (format!("embedded:{}", path("ps")), format!("tsv:{}", path("data.tsv")));
    let (model, weights, predictions) = (path("model"), path("w.safetensors"), path("p.txt"));
    let ids = IDS.to_string();
    let read = ["--data", &data, "--dense-columns", "3", "--dense-transform", "log1p"];
    let shape = ["--max-ind-range", &ids, "--arch-sparse-feature-size", "8"];
    let widths = ["--arch-mlp-bot", "3-16-8", "--arch-mlp-top", "16-1", "--mini-batch-size", "64"];
    let pace = ["--learning-rate", "0.3", "--nepochs", "4", "--save-model", &model];
    succeed(WORKER, &[&["train", "--ps", &ps][..], &read, &shape, &widths, &pace].concat());
    let saved = ["--ps", &ps, "--load-model", &model];
    succeed(WORKER, &[&["export"][..], &saved, &["--output", &weights]].concat());
    let predict = ["--data", &data, "--output", &predictions];
    succeed(WORKER, &[&["predict"][..], &saved, &predict].concat());

    let same = compare(python.as_ref(), at.path(), "w.safetensors");
    let (said, complaint) =
        (String::from_utf8_lossy(&same.stdout), String::from_utf8_lossy(&same.stderr));
    assert!(same.status.success(), "{said}{complaint}");
    assert!(said.contains("600 predictions"), "{said}");

    // the last bytes of the file are weights; another sign and size there must show
    let mut bytes = std::fs::read(&weights).expect("read the weights");
    let end = bytes.len();
    for float in bytes[end - 800..].chunks_exact_mut(4) {
        float.copy_from_slice(&3.0_f32.to_le_bytes());
    }
    std::fs::write(at.path().join("changed.safetensors"), bytes).expect("write the weights");
    let changed = compare(python.as_ref(), at.path(), "changed.safetensors");
    assert!(!changed.status.success(), "changed weights went unnoticed");
}
