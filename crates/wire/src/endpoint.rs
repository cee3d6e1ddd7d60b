//! Where a parameter server is: the text behind `--ps` and `--server`. It opens nothing.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use crate::{Code, Error, Result};

/// Where a parameter server is.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Endpoint {
    /// `embedded:DIR`: in this process, its rows under the directory.
    Embedded(PathBuf),
    /// `http://HOST:PORT[,HOST:PORT…]`: servers over TCP, each `HOST:PORT`. One alone can be
    /// connected to so far.
    Http(Vec<String>),
    /// `unix:PATH`: a server of this machine.
    Unix(PathBuf),
}

impl FromStr for Endpoint {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let bad = |why: &str| {
            let message = format!("{text:?} is not the address of a parameter server: {why}");
            Err(Error::new(Code::InvalidArgument, message))
        };
        if let Some(servers) = text.strip_prefix("http://") {
            let servers: Vec<&str> = servers.trim_end_matches('/').split(',').collect();
            return match servers.iter().find(|server| !is_host_and_port(server)) {
                Some(server) => bad(&format!("expected HOST:PORT, found {server:?}")),
                None => Ok(Endpoint::Http(servers.into_iter().map(str::to_owned).collect())),
            };
        }
        match text.split_once(':') {
            Some(("embedded" | "unix" | "shm", "")) => bad("the path is missing"),
            Some(("embedded", dir)) => Ok(Endpoint::Embedded(dir.into())),
            Some(("unix", path)) => Ok(Endpoint::Unix(path.into())),
            Some(("shm", _)) => bad("shared memory is not available yet; unix:PATH is"),
            Some(("https", _)) => bad("TLS is not available yet; http:// is"),
            _ => bad("expected embedded:DIR, unix:PATH or http://HOST:PORT"),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Endpoint::Embedded(dir) => write!(f, "embedded:{}", dir.display()),
            Endpoint::Http(servers) => write!(f, "http://{}", servers.join(",")),
            Endpoint::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

fn is_host_and_port(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    let host_is_sound = match host.strip_prefix('[') {
        Some(address) => address.ends_with(']'),
        None => !host.contains([':', '/', '@', ' ']),
    };
    !host.is_empty() && host_is_sound && port.parse::<u16>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_reads_and_writes_back() {
        for text in [
            "embedded:/var/lib/ps",
            "embedded:state",
            "http://127.0.0.1:7070",
            "http://[::1]:7070",
            "http://a:1,b:2",
            "unix:/run/ps.sock",
        ] {
            assert_eq!(text.parse::<Endpoint>().unwrap().to_string(), text);
        }
        let servers = Endpoint::Http(vec!["a:1".into(), "b:2".into()]);
        assert_eq!("http://a:1,b:2/".parse(), Ok(servers));
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, why) in [
            ("", "expected embedded:DIR, unix:PATH or http://HOST:PORT"),
            ("localhost:7070", "expected embedded:DIR"),
            ("http://localhost", "expected HOST:PORT, found \"localhost\""),
            ("http://a:1,b", "found \"b\""),
            ("http://a:99999", "found \"a:99999\""),
            ("http://:7070", "found \":7070\""),
            ("unix:", "the path is missing"),
            ("shm:/dev/shm/ps", "not available yet"),
            ("https://a:1", "TLS is not available yet"),
        ] {
            let error = text.parse::<Endpoint>().unwrap_err();
            assert_eq!(error.code(), Code::InvalidArgument);
            assert!(error.message().contains(why), "{error}");
        }
    }
}
