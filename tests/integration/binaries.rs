//! Starting the project's binaries and reading what they leave behind. It asserts only that they
//! started and ended as they should.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;
use testkit::Process;

/// What a process may take to get ready or to end, on a busy machine.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

pub(crate) const WORKER: &str = env!("CARGO_BIN_EXE_dlrm-worker");
pub(crate) const SERVER: &str = env!("CARGO_BIN_EXE_embedding-ps");
pub(crate) const PSCTL: &str = env!("CARGO_BIN_EXE_psctl");

/// A file that the repository carries for tests.
pub(crate) fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

/// A file of the folder that `EMBEDDING_PS_DATA` names.
pub(crate) fn external_data(name: &str) -> PathBuf {
    let folder = std::env::var_os("EMBEDDING_PS_DATA").expect("EMBEDDING_PS_DATA names a folder");
    Path::new(&folder).join(name)
}

/// Runs a binary to its end.
pub(crate) fn run(binary: &str, arguments: &[&str]) -> Output {
    Command::new(binary).args(arguments).stdin(Stdio::null()).output().expect("start binary")
}

/// The same with more variables, which the loader of libraries reads too.
pub(crate) fn run_with(
    binary: &str,
    arguments: &[&str],
    variables: &[(&str, &std::ffi::OsStr)],
) -> Output {
    let mut command = Command::new(binary);
    command.args(arguments).envs(variables.iter().copied()).stdin(Stdio::null());
    command.output().expect("start binary")
}

/// Runs a binary that must succeed and returns its standard output.
pub(crate) fn succeed(binary: &str, arguments: &[&str]) -> String {
    let output = run(binary, arguments);
    assert!(
        output.status.success(),
        "{binary} {} ended with {}\n{}",
        arguments.join(" "),
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).expect("standard output is text")
}

/// Runs a binary that must refuse its input: exit code 2, and a message that holds every word.
pub(crate) fn refuse(binary: &str, arguments: &[&str], words: &[&str]) -> String {
    fail(binary, arguments, 2, words)
}

/// Runs a binary that must end with `code` and a message that holds every word.
pub(crate) fn fail(binary: &str, arguments: &[&str], code: i32, words: &[&str]) -> String {
    let output = run(binary, arguments);
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{}\n{message}", arguments.join(" "));
    for word in words {
        assert!(message.contains(word), "expected {word:?} in: {message}");
    }
    assert!(!message.contains("panicked"), "{message}");
    message
}

/// A JSON file that a binary wrote.
pub(crate) fn json(path: &Path) -> Value {
    let text = std::fs::read_to_string(path)
        .unwrap_or_else(|error| panic!("read {}: {error}", path.display()));
    serde_json::from_str(&text).expect("the file is JSON")
}

/// The losses of a report, by their bits: equal means the same to the last one.
pub(crate) fn losses(report: &Value) -> Vec<f64> {
    let losses = report["losses"].as_array().expect("the report has losses");
    losses.iter().map(|loss| loss.as_f64().expect("a loss is a number")).collect()
}

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().expect("the path is text")
}

/// What rows may take to get to SSD.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// Waits until a training process has a file of rows in its store.
pub(crate) fn wait_for_rows_on_ssd(process: &mut Process, store: &Path) {
    let rows = store.join("rows");
    let on_ssd = process.wait_for("file of rows", PATIENCE, |_| {
        let files = std::fs::read_dir(&rows).into_iter().flatten().flatten();
        files.into_iter().find(|file| file.path().extension().is_some_and(|e| e == "sst"))
    });
    on_ssd.expect("trained rows are on SSD");
}

/// A running `embedding-ps`, killed when the test ends without having stopped it.
pub(crate) struct Server {
    process: Process,
    pub grpc: String,
    /// Where `/metrics` and `/healthz` are.
    pub http: String,
}

impl Server {
    /// Starts a server over `dir` with more flags, and waits until it is ready. It listens on a
    /// free port of loopback unless `flags` name a place.
    pub(crate) fn start(dir: &Path, flags: &[&str]) -> Server {
        Self::start_under(&[SERVER], dir, flags)
    }

    /// The same under a wrapper: `command` is the program and its first arguments.
    pub(crate) fn start_under(command: &[&str], dir: &Path, flags: &[&str]) -> Server {
        let ready = dir.join("ready.json");
        let _ = std::fs::remove_file(&ready);
        let mut arguments = vec!["--data-dir".to_owned(), text(&dir.join("data")).to_owned()];
        for (flag, value) in [("--listen", "127.0.0.1:0"), ("--http", "127.0.0.1:0")] {
            if !flags.contains(&flag) {
                arguments.extend([flag.to_owned(), value.to_owned()]);
            }
        }
        arguments.extend(["--ready-file".to_owned(), text(&ready).to_owned()]);
        std::fs::create_dir_all(dir).expect("make folder");
        let mut server = Command::new(command[0]);
        server.args(&command[1..]).args(&arguments).args(flags);
        let mut process =
            Process::start_command(server, dir.join("server.log")).expect("start embedding-ps");
        process
            .wait_for("ready file", LIMIT, |_| ready.exists().then_some(()))
            .expect("the server is ready");
        let ready = json(&ready);
        let place = |name: &str| ready[name].as_str().unwrap_or_default().to_owned();
        Server { process, grpc: place("grpc"), http: place("http") }
    }

    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }

    /// The most memory that it has had resident so far.
    pub(crate) fn peak_rss_bytes(&self) -> u64 {
        self.process.peak_rss_bytes().expect("read the server's status")
    }

    /// Kills it (SIGKILL): it writes nothing more.
    pub(crate) fn kill(mut self) {
        self.process.kill().expect("send SIGKILL");
        self.process.wait(LIMIT).expect("the server ends");
    }

    /// Sends SIGTERM and waits for a clean end.
    pub(crate) fn stop(mut self) {
        self.process.terminate().expect("send SIGTERM");
        let status = self.process.wait(LIMIT).expect("the server ends");
        assert!(status.success(), "the server ended with {status}");
    }
}
