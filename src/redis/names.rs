//! Contains [`KeyNames`], the names in Redis, and the slots of a cluster that they are in.
//!
//! | name | what it is |
//! |---|---|
//! | `{prefix:principal}:policy` | a bucket, with what blocks its key |
//! | `{prefix}:control` | a hash: the quotas that an operator has set |
//! | `{prefix}:control` | a channel: announcements |
//!
//! The principal is a keyed hash in hexadecimal, so that no address and no API key is in a name,
//! and no client chooses a slot. All policies that count one principal are in one slot.

use crate::key::{Key, KeyHasher};

#[derive(Clone, Debug)]
pub(super) struct KeyNames {
    prefix: String,
}

impl KeyNames {
    pub(super) fn new(prefix: String) -> Self {
        Self { prefix }
    }

    /// The bucket of a principal under a policy.
    pub(super) fn bucket(&self, principal: Principal, policy: &str) -> String {
        format!("{{{}:{principal}}}:{policy}", self.prefix)
    }

    /// The principal of a bucket's name.
    pub(super) fn principal(&self, bucket: &str, policy: &str) -> Option<Principal> {
        let rest = bucket.strip_prefix('{')?.strip_prefix(&*self.prefix)?.strip_prefix(':')?;
        let digits = rest.strip_suffix(policy)?.strip_suffix("}:")?;
        Principal::parse(digits)
    }

    /// Matches the names of all buckets of a policy, for `SCAN`.
    pub(super) fn pattern(&self, policy: &str) -> String {
        let escaped = |text: &str| {
            let special = |c: char| matches!(c, '*' | '?' | '[' | ']' | '^' | '\\');
            text.chars().flat_map(|c| special(c).then_some('\\').into_iter().chain([c])).collect::<String>()
        };
        format!("{{{}:{}}}:{}", escaped(&self.prefix), "?".repeat(DIGITS), escaped(policy))
    }

    /// The hash and the channel of what an operator says.
    pub(super) fn control(&self) -> String {
        format!("{{{}}}:control", self.prefix)
    }

    /// A name of no bucket that tests whether the script runs. Each node of a cluster has one in a
    /// slot of its own, which is found by trying numbers.
    pub(super) fn probe(&self, has_slot: impl Fn(u16) -> bool) -> String {
        let names = (0_u32..).map(|number| format!("{{{}:probe{number}}}", self.prefix));
        names.take(1 << 20).find(|name| has_slot(slot(name))).unwrap_or_default()
    }
}

/// Who is counted, in a form that does not reveal it: a keyed hash of 104 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Principal(u128);

/// The hexadecimal digits of a principal.
const DIGITS: usize = 26;

impl Principal {
    pub(super) fn of(key: Key, hasher: &KeyHasher) -> Self {
        Self(hasher.opaque(key))
    }

    /// A key that has this principal.
    pub(super) fn key(self) -> Key {
        Key::of_principal(self.0)
    }

    pub(super) fn parse(digits: &str) -> Option<Self> {
        // `from_str_radix` would also accept a sign.
        let is_hex = digits.len() == DIGITS && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        is_hex.then(|| u128::from_str_radix(digits, 16).ok().map(Self)).flatten()
    }

    /// Selects one of `len` things. `len` is a power of two.
    #[allow(clippy::cast_possible_truncation, reason = "the lowest bits select")]
    pub(super) fn select(self, len: usize) -> usize {
        self.0 as usize & (len - 1)
    }
}

impl std::fmt::Display for Principal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:0width$x}", self.0, width = DIGITS)
    }
}

/// The slot of a name, of a cluster's 16,384: that of the text in its first braces, which all our
/// names have.
pub(super) fn slot(name: &str) -> u16 {
    const CRC: crc::Crc<u16> = crc::Crc::<u16>::new(&crc::CRC_16_XMODEM);
    let tag = name.trim_start_matches('{').split('}').next().unwrap_or_default();
    CRC.checksum(tag.as_bytes()) % SLOTS
}

/// The number of a cluster's slots.
pub(super) const SLOTS: u16 = 16_384;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_those_of_redis() {
        // By `CLUSTER KEYSLOT`.
        for (name, expected) in [("{tower-quota:probe0}", 1_954), ("{a}:policy:1x1", 15_495), ("{123456789}", 12_739)] {
            assert_eq!(slot(name), expected, "{name}");
        }
    }

    #[test]
    fn a_probe_is_in_a_slot_of_its_node() {
        let name = KeyNames::new("limits".to_owned()).probe(|slot| slot == 9_999);
        assert_eq!(slot(&name), 9_999);
        assert!(name.starts_with("{limits:probe"));
    }

    #[test]
    fn the_name_of_a_bucket_has_its_principal() {
        let names = KeyNames::new("a*".to_owned());
        let principal = Principal::parse("0123456789abcdef0123456789").unwrap();
        let name = names.bucket(principal, "per [k]");
        assert_eq!(name, "{a*:0123456789abcdef0123456789}:per [k]");
        assert_eq!(names.principal(&name, "per [k]"), Some(principal));
        assert_eq!(Principal::of(principal.key(), &KeyHasher::random()), principal);
        assert_eq!(names.pattern("per [k]"), r"{a\*:??????????????????????????}:per \[k\]");
        for other in ["{a*:probe1}", "{a*}:control", "{a*:0123456789abcdef012345678+}:per [k]", ""] {
            assert_eq!(names.principal(other, "per [k]"), None, "{other}");
        }
    }
}
