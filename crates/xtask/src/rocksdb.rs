//! RocksDB as a static library, built once for this machine from librocksdb-sys' own sources and
//! kept outside `target/`; `.cargo/rocksdb.toml` then names it to every cargo command. See
//! `ops/adr/0003-rocksdb-unity-build.md`. It does not link: librocksdb-sys does.

use std::env;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{IsTerminal, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use cargo_metadata::Metadata;

use crate::columns::minutes;
use crate::machine;
use crate::workspace::{LIB_DIR, LIB_STATIC, Workspace, output};

/// Sources in one translation unit. Parsing headers is most of the work, so it is shared; larger
/// units would save little more and leave nothing to spread over cores.
const SOURCES_PER_UNIT: usize = 14;

/// What one compilation takes at its peak: 1.25 GB were measured.
const UNIT_BYTES_MAX: u64 = 1_400 << 20;

/// Features of librocksdb-sys that change nothing in what is compiled here.
const NEUTRAL_FEATURES: [&str; 4] = ["default", "static", "bindgen-runtime", "bindgen-static"];

/// Which of this file's recipes made a library: part of its name, so that a machine that has one of
/// an older recipe builds it anew.
const RECIPE: &str = "recipe2";

/// What stands for a library in which reads go to the system many at a time.
const URING_DEFINE: &str = "ROCKSDB_IOURING_PRESENT=1";

const DEFINES: [&str; 10] = [
    "NDEBUG=1",
    "HAVE_ALIGNED_NEW",
    "HAVE_UINT128_EXTENSION",
    "OS_LINUX",
    "ROCKSDB_PLATFORM_POSIX",
    "ROCKSDB_LIB_IO_POSIX",
    "ROCKSDB_SCHED_GETCPU_PRESENT",
    "ROCKSDB_AUXV_GETAUXVAL_PRESENT",
    "ROCKSDB_FALLOCATE_PRESENT",
    "ROCKSDB_RANGESYNC_PRESENT",
];

const FLAGS: [&str; 8] = [
    "-std=c++20",
    "-include",
    "cstdint",
    "-w",
    "-O2",
    "-fPIC",
    "-ffunction-sections",
    "-fdata-sections",
];

/// Makes sure that plain `cargo build` finds RocksDB as a library, or says that it will build its
/// own. The second call finds what the first one made.
pub(crate) fn provide(workspace: &Workspace) -> Result<()> {
    if let Some(folder) = workspace.chosen_lib_dir() {
        eprintln!("xtask: RocksDB as {LIB_DIR} says: {folder}");
        return Ok(());
    }
    if workspace.configured_lib_dir().is_some_and(|dir| is_current(Path::new(dir))) {
        return Ok(());
    }
    machine::wish_for_uring();
    match build(workspace) {
        Ok(folder) => configure(&workspace.rocksdb_config(), Some(&folder)),
        Err(error) => {
            eprintln!(
                "xtask: RocksDB can't be built the fast way: {error:#}\n\
                 xtask: librocksdb-sys will build it, which takes about 12 minutes on 2 cores"
            );
            configure(&workspace.rocksdb_config(), None)
        }
    }
}

/// Whether a library that this recipe made is there.
fn is_current(folder: &Path) -> bool {
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    name.contains(RECIPE) && archive_in(folder).exists()
}

fn archive_in(folder: &Path) -> PathBuf {
    folder.join("librocksdb.a")
}

/// Writes, or takes away, the file that names the library to cargo.
fn configure(config: &Path, folder: Option<&Path>) -> Result<()> {
    let Some(folder) = folder else {
        return match fs::remove_file(config) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("remove {}", config.display()))
            }
            Ok(()) | Err(_) => Ok(()),
        };
    };
    // a JSON string is a TOML string too
    let value = serde_json::to_string(folder.to_str().context("the cache path is not UTF-8")?)?;
    let text = format!(
        "# Written by `cargo xtask`; it may be deleted at any time.\n\
         [env]\n{LIB_DIR} = {value}\n{LIB_STATIC} = \"1\"\n"
    );
    let partial = config.with_extension("toml.partial");
    fs::write(&partial, text).with_context(|| format!("write {}", partial.display()))?;
    fs::rename(&partial, config).with_context(|| format!("write {}", config.display()))
}

