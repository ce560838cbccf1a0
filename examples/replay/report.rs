//! The report at the end.

use std::{
    collections::HashMap,
    io::{self, Write},
    net::IpAddr,
};

use tower_quota::{Decision, Limiter, Policy, decision::Standing};

/// Counted for each policy at the same time. A client with less than a 1,024th of all denials may be missing, and the counts
/// of others are too low by as much at most (Misra and Gries, 1982).
const COUNTED: usize = 1_024;

pub(crate) struct Report {
    policies: Vec<Counted>,
    requests: u64,
    denied: u64,
    unreadable: u64,
    /// The first of them: number and reason.
    first: Option<(u64, &'static str)>,
    /// Lines that are much earlier than one before, and the first of them.
    early: u64,
    first_early: Option<u64>,
}

struct Counted {
    name: String,
    denied: u64,
    clients: HashMap<IpAddr, u64>,
    /// By how much counts may be too low.
    forgotten: u64,
}

impl Report {
    pub(crate) fn new(limiter: &Limiter) -> Self {
        let counted = |policy: &Policy| Counted {
            name: policy.name().to_owned(),
            denied: 0,
            clients: HashMap::new(),
            forgotten: 0,
        };
        let policies = limiter.policies().iter().map(counted).collect();
        Self { policies, requests: 0, denied: 0, unreadable: 0, first: None, early: 0, first_early: None }
    }

    pub(crate) fn unreadable(&mut self, line: u64, why: &'static str) {
        self.unreadable += 1;
        self.first.get_or_insert((line, why));
    }

    pub(crate) fn early(&mut self, line: u64) {
        self.early += 1;
        self.first_early.get_or_insert(line);
    }

    pub(crate) fn decided(&mut self, client: IpAddr, decision: &Decision<'_>) {
        self.requests += 1;
        match decision {
            Decision::Allow(allowed) => {
                // In shadow mode a policy denies nothing, and it is asked what it would have.
                let violated = allowed.standings().filter(Standing::is_violated);
                violated.for_each(|standing| count(&mut self.policies, standing.policy(), client));
            }
            Decision::Deny(denied) => {
                self.denied += 1;
                let mut any = false;
                // In shadow mode as well.
                for standing in denied.standings().filter(Standing::is_violated) {
                    count(&mut self.policies, standing.policy(), client);
                    any = true;
                }
                if !any {
                    // For want of a key.
                    count(&mut self.policies, denied.policy(), client);
                }
            }
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "shares, to be read")]
    pub(crate) fn print(&self, out: &mut impl Write, nanos: i64) -> io::Result<()> {
        let share = |part: u64| part as f64 * 100.0 / self.requests.max(1) as f64;
        let (requests, denied) = (grouped(self.requests), grouped(self.denied));
        writeln!(out, "{requests} requests in {}", span(nanos))?;
        if let Some((line, why)) = self.first {
            writeln!(out, "{} lines were not read, the first in line {line}: {why}", grouped(self.unreadable))?;
        }
        if let Some(line) = self.first_early {
            let early = grouped(self.early);
            writeln!(
                out,
                "{early} lines are over a minute earlier than one before, the first is line {line}: not in order?"
            )?;
        }
        writeln!(out, "{denied} would be denied ({:.2} %)", share(self.denied))?;
        for Counted { name, denied, clients, forgotten } in &self.policies {
            writeln!(out, "\n{name}: {} ({:.2} %)", grouped(*denied), share(*denied))?;
            let mut clients: Vec<_> = clients.iter().collect();
            clients.sort_by_key(|(client, count)| (u64::MAX - **count, **client));
            for (client, count) in clients.into_iter().take(10) {
                let least = if *forgotten > 0 { "at least " } else { "" };
                writeln!(out, "  {client:<39} {least}{}", grouped(*count))?;
            }
        }
        Ok(())
    }
}

fn count(policies: &mut [Counted], policy: &str, client: IpAddr) {
    let Some(counted) = policies.iter_mut().find(|counted| counted.name == policy) else { return };
    counted.denied += 1;
    if let Some(count) = counted.clients.get_mut(&client) {
        *count += 1;
    } else if counted.clients.len() < COUNTED {
        counted.clients.insert(client, 1);
    } else {
        counted.forgotten += 1;
        counted.clients.retain(|_, count| {
            *count -= 1;
            *count > 0
        });
    }
}

/// With commas, for reading.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn span(nanos: i64) -> String {
    let seconds = nanos / 1_000_000_000;
    match (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60, seconds % 60) {
        (0, 0, 0, seconds) => format!("{seconds} s"),
        (0, 0, minutes, seconds) => format!("{minutes} min {seconds} s"),
        (0, hours, minutes, _) => format!("{hours} h {minutes} min"),
        (days, hours, ..) => format!("{days} d {hours} h"),
    }
}
