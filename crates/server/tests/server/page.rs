//! What operators see: the page of metrics, the health check, `psctl`.

use std::io::{Read, Write};
use std::net::TcpStream;

use clap::Parser;
use table::StoreStatus;
use wire::Session;

use crate::{connect, start, tcp, toml, train, unix};

fn get(server: &server::Server, path: &str) -> String {
    let address = server.addresses().http.clone().unwrap();
    let mut stream = TcpStream::connect(address.strip_prefix("http://").unwrap()).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn the_page_has_every_metric_and_health_says_serving() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(toml(dir.path()));
    assert!(get(&server, "/healthz").contains("200 OK"));
    assert!(get(&server, "/metrics").contains("# EOF"), "without any table");
    let session = connect(&tcp(&server));
    train(&session, 5, 2);
    assert!(session.pull(table::Step(99), &mut []).is_err()); // the client itself knows it
    let keys = crate::batch(&[(77, &[1])]);
    assert!(session.assign(&keys, &[0.0]).is_err());
    let page = get(&server, "/metrics");
    let tables = server.engine().status().tables;
    let table_a = tables.iter().find(|table| table.spec.name == "a").unwrap();
    use server::metrics as m;
    for line in [
        format!("{}_count{{operation=\"pull\"}} 5", m::REQUEST_DURATION_SECONDS),
        format!("{}_total{{operation=\"push\"}} 5", m::STARTED_REQUESTS),
        format!("{}_total{{operation=\"push\"}} 5", m::FINISHED_REQUESTS),
        format!("{}_total{{operation=\"staging\"}} ", m::FINISHED_REQUESTS),
        format!("{}_total{{operation=\"assign\",code=\"NotFound\"}} 1", m::FAILED_REQUESTS),
        format!("{}_total 1", m::OPENED_SESSIONS),
        format!("{}_total 0", m::CLOSED_SESSIONS),
        format!("{} {}", m::HOST_RAM_BUDGET_BYTES, crate::HOST_RAM_BYTES),
        format!("{} 0", m::PINNED_ROWS),
        format!("{} 0", m::GOING_DOWN_ROWS),
        format!("{}{{table=\"a\"}} ", m::TABLE_ROWS),
        format!("{}{{table=\"a\",tier=\"host\"}} ", m::TIER_ROWS),
        format!("{}{{table=\"b\",tier=\"ssd\"}} ", m::TIER_BYTES),
        format!("{}_total{{table=\"a\",tier=\"host\"}} ", m::HIT_KEYS),
        format!("{}_total{{table=\"a\",tier=\"gpu\",cause=\"capacity\"}} 0", m::MISSED_KEYS),
        format!("{}_total{{table=\"a\",tier=\"ssd\",cause=\"capacity\"}} 0", m::MISSED_KEYS),
        format!("{}_total{{table=\"a\",tier=\"gpu\",cause=\"conflict\"}} 0", m::MISSED_KEYS),
        format!("{}_total{{table=\"a\",tier=\"host\",cause=\"expired\"}} 0", m::MISSED_KEYS),
        format!(
            "{}_total{{table=\"a\",tier=\"host\",cause=\"first_touch\"}} {}",
            m::MISSED_KEYS,
            table_a.counters.host.misses
        ),
        format!("{}_total{{table=\"b\"}} 0", m::NOT_ADMITTED_KEYS),
        format!("{}_total{{table=\"b\"}} 0", m::EXPIRED_ROWS),
        format!("{}_total{{table=\"b\"}} 0", m::FAILED_KEYS),
        format!("{}_total ", m::SSD_FILE_WRITTEN_BYTES),
        format!("{}_total ", m::SSD_FILE_MERGED_BYTES),
        format!("{} 0", m::GPU_CACHE_BYTES),
        format!("{}_total 0", m::GPU_STAGE_REQUESTS),
        format!("{}_total 0", m::GPU_STAGE_SECONDS),
        format!("{}_total{{table=\"a\"}} 0", m::PROMOTED_ROWS),
        format!("{}_total{{table=\"b\"}} 0", m::DEMOTED_ROWS),
        format!("{}_bucket{{le=\"+Inf\"}} ", m::STALL_DURATION_SECONDS),
        format!("{}_count{{tier=\"host\",work=\"stage\"}} ", m::TIER_DURATION_SECONDS),
        format!("{}_bucket{{le=\"+Inf\",tier=\"host\",work=\"stage\"}} ", m::TIER_DURATION_SECONDS),
        format!("{}_count{{tier=\"ssd\",work=\"write\"}} 0", m::TIER_DURATION_SECONDS),
        format!("{}_count{{tier=\"gpu\",work=\"move\"}} 0", m::TIER_DURATION_SECONDS),
        format!("{}_total{{table=\"b\",tier=\"host\"}} ", m::READ_BYTES),
        format!("{}_total{{table=\"b\",tier=\"host\"}} ", m::WRITTEN_BYTES),
        format!("{}_total{{table=\"a\"}} ", m::FIRST_TOUCH_ROWS),
        format!("{}_total{{table=\"a\"}} 0", m::REREAD_ROWS),
        format!("{}_total{{table=\"a\"}} 0", m::EVICTED_ROWS),
        format!("{}_total{{table=\"b\"}} ", m::WRITTEN_BACK_ROWS),
        format!("{} ", m::HOST_RAM_USED_BYTES),
    ] {
        assert!(page.lines().any(|l| l.starts_with(&line)), "{line}\n{page}");
    }
    drop(session);
    server.stop().unwrap();
}

