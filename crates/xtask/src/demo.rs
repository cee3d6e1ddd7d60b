//! `cargo xtask demo`: trains with the real binaries in a folder of its own and shows what came of
//! it. The figures come from the worker's report; nothing is computed here.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use serde_json::Value;

use crate::report::Report;
use crate::workspace::{Binaries, Workspace, call, line};

/// A file that marks a folder as the demo's own, so that the next demo may clear it.
const MARKER: &str = ".embedding-ps-demo";

/// The quality that the flights data must give.
const FLIGHTS_AUC_MIN: f64 = 0.775;

/// How long a server may take to come up or go down.
const SERVER_PATIENCE: Duration = Duration::from_secs(60);

/// `cargo xtask demo`.
#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    /// Keep the tables in an embedding-ps process of its own instead of inside the worker
    #[arg(long)]
    standalone: bool,
    /// Generated Criteo-like data instead of flights, its tables scaled: 0.1 means 3.4 M rows
    #[arg(long, value_name = "SCALE")]
    criteo_like: Option<f64>,
    /// Folder for everything that the demo writes; a former demo's folder is cleared
    /// [default: runs/demo in the repository]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// What is trained, and how: flags of `dlrm-worker train`.
#[derive(Debug)]
struct Task {
    title: String,
    host_ram: &'static str,
    flags: Vec<String>,
    auc_min: Option<f64>,
}

/// The flights data of the repository. Its tables take about 1.5 MiB, so that 1 MiB is too little.
fn flights(root: &Path) -> Task {
    let data = format!("tsv:{}", root.join("tests/data/flights.tsv.gz").display());
    let flags = [
        ["--data", data.as_str()],
        ["--rows", "train"],
        ["--eval-rows", "test"],
        ["--dense-columns", "13"],
        ["--dense-transform", "signed-log1p+standard"],
        ["--shuffle-window", "300000"], // the rows are in time order; unshuffled it learns December
        ["--arch-sparse-feature-size", "16"],
        ["--arch-mlp-bot", "26-64-16"],
        ["--arch-mlp-top", "128-64-1"],
        ["--optimizer", "adagrad"],
        ["--learning-rate", "0.01"],
        ["--learning-rate-tables", "0.05"],
        ["--mini-batch-size", "128"],
        ["--lookahead", "16"],
    ];
    let mut flags: Vec<String> = flags.concat().iter().map(|&flag| flag.to_owned()).collect();
    flags.push("--missing-indicator".to_owned());
    Task {
        title: "US flights of 2013: does one arrive more than 15 minutes late?".to_owned(),
        host_ram: "1MiB",
        flags,
        auc_min: Some(FLIGHTS_AUC_MIN),
    }
}

/// Generated data in the likeness of Criteo's.
fn criteo_like(scale: f64) -> Task {
    let data = format!("synthetic:scale={scale},rows=1000000,seed=1,test-rows=200000");
    let flags = [
        ["--data", data.as_str()],
        ["--rows", "train"],
        ["--eval-rows", "test"],
        ["--arch-sparse-feature-size", "16"],
        ["--arch-mlp-bot", "13-64-16"],
        ["--arch-mlp-top", "128-64-1"],
        ["--optimizer", "rwsadagrad"],
        ["--learning-rate", "0.05"],
        ["--mini-batch-size", "1024"],
        ["--lookahead", "8"],
    ];
    Task {
        title: format!("generated Criteo-like data, {:.1} M rows in tables", 33.762577 * scale),
        host_ram: "16MiB",
        flags: flags.concat().iter().map(|&flag| flag.to_owned()).collect(),
        auc_min: None,
    }
}

/// Trains, evaluates and shows. It fails where the quality is below what it must be.
pub(crate) fn run(workspace: &Workspace, args: &DemoArgs) -> Result<ExitCode> {
    let task = match args.criteo_like {
        Some(scale) => {
            ensure!(
                scale > 0.0 && scale <= 1.0,
                "--criteo-like {scale}: expected above 0, up to 1"
            );
            criteo_like(scale)
        }
        None => flights(&workspace.root),
    };
    let binaries = workspace.build_binaries()?;
    let dir = args.dir.clone().unwrap_or_else(|| workspace.root.join("runs/demo"));
    let dir = std::path::absolute(dir).context("find the demo's folder")?;
    clear(&dir)?;
    println!("\n{}\n", task.title);
    if args.standalone {
        standalone(&binaries, &task, &dir)?;
    } else {
        embedded(&binaries, &task, &dir)?;
    }
    show(&task, &dir)
}

