//! Serving HTTP: the listener loop, and what every server does around its routes.
//!
//! [`serve()`] takes connections until it is told to stop and then drains them; many share a task
//! (see `lanes`), so that no flood of requests keeps a server from its other work. [`wrap`] puts the
//! common layers around a tier's routes: header limits, request id and deadline, the log line and
//! the metrics, `Cache-Control`, and problems for unknown routes and methods. [`internal`] lets only callers
//! with the cluster's secret through. Tiers of one process exchange a [`Call`] for an [`Answer`]
//! without a socket: through the router, or by [`Direct`] on the way of a purchase.

mod auth;
mod body;
mod call;
mod lanes;
mod layers;
mod measure;
mod serve;
mod starting;
mod tier;
mod upgrade;

pub use auth::{Secret, internal};
pub use body::{Json, empty_body, json_body, read_body, read_body_up_to};
pub use call::{Answer, Call, Direct};
pub use layers::{PROCESS, Probes, Readiness, livez, metrics_text, wrap};
pub(crate) use measure::Routes;
pub use measure::{Line, Measure};
pub use serve::{Shutdown, Stopper, serve, shutdown};
pub use starting::serve_starting;
pub use tier::{Fatal, Tier, run_tasks};
pub use upgrade::{Upgraded, accept_upgrade};

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What a server takes from one caller, and for how long. Each has a name in the configuration
/// (`[limits]`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Largest request body in bytes; over it: 413.
    pub max_body_bytes: usize,
    /// Most bytes in the names and values of a request's headers and its target; over it: 431.
    pub max_header_bytes: usize,
    /// Most connections at a time; over it: 503 and the connection is closed.
    pub max_connections: usize,
    /// Longest time for a whole request, in milliseconds; over it: 503 or 504.
    pub request_timeout_ms: u64,
    /// Longest time for the headers of a request to arrive, and for an idle connection, in
    /// milliseconds.
    pub idle_timeout_ms: u64,
    /// Longest time that a stopping server waits for requests in flight, in milliseconds.
    pub drain_timeout_ms: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            max_body_bytes: 64 * 1024,
            max_header_bytes: 16 * 1024,
            max_connections: 20_000,
            request_timeout_ms: 5_000,
            idle_timeout_ms: 75_000,
            drain_timeout_ms: 5_000,
        }
    }
}

impl Limits {
    /// [`Limits::request_timeout_ms`] as a duration.
    pub fn request_timeout(&self) -> Duration {
        Duration::from_millis(self.request_timeout_ms)
    }
}
