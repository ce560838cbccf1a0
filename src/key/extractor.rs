//! Contains [`KeyExtractor`], which finds a request's key, and the ways to make one extractor of
//! others: [`or`](KeyExtractor::or), pairs and triples.

use std::{borrow::Cow, net::IpAddr};

use http::{HeaderValue, StatusCode};

use super::{head::RequestHead, into_key::fallback, key::Key};

/// What happens to a request that has no key for a policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Missing {
    /// The request is rejected with this status, and no policy counts it.
    Reject(StatusCode),
    /// The request is counted in one bucket together with every other request that has no key.
    Share,
    /// The policy does not apply to the request. A client that can omit the key escapes this
    /// policy: use another policy beside it that cannot be escaped.
    Skip,
}

/// Finds the key that a policy counts by.
///
/// The extractors of this module implement it, and pairs, triples, `Box`es and `Arc`s of
/// extractors, and closures wrapped in [`key_fn`](super::key_fn) or [`key_ref`](super::key_ref). An
/// extractor sees the request's head, never its body. It runs while nothing is locked. It may
/// panic: the panic reaches the caller, and the limiter stays as it was.
///
/// ```
/// use http::StatusCode;
/// use tower_quota::key::{Key, KeyExtractor, Missing, RequestHead};
///
/// /// Counts by the tenant in `/tenants/{tenant}/...`.
/// struct Tenant;
///
/// impl KeyExtractor for Tenant {
///     fn extract(&self, head: RequestHead<'_>) -> Result<Key, Missing> {
///         let rest = head.uri().path().strip_prefix("/tenants/");
///         let tenant = rest.and_then(|rest| rest.split('/').next()).filter(|tenant| !tenant.is_empty());
///         Ok(head.key(tenant.ok_or(Missing::Reject(StatusCode::NOT_FOUND))?))
///     }
/// }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a key extractor",
    label = "a policy cannot count by this",
    note = "wrap a closure: `key_fn(|head| ...)`, or implement `tower_quota::key::KeyExtractor`"
)]
pub trait KeyExtractor: Send + Sync + 'static {
    /// Returns the request's key, or what its absence means here.
    ///
    /// # Errors
    ///
    /// When the request has no such key. [`Policy::on_missing`](crate::Policy::on_missing)
    /// overrides what is returned.
    fn extract(&self, head: RequestHead<'_>) -> Result<Key, Missing>;

    /// Names what this extractor counts by, in a word of printable ASCII: `ip`, `x-api-key`. The
    /// default name of a policy is `per-` and this.
    fn name(&self) -> Cow<'static, str> {
        Cow::Borrowed("key")
    }

    /// Says what an operator does about requests like this one, which has no such key, for the
    /// event that reports it.
    fn remedy(&self, _head: RequestHead<'_>) -> &'static str {
        "send the key with the request, or set `Policy::on_missing`"
    }

    /// Returns the value of `WWW-Authenticate` for a rejection with 401, which must have one (RFC
    /// 9110 §15.5.2).
    fn challenge(&self, _head: RequestHead<'_>) -> Option<HeaderValue> {
        None
    }

    /// Returns this extractor with a fallback: `other`, where the request has no key for `self`.
    ///
    /// The same value found by the one and by the other makes two keys. So a client that invents a
    /// value for the fallback cannot use up a bucket of the first choice.
    ///
    /// A client that can omit what `self` looks for chooses between the two. Give the fallback no
    /// more than you would give such a client.
    ///
    /// What `other` finds is counted as a [`fallback`]. Use the same function to name such a key to
    /// a limiter.
    fn or<K: KeyExtractor>(self, other: K) -> Or<Self, K>
    where
        Self: Sized,
    {
        Or { first: self, second: other }
    }

    /// Returns what this extractor knows of the client's address.
    /// [`Policy::except`](crate::Policy::except) asks for it.
    fn client_address(&self, _head: RequestHead<'_>) -> ClientAddress {
        ClientAddress::OfConnection
    }

    /// Returns how many extractors this one tries one after another: one, unless it delegates to an
    /// extractor that was made by [`or`](Self::or), whose number it then returns. The number
    /// distinguishes the fallbacks of [`or`](Self::or).
    fn choices(&self) -> u32 {
        1
    }
}

