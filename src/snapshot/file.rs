//! Contains the format of a snapshot, version 1. All numbers are little-endian.
//!
//! ```text
//! "TQ-STATE"  version: u32  length of the body: u64
//! digest of the secret: 16 bytes
//! body
//! digest of all before it, under the secret: 16 bytes
//! ```
//!
//! Nothing of the body is read before its digest is compared, and nothing is allocated for a number
//! that stands in the file. This file must not know of buckets' meaning.

use std::io::{Read, Write};

use super::{
    error::SnapshotError,
    records::{BanRecord, PenaltyRecord, PolicyRecord, Records, ResetMark, SavedBucket},
};
use crate::{
    bucket::Bucket,
    clock::{Nanos, Timestamp},
    key::{Key, KeyHasher},
    policy::{self, Basis},
    quota::Quota,
};

const MAGIC: &[u8; 8] = b"TQ-STATE";
const VERSION: u32 = 1;
const HEADER: usize = 8 + 4 + 8 + 16;
const DIGEST: usize = 16;

/// The bytes of a key with its bucket.
const ENTRY: usize = 16 + 8 + 2;

/// Writes the records, signed.
pub(crate) fn write(records: &Records, hasher: &KeyHasher, mut to: impl Write) -> Result<(), SnapshotError> {
    let keys: usize = records.policies.iter().map(|policy| policy.buckets.len()).sum();
    // Once, with room for all keys, so that it does not grow.
    let mut bytes = Vec::with_capacity(HEADER + DIGEST + (keys + 1_024) * ENTRY);
    bytes.extend_from_slice(MAGIC);
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend(0_u64.to_le_bytes());
    bytes.extend(hasher.checksum(MAGIC));
    bytes.put(records);
    let body = (bytes.len() - HEADER) as u64;
    bytes[12..20].copy_from_slice(&body.to_le_bytes());
    let digest = hasher.checksum(&bytes);
    bytes.extend(digest);
    to.write_all(&bytes)?;
    to.flush()?;
    Ok(())
}

/// Reads records that were signed under the secret. `max_keys` are those that the limiter may have.
pub(crate) fn read(hasher: &KeyHasher, max_keys: usize, from: impl Read) -> Result<Records, SnapshotError> {
    let most = max_keys.saturating_mul(16 * ENTRY).saturating_add(16 << 20);
    let mut bytes = Vec::new();
    // Grows with what is there, and not with what the file says of itself.
    from.take(u64::try_from(most).unwrap_or(u64::MAX)).read_to_end(&mut bytes)?;
    let too_large = bytes.len() >= most;
    let mut header = Reader(&bytes);
    let Some(magic) = header.array::<8>() else {
        return Err(if MAGIC.starts_with(&bytes) { SnapshotError::Truncated } else { SnapshotError::NotASnapshot });
    };
    if &magic != MAGIC {
        return Err(SnapshotError::NotASnapshot);
    }
    if let Some(version) = header.u32().filter(|version| *version != VERSION) {
        return Err(SnapshotError::OtherVersion(version));
    }
    let (Some(length), Some(secret)) = (header.u64(), header.array::<16>()) else {
        return Err(SnapshotError::Truncated);
    };
    if secret != hasher.checksum(MAGIC) {
        return Err(SnapshotError::OtherSecret);
    }
    if too_large {
        return Err(SnapshotError::TooLarge);
    }
    let expected = usize::try_from(length).ok().and_then(|length| length.checked_add(HEADER + DIGEST));
    match expected.map(|expected| bytes.len().cmp(&expected)) {
        None | Some(std::cmp::Ordering::Less) => return Err(SnapshotError::Truncated),
        Some(std::cmp::Ordering::Greater) => return Err(SnapshotError::Altered),
        Some(std::cmp::Ordering::Equal) => {}
    }
    let (content, digest) = bytes.split_at(bytes.len() - DIGEST);
    if hasher.checksum(content) != digest {
        return Err(SnapshotError::Altered);
    }
    let mut body = Reader(&content[HEADER..]);
    // Signed, so it is what was written.
    body.get().filter(|_| body.0.is_empty()).ok_or(SnapshotError::Altered)
}