fn psctl(arguments: &[&str]) -> (String, String, String) {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let args = admin::Args::try_parse_from([&["psctl"], arguments].concat()).unwrap();
    let code = format!("{:?}", admin::run(args, &mut out, &mut err));
    (code, String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap())
}

#[test]
fn psctl_tells_rows_and_hits() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(toml(dir.path()));
    let (address, socket) = (tcp(&server).to_string(), unix(&server).to_string());
    let success = format!("{:?}", std::process::ExitCode::SUCCESS);
    let (code, out, _) = psctl(&["--server", &address, "tables"]);
    assert_eq!((code.as_str(), out.as_str()), (success.as_str(), "no tables\n"));
    let session = connect(&tcp(&server));
    train(&session, 5, 2);
    drop(session);

    let (_, json, _) = psctl(&["--server", &socket, "status", "--json"]);
    let status: StoreStatus = serde_json::from_str(&json).unwrap();
    assert_eq!(status, server.engine().status());
    let (_, text, _) = psctl(&["tables", "--server", &socket]);
    let a = status.tables.iter().find(|table| table.spec.name == "a").unwrap();
    let line = text.lines().nth(1).unwrap().split_whitespace().collect::<Vec<_>>();
    assert_eq!(line[..4], ["0", "a", "4", "adagrad"]);
    assert_eq!(line[4], a.rows.to_string());
    assert_eq!(line[8..10], [a.counters.host.hits, a.counters.host.misses].map(|n| n.to_string()));
    let (_, text, _) = psctl(&["status", "--server", &address]);
    assert!(text.contains("tables         2 of at most 4096\n"), "{text}");

    let new = ["--server", &address, "create-table", "--name", "c", "--dim", "8"];
    assert_eq!(psctl(&new).1, "c is table 2\n");
    let rules = ["--name", "d", "--dim", "8", "--admit-after", "3", "--expire-after", "7d"];
    let rules = [&["--server", &address, "create-table"], &rules[..]].concat();
    assert_eq!(psctl(&rules).1, "d is table 3\n");
    let (_, text, _) = psctl(&["--server", &address, "tables"]);
    let last = text.lines().last().unwrap().split_whitespace().collect::<Vec<_>>();
    assert_eq!(last, ["d", "after", "3", "sights", "0", "7d", "0", "0"], "{text}");
    let other = ["--server", &address, "create-table", "--name", "c", "--dim", "9"];
    let (code, _, err) = psctl(&other);
    assert_eq!(code, format!("{:?}", std::process::ExitCode::from(2)));
    assert!(err.contains("dim"), "{err}");
    server.stop().unwrap();

    let (code, _, err) = psctl(&["--server", &address, "tables"]);
    assert_eq!(code, format!("{:?}", std::process::ExitCode::from(1)));
    assert_eq!(err, format!("psctl: nothing listens at {address} (connection refused)\n"));
}
