//! Decisions over several policies, with calls by key, refunds, charges, plans and sweeps: as the exact model decides, to the nanosecond.
#![no_main]

#[path = "../../tests/support/exact.rs"]
mod exact;

use exact::{Asked, Step, agree, agree_on_one};
use libfuzzer_sys::{
    arbitrary::{self, Arbitrary},
    fuzz_target,
};

/// A [`Step`], of bytes. Few keys, so that they meet, and costs around the bursts.
#[derive(Arbitrary, Debug)]
enum Op {
    Advance(u32),
    AdvanceFar(u32),
    Ask { user: Option<u8>, team: bool, cost: u8, plan: u8, write: bool },
    Acquire([Option<(u8, u8)>; 5]),
    AcquireAs { policy: u8, key: u8, cells: u8, plan: u8 },
    Refund,
    Charge { user: u8, cells: u8 },
    SetQuotas(bool),
    Sweep,
}

impl From<Op> for Step {
    fn from(op: Op) -> Self {
        match op {
            Op::Advance(nanos) => Self::Advance(u64::from(nanos) % 400_000_000),
            Op::AdvanceFar(nanos) => Self::Advance(u64::from(nanos) * 5),
            Op::Ask { user, team, cost, plan, write } => {
                let user = user.map(|user| user % 3);
                Self::Ask(Asked { user, team: team.into(), cost: u32::from(cost) % 17, plan: plan % 4, write })
            }
            Op::Acquire(wanted) => {
                Self::Acquire(wanted.map(|wanted| wanted.map(|(key, cells)| (key % 3, u32::from(cells) % 17))))
            }
            Op::AcquireAs { policy, key, cells, plan } => {
                let cells = u32::from(cells) % 17;
                Self::AcquireAs { policy: policy % 5, key: key % 3, cells, plan: plan % 3 }
            }
            Op::Refund => Self::Refund,
            Op::Charge { user, cells } => Self::Charge { user: user % 3, cells: u32::from(cells) % 17 },
            Op::SetQuotas(second) => Self::SetQuotas(second),
            Op::Sweep => Self::Sweep,
        }
    }
}

fuzz_target!(|input: (Vec<Op>, bool, bool, Vec<(u32, u8, u8)>)| {
    let (steps, second, sweeping, one) = input;
    let steps: Vec<Step> = steps.into_iter().take(256).map(Step::from).collect();
    agree(&steps, second, sweeping);
    let one = one.into_iter().take(256).map(|(by, cost, quota)| (by.into(), u32::from(cost) % 25, quota % 8));
    agree_on_one(&one.collect::<Vec<_>>());
});
