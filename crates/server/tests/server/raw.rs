//! What a client that is not ours may send: requests before the opening, malformed bytes, messages
//! too large. Each is refused in the stream, and the stream goes on.

use table::{Optimizer, RowStatus};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;
use wire::proto::parameter_server_client::ParameterServerClient;
use wire::proto::request::Request as Asked;
use wire::proto::response::Result as Outcome;
use wire::proto::{self, Request, Response};
use wire::{Code, packed};

use crate::{connect, spec, start, tcp, toml};

/// A stream of messages as they are.
struct Raw {
    requests: mpsc::Sender<Request>,
    responses: Streaming<Response>,
    last_id: u64,
}

impl Raw {
    async fn connect(server: &server::Server) -> Raw {
        let channel =
            Channel::from_shared(tcp(server).to_string()).unwrap().connect().await.unwrap();
        let mut client = ParameterServerClient::new(channel);
        let (requests, queue) = mpsc::channel(4);
        let responses = client.session(ReceiverStream::new(queue)).await.unwrap().into_inner();
        Raw { requests, responses, last_id: 0 }
    }

    async fn ask(&mut self, asked: impl Into<Option<Asked>>) -> Response {
        self.last_id += 3;
        let request = Request { request_id: self.last_id, request: asked.into() };
        self.requests.send(request).await.unwrap();
        let response = self.responses.message().await.unwrap().unwrap();
        assert_eq!(response.request_id, self.last_id);
        assert!(response.status.is_some() != response.result.is_some());
        response
    }

    async fn refused(&mut self, asked: impl Into<Option<Asked>>) -> (Code, String) {
        let status = self.ask(asked).await.status.unwrap();
        (Code::from_number(status.code), status.message)
    }
}

fn on_runtime(test: impl Future<Output = ()>) {
    let builder = &mut tokio::runtime::Builder::new_current_thread();
    builder.enable_all().build().unwrap().block_on(test);
}

fn keys(table: u32, rows: u32, bytes: usize) -> Option<proto::Keys> {
    let keys = (0..bytes as u64).flat_map(u64::to_le_bytes).take(bytes).collect::<Vec<u8>>();
    Some(proto::Keys { runs: vec![proto::KeyRun { table, rows }], keys: keys.into() })
}

fn open() -> Asked {
    Asked::Open(proto::Open { client: "raw".to_owned() })
}

#[test]
fn malformed_requests_are_refused_one_by_one() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(toml(dir.path()));
    connect(&tcp(&server)).connection().create_table(&spec("a", 1, Optimizer::Sgd)).unwrap();
    on_runtime(async {
        let mut raw = Raw::connect(&server).await;
        let bad = |message: &str| (Code::InvalidArgument, message.to_owned());
        let pull = Asked::Pull(proto::Pull { step: 0, statuses: false });
        assert_eq!(raw.refused(pull.clone()).await, bad("the first request is to open"));
        assert_eq!(raw.refused(None).await, bad("the first request is to open"));
        assert!(raw.ask(open()).await.result.is_some());
        assert_eq!(raw.refused(open()).await, bad("the session is open already"));
        let unknown = "the request is of a kind that this server does not know";
        assert_eq!(raw.refused(None).await, bad(unknown));

        let stage_with = |keys, next_uses: Vec<u8>| {
            Asked::Stage(proto::Stage { step: 0, keys, next_uses: next_uses.into() })
        };
        let stage = |keys| stage_with(keys, vec![]);
        let lookup = |keys| Asked::Lookup(proto::Lookup { keys });
        for ask in [&stage as &dyn Fn(_) -> Asked, &lookup] {
            assert_eq!(raw.refused(ask(None)).await, bad("the request comes without its keys"));
            let message = "keys has 15 bytes, expected a multiple of 8";
            assert_eq!(raw.refused(ask(keys(0, 2, 15))).await, bad(message));
            let message = "runs name 3 keys, the batch carries 2";
            assert_eq!(raw.refused(ask(keys(0, 3, 16))).await, bad(message));
            let twice = proto::Keys {
                runs: vec![proto::KeyRun { table: 0, rows: 2 }],
                keys: packed::pack_keys(&[table::Key(5), table::Key(5)]),
            };
            assert_eq!(raw.refused(ask(Some(twice))).await.0, Code::InvalidArgument);
        }
        let message = "next_uses has 6 bytes, expected a multiple of 4";
        assert_eq!(raw.refused(stage_with(keys(0, 2, 16), vec![0; 6])).await, bad(message));
        let message = "1 next uses for 2 keys";
        assert_eq!(raw.refused(stage_with(keys(0, 2, 16), vec![0; 4])).await, bad(message));
        assert_eq!(
            raw.refused(pull.clone()).await,
            (Code::NotFound, "step 0 is not staged".into())
        );
        assert!(raw.ask(stage_with(keys(0, 2, 16), vec![255; 8])).await.result.is_some());
        assert!(raw.refused(stage(keys(0, 2, 16))).await.1.contains("steps ascend"));
        let push = |bytes: &[u8]| {
            let gradients = bytes::Bytes::copy_from_slice(bytes);
            Asked::Push(proto::Push { step: 0, learning_rate: 1.0, gradients })
        };
        let message = "gradients has 7 bytes, expected a multiple of 4";
        assert_eq!(raw.refused(push(&[0; 7])).await, bad(message));
        assert_eq!(raw.refused(push(&[0; 4])).await.0, Code::InvalidArgument);
        let nan = packed::pack_floats(&[0.0, f32::NAN]);
        assert_eq!(raw.refused(push(&nan)).await.0, Code::NotFinite);
        let answer = raw.ask(pull).await.result;
        let Some(Outcome::Rows(rows)) = answer else { panic!("{answer:?}") };
        assert_eq!((rows.rows.len(), rows.statuses.len()), (8, 0), "as before there were any");
        let answer = raw.ask(Asked::Pull(proto::Pull { step: 0, statuses: true })).await.result;
        let Some(Outcome::Rows(rows)) = answer else { panic!("{answer:?}") };
        assert_eq!(rows.rows.len(), 8);
        assert_eq!(rows.statuses[..], [RowStatus::Initialised as u8; 2]);
        assert!(raw.ask(push(&[0; 8])).await.result.is_some());
    });
    server.stop().unwrap();
}

