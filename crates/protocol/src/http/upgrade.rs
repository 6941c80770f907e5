//! The server's side of a connection that two servers keep for themselves.

use axum::{body::Body, extract::Request, response::Response};
use http::{HeaderValue, StatusCode, header};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

use crate::{
    env::Connection,
    problem::{Code, Problem},
};

/// A connection that becomes usable once the answer is sent.
pub struct Upgraded(OnUpgrade);

impl Upgraded {
    /// Waits for the connection.
    ///
    /// # Errors
    /// The other side is gone.
    pub async fn connection(self) -> hyper::Result<Connection> {
        let upgraded = self.0.await?;
        Ok(Box::new(TokioIo::new(upgraded)))
    }
}

/// Takes a request that asks for `protocol`: the answer to send, and the connection to come.
///
/// # Errors
/// `bad_value` if the request asks for no upgrade, or for another one.
pub fn accept_upgrade(
    request: &mut Request,
    protocol: &'static str,
) -> Result<(Response, Upgraded), Problem> {
    let asked = request.headers().get(header::UPGRADE).is_some_and(|p| p == protocol);
    let on_upgrade = request.extensions_mut().remove::<OnUpgrade>();
    let Some(on_upgrade) = on_upgrade.filter(|_| asked) else {
        return Err(Problem::new(Code::BadValue, format!("this route wants Upgrade: {protocol}")));
    };
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static(protocol));
    Ok((response, Upgraded(on_upgrade)))
}
