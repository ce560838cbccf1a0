//! Contains [`DenialBody`] for the bodies of others: in place where a body can be made of bytes,
//! and by the wrapper [`ResponseBody`] where it cannot.
//!
//! This file must not know how a response is written.

use std::pin::Pin;

use bytes::Bytes;
use http_body::Body;
use http_body_util::{
    BodyExt as _, Collected, Either, Empty, Full, Limited, StreamBody,
    combinators::{BoxBody, MapErr, MapFrame, UnsyncBoxBody, WithTrailers},
};

use super::body::{DenialBody, ResponseBody};

macro_rules! in_place {
    ($($(#[$docs:meta])* [$($generics:tt)*] $body:ty = |$bytes:pat_param| $made:expr;)+) => {$(
        $(#[$docs])*
        impl<$($generics)*> DenialBody for $body {
            type Body = Self;

            fn from_bytes($bytes: Bytes) -> Self {
                $made
            }
        }
    )+};
}

macro_rules! by_wrapper {
    ($($(#[$docs:meta])* [$($generics:tt)*] $body:ty;)+) => {$(
        $(#[$docs])*
        impl<$($generics)*> DenialBody for $body {
            type Body = ResponseBody<Self>;

            fn from_bytes(bytes: Bytes) -> ResponseBody<Self> {
                ResponseBody::denied(bytes)
            }
        }
    )+};
}

in_place! {
    [] Bytes = |bytes| bytes;
    [] Full<Bytes> = |bytes| Self::new(bytes);
    [] String = |bytes| Self::from_utf8_lossy(&bytes).into_owned();
    [] Vec<u8> = |bytes| bytes.into();
    /// The response has its status and fields only.
    [] () = |_| ();
    [E] BoxBody<Bytes, E> = |bytes| Full::new(bytes).map_err(|never| match never {}).boxed();
    [E] UnsyncBoxBody<Bytes, E> = |bytes| Full::new(bytes).map_err(|never| match never {}).boxed_unsync();
}

by_wrapper! {
    [B: ?Sized] Box<B>;
    [B: ?Sized] Pin<Box<B>>;
    [] Collected<Bytes>;
    [] Empty<Bytes>;
    [L, R] Either<L, R>;
    [B] Limited<B>;
    [B, F] MapErr<B, F>;
    [B, F] MapFrame<B, F>;
    [S] StreamBody<S>;
    [B: Body, F] WithTrailers<B, F>;
}

#[cfg(feature = "axum")]
in_place! {
    [] axum::body::Body = |bytes| bytes.into();
}

#[cfg(feature = "tonic")]
in_place! {
    // In the trailers-only form the head ends the stream. An empty body says so at once.
    [] tonic::body::Body = |bytes| if bytes.is_empty() { Self::empty() } else { Self::new(Full::new(bytes)) };
}

#[cfg(feature = "hyper")]
by_wrapper! {
    /// In a proxy, or in a client.
    [] hyper::body::Incoming;
}

/// The bodies of one version of tower-http.
#[cfg(feature = "tower-http")]
macro_rules! bodies_of_tower_http {
    ($tower_http:ident) => {
        by_wrapper! {
            [B: Body] $tower_http::compression::CompressionBody<B>;
            [B: Body] $tower_http::decompression::DecompressionBody<B>;
            /// Of `RequestBodyLimit`.
            [B] $tower_http::limit::ResponseBody<B>;
            [B] $tower_http::timeout::TimeoutBody<B>;
            /// Of `Trace`.
            [B, C, OnBodyChunk, OnEos, OnFailure] $tower_http::trace::ResponseBody<B, C, OnBodyChunk, OnEos, OnFailure>;
            /// Of `CatchPanic`.
            [D, E] $tower_http::body::UnsyncBoxBody<D, E>;
            /// Of `ServeDir` and `ServeFile`.
            [] $tower_http::services::fs::ServeFileSystemResponseBody;
        }
    };
}

#[cfg(feature = "tower-http")]
bodies_of_tower_http!(tower_http);
#[cfg(feature = "tower-http")]
bodies_of_tower_http!(tower_http_07);
