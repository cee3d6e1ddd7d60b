//! Where the repository and its build output are, and how cargo is called in it. It does not know
//! what is built.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use cargo_metadata::{Metadata, MetadataCommand};

/// The environment that names a RocksDB library to librocksdb-sys.
pub(crate) const LIB_DIR: &str = "ROCKSDB_LIB_DIR";
pub(crate) const LIB_STATIC: &str = "ROCKSDB_STATIC";

/// The repository that this command works on.
#[derive(Debug)]
pub(crate) struct Workspace {
    pub(crate) root: PathBuf,
    cargo: PathBuf,
    /// The library that `.cargo/rocksdb.toml` named when this process began.
    configured_lib_dir: Option<String>,
}

impl Workspace {
    pub(crate) fn open() -> Result<Self> {
        // `cargo run` sets it to the crate's folder, wherever the checkout was moved since
        let manifest_dir =
            env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
        let root = Path::new(&manifest_dir).ancestors().nth(2).context("find the repository")?;
        let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut workspace =
            Self { root: root.to_owned(), cargo: cargo.into(), configured_lib_dir: None };
        let config = fs::read_to_string(workspace.rocksdb_config()).unwrap_or_default();
        workspace.configured_lib_dir = configured_lib_dir(&config);
        Ok(workspace)
    }

    /// The file that `.cargo/config.toml` includes where it exists.
    pub(crate) fn rocksdb_config(&self) -> PathBuf {
        self.root.join(".cargo/rocksdb.toml")
    }

    /// The library that the person at the keyboard chose by environment variable, if any.
    pub(crate) fn chosen_lib_dir(&self) -> Option<String> {
        // cargo hands the configured value on to this process, so that one is no choice
        env::var(LIB_DIR).ok().filter(|dir| Some(dir) != self.configured_lib_dir.as_ref())
    }

    /// The library that `.cargo/rocksdb.toml` named when this process began.
    pub(crate) fn configured_lib_dir(&self) -> Option<&str> {
        self.configured_lib_dir.as_deref()
    }

    /// A cargo command in the repository's root.
    pub(crate) fn cargo(&self) -> Command {
        let mut command = Command::new(&self.cargo);
        command.current_dir(&self.root);
        if self.chosen_lib_dir().is_none() {
            // else what the configuration said before `setup` would win over what it says now
            command.env_remove(LIB_DIR).env_remove(LIB_STATIC);
        }
        command
    }

    /// Every package with its features, as the lock file resolves them. It fetches what is missing.
    pub(crate) fn metadata(&self) -> Result<Metadata> {
        let mut command = MetadataCommand::new();
        command.cargo_path(&self.cargo).current_dir(&self.root);
        command.exec().context("read cargo metadata")
    }

    /// Builds the three binaries and tells where they are.
    pub(crate) fn build_binaries(&self) -> Result<Binaries> {
        let folder = self.build("embedding-ps")?;
        Ok(Binaries {
            server: folder.join("embedding-ps"),
            worker: folder.join("dlrm-worker"),
            control: folder.join("psctl"),
        })
    }

    /// Builds the program that measures the store and tells where it is.
    pub(crate) fn build_bench(&self) -> Result<PathBuf> {
        Ok(self.build("benches")?.join("bench"))
    }

    /// Builds the program that is carried to a GPU, which says of which commit it is, with what
    /// archives there are in a folder in place of libraries, and tells where it is.
    pub(crate) fn build_gpu_check(&self, archives: &Path) -> Result<PathBuf> {
        let mut build = self.cargo();
        build.args(["rustc", "--release", "--package", "gpu-check", "--bin", "gpu-check", "--"]);
        build.arg("-L").arg(format!("native={}", archives.display()));
        call(build.env("EMBEDDING_PS_COMMIT", self.commit()))?;
        Ok(self.target_folder()?.join("release/gpu-check"))
    }

    /// Builds the binaries of a package and tells their folder.
    fn build(&self, package: &str) -> Result<PathBuf> {
        let mut build = self.cargo();
        call(build.args(["build", "--release", "--package", package, "--bins"]))?;
        Ok(self.target_folder()?.join("release"))
    }

    /// The folder of all that is built.
    pub(crate) fn target_folder(&self) -> Result<PathBuf> {
        let mut command = MetadataCommand::new();
        command.cargo_path(&self.cargo).current_dir(&self.root).no_deps();
        let metadata = command.exec().context("read cargo metadata")?;
        Ok(metadata.target_directory.into_std_path_buf())
    }

    /// The commit that is checked out, with `+` where files differ from it.
    pub(crate) fn commit(&self) -> String {
        let git = |args: &[&str]| output(Command::new("git").current_dir(&self.root).args(args));
        let Ok(commit) = git(&["rev-parse", "--short=12", "HEAD"]) else {
            return "unknown".to_owned();
        };
        let changed = git(&["status", "--porcelain"]).is_ok_and(|changes| !changes.is_empty());
        format!("{}{}", commit.trim(), if changed { "+" } else { "" })
    }
}

/// The three binaries, built.
#[derive(Debug)]
pub(crate) struct Binaries {
    pub(crate) server: PathBuf,
    pub(crate) worker: PathBuf,
    pub(crate) control: PathBuf,
}

/// Runs a command whose output goes where ours goes; anything but success is an error.
pub(crate) fn call(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("run {}", line(command)))?;
    if !status.success() {
        bail!("{} failed: {status}", line(command));
    }
    Ok(())
}

/// Runs a command and returns what it wrote to standard output.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("run {}", line(command)))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{} failed: {}: {}", line(command), output.status, said.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A command as one would type it.
pub(crate) fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

fn configured_lib_dir(config: &str) -> Option<String> {
    let value = config.lines().find_map(|line| {
        let (name, value) = line.split_once('=')?;
        (name.trim() == LIB_DIR).then(|| value.trim())
    })?;
    serde_json::from_str(value).ok() // `rocksdb` writes it so that JSON and TOML agree
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configured_library_is_found_in_the_file_that_we_write() {
        let config = "[env]\nROCKSDB_LIB_DIR = \"/a b/\\\"c\\\"\"\nROCKSDB_STATIC = \"1\"\n";
        assert_eq!(configured_lib_dir(config).unwrap(), "/a b/\"c\"");
        assert_eq!(configured_lib_dir("[env]\n"), None);
        assert_eq!(configured_lib_dir(""), None);
    }

    #[test]
    fn a_command_reads_as_typed() {
        let mut command = Command::new("cargo");
        command.args(["test", "--release"]);
        assert_eq!(line(&command), "cargo test --release");
    }

    #[test]
    fn a_failed_command_tells_what_it_said() {
        let error = output(Command::new("sh").args(["-c", "echo no >&2; exit 3"])).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("exit status: 3") && text.ends_with("no"), "{text}");
        assert!(call(&mut Command::new("false")).is_err());
        assert!(call(&mut Command::new("true")).is_ok());
    }
}