/// The tables inside the worker's process.
fn embedded(binaries: &Binaries, task: &Task, dir: &Path) -> Result<()> {
    let ps = format!("embedded:{}", dir.join("ps").display());
    let mut worker = train(binaries, task, dir, &ps);
    worker.args(["--host-ram", task.host_ram]);
    run_worker(&mut worker, dir)
}

/// The tables in a server's process: started, trained against, asked for its state, stopped.
fn standalone(binaries: &Binaries, task: &Task, dir: &Path) -> Result<()> {
    let server = Server::start(binaries, task, dir)?;
    run_worker(&mut train(binaries, task, dir, &server.endpoint), dir)?;
    for question in ["status", "tables"] {
        let mut ask = control(binaries, question, &server.endpoint);
        println!("$ {}", line(&ask));
        call(&mut ask)?;
        println!();
    }
    server.stop()
}

/// `dlrm-worker train …`
fn train(binaries: &Binaries, task: &Task, dir: &Path, ps: &str) -> Command {
    let mut worker = Command::new(&binaries.worker);
    worker.args(["train", "--ps", ps]).args(&task.flags);
    worker.arg("--save-model").arg(dir.join("model"));
    worker.arg("--report").arg(dir.join("report.json"));
    worker
}

/// `embedding-ps …`
fn serve(binaries: &Binaries, task: &Task, dir: &Path) -> Command {
    let mut server = Command::new(&binaries.server);
    server.args(["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"]);
    server.args(["--host-ram", task.host_ram]);
    server.arg("--data-dir").arg(dir.join("ps"));
    server.arg("--ready-file").arg(dir.join("ready.json"));
    server
}

/// `psctl …`
fn control(binaries: &Binaries, question: &str, endpoint: &str) -> Command {
    let mut control = Command::new(&binaries.control);
    control.args(["--server", endpoint, question]);
    control
}

fn run_worker(worker: &mut Command, dir: &Path) -> Result<()> {
    println!("$ {}\n", line(worker));
    let log = File::create(dir.join("worker.log")).context("make the worker's log")?;
    call(worker.stdout(log))
}

/// A running embedding-ps; it is killed where an error leaves it behind.
#[derive(Debug)]
struct Server {
    child: Child,
    endpoint: String,
}

impl Server {
    fn start(binaries: &Binaries, task: &Task, dir: &Path) -> Result<Server> {
        let mut command = serve(binaries, task, dir);
        println!("$ {} &", line(&command));
        let log = File::create(dir.join("server.log")).context("make the server's log")?;
        command.stdout(Stdio::null()).stderr(log);
        let child = command.spawn().with_context(|| format!("run {}", line(&command)))?;
        let mut server = Server { child, endpoint: String::new() };
        let ready = dir.join("ready.json");
        let log = dir.join("server.log");
        server.wait_for("come up", |server| {
            if let Some(status) = server.child.try_wait().context("watch embedding-ps")? {
                bail!("embedding-ps ended with {status}; it wrote {}", log.display());
            }
            let Ok(text) = fs::read_to_string(&ready) else { return Ok(false) };
            server.endpoint = endpoint(&text)?;
            Ok(true)
        })?;
        Ok(server)
    }

    /// Asks it to end, as an init system would, and waits until it has written everything down.
    fn stop(mut self) -> Result<()> {
        call(Command::new("kill").args(["-TERM", &self.child.id().to_string()]))?;
        println!("$ kill -TERM %embedding-ps");
        self.wait_for("go down", |server| {
            let Some(status) = server.child.try_wait().context("watch embedding-ps")? else {
                return Ok(false);
            };
            ensure!(status.success(), "embedding-ps ended with {status}");
            Ok(true)
        })?;
        println!("embedding-ps ended cleanly\n");
        Ok(())
    }

