//! Contains the macro that gives an extractor [`KeyExtractor::or`](super::KeyExtractor::or) as an
//! inherent method, so that callers need not import the trait.

macro_rules! or_method {
    ($($extractor:ty $(, $($generics:tt)+)?);+ $(;)?) => {$(
        impl$(<$($generics)+>)? $extractor {
            /// Returns this extractor with a fallback: `other`, where the request has no such key.
            /// See [`KeyExtractor::or`](crate::key::KeyExtractor::or).
            #[must_use]
            pub fn or<Other: $crate::key::KeyExtractor>(self, other: Other) -> $crate::key::Or<Self, Other> {
                $crate::key::KeyExtractor::or(self, other)
            }
        }
    )+};
}
