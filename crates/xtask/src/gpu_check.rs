//! `cargo xtask gpu-check`: one program to carry to a machine with a GPU. It needs nothing there
//! but the C library that every Linux has, and CUDA's own. It runs nothing there.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::workspace::{Workspace, call, output};

/// A program that is carried by hand stays below it.
const BYTES_MAX: u64 = 64 << 20;

/// What the program may want of the machine that it is carried to: parts of the C library.
const OF_EVERY_MACHINE: [&str; 8] = [
    "libc.so.6",
    "libm.so.6",
    "ld-linux-x86-64.so.2",
    "ld-linux-aarch64.so.1",
    "libpthread.so.0",
    "libdl.so.2",
    "librt.so.1",
    "libutil.so.1",
];

/// The compiler's own libraries, by the name that the linker looks for and that of their archive.
const ARCHIVES: [(&str, &str); 2] = [("libstdc++.a", "libstdc++.a"), ("libgcc_s.a", "libgcc_eh.a")];

/// Builds the program with the commit's name in it, strips it, looks what it needs and says where
/// it lies.
pub(crate) fn build(workspace: &Workspace) -> Result<()> {
    let archives = workspace.target_folder()?.join("archives");
    gather(&archives)?;
    let built = workspace.build_gpu_check(&archives)?;
    let carried = carried(&built)?;
    fs::copy(&built, &carried).with_context(|| format!("copy to {}", carried.display()))?;
    call(Command::new("strip").arg(&carried))?;
    let metadata = fs::metadata(&carried).with_context(|| format!("read {}", carried.display()))?;
    let bytes = metadata.len();
    if bytes >= BYTES_MAX {
        bail!("{}: {bytes} bytes, expected less than {BYTES_MAX}", carried.display());
    }
    let needs = needs(&output(Command::new("readelf").arg("-d").arg(&carried))?);
    if let Some(other) = needs.iter().find(|library| !OF_EVERY_MACHINE.contains(&&library[..])) {
        bail!("{} needs {other}, expected parts of the C library alone", carried.display());
    }
    let versions = output(Command::new("readelf").arg("-V").arg(&carried))?;
    let (major, minor) = newest_glibc(&versions).context("find the versions of the C library")?;
    println!(
        "{}\n{:.1} MiB, commit {}; needs glibc {major}.{minor} and nothing else to start.\n\
         Where there is a GPU, its driver (CUDA 13.0) and CUDA's libraries, `./gpu-check --out .`\n\
         ends within 8 minutes with a table and gpu-check.json; its last line says what failed\n\
         first.",
        carried.display(),
        bytes as f64 / f64::from(1 << 20),
        workspace.commit(),
    );
    Ok(())
}

/// Makes a folder with the compiler's libraries as archives, and nothing that the linker would
/// rather take.
fn gather(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    for (name, archive) in ARCHIVES {
        let found = output(Command::new("c++").arg(format!("-print-file-name={archive}")))?;
        let found = Path::new(found.trim());
        if !found.is_absolute() {
            bail!("the C++ compiler has no {archive}");
        }
        let link = folder.join(name);
        if fs::symlink_metadata(&link).is_ok() {
            fs::remove_file(&link).with_context(|| format!("remove {}", link.display()))?;
        }
        symlink(found, &link).with_context(|| format!("make {}", link.display()))?;
    }
    Ok(())
}

/// Beside the build's own folder, so that no build writes over it.
fn carried(built: &Path) -> Result<PathBuf> {
    let folder = built.ancestors().nth(2).context("find the target folder")?;
    Ok(folder.join("gpu-check"))
}

/// The libraries that a program asks the loader for, as `readelf -d` tells.
fn needs(dynamic: &str) -> Vec<String> {
    let library = |line: &str| {
        let (_, rest) = line.split_once("(NEEDED)")?;
        Some(rest.split_once('[')?.1.split_once(']')?.0.to_owned())
    };
    dynamic.lines().filter_map(library).collect()
}

/// The newest version of the C library that `readelf -V` names.
fn newest_glibc(versions: &str) -> Option<(u32, u32)> {
    let names = versions.split("GLIBC_").skip(1);
    let version = |rest: &str| {
        let number = |c: char| c.is_ascii_digit() || c == '.';
        let text = &rest[..rest.find(|c: char| !number(c)).unwrap_or(rest.len())];
        let mut parts = text.split('.').map(str::parse::<u32>);
        Some((parts.next()?.ok()?, parts.next()?.ok()?))
    };
    names.filter_map(version).max()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_carried_lies_beside_the_build() {
        let found = carried(Path::new("/t/target/release/gpu-check")).unwrap();
        assert_eq!(found, Path::new("/t/target/gpu-check"));
    }

    #[test]
    fn what_a_program_needs_is_read_from_what_readelf_says() {
        let said = "\
Dynamic section at offset 0x1 contains 3 entries:
 0x0000000000000001 (NEEDED)             Shared library: [libstdc++.so.6]
 0x0000000000000001 (NEEDED)             Shared library: [libc.so.6]
 0x000000000000000c (INIT)               0x1000
";
        assert_eq!(needs(said), ["libstdc++.so.6", "libc.so.6"]);
        let said =
            "  0x0010:   Name: GLIBC_2.9  Flags: none\n  0x0020:   Name: GLIBC_2.34  Flags\n";
        assert_eq!(newest_glibc(said), Some((2, 34)));
        assert_eq!(newest_glibc("Name: GLIBC_PRIVATE"), None);
    }
}
