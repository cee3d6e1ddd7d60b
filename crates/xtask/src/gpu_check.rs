//! `cargo xtask gpu-check`: one program to carry to a machine with a GPU. It runs nothing there.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::workspace::{Workspace, call};

/// A program that is carried by hand stays below it.
const BYTES_MAX: u64 = 64 << 20;

/// Builds the program with the commit's name in it, strips it and says where it lies.
pub(crate) fn build(workspace: &Workspace) -> Result<()> {
    let built = workspace.build_gpu_check()?;
    let carried = carried(&built)?;
    fs::copy(&built, &carried).with_context(|| format!("copy to {}", carried.display()))?;
    call(Command::new("strip").arg(&carried))?;
    let metadata = fs::metadata(&carried).with_context(|| format!("read {}", carried.display()))?;
    let bytes = metadata.len();
    if bytes >= BYTES_MAX {
        bail!("{}: {bytes} bytes, expected less than {BYTES_MAX}", carried.display());
    }
    println!(
        "{}\n{:.1} MiB, commit {}. Where there is a GPU, its driver (CUDA 13.0) and CUDA's\n\
         libraries, `./gpu-check --out .` ends within 8 minutes with a table and gpu-check.json;\n\
         its last line says what failed first.",
        carried.display(),
        bytes as f64 / f64::from(1 << 20),
        workspace.commit(),
    );
    Ok(())
}

/// Beside the build's own folder, so that no build writes over it.
fn carried(built: &Path) -> Result<PathBuf> {
    let folder = built.ancestors().nth(2).context("find the target folder")?;
    Ok(folder.join("gpu-check"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_carried_lies_beside_the_build() {
        let found = carried(Path::new("/t/target/release/gpu-check")).unwrap();
        assert_eq!(found, Path::new("/t/target/gpu-check"));
    }
}
