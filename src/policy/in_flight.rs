//! Contains the policies of requests in flight: their limit is a number, not a rate.
//!
//! This file must not know how requests in flight are counted.

use std::sync::Arc;

use super::{Advertise, CountedBy, Policy};
use crate::{key::KeyExtractor, limit::Limit, quota::Quota};

/// The unit in draft-ietf-httpapi-ratelimit-headers-11 §3.1.2.
const UNIT: &str = "concurrent-requests";

impl Policy {
    /// At most `limit` requests of each key at once. Only denials advertise it: on other responses
    /// the number that is left would be out of date.
    pub(crate) fn in_flight_per(key: impl KeyExtractor, limit: u32) -> Self {
        let name = format!("in-flight-{}", key.name()).into();
        Self::in_flight(name, CountedBy::Extracted(Arc::new(key)), limit).advertise(Advertise::OnDenial)
    }

    /// At most `limit` requests at once. Clients learn nothing of the capacity of the service.
    pub(crate) fn in_flight_global(limit: u32) -> Self {
        Self::in_flight("in-flight".into(), CountedBy::Nothing, limit).advertise(Advertise::RetryAfter)
    }

    fn in_flight(name: Arc<str>, counted_by: CountedBy, limit: u32) -> Self {
        // As for a window: the number decides, and time brings nothing back.
        let limit = Limit::Quota(Quota::of_window(limit));
        Self { in_flight: true, ..Self::new(name, counted_by, limit).unit(UNIT) }
    }

    pub(crate) fn is_in_flight(&self) -> bool {
        self.in_flight
    }
}
