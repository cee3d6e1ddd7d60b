//! `predict` on rows that have no label, as those have that one wants to know of.

use crate::binaries::{WORKER, refuse, succeed, text};

#[test]
fn rows_without_a_label_are_predicted_as_those_with_one() {
    let at = tempfile::tempdir().expect("make folder");
    let path = |name: &str| text(&at.path().join(name)).to_owned();
    let written = format!("criteo:{}", path("with.tsv"));
    let rows = "synthetic:scale=0.001,rows=700,seed=5";
    succeed(WORKER, &["generate", "--data", rows, "--output", &written]);
    let ps = format!("embedded:{}", path("ps"));
    let (model, lines) = (path("model"), std::fs::read_to_string(path("with.tsv")));
    let shape = ["--arch-mlp-bot", "13-16-16", "--arch-mlp-top", "16-1"];
    let places = ["train", "--ps", &ps, "--data", &written, "--save-model", &model];
    succeed(WORKER, &[&places[..], &shape].concat());

    let lines = lines.expect("read rows");
    let bare = |line: &str| line.split_once('\t').expect("a label").1.to_owned() + "\n";
    std::fs::write(path("without.tsv"), lines.lines().map(bare).collect::<String>())
        .expect("write rows");
    let bare = format!("criteo:{}", path("without.tsv"));
    let predicted = |data: &str, name: &str| {
        let saved = ["predict", "--ps", &ps, "--load-model", &model];
        succeed(WORKER, &[&saved[..], &["--data", data, "--output", &path(name)]].concat());
        std::fs::read_to_string(path(name)).expect("read predictions")
    };
    let expected = predicted(&written, "with.txt");
    assert_eq!(expected.lines().count(), 700);
    assert_eq!(expected, predicted(&bare, "without.txt"));

    let evaluate = ["eval", "--ps", &ps, "--load-model", &model, "--data", &bare];
    refuse(WORKER, &evaluate, &["without.tsv", "40", "39"]);
}
