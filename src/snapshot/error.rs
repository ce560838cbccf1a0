//! Contains [`SnapshotError`], why a snapshot was not written, or not restored.

use std::{error, fmt, io, time::Duration};

/// Why a snapshot was not written, or not restored. Where restoring fails, nothing has changed.
#[derive(Debug)]
#[non_exhaustive]
pub enum SnapshotError {
    /// The content is not what was written: bits have changed, or somebody has changed them.
    Altered,
    /// The snapshot is from the future: its wall clock is so far ahead of this one.
    FromTheFuture(Duration),
    /// Reading or writing failed.
    Io(io::Error),
    /// The limiter has no [`secret`](crate::limiter::Builder::secret), so its keys mean nothing
    /// elsewhere.
    NoSecret,
    /// It is no snapshot.
    NotASnapshot,
    /// It was written under another secret.
    OtherSecret,
    /// It is of another version of the format, by a newer version of this crate for instance.
    OtherVersion(u32),
    /// It is larger than any snapshot with sixteen times the keys that this limiter may have.
    TooLarge,
    /// The end is missing.
    Truncated,
}

impl fmt::Display for SnapshotError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Altered => f.write_str("the snapshot is not as it was written: use an older one"),
            Self::FromTheFuture(by) => write!(
                f,
                "the snapshot was written {by:?} later than it is by this machine's clock: set the clock, or start without it"
            ),
            Self::Io(error) => write!(f, "the snapshot cannot be read or written: {error}"),
            Self::NoSecret => f.write_str(
                "the limiter has no secret, so its keys mean nothing to another process: call `Builder::secret`",
            ),
            Self::NotASnapshot => f.write_str("this is no snapshot of a limiter"),
            Self::OtherSecret => {
                f.write_str("the snapshot was written under another secret, which names keys differently")
            }
            Self::OtherVersion(version) => {
                write!(f, "the snapshot has version {version} of the format, and this crate reads version 1")
            }
            Self::TooLarge => f.write_str(
                "the snapshot has over sixteen times the keys that the limiter may have: raise `Policy::max_keys`",
            ),
            Self::Truncated => f.write_str("the end of the snapshot is missing: use an older one"),
        }
    }
}

impl error::Error for SnapshotError {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        if let Self::Io(error) = self { Some(error) } else { None }
    }
}

impl From<io::Error> for SnapshotError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}
