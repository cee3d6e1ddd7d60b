//! The page of metrics and the health check, over HTTP. It serves no rows.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use tokio::sync::watch;

use crate::engine::Engine;
use crate::metrics::StoreCollector;

/// The content type that the encoding asks for.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[derive(Clone)]
struct Page {
    registry: Arc<Registry>,
    poisoned: watch::Receiver<Option<String>>,
    stopping: watch::Receiver<bool>,
}

/// `/metrics` and `/healthz` of `engine`, whose own counters are in `registry`.
pub(crate) fn router(
    engine: &Arc<Engine>,
    mut registry: Registry,
    stopping: watch::Receiver<bool>,
) -> Router {
    registry.register_collector(Box::new(StoreCollector(Arc::clone(engine))));
    let page = Page { registry: Arc::new(registry), poisoned: engine.poisoned(), stopping };
    Router::new().route("/metrics", get(metrics)).route("/healthz", get(health)).with_state(page)
}

async fn metrics(State(page): State<Page>) -> impl IntoResponse {
    // on a thread that may wait: the store reads its files
    let encoded = tokio::task::spawn_blocking(move || {
        let mut text = String::new();
        encode(&mut text, &page.registry).map(|()| text)
    });
    match encoded.await {
        Ok(Ok(text)) => (StatusCode::OK, [(header::CONTENT_TYPE, OPENMETRICS)], text),
        _ => {
            let text = "metrics can't be encoded\n".to_owned();
            (StatusCode::INTERNAL_SERVER_ERROR, [(header::CONTENT_TYPE, "text/plain")], text)
        }
    }
}

async fn health(State(page): State<Page>) -> (StatusCode, String) {
    if let Some(cause) = page.poisoned.borrow().as_ref() {
        return (StatusCode::SERVICE_UNAVAILABLE, format!("poisoned: {cause}\n"));
    }
    if *page.stopping.borrow() {
        return (StatusCode::SERVICE_UNAVAILABLE, "stopping\n".to_owned());
    }
    (StatusCode::OK, "serving\n".to_owned())
}