/// Writes values at the end.
trait Put {
    fn put<T: Save>(&mut self, value: &T);
}

impl Put for Vec<u8> {
    fn put<T: Save>(&mut self, value: &T) {
        value.save(self);
    }
}

/// Reads values from the beginning.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (array, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*array)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn get<T: Save>(&mut self) -> Option<T> {
        T::load(self)
    }
}

/// A value of the format.
trait Save: Sized {
    /// The fewest bytes that it takes: so many are there for each that a list says it has.
    const LEAST: usize;

    fn save(&self, to: &mut Vec<u8>);

    fn load(from: &mut Reader<'_>) -> Option<Self>;
}

macro_rules! numbers {
    ($($number:ty)*) => {$(
        impl Save for $number {
            const LEAST: usize = size_of::<Self>();

            fn save(&self, to: &mut Vec<u8>) {
                to.extend(self.to_le_bytes());
            }

            fn load(from: &mut Reader<'_>) -> Option<Self> {
                from.array().map(Self::from_le_bytes)
            }
        }
    )*};
}

numbers!(u8 u16 u32 u64);

impl Save for bool {
    const LEAST: usize = 1;

    fn save(&self, to: &mut Vec<u8>) {
        to.put(&u8::from(*self));
    }

    fn load(from: &mut Reader<'_>) -> Option<Self> {
        match from.get::<u8>()? {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }
}

impl<A: Save, B: Save> Save for (A, B) {
    const LEAST: usize = A::LEAST + B::LEAST;

    fn save(&self, to: &mut Vec<u8>) {
        self.0.save(to);
        self.1.save(to);
    }

    fn load(from: &mut Reader<'_>) -> Option<Self> {
        Some((from.get()?, from.get()?))
    }
}

impl<T: Save> Save for Vec<T> {
    const LEAST: usize = 4;

    fn save(&self, to: &mut Vec<u8>) {
        to.put(&u32::try_from(self.len()).unwrap_or(u32::MAX));
        for value in self {
            value.save(to);
        }
    }

    fn load(from: &mut Reader<'_>) -> Option<Self> {
        let len = from.get::<u32>()? as usize;
        if from.0.len() / T::LEAST < len {
            return None;
        }
        (0..len).map(|_| from.get()).collect()
    }
}

impl<T: Save> Save for Option<T> {
    const LEAST: usize = 1;

    fn save(&self, to: &mut Vec<u8>) {
        to.put(&self.is_some());
        if let Some(value) = self {
            value.save(to);
        }
    }

    fn load(from: &mut Reader<'_>) -> Option<Self> {
        if from.get()? { from.get().map(Some) } else { Some(None) }
    }
}

impl Save for String {
    const LEAST: usize = 4;

    fn save(&self, to: &mut Vec<u8>) {
        to.put(&self.as_bytes().to_vec());
    }

    fn load(from: &mut Reader<'_>) -> Option<Self> {
        Self::from_utf8(from.get()?).ok().filter(|name| policy::is_name(name))
    }
}

impl Save for Timestamp {
    const LEAST: usize = 8;

    fn save(&self, to: &mut Vec<u8>) {
        to.put(&self.as_nanos());
    }

    fn load(from: &mut Reader<'_>) -> Option<Self> {
        from.u64().map(Self::from_nanos)
    }
}

impl Save for Nanos {
    const LEAST: usize = 8;

    fn save(&self, to: &mut Vec<u8>) {
        to.put(&self.get());
    }

    fn load(from: &mut Reader<'_>) -> Option<Self> {
        from.u64().map(Self::new)
    }
}

impl Save for Bucket {
    const LEAST: usize = 8;

    fn save(&self, to: &mut Vec<u8>) {
        to.put(&self.to_bits());
    }

    fn load(from: &mut Reader<'_>) -> Option<Self> {
        from.u64().map(Self::from_bits)
    }
}

impl Save for Key {
    const LEAST: usize = 16;

