//! The cluster's secret, which every internal route asks for.

use std::{
    convert::Infallible,
    fmt, io,
    path::Path,
    sync::Arc,
    task::{Context, Poll},
};

use axum::{
    Router,
    extract::Request,
    response::{IntoResponse, Response},
    routing::{Route, future::RouteFuture},
};
use futures_util::future::{Either, Ready, ready};
use http::{HeaderMap, HeaderValue, header};
use tower::{Service, layer::layer_fn};

use crate::{
    env::Env,
    problem::{Code, Problem},
};

/// The shared secret of a cluster. Never printed.
#[derive(Clone)]
pub struct Secret {
    bearer: HeaderValue,
}

impl Secret {
    /// Fewest and most characters.
    const BYTES: std::ops::RangeInclusive<usize> = 16..=512;

    /// A secret from its text: 16 to 512 visible ASCII characters, white space around it ignored.
    ///
    /// # Errors
    /// A sentence that says what is wrong with it.
    pub fn new(text: &str) -> Result<Secret, String> {
        let text = text.trim();
        if !Self::BYTES.contains(&text.len()) || !text.bytes().all(|b| b.is_ascii_graphic()) {
            return Err("a secret has 16 to 512 visible ASCII characters".to_owned());
        }
        let mut bearer =
            HeaderValue::from_str(&format!("Bearer {text}")).map_err(|e| e.to_string())?;
        bearer.set_sensitive(true);
        Ok(Secret { bearer })
    }

    /// Reads the secret from a file.
    ///
    /// # Errors
    /// The file cannot be read, or holds no secret.
    pub fn read(path: &Path) -> io::Result<Secret> {
        let named =
            |e: &dyn fmt::Display| format!("cannot use the secret file {}: {e}", path.display());
        let text =
            std::fs::read_to_string(path).map_err(|e| io::Error::new(e.kind(), named(&e)))?;
        Secret::new(&text).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, named(&e)))
    }

    /// Text of a fresh secret: 256 random bits.
    pub fn generate(env: &Env) -> String {
        env.random.hex(32)
    }

    /// Adds the secret to the headers of a request.
    pub fn write(&self, headers: &mut HeaderMap) {
        headers.insert(header::AUTHORIZATION, self.bearer.clone());
    }

    /// Whether the headers carry the secret. Takes the same time wherever a difference is.
    pub fn matches(&self, headers: &HeaderMap) -> bool {
        let Some(given) = headers.get(header::AUTHORIZATION) else { return false };
        let (given, wanted) = (given.as_bytes(), self.bearer.as_bytes());
        let differences = given.iter().zip(wanted).fold(0, |sum, (a, b)| sum | (a ^ b));
        given.len() == wanted.len() && differences == 0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// Lets only requests with the secret through to `router`; others get 401.
pub fn internal<S: Clone + Send + Sync + 'static>(router: Router<S>, secret: &Secret) -> Router<S> {
    let secret = Arc::new(secret.clone());
    router.route_layer(layer_fn(move |inner| Guarded { secret: Arc::clone(&secret), inner }))
}

/// An endpoint behind the secret.
#[derive(Clone)]
struct Guarded {
    secret: Arc<Secret>,
    inner: Route,
}

impl Service<Request> for Guarded {
    type Response = Response;
    type Error = Infallible;
    type Future = Either<RouteFuture<Infallible>, Ready<Result<Response, Infallible>>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Service::<Request>::poll_ready(&mut self.inner, context)
    }

    fn call(&mut self, request: Request) -> Self::Future {
        if self.secret.matches(request.headers()) {
            return Either::Left(self.inner.call(request));
        }
        let problem = Problem::new(
            Code::SecretRequired,
            "this route needs the cluster's secret: Authorization: Bearer …",
        );
        Either::Right(ready(Ok(problem.into_response())))
    }
}