/// Finds the library in the cache, or builds it there. Returns its folder.
fn build(workspace: &Workspace) -> Result<PathBuf> {
    let recipe = Recipe::find(&workspace.metadata()?)?;
    let cache = cache_folder()?;
    let name = recipe.name();
    let folder = cache.join(&name);
    if archive_in(&folder).exists() {
        return Ok(folder);
    }
    fs::create_dir_all(&cache).with_context(|| format!("make {}", cache.display()))?;
    let lock = File::create(cache.join(format!("{name}.lock"))).context("make the lock file")?;
    lock.lock().context("wait for another build of RocksDB")?;
    if archive_in(&folder).exists() {
        return Ok(folder); // another process built it while this one waited
    }
    let partial = cache.join(format!("{name}.partial"));
    fs::create_dir_all(&partial).with_context(|| format!("make {}", partial.display()))?;
    let archive = recipe.compile(&partial)?;
    fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
    fs::rename(archive, archive_in(&folder)).context("move the library to its place")?;
    fs::remove_dir_all(&partial).context("remove the build folder")?;
    Ok(folder)
}

pub(crate) fn cache_folder() -> Result<PathBuf> {
    let named = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let folder = named("EMBEDDING_PS_CACHE")
        .or_else(|| named("XDG_CACHE_HOME").map(|caches| caches.join("embedding-ps")))
        .or_else(|| named("HOME").map(|home| home.join(".cache/embedding-ps")))
        .context("no place for a cache: set EMBEDDING_PS_CACHE")?;
    std::path::absolute(folder).context("find the cache")
}

/// All that decides what the library holds.
#[derive(Debug)]
struct Recipe {
    version: String,
    compiler: String,
    compiler_version: String,
    target: String,
    /// Folder in which the compiler runs, and that relative sources are found from.
    root: PathBuf,
    flags: Vec<String>,
    units: Vec<Unit>,
    /// liburing, whose objects go into the same archive, so that whoever links needs no other.
    uring: Option<PathBuf>,
}

/// One translation unit: a file that includes some sources.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Unit {
    sources: Vec<PathBuf>,
}

impl Recipe {
    /// The recipe for the librocksdb-sys of the lock file and this machine's compiler; an error
    /// where either is not one that the fast way knows.
    fn find(metadata: &Metadata) -> Result<Recipe> {
        if env::consts::OS != "linux" {
            bail!("known for Linux only, not for {}", env::consts::OS);
        }
        let package = metadata.packages.iter().find(|package| *package.name == "librocksdb-sys");
        let package = package.context("librocksdb-sys is not among the dependencies")?;
        let nodes = metadata.resolve.iter().flat_map(|resolve| &resolve.nodes);
        let features = nodes.filter(|node| node.id == package.id).flat_map(|node| &node.features);
        if let Some(other) = features.map(|f| f.as_str()).find(|f| !NEUTRAL_FEATURES.contains(f)) {
            bail!("feature {other:?} of librocksdb-sys is not known here");
        }
        let root = package.manifest_path.parent().context("find librocksdb-sys")?;
        let root = root.as_std_path().to_owned();
        let list = root.join("rocksdb_lib_sources.txt");
        let list = fs::read_to_string(&list).with_context(|| format!("read {}", list.display()))?;

        let compiler = machine::compiler();
        let ask = |question: &str| output(Command::new(&compiler).arg(question));
        let greeting = ask("--version")?;
        if !greeting.contains("Free Software Foundation") {
            let first = greeting.lines().next().unwrap_or_default();
            bail!("known for GNU C++ only, and {compiler} is {first}");
        }
        let mut flags: Vec<String> = architecture_flags()?.iter().map(|&f| f.into()).collect();
        flags.extend(FLAGS.map(str::to_owned));
        flags.extend(DEFINES.map(|define| format!("-D{define}")));
        let uring = machine::uring();
        flags.extend(uring.iter().map(|_| format!("-D{URING_DEFINE}")));
        let includes =
            ["rocksdb/include", "rocksdb", "rocksdb/third-party/gtest-1.8.1/fused-src", "."];
        flags.extend(includes.map(|folder| format!("-I{folder}")));
        Ok(Recipe {
            version: package.version.to_string(),
            compiler_version: ask("-dumpfullversion")?.trim().to_owned(),
            target: ask("-dumpmachine")?.trim().to_owned(),
            compiler,
            root,
            flags,
            units: units(&list),
            uring,
        })
    }

