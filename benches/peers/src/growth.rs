//! P7: the slowest decision while the map grows to four million keys, and while they are swept; with a plot.

use std::{
    env,
    net::{IpAddr, SocketAddr},
    num::NonZeroU32,
    path::Path,
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use governor::RateLimiter;
use http::Request;
use plotters::prelude::*;
use tower_quota::{
    Limiter, Policy, Quota,
    key::{PeerAddr, PeerIp},
    limiter::Sweep,
};

use crate::{
    decisions::address,
    rounds::{Random, median},
    table::{Bound, Row},
};

const KEYS: u64 = 4_000_000;
/// Each in a process of its own: an allocator that has been through a flood behaves otherwise in the next one.
const ROUNDS: usize = 7;
/// Of the decisions that end in it, the slowest is a point of the plot.
const SLOT: Duration = Duration::from_millis(5);
/// So short that all keys may be swept by the time they are there.
const CELL: Duration = Duration::from_nanos(100);

/// Milliseconds since the start of a phase, and the slowest decision since the point before, in microseconds.
type Points = Vec<(f64, f64)>;

struct Round {
    growth: Points,
    sweep: Points,
}

/// The one with the median of the slowest decisions beside the sweep.
fn typical(rounds: &mut [Round]) -> &Round {
    rounds.sort_by(|a, b| slowest(&a.sweep).total_cmp(&slowest(&b.sweep)));
    &rounds[ROUNDS / 2]
}

/// Runs [`round_of`] in a process of its own.
fn in_a_process(which: &str) -> Round {
    let output = Command::new(env::current_exe().unwrap()).args(["round", which]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let (mut growth, mut sweep) = (Points::new(), Points::new());
    for line in String::from_utf8(output.stdout).unwrap().lines() {
        let mut words = line.split_whitespace();
        let points = if words.next() == Some("growth") { &mut growth } else { &mut sweep };
        let mut number = || words.next().unwrap().parse().unwrap();
        points.push((number(), number()));
    }
    Round { growth, sweep }
}

/// Prints the points of one round.
pub fn round_of(which: &str) {
    let Round { growth, sweep } = if which == "governor" { of_governor() } else { of_ours() };
    for (phase, points) in [("growth", growth), ("sweep", sweep)] {
        points.iter().for_each(|(at, slowest)| println!("{phase} {at} {slowest}"));
    }
}

fn slowest(points: &Points) -> f64 {
    points.iter().map(|(_, slowest)| *slowest).fold(0.0, f64::max)
}

pub fn measure(plot: Option<&Path>) -> Vec<Row> {
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        ours.push(in_a_process("tower-quota"));
        theirs.push(in_a_process("governor"));
    }
    let stops: Vec<_> = (0..ROUNDS).map(|_| format!("{:.0}", stops())).collect();
    println!("{:<14}{:<10} slowest µs: {}", "this machine", "idle", stops.join(" "));
    for (name, rounds) in [("tower-quota", &ours), ("governor", &theirs)] {
        for (phase, of) in
            [("growing", (|round| &round.growth) as fn(&Round) -> &Points), ("sweeping", |round| &round.sweep)]
        {
            let slowest: Vec<_> = rounds.iter().map(|round| format!("{:.0}", slowest(of(round)))).collect();
            let took = rounds.iter().map(|round| of(round).last().unwrap().0).fold(0.0, f64::max);
            println!("{name:<14}{phase:<10} slowest µs: {:<40} at most {took:.0} ms in all", slowest.join(" "));
        }
    }
    if let Some(file) = plot {
        draw(file, typical(&mut ours), typical(&mut theirs)).expect("the plot is written");
        println!("the plot is in {}", file.display());
    }
    let median_of = |rounds: &[Round], of: fn(&Round) -> &Points| {
        median(&mut rounds.iter().map(|round| slowest(of(round))).collect::<Vec<_>>())
    };
    let row = |what, of: fn(&Round) -> &Points, most| {
        Row::single("P7", what, "governor keyed", Bound::AtMost(most), median_of(&ours, of), median_of(&theirs, of))
    };
    vec![
        row("slowest decision, growing to 4,000,000 keys, µs", |round| &round.growth, 0.03),
        row("slowest decision beside their sweep, µs", |round| &round.sweep, 0.05),
    ]
}

/// The longest that one of two threads which only read the clock is stopped in 100 ms, in microseconds.
fn stops() -> f64 {
    let longest = || {
        let start = Instant::now();
        let (mut last, mut longest) = (start, Duration::ZERO);
        while last - start < Duration::from_millis(100) {
            let now = Instant::now();
            longest = longest.max(now - last);
            last = now;
        }
        longest.as_secs_f64() * 1e6
    };
    thread::scope(|scope| {
        let other = scope.spawn(longest);
        longest().max(other.join().unwrap())
    })
}

fn of_ours() -> Round {
    let quota = Quota::every(CELL).burst(10_000_000);
    let policy = Policy::per(PeerIp, quota).max_keys(KEYS as usize + 100_000);
    let limiter = Limiter::builder().policy(policy).sweep(Sweep::Manual).build().unwrap();
    let mut request = Request::new(());
    request.extensions_mut().insert(PeerAddr(SocketAddr::from(([0, 0, 0, 0], 4_711))));
    let decide = move |limiter: &Limiter, key| {
        request.extensions_mut().get_mut::<PeerAddr>().unwrap().0.set_ip(key);
        let start = Instant::now();
        assert!(limiter.decide(&request).is_allowed());
        start.elapsed()
    };
    round(&limiter, decide, |limiter| assert!(limiter.sweep() > KEYS as usize / 2))
}

fn of_governor() -> Round {
    type Keyed = governor::DefaultKeyedRateLimiter<IpAddr>;
    let quota = governor::Quota::with_period(CELL).unwrap().allow_burst(NonZeroU32::new(10_000_000).unwrap());
    let decide = |limiter: &Keyed, key: IpAddr| {
        let start = Instant::now();
        assert!(limiter.check_key(&key).is_ok());
        start.elapsed()
    };
    round(&RateLimiter::dashmap(quota), decide, |limiter| {
        limiter.retain_recent();
        assert!(limiter.len() < KEYS as usize / 2);
        limiter.shrink_to_fit();
    })
}

fn round<L: Sync>(limiter: &L, mut decide: impl FnMut(&L, IpAddr) -> Duration, sweep: impl Fn(&L) + Sync) -> Round {
    let mut keys = 0..KEYS;
    let growth = points(|| keys.next().map(|n| decide(limiter, IpAddr::V4(address(n)))));
    // Long enough for a bucket to be empty again.
    thread::sleep(Duration::from_millis(10));
    let done = AtomicBool::new(false);
    let sweep = thread::scope(|scope| {
        scope.spawn(|| {
            sweep(limiter);
            done.store(true, Ordering::Release);
        });
        let mut random = Random::new();
        // A few old clients go on.
        points(|| {
            let goes_on = !done.load(Ordering::Acquire);
            goes_on.then(|| decide(limiter, IpAddr::V4(address(random.below(KEYS)))))
        })
    });
    Round { growth, sweep }
}

fn points(mut decisions: impl FnMut() -> Option<Duration>) -> Points {
    let start = Instant::now();
    let (mut points, mut slowest, mut slot) = (Points::new(), Duration::ZERO, SLOT);
    let mut point =
        |at: Duration, slowest: Duration| points.push((at.as_secs_f64() * 1e3, slowest.as_secs_f64() * 1e6));
    while let Some(took) = decisions() {
        slowest = slowest.max(took);
        let now = start.elapsed();
        if now >= slot {
            point(now, slowest);
            slowest = Duration::ZERO;
            slot = now + SLOT;
        }
    }
    if !slowest.is_zero() {
        point(start.elapsed(), slowest);
    }
    points
}

fn draw(file: &Path, ours: &Round, theirs: &Round) -> Result<(), Box<dyn std::error::Error>> {
    let root = SVGBackend::new(file, (960, 400)).into_drawing_area();
    root.fill(&WHITE)?;
    let phases = [
        ("Growing to 4,000,000 keys", &ours.growth, &theirs.growth),
        ("Decisions beside the sweep of 4,000,000 keys", &ours.sweep, &theirs.sweep),
    ];
    for (area, (title, ours, theirs)) in root.split_evenly((1, 2)).iter().zip(phases) {
        let end = ours.iter().chain(theirs).map(|(at, _)| *at).fold(0.0, f64::max);
        let mut chart = ChartBuilder::on(area)
            .caption(title, ("sans-serif", 16))
            .margin(10)
            .x_label_area_size(36)
            .y_label_area_size(64)
            .build_cartesian_2d(0.0..end, (0.1..100_000.0).log_scale())?;
        chart
            .configure_mesh()
            .x_desc("milliseconds")
            .y_desc("slowest decision of 5 ms (µs)")
            .y_label_formatter(&|value| format!("{value}"))
            .light_line_style(WHITE)
            .draw()?;
        for (name, points, color) in
            [("governor", theirs, RGBColor(0xd5, 0x5e, 0x00)), ("tower-quota", ours, RGBColor(0x00, 0x72, 0xb2))]
        {
            chart
                .draw_series(LineSeries::new(points.iter().copied(), color.stroke_width(2)))?
                .label(name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], color.stroke_width(2)));
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperLeft)
            .background_style(WHITE)
            .border_style(BLACK)
            .draw()?;
    }
    root.present()?;
    Ok(())
}
