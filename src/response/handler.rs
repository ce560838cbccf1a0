//! Contains what handlers of axum return and extract: denials as responses, and the admission of
//! their request.
//!
//! This file must not know how a response is written.

use std::{convert::Infallible, error, fmt};

use axum::{
    body::Body,
    extract::{FromRequestParts, OptionalFromRequestParts},
    response::{IntoResponse, Response},
};
use http::{StatusCode, header, request::Parts};

use super::{
    headers::{FieldStyle, FieldWriter},
    problem::{self, Content},
};
use crate::{
    decision::Denied,
    limiter::{AcquireError, Admission},
    observe::events,
};

/// The response that a layer over the same limiter gives, with its default options: the status, a
/// problem in JSON, `Retry-After`, `Cache-Control: no-store`, and the fields of the policies that
/// denied.
impl IntoResponse for Denied {
    fn into_response(self) -> Response {
        let Content { content_type, body } = problem::json(&self);
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = self.status();
        *response.headers_mut() = FieldWriter::new(self.policies(), FieldStyle::default()).denial(&self, content_type);
        response
    }
}

/// A denial is answered as the layer does. Any other error is the server's own fault: 500, and an
/// event with the reason, which clients do not learn.
impl IntoResponse for AcquireError {
    fn into_response(self) -> Response {
        match self {
            Self::Denied(denied) => denied.into_response(),
            error => {
                events::not_asked(&error);
                let Content { content_type, body } = problem::of_status(StatusCode::INTERNAL_SERVER_ERROR);
                (StatusCode::INTERNAL_SERVER_ERROR, [(header::CONTENT_TYPE, content_type)], body).into_response()
            }
        }
    }
}

/// The admission that a layer with [`admissions`](crate::RateLimitLayer::admissions) has put into
/// the request's extensions.
impl<S: Sync> FromRequestParts<S> for Admission {
    type Rejection = MissingAdmission;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, MissingAdmission> {
        parts.extensions.get::<Self>().cloned().ok_or(MissingAdmission(()))
    }
}

/// `None` where no layer has put one there.
impl<S: Sync> OptionalFromRequestParts<S> for Admission {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Option<Self>, Infallible> {
        Ok(parts.extensions.get::<Self>().cloned())
    }
}

/// No layer has put an [`Admission`] into the request's extensions. Answered with 500, because only
/// the server can mend it.
#[derive(Debug)]
pub struct MissingAdmission(());

impl fmt::Display for MissingAdmission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the request has no admission: call `.admissions()` on the layer of this route")
    }
}

impl error::Error for MissingAdmission {}

impl IntoResponse for MissingAdmission {
    fn into_response(self) -> Response {
        (StatusCode::INTERNAL_SERVER_ERROR, self.to_string()).into_response()
    }
}