    /// A name for the library: readable, and another one where anything that matters differs.
    fn name(&self) -> String {
        let all = format!("{:?} {:?} {:?}", self.compiler, self.flags, self.units);
        let hash = all.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3) // FNV-1a
        });
        let (version, gcc, target) = (&self.version, &self.compiler_version, &self.target);
        format!("rocksdb-{version}-{RECIPE}-gcc{gcc}-{target}-{hash:016x}")
    }

    /// Compiles every unit into `folder` and makes the archive there. Units that an interrupted
    /// build left are taken as they are: the folder's name answers for them.
    fn compile(&self, folder: &Path) -> Result<PathBuf> {
        let jobs = machine::jobs(UNIT_BYTES_MAX).min(self.units.len());
        let version = &self.version;
        eprintln!("xtask: building RocksDB ({version}) once for this machine, {jobs} at a time");
        let progress = Progress::new(self.units.len());
        let next = AtomicUsize::new(0);
        let failed = AtomicBool::new(false);
        let failure = Mutex::new(None);
        std::thread::scope(|scope| {
            for _ in 0..jobs {
                scope.spawn(|| {
                    while !failed.load(Ordering::Relaxed) {
                        let index = next.fetch_add(1, Ordering::Relaxed);
                        if index >= self.units.len() {
                            break;
                        }
                        if let Err(error) = self.compile_unit(folder, index) {
                            failed.store(true, Ordering::Relaxed);
                            failure.lock().unwrap_or_else(|e| e.into_inner()).get_or_insert(error);
                        }
                        progress.advance();
                    }
                });
            }
        });
        progress.end();
        if let Some(error) = failure.into_inner().unwrap_or_else(|e| e.into_inner()) {
            return Err(error);
        }
        let archive = folder.join("librocksdb.a");
        let _ = fs::remove_file(&archive); // `ar` would add to one that an interrupted build left
        let mut objects: Vec<PathBuf> =
            (0..self.units.len()).map(|index| object(folder, index)).collect();
        if let Some(uring) = &self.uring {
            objects.extend(extract(uring, &folder.join("uring"))?);
        }
        output(Command::new("ar").arg("crs").arg(&archive).args(objects))?;
        Ok(archive)
    }

    fn compile_unit(&self, folder: &Path, index: usize) -> Result<()> {
        let object = object(folder, index);
        if object.exists() {
            return Ok(());
        }
        let source = object.with_extension("cc");
        let mut text = String::new();
        for path in &self.units[index].sources {
            let _ = writeln!(text, "#include \"{}\"", path.display());
        }
        fs::write(&source, text).with_context(|| format!("write {}", source.display()))?;
        let partial = object.with_extension("partial");
        let mut command = Command::new(&self.compiler);
        command.current_dir(&self.root).arg("-c").args(&self.flags);
        command.arg("-o").arg(&partial).arg(&source);
        let result = command.output().with_context(|| format!("run {}", self.compiler))?;
        if !result.status.success() {
            let said = String::from_utf8_lossy(&result.stderr);
            let said: Vec<&str> = said.lines().take(30).collect();
            bail!("{} ended with {}:\n{}", self.compiler, result.status, said.join("\n"));
        }
        fs::rename(&partial, &object).with_context(|| format!("write {}", object.display()))
    }
}

