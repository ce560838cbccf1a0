//! Contains [`PathPatterns`]: which paths of requests a policy applies to.
//!
//! This file must not know of policies, nor of routers.

use std::{error, fmt, sync::Arc};

/// A path, segment by segment. `*` stands for one segment, and `**` at the end for any number.
#[derive(Clone, Debug)]
struct PathPattern {
    segments: Vec<Segment>,
    /// Whether any further segments may follow.
    is_open: bool,
}

#[derive(Clone, Debug)]
enum Segment {
    Any,
    Text(String),
}

/// Several patterns, of which one has to match.
#[derive(Clone, Debug)]
pub(crate) struct PathPatterns(Arc<[PathPattern]>);

impl PathPatterns {
    pub(crate) fn parse<T: AsRef<str>>(patterns: impl IntoIterator<Item = T>) -> Result<Self, PathError> {
        let patterns = patterns.into_iter().map(|pattern| PathPattern::parse(pattern.as_ref()));
        Ok(Self(patterns.collect::<Result<_, _>>()?))
    }

    pub(crate) fn match_path(&self, path: &str) -> bool {
        self.0.iter().any(|pattern| pattern.matches(path))
    }
}

impl PathPattern {
    fn parse(pattern: &str) -> Result<Self, PathError> {
        let invalid = || PathError { pattern: pattern.to_owned() };
        let rest = pattern.strip_prefix('/').ok_or_else(invalid)?;
        let (rest, is_open) = match rest.strip_suffix("**") {
            Some("") => return Ok(Self { segments: Vec::new(), is_open: true }),
            Some(before) => (before.strip_suffix('/').ok_or_else(invalid)?, true),
            None => (rest, false),
        };
        let segment = |segment: &str| match segment {
            "*" => Ok(Segment::Any),
            text if text.contains(['*', '?', '#', '{', '}']) => Err(invalid()),
            text => Ok(Segment::Text(text.to_owned())),
        };
        let segments = rest.split('/').map(segment).collect::<Result<_, _>>()?;
        Ok(Self { segments, is_open })
    }

    fn matches(&self, path: &str) -> bool {
        // The target of `OPTIONS *` and of `CONNECT` is no path.
        let Some(path) = path.strip_prefix('/') else { return false };
        let mut parts = path.split('/');
        let begins = self.segments.iter().all(|segment| match (segment, parts.next()) {
            (Segment::Any, Some(part)) => !part.is_empty(),
            (Segment::Text(text), Some(part)) => text == part,
            (_, None) => false,
        });
        begins && (self.is_open || parts.next().is_none())
    }
}

/// A pattern of paths is invalid: it does not begin with `/`, or has a `*` that is not a whole
/// segment, or a `**` that is not the last one, or a query, or a brace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathError {
    pattern: String,
}

impl fmt::Display for PathError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:?} is not a pattern of paths: expected `/login`, `/users/*` for one segment, or `/api/**` for all below",
            self.pattern
        )
    }
}

impl error::Error for PathError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_matches_whole_segments() {
        for (pattern, matched, others) in [
            ("/login", &["/login"][..], &["/login/", "/logins", "/a/login", "/LOGIN", "/%6cogin", "/", "*", ""][..]),
            ("/users/*", &["/users/7", "/users/a.b"], &["/users", "/users/", "/users/7/", "/users/7/x", "/user/7"]),
            ("/users/*/posts", &["/users/7/posts"], &["/users//posts", "/users/7/8/posts"]),
            ("/api/**", &["/api", "/api/", "/api/a", "/api/a/b"], &["/apis", "/", "/v1/api/a"]),
            ("/*/x/**", &["/a/x", "/b/x/y/z"], &["/a", "/a/y", "//x"]),
            ("/**", &["/", "/a", "/a/b"], &["*", ""]),
            ("/", &["/"], &["/a", "//"]),
        ] {
            let patterns = PathPatterns::parse([pattern]).unwrap();
            assert!(matched.iter().all(|path| patterns.match_path(path)), "{pattern}");
            assert_eq!(others.iter().find(|path| patterns.match_path(path)), None, "{pattern}");
        }
        let either = PathPatterns::parse(["/a", "/b"]).unwrap();
        assert!(either.match_path("/a") && either.match_path("/b") && !either.match_path("/c"));
    }

    #[test]
    fn what_is_no_pattern_is_refused_with_the_reason() {
        for wrong in ["/users/{id}", "", "login", "*", "/a*", "/**/a", "/a**", "/a/b*c", "/a?b=c", "/a#b"] {
            let error = PathPatterns::parse([wrong]).unwrap_err();
            assert!(error.to_string().contains(&format!("{wrong:?}")), "{error}");
        }
    }
}
