//! What the build needs of the machine: a C++ compiler and libclang with its headers. It installs
//! by apt-get where there is one and says what to install elsewhere; what is there it leaves alone.
//! liburing it only wishes for: without it RocksDB reads one block after the other.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Result, bail};

use crate::workspace::{call, line, output};

/// What Debian and Ubuntu call liburing with its header.
const URING_PACKAGE: &str = "liburing-dev";

/// Something the build cannot do without.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Need {
    /// Compiles RocksDB, and links.
    Compiler,
    /// bindgen reads RocksDB's C header with it.
    LibClang,
    /// The headers that belong to the libclang of this major version, if it tells one.
    ClangHeaders(Option<u32>),
}

/// Makes sure that all is there. Nothing is asked of the network where it is.
pub(crate) fn provide() -> Result<()> {
    let missing = missing();
    if missing.is_empty() {
        return Ok(());
    }
    let wanted: Vec<String> = missing.iter().map(|need| need.to_string()).collect();
    eprintln!("xtask: this machine lacks {}", wanted.join(" and "));
    if !succeeds(Command::new("apt-get").arg("--version")) {
        bail!("{}", advice(&wanted));
    }
    install_by_apt(&missing)?;
    let still: Vec<String> = self::missing().iter().map(|need| need.to_string()).collect();
    if !still.is_empty() {
        bail!("installed, but still not found: {}; {}", still.join(" and "), advice(&still));
    }
    Ok(())
}

/// The C++ compiler of the build: `CXX`, or g++.
pub(crate) fn compiler() -> String {
    env::var("CXX").unwrap_or_else(|_| "g++".to_owned())
}

/// liburing as a static library, if the compiler finds it, and its header is recent enough for
/// RocksDB.
pub(crate) fn uring() -> Option<PathBuf> {
    let macros = output(Command::new(compiler()).args(["-E", "-dM", "-x", "c++"]).args([
        "-include",
        "liburing.h",
        "/dev/null",
    ]));
    if !macros.is_ok_and(|macros| macros.contains("IORING_SETUP_DEFER_TASKRUN")) {
        return None;
    }
    // the compiler answers with a path, or with the bare name where it finds none
    let found = output(Command::new(compiler()).arg("-print-file-name=liburing.a")).ok()?;
    let found = PathBuf::from(found.trim());
    found.is_absolute().then_some(found)
}

/// Installs liburing by apt-get where that needs no question to anybody; else says what is lost.
pub(crate) fn wish_for_uring() {
    if env::consts::OS != "linux" || uring().is_some() {
        return;
    }
    let asks_nothing = is_root() || succeeds(Command::new("sudo").args(["-n", "true"]));
    if asks_nothing && candidate(URING_PACKAGE) {
        let mut install = as_root(is_root(), &["install", "--yes", "--no-install-recommends"]);
        install.arg(URING_PACKAGE);
        eprintln!("xtask: {}", line(&install));
        if call(&mut install).is_ok() && uring().is_some() {
            return;
        }
    }
    eprintln!(
        "xtask: there is no liburing 2.3 or later ({URING_PACKAGE}) to build RocksDB with: \
         it will read one block at a time from SSD"
    );
}

/// How many compilations of so many bytes each can run at once.
pub(crate) fn jobs(bytes_each: u64) -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let Some(available) = memory_available_bytes() else { return cores };
    usize::try_from(available / bytes_each).unwrap_or(usize::MAX).clamp(1, cores)
}

/// One line on the hardware and what runs on it, for tables of measurements.
pub(crate) fn description() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpu = field(&read("/proc/cpuinfo"), "model name").unwrap_or_else(|| "unknown CPU".into());
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let memory = field(&read("/proc/meminfo"), "MemTotal").and_then(|text| kib(&text));
    let gib = memory.map_or("?".to_owned(), |kib| format!("{:.0}", kib as f64 / 1048576.0));
    let system = field(&read("/etc/os-release").replace('=', ":"), "PRETTY_NAME");
    let system = system.unwrap_or_else(|| env::consts::OS.to_owned());
    format!("{cpu}, {cores} cores, {gib} GiB, {}, {}", system.trim_matches('"'), env::consts::ARCH)
}

impl std::fmt::Display for Need {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Need::Compiler => "a C++ compiler",
            Need::LibClang => "libclang",
            Need::ClangHeaders(_) => "libclang's headers",
        })
    }
}

