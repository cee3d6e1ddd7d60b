//! `gpu-check`: everything that must be seen on a real device, in one program for a machine with a
//! GPU, its driver and CUDA's libraries.
#![allow(clippy::print_stdout)] // its whole purpose is to speak to the person who runs it

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::sync::Arc;

use anyhow::{Context, Result, anyhow};
use clap::Parser;
use gpu::kernels::ALL;
use gpu::{
    CodeCache, CodeSource, ComputeCapability, Device, Kernels, Memory, Stream, check_products,
    compiler_version, has_collective, has_compiler, has_products, products_version,
};
use gpu_check::benchmarks::{Bench, Sizes};
use gpu_check::libraries::{self, LIBRARY_PATH};
use gpu_check::stages::Run;
use gpu_check::training::{self, TrainingSizes};
use gpu_check::{collective, correctness, fused, processes, tier, tiered, vectors};

/// A run ends by then, whatever happens: the limit is 8 minutes.
const SECONDS_MAX: u64 = 470;

/// What waits for another process, or for threads that wait for each other, ends by then.
const SECONDS_OF_OTHERS: u64 = 60;

/// What a program that found no device ends with.
const NO_DEVICE: u8 = 2;

/// Marks the program that was started again with the loader told where CUDA's libraries are.
const TOLD: &str = "GPU_CHECK_LIBRARIES_TOLD";

const COMMIT: &str = match option_env!("EMBEDDING_PS_COMMIT") {
    Some(commit) => commit,
    None => "unknown",
};

