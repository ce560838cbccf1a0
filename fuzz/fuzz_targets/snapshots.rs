//! Snapshots: whatever is in a file, restoring it never panics and never forgives; what was altered
//! and not signed again is an error that changes nothing.
#![no_main]

use std::{hash::Hasher as _, time::Duration};

use libfuzzer_sys::{
    arbitrary::{self, Arbitrary},
    fuzz_target,
};
use siphasher::sip128::{Hasher128, SipHasher13, SipHasher24};
use tower_quota::{
    Limiter, Policy, Quota, Window,
    clock::ManualClock,
    limiter::{SnapshotError, Sweep},
    policy::Ban,
};

const SECRET: &[u8] = b"a secret of a fuzz target";
const NAMES: [&str; 4] = ["rate", "ban", "window", "all"];
/// The magic number, the version, the length, and the digest of the secret.
const HEADER: usize = 36;
const DIGEST: usize = 16;

#[derive(Arbitrary, Debug)]
struct Input {
    before: Vec<Step>,
    here: Vec<Step>,
    edits: Vec<(u16, u8)>,
    cut: Option<u16>,
    more: Vec<u8>,
    signed: bool,
}

#[derive(Arbitrary, Debug)]
enum Step {
    Acquire { policy: u8, key: u8, cells: u8 },
    AcquireAs { key: u8, rate: u16, cells: u8 },
    Charge { policy: u8, key: u8, cells: u16 },
    Block { key: u8, seconds: u16 },
    Pause { key: u8, seconds: u16 },
    Reset { policy: u8, key: u8 },
    Advance { seconds: u16 },
}

fn build(clock: &ManualClock) -> Limiter {
    let builder = Limiter::builder().clock(clock.clone()).sweep(Sweep::Manual).secret(SECRET).policies([
        Policy::by_key(Quota::per_minute(6).burst(9)).named("rate").max_keys(8),
        Policy::by_key(Quota::per_hour(5)).named("ban").ban(Ban::after(2, Duration::from_secs(60))),
        Policy::by_key(Window::fixed(20, Duration::from_secs(3_600))).named("window"),
        Policy::global(Quota::per_minute(30)).named("all"),
    ]);
    builder.build().unwrap()
}

fn run(limiter: &Limiter, clock: &ManualClock, steps: &[Step]) {
    let name = |policy: u8| NAMES[usize::from(policy) % NAMES.len()];
    for step in steps.iter().take(64) {
        match *step {
            Step::Acquire { policy, key, cells } => drop(limiter.acquire_n(name(policy), key % 16, cells.into())),
            Step::AcquireAs { key, rate, cells } => {
                let plan = Quota::per_hour(u32::from(rate) + 1);
                drop(limiter.acquire_as("rate", key % 16, plan, cells.into()));
            }
            Step::Charge { policy, key, cells } => drop(limiter.charge(name(policy), key % 16, cells.into())),
            Step::Block { key, seconds } => {
                limiter.block("ban", key % 16, Duration::from_secs(seconds.into())).unwrap();
            }
            Step::Pause { key, seconds } => {
                limiter.pause("ban", key % 16, Duration::from_secs(seconds.into())).unwrap();
            }
            Step::Reset { policy, key } => drop(limiter.reset(name(policy), key % 16)),
            Step::Advance { seconds } => clock.advance(Duration::from_secs(seconds.into())),
        }
    }
}

/// How long each key has to wait, and what it may use.
fn stands(limiter: &Limiter) -> Vec<(Duration, Option<Duration>)> {
    let of = |policy: &'static str| {
        (0_u8..16).map(move |key| {
            (limiter.peek(policy, key).unwrap().until_full(), limiter.blocked_for(policy, key).unwrap())
        })
    };
    NAMES.into_iter().flat_map(of).collect()
}

fn hasher() -> SipHasher13 {
    let hash = SipHasher24::new().hash(SECRET);
    let mut hasher = SipHasher13::new_with_keys(hash.h1, hash.h2);
    hasher.write(&[255]);
    hasher
}

fuzz_target!(|input: Input| {
    let clock = ManualClock::new();
    clock.set(Duration::from_secs(86_400 * 100));
    let saved = build(&clock);
    run(&saved, &clock, &input.before);
    let mut file = Vec::new();
    saved.snapshot(&mut file).unwrap();
    let original = file.clone();
    for (at, bits) in &input.edits {
        let at = usize::from(*at) % file.len();
        file[at] ^= bits;
    }
    if let Some(cut) = input.cut {
        file.truncate(usize::from(cut));
    }
    file.extend(&input.more);
    if input.signed && file.len() >= HEADER + DIGEST {
        file[..HEADER].copy_from_slice(&original[..HEADER]);
        let end = file.len() - DIGEST;
        file[12..20].copy_from_slice(&((end - HEADER) as u64).to_le_bytes());
        let mut hasher = hasher();
        hasher.write(&file[..end]);
        let digest = hasher.finish128().as_u128().to_le_bytes();
        file[end..].copy_from_slice(&digest);
    }
    let limiter = build(&clock);
    run(&limiter, &clock, &input.here);
    let before = stands(&limiter);
    match limiter.restore(&file[..]) {
        Err(SnapshotError::FromTheFuture(_)) | Ok(_) if input.signed => {}
        Ok(_) => assert_eq!(file, original),
        Err(_) => assert_eq!(stands(&limiter), before),
    }
    for (now, before) in stands(&limiter).into_iter().zip(before) {
        assert!(now.0 >= before.0 || before.1.is_some(), "{now:?} after {before:?}");
        assert!(now.1 >= before.1);
    }
});