fn missing() -> Vec<Need> {
    let mut missing = Vec::new();
    if !succeeds(Command::new(compiler()).arg("--version")) {
        missing.push(Need::Compiler);
    }
    let folders = libclang_folders();
    match folders.iter().find_map(|folder| libclang_in(folder)) {
        None => missing.push(Need::LibClang),
        Some(library) if !clang_headers(&folders) => {
            missing.push(Need::ClangHeaders(major_version(&library)));
        }
        Some(_) => {}
    }
    missing
}

/// Where bindgen's loader looks for libclang, the likely places first.
fn libclang_folders() -> Vec<PathBuf> {
    let mut folders = Vec::new();
    if let Some(path) = env::var_os("LIBCLANG_PATH").map(PathBuf::from) {
        let folder = if path.is_file() { path.parent().map(Path::to_owned) } else { Some(path) };
        folders.extend(folder);
    }
    if let Ok(folder) = output(Command::new("llvm-config").arg("--libdir")) {
        folders.push(folder.trim().into());
    }
    let parents = ["/usr/lib", "/usr/lib64", "/usr/local/lib", "/usr/local/lib64", "/opt/homebrew"];
    for parent in parents.map(Path::new) {
        folders.push(parent.to_owned());
        for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
            // multi-architecture folders (x86_64-linux-gnu) and LLVM's own (llvm-14/lib)
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.ends_with("-linux-gnu") {
                folders.push(entry.path());
            } else if name.starts_with("llvm") {
                folders.push(entry.path().join("lib"));
                folders.push(entry.path().join("lib64"));
            }
        }
    }
    folders.push("/Library/Developer/CommandLineTools/usr/lib".into());
    folders
}

/// A file in `folder` that bindgen's loader would take for libclang.
fn libclang_in(folder: &Path) -> Option<String> {
    let names = fs::read_dir(folder).ok()?.flatten();
    let mut names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.find(|name| is_libclang(name))
}

fn is_libclang(name: &str) -> bool {
    if name == "libclang.dylib" {
        return true;
    }
    let Some(rest) = name.strip_prefix("libclang") else { return false };
    let versioned = rest.starts_with('-') && !rest.starts_with("-cpp") && rest.contains(".so");
    rest == ".so" || rest.starts_with(".so.") || versioned
}

/// The 14 of `libclang-14.so.1`.
fn major_version(name: &str) -> Option<u32> {
    let rest = name.strip_prefix("libclang-")?;
    rest.split('.').next()?.parse().ok()
}

/// Whether the compiler's own headers (stdbool.h) are where libclang looks for them.
fn clang_headers(folders: &[PathBuf]) -> bool {
    let told = env::var_os("BINDGEN_EXTRA_CLANG_ARGS").is_some();
    told || succeeds(Command::new("clang").arg("--version"))
        || folders.iter().flat_map(|folder| fs::read_dir(folder.join("clang"))).any(|versions| {
            versions.flatten().any(|version| version.path().join("include/stdbool.h").exists())
        })
}

fn install_by_apt(missing: &[Need]) -> Result<()> {
    let root = is_root();
    if !candidate("g++") || clang_version().is_none() {
        let update = &mut as_root(root, &["update"]); // a bare image comes without package lists
        refuse_without_root(root, update)?;
        call(update)?;
    }
    let packages = packages(missing, clang_version(), candidate);
    let mut install = as_root(root, &["install", "--yes", "--no-install-recommends"]);
    install.args(&packages);
    refuse_without_root(root, &install)?;
    eprintln!("xtask: {}", line(&install));
    call(&mut install)
}

fn is_root() -> bool {
    output(Command::new("id").arg("-u")).is_ok_and(|id| id.trim() == "0")
}

/// apt-get with these arguments, by sudo unless this is root.
fn as_root(root: bool, args: &[&str]) -> Command {
    let mut command = Command::new(if root { "env" } else { "sudo" });
    if !root {
        command.arg("env");
    }
    command.args(["DEBIAN_FRONTEND=noninteractive", "apt-get"]).args(args);
    command
}

fn refuse_without_root(root: bool, command: &Command) -> Result<()> {
    if !root && !succeeds(Command::new("sudo").arg("--version")) {
        let typed = line(command).replace("sudo env DEBIAN_FRONTEND=noninteractive ", "");
        bail!("not root, and there is no sudo; run as root: {typed}");
    }
    Ok(())
}