    fn save(&self, to: &mut Vec<u8>) {
        for word in self.to_words() {
            to.put(&word);
        }
    }

    fn load(from: &mut Reader<'_>) -> Option<Self> {
        let words: [u64; 2] = [from.get()?, from.get()?];
        (words[1] >> 48 == 0).then(|| Self::from_words(words))
    }
}

impl Save for Quota {
    const LEAST: usize = 24;

    fn save(&self, to: &mut Vec<u8>) {
        for word in self.to_words() {
            to.put(&word);
        }
    }

    fn load(from: &mut Reader<'_>) -> Option<Self> {
        Self::from_checked_words([from.get()?, from.get()?, from.get()?])
    }
}

impl Save for Basis {
    const LEAST: usize = 25;

    fn save(&self, to: &mut Vec<u8>) {
        to.put(&(self.quota, self.planned));
    }

    fn load(from: &mut Reader<'_>) -> Option<Self> {
        let (quota, planned) = from.get()?;
        Some(Self { quota, planned })
    }
}

impl Save for SavedBucket {
    const LEAST: usize = 10;

    fn save(&self, to: &mut Vec<u8>) {
        to.put(&(self.bucket, self.basis));
    }

    fn load(from: &mut Reader<'_>) -> Option<Self> {
        let (bucket, basis) = from.get()?;
        Some(Self { bucket, basis })
    }
}

impl Save for ResetMark {
    const LEAST: usize = 24;

    fn save(&self, to: &mut Vec<u8>) {
        to.put(&(self.bucket, (self.block, self.until)));
    }

    fn load(from: &mut Reader<'_>) -> Option<Self> {
        let (bucket, (block, until)) = from.get()?;
        Some(Self { bucket, block, until })
    }
}

impl Save for BanRecord {
    const LEAST: usize = Quota::LEAST;

    fn save(&self, to: &mut Vec<u8>) {
        to.put(&self.strikes_by);
        to.put(&self.blocks);
        to.put(&self.severity);
        to.put(&self.strikes);
    }

    fn load(from: &mut Reader<'_>) -> Option<Self> {
        Some(Self { strikes_by: from.get()?, blocks: from.get()?, severity: from.get()?, strikes: from.get()? })
    }
}

impl Save for PenaltyRecord {
    const LEAST: usize = 5;

    fn save(&self, to: &mut Vec<u8>) {
        to.put(&self.blocks);
        to.put(&self.bans);
    }

    fn load(from: &mut Reader<'_>) -> Option<Self> {
        Some(Self { blocks: from.get()?, bans: from.get()? })
    }
}

impl Save for PolicyRecord {
    const LEAST: usize = 4;

    fn save(&self, to: &mut Vec<u8>) {
        let Self { name, is_global, has_windows, slack, bases, buckets, overflow_len, overflow, .. } = self;
        to.put(name);
        to.put(&(*is_global, *has_windows));
        to.put(&self.window_end);
        to.put(slack);
        to.put(bases);
        to.put(buckets);
        to.put(overflow_len);
        to.put(overflow);
        to.put(&self.penalties);
        to.put(&self.pauses);
        to.put(&self.resets);
    }

    fn load(from: &mut Reader<'_>) -> Option<Self> {
        let name = from.get()?;
        let (is_global, has_windows) = from.get()?;
        Some(Self {
            name,
            is_global,
            has_windows,
            window_end: from.get()?,
            slack: from.get()?,
            bases: from.get()?,
            buckets: from.get()?,
            overflow_len: from.get()?,
            overflow: from.get()?,
            penalties: from.get()?,
            pauses: from.get()?,
            resets: from.get()?,
        })
    }
}

impl Save for Records {
    const LEAST: usize = 20;

    fn save(&self, to: &mut Vec<u8>) {
        to.put(&self.wall);
        to.put(&self.now);
        to.put(&self.policies);
    }

    fn load(from: &mut Reader<'_>) -> Option<Self> {
        Some(Self { wall: from.get()?, now: from.get()?, policies: from.get()? })
    }
}
