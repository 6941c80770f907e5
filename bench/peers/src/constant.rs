//! An axum server that does nothing but answer.

use std::net::SocketAddr;

use axum::{Router, response::IntoResponse, serve::ListenerExt};
use http::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG};
use tokio::net::TcpListener;

/// Body and headers are those of Pygmy's first book.
const ITEM: &str = r#"{"itemNumber":1,"title":"How to get a good grade in 677 in 20 minutes a day","topic":"Distributed Systems","stock":1500,"cost":2000}"#;
const ITEM_ETAG: &str = "\"0123456789abcdef\"";

/// Serves until the process is killed.
pub(crate) async fn serve(listen: SocketAddr) -> anyhow::Result<()> {
    let listener = TcpListener::bind(listen).await?;
    // As Pygmy does: an answer must not wait for the acknowledgement of the last one.
    let listener = listener.tap_io(|stream| {
        let _ = stream.set_nodelay(true);
    });
    axum::serve(listener, Router::new().fallback(item)).await?;
    Ok(())
}

async fn item() -> impl IntoResponse {
    let headers =
        [(CONTENT_TYPE, "application/json"), (ETAG, ITEM_ETAG), (CACHE_CONTROL, "no-cache")];
    (headers, ITEM)
}
