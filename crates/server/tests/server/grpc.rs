//! Sessions over connections: the same bits as embedded, limits, endings.

use table::{Limits, Optimizer, RowStatus, Step};
use wire::client::{Connection, GrpcSession};
use wire::{Code, Endpoint, Session};

use crate::{TIMEOUT, batch, bits, connect, embedded, look, spec, start, tcp, toml, train, unix};

#[test]
fn embedded_tcp_and_unix_give_the_same_bits() {
    let dir = tempfile::tempdir().unwrap();
    let here = embedded(&dir.path().join("here"), Limits::DEFAULT);
    let expected = train(&*here.session(), 60, 8);
    here.close().unwrap();
    for over in [tcp, unix] {
        let dir = tempfile::tempdir().unwrap();
        let server = start(toml(dir.path()));
        let session = connect(&over(&server));
        assert!(train(&session, 60, 8) == expected, "over {}", over(&server));
        drop(session);
        server.stop().unwrap();
    }
}

#[test]
fn lookahead_leaves_no_trace() {
    let dir = tempfile::tempdir().unwrap();
    let runs = [0, 1, 20].map(|lookahead| {
        let here = embedded(&dir.path().join(lookahead.to_string()), Limits::DEFAULT);
        let seen = train(&*here.session(), 30, lookahead);
        here.close().unwrap();
        seen
    });
    assert!(runs[0] == runs[1] && runs[0] == runs[2]);
}

#[test]
fn large_messages_pass_both_ways() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(toml(dir.path()));
    let session = connect(&unix(&server));
    session.create_table(&spec("a", 256, Optimizer::Sgd)).unwrap();
    let keys: Vec<u64> = (0..8_000).collect();
    let keys = batch(&[(0, &keys)]);
    let mut rows = vec![0.0; 8_000 * 256]; // 8 MB
    for step in 0..4 {
        session.stage(Step(step), &keys).unwrap();
        session.pull(Step(step), &mut rows).unwrap();
        session.push(Step(step), &rows, 0.5).unwrap();
    }
    session.settle().unwrap();
    let mut after = vec![0.0; rows.len()];
    session.lookup(&keys, &mut after, &mut vec![RowStatus::Failed; keys.len()]).unwrap();
    let halved: Vec<f32> = rows.iter().map(|x| x - 0.5 * x).collect();
    assert!(bits(&after) == bits(&halved));
    drop(session);
    server.stop().unwrap();
}

#[test]
fn a_message_over_the_limit_is_refused_before_it_is_sent_and_the_session_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = toml(dir.path());
    config.limits.message = server::Size(64 << 10);
    let server = start(config);
    let session = connect(&tcp(&server));
    session.create_table(&spec("a", 64, Optimizer::Sgd)).unwrap();
    let many: Vec<u64> = (0..300).collect();
    let keys = batch(&[(0, &many)]);
    let mut rows = vec![0.0; 300 * 64]; // 76,800 bytes
    session.stage(Step(0), &keys).unwrap();
    for told in [
        session.pull(Step(0), &mut rows).map(|_| ()),
        session.push(Step(0), &rows, 1.0),
        session.assign(&keys, &rows),
        session.lookup(&keys, &mut rows, &mut [RowStatus::Failed; 300]),
        session.stage(Step(1), &batch(&[(0, &(0..9000).collect::<Vec<_>>())])),
    ] {
        let error = told.unwrap_err();
        assert_eq!(error.code(), Code::TooLarge);
        assert!(error.message().contains("message limit is 65536"), "{error}");
    }
    session.release(Step(0)).unwrap();
    session.stage(Step(2), &batch(&[(0, &[1])])).unwrap();
    session.pull(Step(2), &mut [0.0; 64]).unwrap();
    drop(session);
    server.stop().unwrap();
}