/// What an extractor knows of the client's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ClientAddress {
    /// This one.
    Known(IpAddr),
    /// That of the connection: the extractor looks at something else.
    OfConnection,
    /// The extractor looks for an address, and has not found one.
    Unknown,
}

macro_rules! delegate_to_target {
    ($($pointer:ty),+) => {$(
        impl<K: KeyExtractor + ?Sized> KeyExtractor for $pointer {
            fn extract(&self, head: RequestHead<'_>) -> Result<Key, Missing> {
                (**self).extract(head)
            }

            fn name(&self) -> Cow<'static, str> {
                (**self).name()
            }

            fn remedy(&self, head: RequestHead<'_>) -> &'static str {
                (**self).remedy(head)
            }

            fn challenge(&self, head: RequestHead<'_>) -> Option<HeaderValue> {
                (**self).challenge(head)
            }

            fn client_address(&self, head: RequestHead<'_>) -> ClientAddress {
                (**self).client_address(head)
            }

            fn choices(&self) -> u32 {
                (**self).choices()
            }
        }
    )+};
}

// For extractors that are chosen at run time.
delegate_to_target!(Box<K>, std::sync::Arc<K>);

/// The first of two extractors that finds a key. Made by [`KeyExtractor::or`].
#[derive(Clone, Copy, Debug)]
pub struct Or<A, B> {
    first: A,
    second: B,
}

or_method!(Or<A, B>, A: KeyExtractor, B: KeyExtractor);

impl<A: KeyExtractor, B: KeyExtractor> KeyExtractor for Or<A, B> {
    fn extract(&self, head: RequestHead<'_>) -> Result<Key, Missing> {
        self.first.extract(head).or_else(|_| Ok(head.key(fallback(self.first.choices(), self.second.extract(head)?))))
    }

    fn choices(&self) -> u32 {
        self.first.choices().saturating_add(self.second.choices())
    }

    fn name(&self) -> Cow<'static, str> {
        self.first.name()
    }

    fn remedy(&self, head: RequestHead<'_>) -> &'static str {
        self.second.remedy(head)
    }

    fn challenge(&self, head: RequestHead<'_>) -> Option<HeaderValue> {
        self.second.challenge(head)
    }

    fn client_address(&self, head: RequestHead<'_>) -> ClientAddress {
        // The one that finds the key.
        if self.first.extract(head).is_ok() {
            self.first.client_address(head)
        } else {
            self.second.client_address(head)
        }
    }
}

macro_rules! every_combination {
    ($($part:ident $at:tt),+) => {
        impl<$($part: KeyExtractor),+> KeyExtractor for ($($part,)+) {
            fn extract(&self, head: RequestHead<'_>) -> Result<Key, Missing> {
                Ok(head.key(($(self.$at.extract(head)?,)+)))
            }

            fn name(&self) -> Cow<'static, str> {
                [$(self.$at.name()),+].join("-").into()
            }

            fn remedy(&self, head: RequestHead<'_>) -> &'static str {
                $(if self.$at.extract(head).is_err() {
                    return self.$at.remedy(head);
                })+
                ""
            }

            fn challenge(&self, head: RequestHead<'_>) -> Option<HeaderValue> {
                $(if self.$at.extract(head).is_err() {
                    return self.$at.challenge(head);
                })+
                None
            }

            fn client_address(&self, head: RequestHead<'_>) -> ClientAddress {
                $(match self.$at.client_address(head) {
                    ClientAddress::OfConnection => {}
                    found => return found,
                })+
                ClientAddress::OfConnection
            }
        }
    };
}

every_combination!(A 0, B 1);
every_combination!(A 0, B 1, C 2);
