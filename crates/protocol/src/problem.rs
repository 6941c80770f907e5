//! Problems: every error on the wire is RFC 9457 `application/problem+json` with a stable code.

use std::{borrow::Cow, fmt};

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use serde::{Deserialize, Serialize};

macro_rules! codes {
    ($($(#[$doc:meta])* $variant:ident = $text:literal, $status:ident, $title:literal;)*) => {
        /// The stable name of a problem.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum Code { $($(#[$doc])* #[serde(rename = $text)] $variant,)* }

        impl Code {
            /// Every code there is.
            pub const ALL: &[Code] = &[$(Code::$variant,)*];

            /// As it stands on the wire.
            pub fn as_str(self) -> &'static str {
                match self { $(Code::$variant => $text,)* }
            }

            /// The HTTP status it travels with.
            pub fn status(self) -> StatusCode {
                match self { $(Code::$variant => StatusCode::$status,)* }
            }

            /// Whether the same request may succeed a little later.
            pub fn may_pass(self) -> bool {
                matches!(self, Code::Unavailable | Code::OutcomeUnknown | Code::TooManyRequests)
            }

            fn title(self) -> &'static str {
                match self { $(Code::$variant => $title,)* }
            }
        }
    };
}

codes! {
    /// An item number out of range.
    BadItemNumber = "bad_item_number", BAD_REQUEST, "Bad item number";
    /// A quantity out of range.
    BadQuantity = "bad_quantity", BAD_REQUEST, "Bad quantity";
    /// A stock, cost, limit or other value out of range.
    BadValue = "bad_value", BAD_REQUEST, "Bad value";
    /// A body that is not the JSON that the route takes.
    BadBody = "bad_body", BAD_REQUEST, "Bad body";
    /// An Idempotency-Key with wrong characters or length.
    BadKey = "bad_key", BAD_REQUEST, "Bad Idempotency-Key";
    /// A cursor that is not from an earlier answer.
    BadCursor = "bad_cursor", BAD_REQUEST, "Bad cursor";
    /// An internal route without the cluster's secret.
    SecretRequired = "secret_required", UNAUTHORIZED, "Secret required";
    /// No item has this number.
    UnknownItem = "unknown_item", NOT_FOUND, "Unknown item";
    /// No order has this number.
    UnknownOrder = "unknown_order", NOT_FOUND, "Unknown order";
    /// No such path here.
    UnknownRoute = "unknown_route", NOT_FOUND, "Unknown route";
    /// The path exists, not with this method.
    MethodNotAllowed = "method_not_allowed", METHOD_NOT_ALLOWED, "Method not allowed";
    /// A route of the reference design that something else replaced.
    Replaced = "replaced", GONE, "Replaced";
    /// Fewer copies left than asked for.
    OutOfStock = "out_of_stock", CONFLICT, "Out of stock";
    /// The price is not the expected one.
    CostChanged = "cost_changed", CONFLICT, "Cost changed";
    /// An item with this number exists already.
    ItemExists = "item_exists", CONFLICT, "Item exists";
    /// An import that cannot be done, or not now.
    ImportRefused = "import_refused", CONFLICT, "Import refused";
    /// A change of the membership that cannot be done as things are.
    MembershipRefused = "membership_refused", CONFLICT, "Membership refused";
    /// A body over `max_body_bytes`.
    BodyTooLarge = "body_too_large", PAYLOAD_TOO_LARGE, "Body too large";
    /// A body of another type than JSON.
    UnsupportedMediaType = "unsupported_media_type", UNSUPPORTED_MEDIA_TYPE, "Unsupported media type";
    /// The key was used for another request.
    IdempotencyKeyReused = "idempotency_key_reused", UNPROCESSABLE_ENTITY, "Idempotency-Key reused";
    /// More requests than the store can answer in time: nothing was done.
    TooManyRequests = "too_many_requests", TOO_MANY_REQUESTS, "Too many requests";
    /// Headers over `max_header_bytes`.
    HeadersTooLarge = "headers_too_large", REQUEST_HEADER_FIELDS_TOO_LARGE, "Headers too large";
    /// What is stored is not what it was.
    Damaged = "damaged", INTERNAL_SERVER_ERROR, "Damaged";
    /// Certainly not done; may be tried again.
    Unavailable = "unavailable", SERVICE_UNAVAILABLE, "Unavailable";
    /// May have been done; ask again with the same key.
    OutcomeUnknown = "outcome_unknown", GATEWAY_TIMEOUT, "Outcome unknown";
}

/// What went wrong, as the client sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Which problem.
    pub code: Code,
    /// What happened, to what, and what to do.
    pub detail: Cow<'static, str>,
}

/// Seconds in `Retry-After` of a 503 or 429: elections end well within.
const RETRY_AFTER_S: u32 = 1;

/// The media type of a problem.
pub const PROBLEM_JSON: &str = "application/problem+json";

#[derive(Serialize, Deserialize)]
struct Wire<'a> {
    #[serde(rename = "type")]
    kind: Cow<'a, str>,
    title: Cow<'a, str>,
    status: u16,
    code: Code,
    detail: Cow<'a, str>,
}

impl Problem {
    /// A problem with its explanation.
    pub fn new(code: Code, detail: impl Into<Cow<'static, str>>) -> Problem {
        Problem { code, detail: detail.into() }
    }

    /// 503: certainly not done.
    pub fn unavailable(detail: impl Into<Cow<'static, str>>) -> Problem {
        Problem::new(Code::Unavailable, detail)
    }

    /// 504: may have been done.
    pub fn outcome_unknown(detail: impl Into<Cow<'static, str>>) -> Problem {
        Problem::new(Code::OutcomeUnknown, detail)
    }

    /// 409 with the words of the reference design.
    pub fn out_of_stock() -> Problem {
        Problem::new(Code::OutOfStock, "The item is out of stock")
    }

    /// 404 for an item.
    pub fn unknown_item(item: impl fmt::Display) -> Problem {
        Problem::new(Code::UnknownItem, format!("there is no item {item}"))
    }

    /// The JSON document.
    pub fn to_json(&self) -> Vec<u8> {
        let wire = Wire {
            kind: format!("urn:pygmy:problem:{}", self.code.as_str()).into(),
            title: self.code.title().into(),
            status: self.code.status().as_u16(),
            code: self.code,
            detail: self.detail.as_ref().into(),
        };
        // Strings and numbers only: this cannot fail, and an empty body would still be valid.
        serde_json::to_vec(&wire).unwrap_or_default()
    }

    /// Reads a problem document; `None` if it is none of ours.
    pub fn from_json(bytes: &[u8]) -> Option<Problem> {
        let wire: Wire<'_> = serde_json::from_slice(bytes).ok()?;
        Some(Problem::new(wire.code, wire.detail.into_owned()))
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code.as_str(), self.detail)
    }
}

impl std::error::Error for Problem {}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = (self.code.status(), self.to_json()).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON));
        match self.code {
            Code::Unavailable | Code::TooManyRequests => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from(RETRY_AFTER_S));
            }
            Code::SecretRequired => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            _ => {}
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_survives_the_wire() {
        for code in Code::ALL {
            let problem = Problem::new(*code, "why \"so\"");
            assert_eq!(Problem::from_json(&problem.to_json()), Some(problem));
        }
    }
}
