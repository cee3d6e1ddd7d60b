//! A C++ program of the repository's, built under the sanitizers and run over a file, with a limit
//! of time. It knows nothing of what the program does.
#![allow(clippy::unwrap_used)] // a test that cannot go on fails

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// A run that takes this long hangs.
const LIMIT: Duration = Duration::from_secs(120);

/// A program that was built into a folder of its own.
#[derive(Debug)]
pub struct CppProgram {
    folder: TempDir,
}

impl CppProgram {
    /// Builds it with the address and undefined-behaviour sanitizers, warnings being errors.
    pub fn build(source: &Path, flags: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut compiler = Command::new("c++");
        compiler
            .args(["-std=c++17", "-O1", "-g", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror"])
            .args(["-Wno-clobbered", "-Wno-unknown-pragmas"])
            .args(["-fsanitize=address,undefined", "-fno-sanitize-recover=all"])
            .args(flags)
            .arg(source)
            .arg("-o")
            .arg(folder.path().join("run"));
        let output = compiler.output().expect("a C++ compiler, which RocksDB needs too");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Self { folder }
    }

    /// Runs it over a file of these bytes.
    pub fn run(&self, bytes: &[u8]) -> Output {
        let [file, stdout, stderr] =
            ["input", "out", "err"].map(|name| self.folder.path().join(name));
        fs::write(&file, bytes).unwrap();
        let mut child = Command::new(self.folder.path().join("run"))
            .arg(file)
            .stdout(File::create(&stdout).unwrap())
            .stderr(File::create(&stderr).unwrap())
            .spawn()
            .unwrap();
        let began = Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break status;
            }
            if began.elapsed() > LIMIT {
                child.kill().unwrap();
                panic!("it still runs after {LIMIT:?}: {}", fs::read_to_string(stderr).unwrap());
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        Output { status, stdout: fs::read(stdout).unwrap(), stderr: fs::read(stderr).unwrap() }
    }
}
