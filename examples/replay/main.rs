//! What would these limits have denied? Reads an access log, and decides on its own clock.
//!
//! ```sh
//! cargo run --release --example replay -- generate 200000 > /tmp/access.log
//! cargo run --release --example replay -- examples/replay/limits.toml /tmp/access.log --plot /tmp/replay.svg
//! ls -rv access.log.*.gz | xargs zcat | cargo run --release --example replay -- limits.toml -
//! ```
//!
//! Logs in the common or combined format (Apache, nginx), or a JSON object in each line with `time`, `remote_addr`, `method`,
//! `path` and, if there are any, `headers`. An invalid line is counted and skipped. Lines are in the order in which
//! requests ended: one that is a little early is decided at the time of the line before. The report counts lines that are over a
//! minute early: then the files are not in the order of their times, and the result is meaningless.
//!
//! Files may have any size. Memory use does not grow with the log: a limiter stores at most `max-keys` for each policy (a
//! million unless set), some 50 bytes each, and in practice those of the last minutes.

mod line;
mod plot;
mod report;

use std::{
    env,
    error::Error,
    fs::{self, File},
    io::{self, BufRead, BufReader, BufWriter, IsTerminal as _, Read, Write},
    process::ExitCode,
    time::{Duration, Instant},
};

use serde::Deserialize;
use tower_quota::{Decision, Limiter, Policy, clock::ManualClock, config::PolicyConfig, limiter::Sweep};

use crate::{line::Entry, plot::Plot, report::Report};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Limits {
    policies: Vec<PolicyConfig>,
}

const USAGE: &str = "replay LIMITS.toml LOG|- [--plot FILE.svg]
replay generate LINES";

const MINUTE: i64 = 60_000_000_000;

/// What is longer is no line of an access log.
const LONGEST_LINE: usize = 64 * 1024;

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match arguments[..] {
        ["generate", lines] => generate(lines),
        [limits, log] => replay(limits, log, None),
        [limits, log, "--plot", plot] => replay(limits, log, Some(plot)),
        _ => Err(USAGE.into()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn replay(limits: &str, log: &str, plot: Option<&str>) -> Result<(), Box<dyn Error>> {
    let text = fs::read_to_string(limits).map_err(|error| format!("{limits}: {error}"))?;
    let read: Limits = toml::from_str(&text).map_err(|error| format!("{limits}: {error}"))?;
    let policies: Vec<Policy> = read.policies.into_iter().map(Policy::try_from).collect::<Result<_, _>>()?;
    let clock = ManualClock::new();
    let limiter = Limiter::builder().policies(policies).clock(clock.clone()).sweep(Sweep::Manual).build()?;
    let (mut input, size): (Box<dyn BufRead>, _) = if log == "-" {
        (Box::new(io::stdin().lock()), None)
    } else {
        let file = File::open(log).map_err(|error| format!("{log}: {error}"))?;
        let size = file.metadata()?.len();
        (Box::new(BufReader::with_capacity(1 << 20, file)), Some(size))
    };
    let mut report = Report::new(&limiter);
    let mut drawing = Plot::default();
    let mut progress = Progress::new(size);
    // Nanoseconds since 1970, of the line before.
    let (mut first, mut now, mut swept) = (None, 0, 0);
    let mut bytes = Vec::new();
    while read_line(&mut input, &mut bytes)? {
        progress.passed(bytes.len());
        if bytes.len() > LONGEST_LINE {
            report.unreadable(progress.lines, "longer than 64 KiB");
            continue;
        }
        let entry = match Entry::read(&bytes) {
            Ok(Some(entry)) => entry,
            Ok(None) => continue,
            Err(why) => {
                report.unreadable(progress.lines, why);
                continue;
            }
        };
        let first = *first.get_or_insert_with(|| {
            now = entry.at;
            swept = entry.at;
            // Windows start by the calendar of the log.
            clock.set(Duration::from_nanos(u64::try_from(entry.at).unwrap_or(0)));
            entry.at
        });
        if let Ok(step) = u64::try_from(entry.at - now) {
            clock.advance(Duration::from_nanos(step));
            now = entry.at;
        }
        if now - entry.at > MINUTE {
            report.early(progress.lines);
        }
        if now - swept > MINUTE {
            limiter.sweep();
            swept = now;
        }
        let decision = limiter.decide(&entry.request);
        drawing.add(now - first, matches!(decision, Decision::Allow(_)));
        report.decided(entry.client, &decision);
    }
    progress.end();
    if let Some(file) = plot {
        fs::write(file, drawing.svg()).map_err(|error| format!("{file}: {error}"))?;
    }
    report.print(&mut io::stdout().lock(), now - first.unwrap_or(now))?;
    Ok(())
}

/// The next line without its end; false after the last. Of one that is too long the rest is skipped.
fn read_line(input: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<bool> {
    line.clear();
    let most = LONGEST_LINE as u64 + 1;
    if input.by_ref().take(most).read_until(b'\n', line)? == 0 {
        return Ok(false);
    }
    if line.last() == Some(&b'\n') {
        line.pop();
    } else if line.len() > LONGEST_LINE {
        input.skip_until(b'\n')?;
    }
    Ok(true)
}

/// How far it is, where somebody looks.
struct Progress {
    lines: u64,
    bytes: u64,
    size: Option<u64>,
    start: Instant,
    looked_at: bool,
}

impl Progress {
    #[expect(clippy::disallowed_methods, reason = "for the one who waits, and not for the limits")]
    fn new(size: Option<u64>) -> Self {
        Self { lines: 0, bytes: 0, size, start: Instant::now(), looked_at: io::stderr().is_terminal() }
    }

    fn passed(&mut self, bytes: usize) {
        self.lines += 1;
        self.bytes += bytes as u64 + 1;
        if self.looked_at && self.lines % 250_000 == 0 {
            let share = self.size.map(|size| format!("{:3} %, ", self.bytes * 100 / size.max(1))).unwrap_or_default();
            eprint!("\r{share}{} lines", report::grouped(self.lines));
        }
    }

    #[expect(clippy::disallowed_methods, reason = "for the one who waits, and not for the limits")]
    fn end(&self) {
        if self.looked_at {
            eprint!("\r");
        }
        eprintln!("{} lines in {:.1} s", report::grouped(self.lines), self.start.elapsed().as_secs_f64());
    }
}

/// A log to try it on: a thousand ordinary clients, and one that wants everything at once.
fn generate(lines: &str) -> Result<(), Box<dyn Error>> {
    let lines: u64 = lines.parse().map_err(|error| format!("{lines:?} lines: {error}"))?;
    let mut out = BufWriter::new(io::stdout().lock());
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut millis = 1_790_000_000_000;
    for _ in 0..lines {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        millis += i64::try_from(random % 3)?;
        let client = if random % 20 == 0 {
            "203.0.113.66".to_owned()
        } else {
            format!("10.0.{}.{}", random % 4, random >> 8 & 255)
        };
        let time = jiff::Timestamp::from_millisecond(millis)?.strftime("%d/%b/%Y:%H:%M:%S %z");
        let page = random >> 16 & 63;
        let written = writeln!(out, r#"{client} - - [{time}] "GET /page/{page} HTTP/1.1" 200 512 "-" "made up""#);
        match written {
            // Whoever reads has seen enough.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            written => written?,
        }
    }
    Ok(out.flush()?)
}
