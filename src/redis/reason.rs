//! Contains the texts that say why a server does not serve, and what to do about it.
//!
//! This file must not know of connections.

/// The server has keys of another node's.
pub(super) const CLUSTER_MODE: &str = "the server is in cluster mode: call `cluster` on the builder";
pub(super) const LOGIN: &str = "the server does not accept the user and the password: check both";

/// Errors that calls for all keys have. Before Redis 7 they are in the text of another error when a
/// script has them.
const OF_SERVER: [(&str, &str); 12] = [
    ("READONLY", "the server is a replica, which cannot be written to: give the address of the primary"),
    ("LOADING", "the server is still loading its data: wait, or look at its log"),
    ("MASTERDOWN", "the server is a replica that has lost its primary: give the address of the primary"),
    ("OOM", "the server is out of memory and rejects writes: raise `maxmemory`, or set a `maxmemory-policy`"),
    ("NOREPLICAS", "the server rejects writes because it has too few replicas: see `min-replicas-to-write`"),
    ("MISCONF", "the server rejects writes because it cannot save its data: look at its log"),
    ("BUSY", "the server is busy with a script of somebody's: `SCRIPT KILL` ends it"),
    ("NOPERM", "the user lacks a right: see the rights in docs/redis.md"),
    ("CLUSTERDOWN", "the cluster does not serve this slot: look at `CLUSTER INFO`"),
    // Texts of servers, in place of a code.
    (
        "user executing the script can't run",
        "the user has no right to `time`, `get` or `set`, which the script runs: see docs/redis.md",
    ),
    ("user executing the script can't access", "the user has no right to the keys of the prefix: see docs/redis.md"),
    ("no permissions", "the user lacks a right: see the rights in docs/redis.md"),
];

/// What an error that begins with ERR means when all keys have it.
const BY_TEXT: [(&str, &str); 7] = [
    ("DB index is out of range", "the server has no database of this number: use another, or raise `databases` there"),
    ("SELECT is not allowed in cluster mode", "a cluster has no databases: leave the number out, and call `cluster`"),
    ("cluster support disabled", "the server is not in cluster mode: build the limiter without `cluster`"),
    ("unknown command 'SENTINEL'", "the server is no sentinel: check the host and the port (26379 is usual)"),
    ("unknown command 'CLUSTER'", "the server knows no clusters: build the limiter without `cluster`"),
    ("unknown command 'EVAL", "the server runs no scripts: it may be a sentinel, or a proxy that forbids EVAL"),
    ("unknown command 'HELLO'", "the server does not know the third version of the protocol: use resp2"),
];

/// Whether an error in this text is one that calls for all keys have.
pub(super) fn is_of_server(text: &str) -> bool {
    OF_SERVER.iter().chain(&BY_TEXT).any(|(words, _)| contains(text, words))
}

/// What an error reply means, and what to do.
pub(super) fn of_reply(code: &str, text: &str) -> String {
    match code {
        "WRONGPASS" => return LOGIN.to_owned(),
        "NOAUTH" => return "the server wants a password: write it into the address, or give `credentials`".to_owned(),
        "CROSSSLOT" | "MOVED" | "ASK" => return CLUSTER_MODE.to_owned(),
        _ => {}
    }
    if code == "NOPERM" || contains(text, "no permissions") {
        return match quoted(text) {
            Some(command) => format!("the user has no right to run `{command}`: see the rights in docs/redis.md"),
            None => format!("the user lacks a right ({}): see the rights in docs/redis.md", printable(text)),
        };
    }
    let known = |known: &[(&str, &'static str)]| {
        known.iter().find(|(words, _)| *words == code || contains(text, words)).map(|(_, reason)| *reason)
    };
    match known(&BY_TEXT).or_else(|| known(&OF_SERVER)) {
        Some(reason) => reason.to_owned(),
        None => format!("the server answers {} {}", printable(code), printable(text)).trim_end().to_owned(),
    }
}

/// A code is a word of its own. Servers differ in how they write the name of an unknown command.
fn contains(text: &str, words: &str) -> bool {
    if words.bytes().all(|byte| byte.is_ascii_uppercase()) {
        return text.split(|character: char| !character.is_ascii_alphanumeric()).any(|word| word == words);
    }
    text.replace('`', "'").to_lowercase().contains(&words.to_lowercase())
}

/// What stands in quotes: the command that a user may not run.
fn quoted(text: &str) -> Option<String> {
    let command = text.split('\'').nth(1)?;
    (!command.is_empty()).then(|| printable(command))
}

/// A text of the server's, short and in one line.
fn printable(text: &str) -> String {
    text.chars().filter(|character| !character.is_control()).take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_error_says_what_to_do() {
        for (code, text, expected) in [
            ("READONLY", "You can't write against a read only replica.", "give the address of the primary"),
            ("ERR", "Error running script: -READONLY You can't write", "give the address of the primary"),
            ("ERR", "DB index is out of range", "no database of this number"),
            ("ERR", "unknown command 'SENTINEL', with args beginning with:", "no sentinel"),
            ("ERR", "unknown command `evalsha`, with args beginning with:", "runs no scripts"),
            ("ERR", "This instance has cluster support disabled", "without `cluster`"),
            ("NOPERM", "User limiter has no permissions to run the 'time' command", "`time`"),
            ("ERR", "ACL failure in script: User x has no permissions to run the 'get' command", "`get`"),
            ("ERR", "The user executing the script can't run this command or subcommand", "`time`, `get` or `set`"),
            ("NOPERM", "No permissions to access a key", "lacks a right (No permissions to access a key)"),
            ("NOAUTH", "Authentication required.", "wants a password"),
            ("WRONGPASS", "invalid username-password pair", "does not accept the user and the password"),
            ("CROSSSLOT", "Keys in request don't hash to the same slot", "call `cluster`"),
            ("ODD", "with\r\nlines", "the server answers ODD withlines"),
        ] {
            let reason = of_reply(code, text);
            assert!(reason.contains(expected), "{code} {text}: {reason}");
        }
    }

    #[test]
    fn an_error_of_a_value_is_of_its_key() {
        assert!(!is_of_server("a script of BUSYBOX, with room for zoom"));
        assert!(!is_of_server("Operation against the wrong kind of value"));
        assert!(is_of_server("ACL failure in script: User x has no permissions to run the 'get' command"));
        assert!(is_of_server("DB index is out of range"));
    }
}
