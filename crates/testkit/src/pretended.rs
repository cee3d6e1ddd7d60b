//! A pretended CUDA for tests: the library that `crates/gpu/shim/driver.cpp` makes, in a folder
//! that the loader is told of. The loader reads its variable when a program starts, so what needs
//! it is a program of its own, or a test that starts itself once more.
#![allow(clippy::unwrap_used)] // a test that cannot go on fails

use std::ffi::OsStr;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::sync::LazyLock;

use tempfile::TempDir;

/// What tells the loader where libraries are.
const LIBRARY_PATH: &str = "LD_LIBRARY_PATH";
/// The folder that programs keep caches in: what is compiled for no device is for no other program.
const CACHES: &str = "XDG_CACHE_HOME";
/// Marks a test that was started once more.
const INSIDE: &str = "UNDER_PRETENDED_CUDA";

/// A folder with a library that stands for the driver, NVRTC, cuBLASLt and NCCL.
#[derive(Debug)]
pub struct PretendedCuda {
    folder: TempDir,
}

impl PretendedCuda {
    /// The one of this process, built when it is first asked for.
    pub fn get() -> &'static Self {
        static BUILT: LazyLock<PretendedCuda> = LazyLock::new(PretendedCuda::build);
        &BUILT
    }

    fn build() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let library = folder.path().join("libcuda.so");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../gpu/shim/driver.cpp");
        let mut compiler = Command::new("c++");
        compiler
            .args(["-std=c++17", "-O1", "-fPIC", "-shared", "-ffp-contract=off"])
            .args(["-Wall", "-Wextra", "-Werror", "-Wno-clobbered", "-Wno-unknown-pragmas"])
            .arg(source)
            .arg("-o")
            .arg(&library);
        let output = compiler.output().expect("a C++ compiler, which RocksDB needs too");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        for name in ["libnvrtc.so", "libcublasLt.so", "libnccl.so.2"] {
            symlink(&library, folder.path().join(name)).unwrap();
        }
        Self { folder }
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Has a program find this CUDA and no other, and keep its code to itself.
    pub fn tell<'c>(&self, command: &'c mut Command) -> &'c mut Command {
        command.envs(self.variables())
    }

    /// The variables by which a program does so.
    pub fn variables(&self) -> [(&'static str, &OsStr); 2] {
        let folder = self.folder().as_os_str();
        [(LIBRARY_PATH, folder), (CACHES, folder)]
    }
}

/// Whether the calling test runs under the pretended CUDA. If not, the test is started once more,
/// alone, under it and with these variables, and has to pass there: the caller then returns.
pub fn under_pretended_cuda(test: &str, variables: &[(&str, &str)]) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let mut again = Command::new(std::env::current_exe().unwrap());
    again.args(["--exact", test, "--nocapture", "--test-threads=1"]).env(INSIDE, "1");
    again.envs(variables.iter().copied());
    let output = PretendedCuda::get().tell(&mut again).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && said.contains("1 passed"),
        "{test} under the pretended CUDA: {}\n{said}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    false
}
