//! Contains what handlers of axum extract: the permit of their request.

use std::{convert::Infallible, error, fmt};

use axum::{
    extract::{FromRequestParts, OptionalFromRequestParts},
    response::{IntoResponse, Response},
};
use http::{StatusCode, request::Parts};

use super::permit::InFlightPermit;

fn take(parts: &mut Parts) -> Option<InFlightPermit> {
    parts.extensions.remove::<InFlightPermit>().filter(|permit| !permit.is_empty())
}

/// Takes the permit out of the request's extensions.
impl<S: Sync> FromRequestParts<S> for InFlightPermit {
    type Rejection = MissingPermit;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, MissingPermit> {
        take(parts).ok_or(MissingPermit(()))
    }
}

/// `None` where there is none, because no layer limits the requests in flight, or because this
/// request is not limited.
impl<S: Sync> OptionalFromRequestParts<S> for InFlightPermit {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Option<Self>, Infallible> {
        Ok(take(parts))
    }
}

/// There is no [`InFlightPermit`] in the request's extensions. Answered with 500, because only the
/// server can mend it.
#[derive(Debug)]
pub struct MissingPermit(());

impl fmt::Display for MissingPermit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "the request has no permit: apply an `InFlightLayer` to this route, with `.permits()` for requests that ask \
             for no upgrade, and take the permit once; where requests are exempt, extract an \
             `Option<InFlightPermit>`",
        )
    }
}

impl error::Error for MissingPermit {}

impl IntoResponse for MissingPermit {
    fn into_response(self) -> Response {
        (StatusCode::INTERNAL_SERVER_ERROR, self.to_string()).into_response()
    }
}