#[test]
fn an_error_of_a_push_is_told_by_the_pull_that_follows() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(toml(dir.path()));
    let session = connect(&tcp(&server));
    session.create_table(&spec("a", 1, Optimizer::Sgd)).unwrap();
    session.stage(Step(0), &batch(&[(0, &[1])])).unwrap();
    session.stage(Step(1), &batch(&[(0, &[1])])).unwrap();
    session.push(Step(0), &[f32::NAN], 1.0).unwrap();
    let error = session.pull(Step(1), &mut [0.0]).unwrap_err();
    assert_eq!(error.code(), Code::NotFinite);
    assert!(error.message().contains("key 1"), "{error}");
    session.pull(Step(1), &mut [0.0]).unwrap();
    session.push(Step(0), &[1.0], 1.0).unwrap();
    session.settle().unwrap();
    drop(session);
    server.stop().unwrap();
}

#[test]
fn a_stopped_server_is_told_by_its_address_and_its_rows_are_found_again() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(toml(dir.path()));
    let address = tcp(&server).to_string();
    let session = connect(&tcp(&server));
    let seen = train(&session, 10, 2);
    session.stage(Step(50), &batch(&[(0, &[1])])).unwrap();
    server.stop().unwrap();
    for told in [
        session.pull(Step(50), &mut [0.0; 4]).map(|_| ()),
        session.stage(Step(51), &batch(&[(0, &[1])])),
        session.settle(),
        session.status().map(|_| ()),
    ] {
        let error = told.unwrap_err();
        assert_eq!(error.code(), Code::Unavailable);
        assert!(error.message().contains(&address), "{error}");
    }
    drop(session);
    assert!(!dir.path().join("ps.sock").exists());

    let server = start(toml(dir.path()));
    let session = connect(&unix(&server));
    assert!(session.status().unwrap().opened_clean);
    let every: Vec<u64> = (0..200).collect();
    let (rows, _) = look(&session, &batch(&[(0, &every), (1, &every)]), 200 * 11);
    assert_eq!(bits(&rows), seen[seen.len() - rows.len()..]);
    drop(session);
    server.stop().unwrap();
}

#[test]
fn pushes_that_were_not_waited_for_are_carried_out() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(toml(dir.path()));
    let session = connect(&tcp(&server));
    session.create_table(&spec("a", 1, Optimizer::Sgd)).unwrap();
    let keys = batch(&[(0, &[1])]);
    session.assign(&keys, &[100.0]).unwrap();
    for step in 0..50 {
        session.stage(Step(step), &keys).unwrap();
        session.push(Step(step), &[1.0], 1.0).unwrap();
    }
    drop(session);
    let session = connect(&tcp(&server));
    assert_eq!(look(&session, &keys, 1).0, [50.0]);
    drop(session);
    server.stop().unwrap();
}

#[test]
fn where_nothing_listens_the_address_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let free: Endpoint = format!("http://127.0.0.1:{port}").parse().unwrap();
    let error = GrpcSession::open(&free, TIMEOUT, "test").err().unwrap();
    assert_eq!(error.code(), Code::Unavailable);
    assert_eq!(error.message(), format!("nothing listens at {free} (connection refused)"));

    let missing = Endpoint::Unix(dir.path().join("no.sock"));
    let error = Connection::open(&missing, TIMEOUT).err().unwrap();
    assert_eq!(error.message(), format!("nothing listens at {missing} (no such socket)"));

    // a listener that never speaks
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint: Endpoint = format!("http://{}", silent.local_addr().unwrap()).parse().unwrap();
    let error = Connection::open(&endpoint, std::time::Duration::from_millis(200)).err().unwrap();
    assert_eq!(error.message(), format!("no answer from {endpoint} within 200ms"));

    let error = Connection::open(&"http://a:1,b:2".parse().unwrap(), TIMEOUT).err().unwrap();
    assert_eq!(error.code(), Code::InvalidArgument);
    assert!(error.message().contains("several servers are not supported yet"), "{error}");
}