/// The objects of an archive, in a folder of their own, by name.
fn extract(archive: &Path, folder: &Path) -> Result<Vec<PathBuf>> {
    fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    output(Command::new("ar").current_dir(folder).arg("x").arg(archive))?;
    let list = || fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect();
    let objects: std::io::Result<Vec<PathBuf>> = list();
    let mut objects = objects.with_context(|| format!("list {}", folder.display()))?;
    objects.sort_unstable();
    Ok(objects)
}

fn object(folder: &Path, index: usize) -> PathBuf {
    folder.join(format!("unit_{index:02}.o"))
}

/// What RocksDB's checksums and hashes want of the processor, as far as this one has it: without
/// them CRC-32C runs in software.
fn architecture_flags() -> Result<Vec<&'static str>> {
    #[cfg(target_arch = "x86_64")]
    {
        let mut flags = Vec::new();
        if std::arch::is_x86_feature_detected!("sse4.2") {
            flags.push("-msse4.2");
        }
        if std::arch::is_x86_feature_detected!("pclmulqdq") {
            flags.push("-mpclmul");
        }
        Ok(flags)
    }
    #[cfg(target_arch = "aarch64")]
    {
        let crypto = std::arch::is_aarch64_feature_detected!("crc")
            && std::arch::is_aarch64_feature_detected!("aes")
            && std::arch::is_aarch64_feature_detected!("sha2");
        Ok(if crypto { vec!["-march=armv8-a+crc+crypto"] } else { Vec::new() })
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    bail!("known for x86_64 and aarch64 only, not for {}", env::consts::ARCH)
}

/// The sources, sorted, so many to a unit. The version's own source stands in a unit of its own,
/// and comes from the crate, which has generated it.
fn units(list: &str) -> Vec<Unit> {
    let mut sources: Vec<&str> = list
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && *line != "util/build_version.cc")
        .collect();
    sources.sort_unstable();
    let unit = |group: &[&str]| Unit {
        sources: group.iter().map(|source| Path::new("rocksdb").join(source)).collect(),
    };
    let mut units: Vec<Unit> = sources.chunks(SOURCES_PER_UNIT).map(unit).collect();
    units.push(Unit { sources: vec!["build_version.cc".into()] });
    units
}

/// Lines that say how far the build is: one that is written over on a terminal, else one a unit.
#[derive(Debug)]
struct Progress {
    units: usize,
    done: Mutex<usize>,
    began: Instant,
}

impl Progress {
    fn new(units: usize) -> Self {
        Self { units, done: Mutex::new(0), began: Instant::now() }
    }

    fn advance(&self) {
        let mut done = self.done.lock().unwrap_or_else(|e| e.into_inner());
        *done += 1;
        let elapsed = minutes(self.began.elapsed().as_secs());
        let text = format!("xtask: RocksDB: {done} of {} units, {elapsed}", self.units);
        let mut stderr = std::io::stderr();
        if stderr.is_terminal() {
            let _ = write!(stderr, "\r{text}"); // progress that can't be shown is no reason to stop
        } else {
            let _ = writeln!(stderr, "{text}");
        }
    }