#[test]
fn messages_too_large_are_refused_in_the_stream_and_far_too_large_ends_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = toml(dir.path());
    config.limits.message = server::Size(64 << 10);
    let server = start(config);
    connect(&tcp(&server)).connection().create_table(&spec("a", 4096, Optimizer::Sgd)).unwrap();
    on_runtime(async {
        let mut raw = Raw::connect(&server).await;
        raw.ask(open()).await;
        let lookup = |keys| Asked::Lookup(proto::Lookup { keys });
        let (code, message) = raw.refused(lookup(keys(0, 10_000, 80_000))).await;
        assert_eq!(code, Code::TooLarge);
        assert!(message.contains("message limit is 65536"), "{message}");
        // small requests with large answers
        let (code, message) = raw.refused(lookup(keys(0, 5, 40))).await;
        assert_eq!((code, message.contains("the response takes")), (Code::TooLarge, true));
        let next_uses = bytes::Bytes::new();
        let stage = Asked::Stage(proto::Stage { step: 0, keys: keys(0, 5, 40), next_uses });
        assert!(raw.ask(stage).await.result.is_some());
        let pull = Asked::Pull(proto::Pull { step: 0, statuses: false });
        assert_eq!(raw.refused(pull).await.0, Code::TooLarge);
        assert!(raw.ask(Asked::Release(proto::Release { step: 0 })).await.result.is_some());
        assert!(raw.ask(lookup(keys(0, 2, 16))).await.result.is_some());

        let huge = Request { request_id: 1, request: Some(lookup(keys(0, 1 << 18, 2 << 20))) };
        raw.requests.send(huge).await.unwrap();
        let status = raw.responses.message().await.unwrap_err();
        assert_eq!(status.code(), tonic::Code::OutOfRange, "{status}");
    });
    server.stop().unwrap();
}

#[test]
fn health_and_reflection_answer() {
    use tonic_health::pb::health_check_response::ServingStatus;
    use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
    use tonic_reflection::pb::v1::{ServerReflectionRequest, server_reflection_response};

    let dir = tempfile::tempdir().unwrap();
    let server = start(toml(dir.path()));
    on_runtime(async {
        let address = tcp(&server).to_string();
        let channel = Channel::from_shared(address).unwrap().connect().await.unwrap();
        for service in ["", "embedding_ps.v1.ParameterServer"] {
            let request = HealthCheckRequest { service: service.to_owned() };
            let answer = HealthClient::new(channel.clone()).check(request).await.unwrap();
            assert_eq!(answer.into_inner().status(), ServingStatus::Serving, "{service:?}");
        }
        let request = ServerReflectionRequest {
            host: String::new(),
            message_request: Some(MessageRequest::FileContainingSymbol(
                "embedding_ps.v1.ParameterServer".to_owned(),
            )),
        };
        let requests = tokio_stream::iter([request]);
        let mut client = ServerReflectionClient::new(channel);
        let mut answers = client.server_reflection_info(requests).await.unwrap().into_inner();
        let answer = answers.message().await.unwrap().unwrap().message_response.unwrap();
        let server_reflection_response::MessageResponse::FileDescriptorResponse(files) = answer
        else {
            panic!("no descriptor")
        };
        let file = String::from_utf8_lossy(&files.file_descriptor_proto[0]).into_owned();
        assert!(file.contains("GetStatus"), "{file}");
    });
    server.stop().unwrap();
}
