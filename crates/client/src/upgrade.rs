//! A connection of its own between two servers, begun as an HTTP/1.1 upgrade.

use std::{io, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::Empty;
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use pygmy_protocol::{
    Env,
    env::{Connection, TimedOut},
    http::Secret,
};

use crate::upstream::split_url;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum UpgradeError {
    /// The server could not be reached, or broke off.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The server answered something else than 101.
    #[error("the server answered {status}")]
    Refused {
        /// Its status.
        status: StatusCode,
        /// Its headers, which may say where to go instead.
        headers: Box<HeaderMap>,
    },
}

/// Opens a connection to `path` of the server at `url` and switches it to `protocol`, within
/// `limit`.
///
/// # Errors
/// See [`UpgradeError`].
pub async fn upgrade(
    env: &Env,
    url: &str,
    path: &str,
    protocol: &'static str,
    headers: HeaderMap,
    secret: &Secret,
    limit: Duration,
) -> Result<Connection, UpgradeError> {
    let attempt = async {
        let (authority, prefix) = split_url(url).map_err(io::Error::other)?;
        let connection = env.connect(&authority, limit).await?;
        let mut request = Request::builder()
            .uri(format!("{prefix}{path}"))
            .header(header::HOST, &authority)
            .header(header::CONNECTION, "Upgrade")
            .header(header::UPGRADE, HeaderValue::from_static(protocol))
            .body(Empty::<Bytes>::new())
            .map_err(io::Error::other)?;
        request.headers_mut().extend(headers);
        secret.write(request.headers_mut());
        let response = send(env, connection, request).await?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            let (parts, _) = response.into_parts();
            return Err(UpgradeError::Refused {
                status: parts.status,
                headers: Box::new(parts.headers),
            });
        }
        let upgraded = hyper::upgrade::on(response).await.map_err(io::Error::other)?;
        Ok(Box::new(TokioIo::new(upgraded)) as Connection)
    };
    match env.timeout(limit, attempt).await {
        Ok(result) => result,
        Err(TimedOut) => Err(io::Error::from(io::ErrorKind::TimedOut).into()),
    }
}

async fn send(
    env: &Env,
    connection: Connection,
    request: Request<Empty<Bytes>>,
) -> Result<Response<Incoming>, UpgradeError> {
    let (mut sender, driver) =
        http1::handshake(TokioIo::new(connection)).await.map_err(io::Error::other)?;
    env.spawn(async move {
        if let Err(error) = driver.with_upgrades().await {
            tracing::trace!(%error, "an upgrade broke off");
        }
    });
    Ok(sender.send_request(request).await.map_err(io::Error::other)?)
}
