//! Contains [`Gate`]: which requests a policy applies to, and what they must have.
//!
//! This file must not know of keys or quotas.

use std::{any::type_name, sync::Arc};

use http::{Extensions, Method};

use super::paths::PathPatterns;
use crate::key::{self, ClientAddress, KeyExtractor, Networks, RequestHead};

pub(super) type When = dyn Fn(RequestHead<'_>) -> bool + Send + Sync;

/// Which requests a policy applies to, and what they must have.
#[derive(Clone, Default)]
pub(super) struct Gate {
    pub(super) when: Option<Arc<When>>,
    pub(super) methods: Option<Arc<[Method]>>,
    pub(super) paths: Option<PathPatterns>,
    pub(super) except: Option<Networks>,
    /// What an outer layer has to put into a request's extensions.
    pub(super) requirements: Vec<Requirement>,
}

impl Gate {
    pub(super) fn unmet(&self, head: RequestHead<'_>) -> Option<&Requirement> {
        self.requirements.iter().find(|requirement| !(requirement.is_met)(head.extensions()))
    }

    #[inline(never)]
    pub(super) fn applies(&self, head: RequestHead<'_>, extractor: Option<&dyn KeyExtractor>) -> Applies {
        let is_excepted = |networks: &Networks| {
            let found = extractor.map_or(ClientAddress::OfConnection, |extractor| extractor.client_address(head));
            match found {
                ClientAddress::Known(address) => networks.contain(Some(address.into())),
                ClientAddress::OfConnection => networks.contain(key::peer(head.extensions())),
                // Nobody is excepted for an address that is missing.
                ClientAddress::Unknown => false,
            }
        };
        match &self.when {
            _ if self.methods.as_ref().is_some_and(|methods| !methods.contains(head.method())) => Applies::No,
            _ if self.paths.as_ref().is_some_and(|paths| !match_target(paths, head)) => Applies::No,
            Some(applies) if !applies(head) => Applies::No,
            _ if self.except.as_ref().is_some_and(is_excepted) => Applies::No,
            _ if self.unmet(head).is_some() => Applies::LacksSomething,
            _ => Applies::Yes,
        }
    }
}

/// Whether the path that the layer sees matches, or the one that the client sent: a pattern that is
/// written as the one and compared with the other would limit nothing.
fn match_target(paths: &PathPatterns, head: RequestHead<'_>) -> bool {
    #[cfg(feature = "axum")]
    if paths.match_path(head.original_uri().path()) {
        return true;
    }
    paths.match_path(head.uri().path())
}

/// Whether a policy applies to a request.
pub(super) enum Applies {
    /// It would, if an outer layer had put there what the policy requires.
    LacksSomething,
    No,
    Yes,
}

/// A type in a request's extensions.
#[derive(Clone, Copy)]
pub(super) struct Requirement {
    is_met: fn(&Extensions) -> bool,
    pub(super) type_name: &'static str,
}

impl Requirement {
    pub(super) fn of<T: Send + Sync + 'static>() -> Self {
        Self { is_met: |extensions| extensions.get::<T>().is_some(), type_name: type_name::<T>() }
    }
}
