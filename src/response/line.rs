//! Contains the rendering of header values: text and numbers in one buffer.

use std::{iter, str};

use http::HeaderValue;

/// A field that is being written, into a buffer that is known to be large enough.
pub(super) struct Line<'a> {
    buffer: &'a mut [u8],
    length: usize,
}

impl Line<'_> {
    #[inline(always)]
    pub(super) fn put(&mut self, text: &str) {
        self.buffer[self.length..][..text.len()].copy_from_slice(text.as_bytes());
        self.length += text.len();
    }

    pub(super) fn number(&mut self, number: u64) {
        self.put(itoa::Buffer::new().format(number));
    }

    pub(super) fn separate(&mut self) {
        if self.length > 0 {
            self.put(", ");
        }
    }
}

/// Returns the field that `write` fills with at most `longest` bytes. `None` where it writes
/// nothing, because a field without an item is omitted.
#[inline(always)]
pub(super) fn field(longest: usize, write: impl FnOnce(&mut Line<'_>)) -> Option<HeaderValue> {
    let (mut short, mut long) = ([0; 192], Vec::new());
    let buffer = if longest <= short.len() {
        &mut short[..]
    } else {
        long.resize(longest, 0);
        &mut long[..]
    };
    let mut line = Line { buffer, length: 0 };
    write(&mut line);
    match &line.buffer[..line.length] {
        [] => None,
        text => HeaderValue::from_bytes(text).ok(),
    }
}

/// The names of the items of a field that [`field`] has written, with their quotes.
pub(super) fn names(field: &[u8]) -> impl Iterator<Item = &str> {
    let mut rest = str::from_utf8(field).unwrap_or_default();
    iter::from_fn(move || {
        rest = &rest[rest.find('"')?..];
        let mut escaped = false;
        let end = rest.char_indices().skip(1).find(|(_, c)| {
            let ends = *c == '"' && !escaped;
            escaped = *c == '\\' && !escaped;
            ends
        });
        let (name, after) = rest.split_at(end?.0 + 1);
        rest = after;
        Some(name)
    })
}

/// Renders a number, without an allocation below a hundred, as most waits are.
pub(super) fn number(number: u64) -> HeaderValue {
    const DIGITS: &str = "0001020304050607080910111213141516171819202122232425262728293031323334353637383940414243\
                          4445464748495051525354555657585960616263646566676869707172737475767778798081828384858687\
                          888990919293949596979899";
    match usize::try_from(number) {
        Ok(small @ 0..10) => HeaderValue::from_static(&DIGITS[2 * small + 1..2 * small + 2]),
        Ok(small @ 10..100) => HeaderValue::from_static(&DIGITS[2 * small..2 * small + 2]),
        // Digits are valid. Rejected: `From<u64>`, which allocates twice.
        _ => HeaderValue::from_bytes(itoa::Buffer::new().format(number).as_bytes()).unwrap_or_else(|_| number.into()),
    }
}
