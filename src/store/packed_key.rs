//! Contains [`PackedKey`], a key as the map stores it: 14 bytes with the alignment of two, which
//! leave ten bytes of an entry of 24 for the value.

use std::hash::{Hash, Hasher};

use crate::key::Key;

#[derive(Clone, Copy)]
#[repr(C, packed(2))]
pub(crate) struct PackedKey {
    low: u64,
    middle: u32,
    high: u16,
}

impl From<Key> for PackedKey {
    #[inline(always)]
    #[allow(clippy::cast_possible_truncation, reason = "the word is taken apart, and its upper bits are zero")]
    fn from(key: Key) -> Self {
        let [low, high] = key.to_words();
        Self { low, middle: high as u32, high: (high >> 32) as u16 }
    }
}

impl From<PackedKey> for Key {
    #[inline(always)]
    fn from(key: PackedKey) -> Self {
        Self::from_words([key.low, u64::from(key.high) << 32 | u64::from(key.middle)])
    }
}

impl PartialEq for PackedKey {
    #[inline(always)]
    fn eq(&self, other: &Self) -> bool {
        // Copies, because a packed field cannot be referenced.
        let ([low, middle, high], [their_low, their_middle, their_high]) = (self.words(), other.words());
        low == their_low && middle == their_middle && high == their_high
    }
}

impl Eq for PackedKey {}

impl Hash for PackedKey {
    #[inline(always)]
    fn hash<H: Hasher>(&self, state: &mut H) {
        Key::from(*self).hash(state);
    }
}

impl PackedKey {
    #[inline(always)]
    fn words(self) -> [u64; 3] {
        [self.low, self.middle.into(), self.high.into()]
    }
}

#[cfg(all(test, not(tower_quota_loom)))]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;
    use crate::key::{IntoKey as _, KeyHasher};

    #[test]
    fn a_packed_key_is_the_same_key() {
        let hasher = KeyHasher::random();
        let keys = [
            7_u64.key(&hasher),
            Key::GLOBAL,
            "text".key(&hasher),
            (1_u8, "text").key(&hasher),
            Ipv4Addr::new(192, 0, 2, 1).key(&hasher),
            Ipv6Addr::new(0xFFFF, 0xFFFF, 0xFFFF, 0xFFFF, 1, 2, 3, 4).key(&hasher),
        ];
        for key in keys {
            assert_eq!(Key::from(PackedKey::from(key)), key);
            assert_eq!(keys.iter().filter(|other| PackedKey::from(**other) == PackedKey::from(key)).count(), 1);
        }
    }
}