    fn end(&self) {
        if std::io::stderr().is_terminal() {
            eprintln!();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe(root: &Path, sources: &[&str]) -> Recipe {
        Recipe {
            version: "0".to_owned(),
            compiler: "g++".to_owned(),
            compiler_version: "0".to_owned(),
            target: "here".to_owned(),
            root: root.to_owned(),
            flags: vec!["-I.".to_owned()],
            units: sources.iter().map(|s| Unit { sources: vec![s.into()] }).collect(),
            uring: None,
        }
    }

    #[test]
    fn sources_are_grouped_in_order_and_none_is_lost() {
        let list: String = (0..30).rev().map(|i| format!("db/s{i:02}.cc\n")).collect();
        let units = units(&format!("{list}\nutil/build_version.cc\n"));
        let counts: Vec<usize> = units.iter().map(|unit| unit.sources.len()).collect();
        assert_eq!(counts, [14, 14, 2, 1]);
        assert_eq!(units[0].sources[0], Path::new("rocksdb/db/s00.cc"));
        assert_eq!(units[2].sources[1], Path::new("rocksdb/db/s29.cc"));
        assert_eq!(units[3].sources, [Path::new("build_version.cc")]);
    }

    #[test]
    fn another_flag_or_compiler_is_another_library() {
        let one = recipe(Path::new("a"), &["x.cc"]);
        let mut flagged = recipe(Path::new("a"), &["x.cc"]);
        flagged.flags.push("-O3".to_owned());
        let mut newer = recipe(Path::new("a"), &["x.cc"]);
        newer.compiler_version = "1".to_owned();
        assert_ne!(one.name(), flagged.name());
        assert_ne!(one.name(), newer.name());
        let moved = recipe(Path::new("b"), &["x.cc"]);
        assert_eq!(one.name(), moved.name(), "where the sources lie does not matter");
    }

    #[test]
    fn units_become_one_archive_and_a_second_build_compiles_nothing() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("one.cc"), "int one() { return 1; }\n").unwrap();
        fs::write(folder.path().join("two.cc"), "int two() { return 2; }\n").unwrap();
        let recipe = recipe(folder.path(), &["one.cc", "two.cc"]);
        let build = folder.path().join("build");
        fs::create_dir(&build).unwrap();
        let archive = recipe.compile(&build).unwrap();
        let members = output(Command::new("ar").arg("t").arg(&archive)).unwrap();
        assert_eq!(members, "unit_00.o\nunit_01.o\n");
        fs::write(folder.path().join("two.cc"), "no C++").unwrap();
        recipe.compile(&build).unwrap();
    }

    #[test]
    fn another_archives_objects_go_into_the_same_one() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("ring.cc"), "int ring() { return 1; }\n").unwrap();
        fs::write(folder.path().join("one.cc"), "int one() { return 1; }\n").unwrap();
        let (other, build) = (folder.path().join("other"), folder.path().join("build"));
        fs::create_dir(&other).unwrap();
        fs::create_dir(&build).unwrap();
        let ring = recipe(folder.path(), &["ring.cc"]).compile(&other).unwrap();
        fs::rename(other.join("unit_00.o"), other.join("ring.o")).unwrap();
        output(Command::new("ar").arg("q").arg(&ring).arg(other.join("ring.o"))).unwrap();
        output(Command::new("ar").arg("d").arg(&ring).arg("unit_00.o")).unwrap();
        let mut recipe = recipe(folder.path(), &["one.cc"]);
        recipe.uring = Some(ring);
        let archive = recipe.compile(&build).unwrap();
        let members = output(Command::new("ar").arg("t").arg(&archive)).unwrap();
        assert_eq!(members, "unit_00.o\nring.o\n");
    }

    #[test]
    fn a_library_of_an_older_recipe_is_not_taken() {
        let folder = tempfile::tempdir().unwrap();
        let older = folder.path().join("rocksdb-0-gcc0-here-0");
        let newer = folder.path().join(recipe(Path::new("a"), &["x.cc"]).name());
        for library in [&older, &newer] {
            fs::create_dir(library).unwrap();
            assert!(!is_current(library), "no library is there");
            fs::write(archive_in(library), "").unwrap();
        }
        assert!(!is_current(&older));
        assert!(is_current(&newer));
    }

    #[test]
    fn a_source_that_does_not_compile_is_told_in_the_compilers_words() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("bad.cc"), "int bad() { return nowhere; }\n").unwrap();
        let error = recipe(folder.path(), &["bad.cc"]).compile(folder.path()).unwrap_err();
        let text = format!("{error:#}");
        assert!(text.contains("bad.cc") && text.contains("nowhere"), "{text}");
        assert!(!archive_in(folder.path()).exists());
    }

    #[test]
    fn the_configuration_comes_and_goes() {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("rocksdb.toml");
        configure(&config, None).unwrap();
        configure(&config, Some(Path::new("/a \"b\""))).unwrap();
        let text = fs::read_to_string(&config).unwrap();
        assert!(text.contains("[env]\nROCKSDB_LIB_DIR = \"/a \\\"b\\\"\"\n"), "{text}");
        configure(&config, None).unwrap();
        assert!(!config.exists());
    }
}
