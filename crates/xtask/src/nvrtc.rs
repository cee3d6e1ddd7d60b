//! CUDA's run-time compiler for machines without CUDA, so that the tests see every kernel compile.
//! It is a library of the Python registry, fetched once. It compiles nothing itself.

use std::env;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use crate::rocksdb::cache_folder;
use crate::workspace::{Workspace, call};

/// The variable that names the folder of `libnvrtc.so`.
pub(crate) const NVRTC: &str = "EMBEDDING_PS_NVRTC";

/// A newer compiler than CUDA 13.0's makes code that drivers of CUDA 13.0 may refuse.
const PACKAGE: &str = "nvidia-cuda-nvrtc==13.0.88";
const FOLDER: &str = "nvrtc-13.0.88";
/// Where the package puts the library.
const LIBRARIES: &str = "nvidia/cu13/lib";

/// The folder of the compiler's library: the one that the variable names, or the fetched one.
pub(crate) fn installed() -> Option<PathBuf> {
    if let Some(folder) = env::var_os(NVRTC).filter(|folder| !folder.is_empty()) {
        return std::path::absolute(folder).ok();
    }
    let fetched = cache_folder().ok()?.join(FOLDER).join(LIBRARIES);
    fetched.join("libnvrtc.so.13").exists().then_some(fetched)
}

/// Fetches the library unless it is there. Without it no test sees a kernel compile, so that not to
/// have it is an error.
pub(crate) fn provide(workspace: &Workspace) -> Result<()> {
    if let Some(folder) = installed() {
        eprintln!("xtask: CUDA's compiler is in {}", folder.display());
        return Ok(());
    }
    let (folder, partial) = (cache_folder()?.join(FOLDER), cache_folder()?.join("nvrtc.partial"));
    let mut pip = Command::new("python3");
    pip.current_dir(&workspace.root);
    pip.args(["-m", "pip", "install", "--quiet", "--no-deps", "--upgrade", "--target"]);
    call(pip.arg(&partial).arg(PACKAGE)).with_context(|| {
        format!("fetch CUDA's compiler ({PACKAGE}), or name its folder by {NVRTC}")
    })?;
    std::fs::rename(&partial, &folder).with_context(|| format!("move to {}", folder.display()))
}
