//! Where CUDA's libraries are on a machine that has them elsewhere than the loader looks. It loads
//! nothing.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

/// The variable by which the loader is told where to look. It is read when a program starts.
pub const LIBRARY_PATH: &str = "LD_LIBRARY_PATH";

/// Folders that hold any of these libraries: of CUDA's own packages, then of those that come with
/// Python's.
pub fn folders(names: &[&str]) -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> = Vec::new();
    for parent in subfolders(Path::new("/usr/local")) {
        let name = parent.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name.starts_with("cuda") {
            folders.extend(["lib64", "targets/x86_64-linux/lib"].map(|name| parent.join(name)));
        }
    }
    let mut python = Command::new("python3");
    python.args(["-c", "import sys; print('\\n'.join(sys.path))"]);
    if let Ok(output) = python.output() {
        for line in String::from_utf8_lossy(&output.stdout).lines() {
            let packages = subfolders(&Path::new(line).join("nvidia"));
            folders.extend(packages.iter().map(|package| package.join("lib")));
        }
    }
    folders.retain(|folder| has_library(folder, names));
    folders
}

/// The loader's variable with these folders after those that it names.
pub fn extended(folders: &[PathBuf]) -> Option<OsString> {
    let before = env::var_os(LIBRARY_PATH).unwrap_or_default();
    let named: Vec<PathBuf> =
        env::split_paths(&before).filter(|path| !path.as_os_str().is_empty()).collect();
    env::join_paths(named.iter().chain(folders)).ok()
}

fn has_library(folder: &Path, names: &[&str]) -> bool {
    let Ok(entries) = fs::read_dir(folder) else { return false };
    entries.filter_map(Result::ok).any(|entry| {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        names.iter().any(|known| name.starts_with(known))
    })
}

/// Sorted, the last name first, so that the newest version is found first.
fn subfolders(parent: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(parent) else { return Vec::new() };
    let mut found: Vec<PathBuf> =
        entries.filter_map(|entry| Some(entry.ok()?.path())).filter(|path| path.is_dir()).collect();
    found.sort();
    found.reverse();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_counts_that_holds_a_library() {
        let folder = tempfile::tempdir().unwrap();
        let names = ["libnccl.so", "libnvrtc.so"];
        assert!(!has_library(folder.path(), &names));
        fs::write(folder.path().join("libnvrtc.so.13"), "").unwrap();
        assert!(has_library(folder.path(), &names));
        assert!(!has_library(folder.path(), &names[..1]), "another library");
        assert!(!has_library(&folder.path().join("gone"), &names));
        let text = extended(&[folder.path().to_owned()]).unwrap();
        assert!(env::split_paths(&text).any(|path| path == folder.path()));
    }
}