/// Checks the kernels of embedding-ps on this machine's GPU, then measures them.
///
/// It needs the driver (CUDA 13.0 or later), libnvrtc and, for matrix products, libcublasLt;
/// libnccl for sums over devices, which are left out without. It looks for them where the loader
/// does, under /usr/local/cuda* and among Python's packages. It runs every kernel against vectors
/// that the host's own code made, and a store with rows in the device's memory against one
/// without, bit for bit; it measures each beside what the device can do, in the same run; it
/// trains; and last it exchanges floats in device memory with a second process of itself. What
/// fails is noted, and the next stage goes on. It takes a few minutes, at most 8, and a third of
/// the device's free memory.
///
/// Exit codes: 0, all is right and every goal is met; 1, something failed, and the last line says
/// what failed first; 2, there is no device.
#[derive(Debug, Parser)]
#[command(name = "gpu-check", version = COMMIT)]
struct Cli {
    /// Write gpu-check.json into this folder
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// The device, by its number
    #[arg(long, value_name = "N", default_value_t = 0)]
    device: u32,
    /// Keep compiled kernels in this folder, and take them from there where there is no compiler
    #[arg(long, value_name = "DIR")]
    code: Option<PathBuf>,
    /// Tiny sizes: whether everything runs, not how fast
    #[arg(long)]
    quick: bool,
    /// End after so many seconds, with what was found by then
    #[arg(long, value_name = "N", default_value_t = SECONDS_MAX)]
    seconds: u64,
    /// Compile the kernels into --code for compute capabilities 8.0, 9.0 and 10.0, and end: this
    /// needs the compiler, but no device
    #[arg(long, requires = "code")]
    compile_only: bool,
    /// Be the second process of a run that this program has begun, and talk with it in lines
    #[arg(long, hide = true)]
    other_process: bool,
    /// Write the vectors into this file, as the project's program for the CPU takes them, and end
    #[arg(long, value_name = "FILE")]
    write_vectors: Option<PathBuf>,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    tell_the_loader();
    match run(cli) {
        Ok(code) => code,
        Err(error) => {
            println!("gpu-check: failed first: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The loader reads its variable when a program starts; so where a library is not found and lies in
/// a folder that we know of, the program starts once more. Folders of libraries that are found
/// already are left alone: another version may lie there.
fn tell_the_loader() {
    if std::env::var_os(TOLD).is_some() {
        return;
    }
    let libraries = [
        ("libnvrtc.so", has_compiler()),
        ("libcublasLt.so", has_products()),
        ("libnccl.so", has_collective()),
    ];
    let missing: Vec<&str> =
        libraries.iter().filter(|(_, found)| !found).map(|(name, _)| *name).collect();
    if missing.is_empty() {
        return;
    }
    let folders = libraries::folders(&missing);
    let Ok(program) = std::env::current_exe() else { return };
    if let (false, Some(paths)) = (folders.is_empty(), libraries::extended(&folders)) {
        let mut again = Command::new(program);
        again.args(std::env::args_os().skip(1)).env(LIBRARY_PATH, paths).env(TOLD, "1");
        let error = again.exec(); // comes back only where it failed
        eprintln!("gpu-check: start again with {LIBRARY_PATH}: {error}");
    }
}

fn run(cli: Cli) -> Result<ExitCode> {
    if let Some(path) = &cli.write_vectors {
        let bytes = gpu::vectors::encode(&vectors::cases());
        fs::write(path, bytes).with_context(|| format!("write {}", path.display()))?;
        return Ok(ExitCode::SUCCESS);
    }
    if cli.compile_only {
        return compile_only(&cli);
    }
    if cli.other_process {
        return processes::be_other(cli.device).map(|()| ExitCode::SUCCESS);
    }
    let device = match Device::open(cli.device) {
        Ok(device) => device,
        Err(reason) => {
            println!("gpu-check: no device: {reason}");
            return Ok(ExitCode::from(NO_DEVICE));
        }
    };
    let run = Arc::new(Run::begin(cli.quick, machine(&device), COMMIT, cli.out.clone()));
    println!("gpu-check: {}; commit {COMMIT}", machine(&device));
    run.watch(cli.seconds.min(SECONDS_MAX)); // its line is to be the last
    check(&cli, &device, &run);
    let code = run.tell(None);
    run.end_if_stuck(code);
    Ok(ExitCode::from(code))
}

/// Stage after stage, those last that wait for other processes or threads.
fn check(cli: &Cli, device: &Device, run: &Arc<Run>) {
    let report = &run.report;
    let is_alive = || Ok(device.finish()?);

    // compiled once for all that this program opens: stores take it from the folder too
    let own = OwnFolder::new();
    let folder = cli.code.as_deref().unwrap_or(&own.0);
    let compiled = run.stage("compiling", is_alive, || {
        let capability = device.description().compute_capability;
        let cache = CodeCache::new(folder);
        let code = |source| Ok(cache.code(source, capability)?.0);
        let kernels = Arc::new(Kernels::load::<anyhow::Error>(device, code)?);
        Ok((kernels, device.stream()?))
    });
    let Some((kernels, stream)) = compiled else { return };

    run.stage("vectors", is_alive, || {
        let mut memory = Memory::take(device, correctness::MEMORY_BYTES)?;
        correctness::vectors(device, &stream, &kernels, &mut memory, report)
    });
    run.stage("products beside loops", is_alive, || {
        check_products()?;
        let mut memory = Memory::take(device, correctness::MEMORY_BYTES)?;
        correctness::products(device, &stream, &mut memory, report)?;
        fused::layers(device, &stream, &mut memory, report)
    });
    let place = tier::Place { device: cli.device, code: Some(folder) };
    let tier_sizes = if cli.quick { tier::Sizes::QUICK } else { tier::Sizes::FULL };
    run.stage("the tier beside host RAM", is_alive, || tier::bits(tier_sizes, place, report));
    run.stage("hits of the tier", is_alive, || tier::hits(tier_sizes, place, report));
    let training = if cli.quick { TrainingSizes::quick() } else { TrainingSizes::full() };
    let models = training::Place { device, kernels: &kernels };
    run.stage("training beside PyTorch's losses", is_alive, || {
        training::references(models, cli.quick, report)
    });
    measure_kernels(cli, device, &stream, &kernels, run);
    run.stage("training in fewer bits", is_alive, || training::quality(models, training, report));
    let resident = run.stage("training at full speed", is_alive, || {
        training::speed(models, training, &run.children, report)
    });
    run.stage("training through the tier", is_alive, || {
        tiered::speed(models, place, training, resident.flatten(), report)
    });

    let exchanged = if cli.quick { processes::Sizes::QUICK } else { processes::Sizes::FULL };
    let (again, ordinal, sums_floats) =
        (device.clone(), cli.device, if cli.quick { 1 << 10 } else { 4 << 20 });
    let shared = Arc::clone(run);
    run.limited_stage("two processes on one device", SECONDS_OF_OTHERS, is_alive, move || {
        processes::exchange(&again, ordinal, exchanged, &shared.children, &shared.report)
    });
    let (again, shared) = (device.clone(), Arc::clone(run));
    run.limited_stage("sums over devices", SECONDS_OF_OTHERS, is_alive, move || {
        collective::sums(&again, sums_floats, &shared.report)
    });
}

/// The kernels beside what the device can do.
fn measure_kernels(cli: &Cli, device: &Device, stream: &Stream, kernels: &Kernels, run: &Arc<Run>) {
    let report = &run.report;
    let is_alive = || Ok(device.finish()?);
    let taken = run.stage("memory for benchmarks", is_alive, || {
        let sizes = if cli.quick { Sizes::quick() } else { Sizes::full(device.free_bytes()?) };
        let table = Memory::take(device, sizes.table_bytes)?.buffer(sizes.table_bytes)?;
        let memory = Memory::take(device, sizes.work_bytes())?;
        table.fill(stream, 0x3c)?;
        Ok((sizes, table, memory))
    });
    let Some((sizes, table, mut memory)) = taken else { return };
    let bench = Bench { device, stream, kernels, sizes };
    run.stage("rows all over a large table", is_alive, || {
        correctness::far_rows(stream, kernels, &mut memory, &table, report)
    });
    run.stage("copies", is_alive, || bench.copies(&mut memory, report));
    run.stage("matrix products", is_alive, || bench.products(&mut memory, report));
    run.stage("rows in device memory", is_alive, || bench.rows(&mut memory, &table, report));
    run.stage("rows in pinned host memory", is_alive, || bench.pinned_rows(&mut memory, report));
    run.stage("the network's kernels", is_alive, || bench.network(&mut memory, &table, report));
}

/// A folder for code where none was named, removed at the end.
struct OwnFolder(PathBuf);

impl OwnFolder {
    fn new() -> Self {
        Self(std::env::temp_dir().join(format!("gpu-check-code-{}", std::process::id())))
    }
}

impl Drop for OwnFolder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0); // it may never have been made
    }
}

fn compile_only(cli: &Cli) -> Result<ExitCode> {
    let folder = cli.code.as_ref().ok_or_else(|| anyhow!("--code is missing"))?;
    let cache = CodeCache::new(folder);
    for (major, minor) in [(8, 0), (9, 0), (10, 0)] {
        for source in ALL {
            let (code, from) = cache.code(source, ComputeCapability { major, minor })?;
            let how = match from {
                CodeSource::Compiled => "compiled",
                CodeSource::Read => "was there",
                CodeSource::NotKept(why) => return Err(why.into()),
            };
            let bytes = code.cubin.len();
            println!("{} for sm_{major}{minor}: {how}, {bytes} bytes", source.name);
            // what is known of a kernel before any device has run it
            let report = code.log.lines().filter(|line| {
                ["Compiling entry", "spill", "registers"].iter().any(|word| line.contains(word))
            });
            report.for_each(|line| println!("  {line}"));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn machine(device: &Device) -> String {
    let about = device.description();
    let ComputeCapability { major, minor } = about.compute_capability;
    let compiler = compiler_version()
        .map_or("no NVRTC".to_owned(), |(major, minor)| format!("NVRTC {major}.{minor}"));
    let products = products_version()
        .map_or("no cuBLASLt".to_owned(), |version| format!("cuBLASLt {version}"));
    format!(
        "{}, {} GiB, {} multiprocessors, compute capability {major}.{minor}, {}, {}",
        about.name,
        about.memory_bytes >> 30,
        about.multiprocessors,
        compiler,
        products,
    )
}