    fn wait_for(
        &mut self,
        what: &str,
        mut done: impl FnMut(&mut Server) -> Result<bool>,
    ) -> Result<()> {
        let began = Instant::now();
        while !done(self)? {
            let patience = SERVER_PATIENCE;
            ensure!(began.elapsed() < patience, "embedding-ps did not {what} within {patience:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill(); // it has ended already, unless an error brought us here
        let _ = self.child.wait();
    }
}

/// The address for workers in the JSON that a server writes when it is ready.
fn endpoint(ready: &str) -> Result<String> {
    let addresses: Value = serde_json::from_str(ready).context("read the ready file")?;
    let endpoint = addresses["grpc"].as_str().context("the ready file lacks grpc")?;
    Ok(endpoint.to_owned())
}

fn show(task: &Task, dir: &Path) -> Result<ExitCode> {
    let report = Report::read(&dir.join("report.json"))?;
    println!("{}", report.speed_line()?);
    println!("{}", report.quality_table()?);
    println!("{}", report.tier_table()?);
    println!("everything is in {}:", dir.display());
    println!("  model/       the trained network (the rows stay in ps/)");
    println!("  ps/          the tables, in RocksDB");
    println!("  report.json  all figures, these and more");
    println!("  worker.log   what the worker said");
    let Some(auc_min) = task.auc_min else { return Ok(ExitCode::SUCCESS) };
    let auc = report.number("auc")?;
    let holds = auc >= auc_min;
    let verdict = if holds { "reached" } else { "missed" };
    println!("\nAUC {auc:.4}; at least {auc_min} is expected: {verdict}");
    Ok(if holds { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Makes an empty folder with the demo's mark; clears it where a demo made it, refuses any other.
fn clear(dir: &Path) -> Result<()> {
    let marker = dir.join(MARKER);
    if marker.exists() {
        fs::remove_dir_all(dir).with_context(|| format!("clear {}", dir.display()))?;
    } else if fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_some()) {
        bail!("{} is not empty, and no demo made it; name another with --dir", dir.display());
    }
    fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
    fs::write(&marker, "").with_context(|| format!("write {}", marker.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_of_someone_elses_is_never_cleared() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("run");
        clear(&dir).unwrap();
        fs::write(dir.join("old"), "").unwrap();
        clear(&dir).unwrap();
        assert!(!dir.join("old").exists() && dir.join(MARKER).exists());
        let other = folder.path().join("other");
        fs::create_dir(&other).unwrap();
        fs::write(other.join("thesis"), "").unwrap();
        let error = clear(&other).unwrap_err();
        assert!(error.to_string().contains("--dir"), "{error}");
        assert!(other.join("thesis").exists());
    }

    #[test]
    fn the_endpoint_is_found_in_the_ready_file() {
        let json = r#"{"grpc": "http://127.0.0.1:1", "http": "http://127.0.0.1:2"}"#;
        assert_eq!(endpoint(json).unwrap(), "http://127.0.0.1:1");
        assert!(endpoint("soon").is_err() && endpoint("{}").is_err());
    }

    #[test]
    fn no_flag_is_given_twice() {
        for task in [flights(Path::new("/r")), criteo_like(0.1)] {
            let mut flags: Vec<_> = task.flags.iter().filter(|f| f.starts_with("--")).collect();
            flags.sort();
            let count = flags.len();
            flags.dedup();
            assert_eq!(flags.len(), count, "{}", task.title);
        }
    }

    #[test]
    fn commands_say_where_everything_goes() {
        let binaries = Binaries {
            server: "embedding-ps".into(),
            worker: "dlrm-worker".into(),
            control: "psctl".into(),
        };
        let text = line(&train(&binaries, &criteo_like(0.1), Path::new("d"), "embedded:d/ps"));
        assert!(
            text.starts_with("dlrm-worker train --ps embedded:d/ps --data synthetic:scale=0.1,")
        );
        assert!(text.ends_with("--save-model d/model --report d/report.json"), "{text}");
        let text = line(&serve(&binaries, &flights(Path::new("/r")), Path::new("d")));
        assert!(
            text.contains("--host-ram 1MiB --data-dir d/ps --ready-file d/ready.json"),
            "{text}"
        );
    }
}