/// What to install: the smallest set that `available` has, for the distribution's own clang.
fn packages(
    missing: &[Need],
    clang_version: Option<u32>,
    available: impl Fn(&str) -> bool,
) -> Vec<String> {
    let mut packages = Vec::new();
    for need in missing {
        match *need {
            Need::Compiler => packages.push("g++".to_owned()),
            Need::LibClang | Need::ClangHeaders(_) => {
                let version =
                    if let Need::ClangHeaders(own @ Some(_)) = *need { own } else { clang_version };
                let smallest =
                    version.map(|n| [format!("libclang1-{n}"), format!("libclang-common-{n}-dev")]);
                match smallest.filter(|names| names.iter().all(|name| available(name))) {
                    Some(names) => packages.extend(names),
                    None => packages.push("libclang-dev".to_owned()),
                }
            }
        }
    }
    packages
}

/// The version of clang that the distribution takes for its default.
fn clang_version() -> Option<u32> {
    default_clang(&output(Command::new("apt-cache").args(["depends", "libclang-dev"])).ok()?)
}

/// The 14 of `Depends: libclang-14-dev`.
fn default_clang(depends: &str) -> Option<u32> {
    depends.lines().find_map(|line| {
        let name = line.trim().strip_prefix("Depends: ")?;
        name.strip_prefix("libclang-")?.strip_suffix("-dev")?.parse().ok()
    })
}

/// Whether apt can install a package.
fn candidate(package: &str) -> bool {
    let policy = output(Command::new("apt-cache").args(["policy", package])).unwrap_or_default();
    policy.lines().any(|line| {
        line.trim().strip_prefix("Candidate:").is_some_and(|version| version.trim() != "(none)")
    })
}

fn advice(wanted: &[String]) -> String {
    format!(
        "install {}:\n\
         \x20 Fedora, RHEL:  dnf install gcc-c++ clang-libs clang-resource-filesystem\n\
         \x20 Arch:          pacman -S gcc clang\n\
         \x20 openSUSE:      zypper install gcc-c++ libclang13 clang-devel\n\
         \x20 macOS:         xcode-select --install\n\
         libclang in a place of its own is found through LIBCLANG_PATH",
        wanted.join(" and ")
    )
}

fn succeeds(command: &mut Command) -> bool {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// Memory that a new process may take: what the system has free, or less where a container is told.
fn memory_available_bytes() -> Option<u64> {
    let meminfo = fs::read_to_string("/proc/meminfo").ok()?;
    let free = kib(&field(&meminfo, "MemAvailable")?)? * 1024;
    let limit = fs::read_to_string("/sys/fs/cgroup/memory.max").ok();
    let limit = limit.and_then(|text| text.trim().parse().ok()).unwrap_or(u64::MAX);
    Some(free.min(limit))
}

fn field(text: &str, name: &str) -> Option<String> {
    text.lines().find_map(|line| {
        let (found, value) = line.split_once(':')?;
        (found.trim() == name).then(|| value.trim().to_owned())
    })
}

fn kib(text: &str) -> Option<u64> {
    text.strip_suffix("kB")?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libclang_is_told_from_its_neighbours() {
        for name in ["libclang.so", "libclang.so.1", "libclang-14.so", "libclang-14.so.14.0.6"] {
            assert!(is_libclang(name), "{name}");
        }
        for name in ["libclang-cpp.so.14", "libclang-cpp.so", "libclangAST.a", "libLLVM.so"] {
            assert!(!is_libclang(name), "{name}");
        }
        assert_eq!(major_version("libclang-14.so.1"), Some(14));
        assert_eq!(major_version("libclang.so.1"), None);
    }

    #[test]
    fn the_smallest_set_of_packages_is_chosen() {
        let both = [Need::Compiler, Need::LibClang];
        let debian = packages(&both, Some(14), |_| true);
        assert_eq!(debian, ["g++", "libclang1-14", "libclang-common-14-dev"]);
        assert_eq!(packages(&both, None, |_| true), ["g++", "libclang-dev"]);
        assert_eq!(packages(&both, Some(14), |_| false), ["g++", "libclang-dev"]);
        let headers = packages(&[Need::ClangHeaders(Some(15))], Some(14), |_| true);
        assert_eq!(headers, ["libclang1-15", "libclang-common-15-dev"]);
    }

    #[test]
    fn the_distributions_clang_is_read_from_apt() {
        assert_eq!(default_clang("libclang-dev\n  Depends: libclang-19-dev\n"), Some(19));
        assert_eq!(default_clang("libclang-dev\n  Depends: libc6\n"), None);
    }

    #[test]
    fn compilations_are_limited_by_memory() {
        assert_eq!(jobs(u64::MAX), 1);
        assert!(jobs(1) >= 1);
        assert_eq!(field("MemTotal:   100 kB\nMemFree: 7 kB", "MemFree").unwrap(), "7 kB");
        assert_eq!(kib("24 kB"), Some(24));
    }
}
