//! A server and a worker on one device, which is a pretended one: rows go between the two processes
//! in the device's memory, and a training has the bits of one in the worker's own process and of
//! one through pinned buffers. Where they can't share, rows travel; and a worker that is killed
//! leaves a server that serves the next.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;
use testkit::{PretendedCuda, Process};

use crate::binaries::{LIMIT, Server, WORKER, losses, text};
use crate::gpu_cache::{MODEL, predictions, start, train_on};

const DATA: &str = "synthetic:scale=0.02,rows=1500,seed=11";
/// What a worker says that has to let rows travel.
const FALLS_BACK: &str = "rows travel through host memory";

/// Trains on the device: the report, and what was said.
fn train(at: &Path, ps: &str, flags: &[&str], variables: &[(&str, &str)]) -> (Value, String) {
    let flags = [&["--device", "cuda"][..], flags].concat();
    train_on(DATA, at, "run", ps, &flags, variables)
}

/// A figure of the server's page of metrics: the sum of all lines that begin so; 0 without one.
fn figure(server: &Server, line: &str) -> u64 {
    let address = server.http.strip_prefix("http://").expect("an address");
    let mut stream = TcpStream::connect(address).expect("reach the page");
    let asked = format!("GET /metrics HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(asked.as_bytes()).expect("ask for the page");
    let mut page = String::new();
    stream.read_to_string(&mut page).expect("read the page");
    let lines = page.lines().filter(|found| found.starts_with(line));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum::<f64>() as u64
}

/// How often a server was asked to open slots, or to close them.
fn shares(server: &Server) -> u64 {
    figure(server, "embedding_ps_finished_requests_total{operation=\"share_device\"}")
}

fn pushes(server: &Server) -> u64 {
    figure(server, "embedding_ps_finished_requests_total{operation=\"push\"}")
}

fn pinned_rows(server: &Server) -> u64 {
    figure(server, "embedding_ps_pinned_rows")
}

fn sessions(server: &Server) -> u64 {
    figure(server, "embedding_ps_opened_sessions_total")
        - figure(server, "embedding_ps_closed_sessions_total")
}

#[test]
fn a_worker_beside_its_server_trains_the_bits_of_one_that_holds_the_rows() {
    let at = tempfile::tempdir().expect("make folder");
    let folder = |name: &str| {
        let folder = at.path().join(name);
        std::fs::create_dir(&folder).expect("make folder");
        folder
    };
    let alone = folder("alone");
    let ps = format!("embedded:{}", text(&alone.join("ps")));
    let (expected, _) = train(&alone, &ps, &["--gpu-cache", "64MiB"], &[]);
    let wanted = predictions(&alone, "run", &ps);

    // all rows find room on the device, or a part of them
    for (name, cache) in [("beside", "64MiB"), ("small", "256KiB")] {
        let here = folder(name);
        let server = start(&here, &["--gpu-cache", cache], &[]);
        let (report, said) = train(&here, &server.grpc, &[], &[]);
        assert_eq!(losses(&report), losses(&expected), "{name}");
        assert!(!said.contains(FALLS_BACK), "{said}");
        assert!(shares(&server) >= 2, "opened, and closed");
        assert_eq!(report["rows_on_device"], true);
        assert_eq!(pinned_rows(&server), 0);
        assert!(predictions(&here, "run", &server.grpc) == wanted, "{name}: predictions differ");
        server.stop();
    }

    // rows travel: none are in device memory, the devices are others, or share nothing
    for (name, flags, of_server, of_worker, word) in [
        ("travels", &[][..], &[][..], &[][..], ""),
        ("other", &["--gpu-cache", "64MiB"], &["DEVICE_UUID=7"], &[], "another device"),
        ("server", &["--gpu-cache", "64MiB"], &["NO_IPC=1"], &[], ""),
        ("worker", &["--gpu-cache", "64MiB"], &[], &[("NO_IPC", "1")], "shares neither"),
    ] {
        let here = folder(name);
        let server = start(&here, flags, of_server);
        let (report, said) = train(&here, &server.grpc, &[], of_worker);
        assert_eq!(losses(&report), losses(&expected), "{name}");
        assert_eq!(shares(&server), 0, "{name}");
        assert_eq!(said.contains(FALLS_BACK), !word.is_empty(), "{name}: {said}");
        assert!(said.contains(word), "{name}: {said}");
        assert!(predictions(&here, "run", &server.grpc) == wanted, "{name}: predictions differ");
        server.stop();
    }
}

#[test]
fn a_worker_that_is_killed_leaves_a_server_that_serves_the_next() {
    let at = tempfile::tempdir().expect("make folder");
    let server = start(at.path(), &["--gpu-cache", "8MiB"], &[]);
    let endless = "synthetic:scale=0.02,rows=100000000,seed=7";
    for round in 0..3 {
        let model = at.path().join("killed");
        let first = ["train", "--ps", &server.grpc, "--data", endless];
        let last = [text(&model), "--report", text(&model)];
        let arguments = [&first[..], &["--device", "cuda"], &MODEL[..], &last[..]];
        let mut command = Command::new(WORKER);
        command.args(arguments.concat());
        PretendedCuda::get().tell(&mut command);
        let log = at.path().join(format!("worker-{round}.log"));
        let mut worker = Process::start_command(command, log).expect("start worker");
        let before = pushes(&server);
        let trained = |_: &str| (pushes(&server) > before + 20).then_some(());
        worker.wait_for("20 pushes", LIMIT, trained).expect("it trains");
        worker.kill().expect("kill it");
        worker.wait(LIMIT).expect("it ends");
        // what it staged is let go, though its work on the device is never done
        let begun = Instant::now();
        while sessions(&server) > 0 || pinned_rows(&server) > 0 {
            assert!(begun.elapsed() < LIMIT, "a session is still open");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    let (report, said) = train(at.path(), &server.grpc, &[], &[]);
    assert!(!said.contains(FALLS_BACK), "{said}");
    assert!(losses(&report).iter().all(|loss| loss.is_finite()));
    assert!(shares(&server) >= 5, "each worker shared its slots, and the last took them back");
    server.stop();
}
