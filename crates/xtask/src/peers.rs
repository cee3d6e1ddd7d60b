//! PyTorch and FBGEMM in an environment of their own, for `bench peers`: made once, outside the
//! repository. It measures nothing itself.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::rocksdb::cache_folder;
use crate::workspace::{Workspace, call};

/// The variable that names a Python with PyTorch.
const PYTHON: &str = "EMBEDDING_PS_PYTHON";

/// The variable that names a checkout of facebookresearch/dlrm.
const DLRM: &str = "EMBEDDING_PS_DLRM";

/// What is installed, with its versions.
const REQUIREMENTS: &str = "benches/peers/requirements.txt";

/// The Python of an environment that holds what [`REQUIREMENTS`] names, made if it is not there; or
/// the one that the variable names, taken as it is.
pub(crate) fn provide(workspace: &Workspace) -> Result<PathBuf> {
    if let Some(python) = env::var_os(PYTHON).filter(|python| !python.is_empty()) {
        return std::path::absolute(python).context(PYTHON);
    }
    let requirements = workspace.root.join(REQUIREMENTS);
    let wanted = fs::read_to_string(&requirements)
        .with_context(|| format!("read {}", requirements.display()))?;
    let folder = cache_folder()?.join(folder_name(&wanted));
    let (python, whole) = (folder.join("bin/python"), folder.join("whole"));
    if whole.exists() {
        return Ok(python);
    }
    eprintln!("xtask: installing PyTorch into {} (5 GB, some minutes)", folder.display());
    let venv = ["-m", "venv", "--clear"].map(OsString::from);
    call(Command::new("python3").args(venv).arg(&folder))?;
    let mut pip = Command::new(&python);
    pip.args(["-m", "pip", "install", "--quiet", "--no-cache-dir", "--requirement"]);
    call(pip.arg(&requirements))?;
    fs::write(&whole, wanted).context("mark the environment as whole")?;
    ensure!(python.exists(), "no Python in {}", folder.display());
    Ok(python)
}

/// The checkout that the variable names, if any.
pub(crate) fn dlrm() -> Result<Option<PathBuf>> {
    let path = env::var_os(DLRM).filter(|path| !path.is_empty());
    path.map(|path| std::path::absolute(path).context(DLRM)).transpose()
}

/// Other versions go into another folder: `peers-torch-2.12.0-fbgemm-gpu-cpu-1.7.0`.
fn folder_name(requirements: &str) -> String {
    let packages = requirements.lines().filter(|line| !line.trim().is_empty());
    packages.fold("peers".to_owned(), |name, package| {
        format!("{name}-{}", package.trim().replace("==", "-"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_versions_have_another_folder() {
        let name = folder_name("torch==2.12.0\nfbgemm-gpu-cpu==1.7.0\n");
        assert_eq!(name, "peers-torch-2.12.0-fbgemm-gpu-cpu-1.7.0");
        assert_ne!(name, folder_name("torch==2.12.1\nfbgemm-gpu-cpu==1.7.0\n"));
    }
}
