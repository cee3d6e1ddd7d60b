//! Starting and stopping: socket files, addresses in use, directories that are not a store.

use std::os::unix::net::UnixListener;
use std::process::ExitCode;

use server::{Config, Error, Listen, Server};

use crate::{connect, start, toml, unix};

fn refused(toml: server::ConfigToml) -> Error {
    Server::start(Config::from_toml(toml).unwrap()).err().unwrap()
}

#[test]
fn a_stale_socket_is_replaced_a_live_one_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ps.sock");
    drop(UnixListener::bind(&path).unwrap()); // its file stays
    let server = start(toml(dir.path()));
    drop(connect(&unix(&server)));

    let other = tempfile::tempdir().unwrap();
    let mut config = toml(other.path());
    config.listen = vec![Listen::Unix(path.clone())];
    let error = refused(config);
    assert!(error.to_string().contains("another process listens there"), "{error}");
    drop(connect(&unix(&server))); // unharmed
    server.stop().unwrap();
    assert!(!path.exists());
}

#[test]
fn a_file_that_is_no_socket_stays() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("ps.sock"), "precious").unwrap();
    let error = refused(toml(dir.path()));
    assert!(error.to_string().contains("not a socket"), "{error}");
    assert_eq!(std::fs::read(dir.path().join("ps.sock")).unwrap(), b"precious");
}

#[test]
fn an_address_in_use_is_told_and_no_socket_file_is_left() {
    let dir = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut config = toml(dir.path());
    config.listen.reverse();
    config.listen[1] = Listen::Tcp(taken.local_addr().unwrap());
    let error = refused(config);
    assert!(error.to_string().contains(&taken.local_addr().unwrap().to_string()), "{error}");
    assert!(!dir.path().join("ps.sock").exists());
}

#[test]
fn a_directory_that_is_no_store_or_is_in_use_is_bad_input() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("rows")).unwrap();
    std::fs::write(dir.path().join("rows/thesis.txt"), "precious").unwrap();
    let error = refused(toml(dir.path()));
    assert!(error.to_string().contains("thesis.txt"), "{error}");
    assert_eq!(format!("{:?}", error.exit_code()), format!("{:?}", ExitCode::from(2)));

    let dir = tempfile::tempdir().unwrap();
    let server = start(toml(dir.path()));
    let mut config = toml(dir.path());
    config.listen.pop();
    let error = refused(config);
    assert!(matches!(&error, Error::Store { .. }), "{error}");
    assert_eq!(format!("{:?}", error.exit_code()), format!("{:?}", ExitCode::from(2)));
    server.stop().unwrap();
}
