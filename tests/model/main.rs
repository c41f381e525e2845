//! Random operations on SPDK's own blobstore, and on a model of it that knows what each cluster
//! holds, who owns it and who reads through whom.
//!
//! `PROPTEST_RNG_SEED` repeats a run, `PROPTEST_CASES` sets the number of sequences, and
//! `PROPTEST_VERBOSE=1` prints each step before it is played.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod game;
mod model;
mod ops;
#[path = "../store/mod.rs"]
mod store;

use std::hash::{BuildHasher, RandomState};

use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, RngSeed, TestRunner};

use game::{Failure, Tally, play, replay};
use ops::{Op, Pick, Step};

const SEQUENCES: u32 = 5000;
/// How many shorter sequences are tried when one has failed.
const MAX_SHRINKS: u32 = 1000;

#[test]
fn model() {
    let mut config = Config::default();
    if std::env::var_os("PROPTEST_CASES").is_none() {
        config.cases = SEQUENCES;
    }
    let seed = match config.rng_seed {
        RngSeed::Fixed(seed) => seed,
        RngSeed::Random => RandomState::new().hash_one(()),
    };
    config.rng_seed = RngSeed::Fixed(seed);
    println!("model: PROPTEST_RNG_SEED={seed} repeats this run");

    let sequences = config.cases;
    match store::run(play_all(config)) {
        Ok(Tally { operations, refused, detaches, refused_detaches }) => println!(
            "model: {operations} operations ({refused} refused) in {sequences} sequences, \
             {detaches} detaches ({refused_detaches} refused)"
        ),
        // Here, because a panic must not unwind through SPDK.
        Err(Failure { steps, what }) => {
            let steps: String = steps.iter().map(|step| format!("    {step:?}\n")).collect();
            panic!("the store isn't as the model says after these steps:\n{steps}{what}")
        }
    }
}

async fn play_all(config: Config) -> Result<Tally, Failure> {
    let verbose = config.verbose > 0;
    let cases = config.cases;
    let mut runner = TestRunner::new(config);
    let sequences = ops::sequences();
    let mut tally = Tally::default();
    for _ in 0..cases {
        let mut sequence = sequences.new_tree(&mut runner).expect("no sequence is rejected");
        tally += match play(&sequence.current(), verbose).await {
            Ok(tally) => tally,
            Err(failure) => return Err(shorten(shrink(&mut sequence, failure).await).await),
        };
    }
    Ok(tally)
}

// Stores that fail stay loaded to the end: what is wrong with them may keep them from unloading.

/// Looks for a simpler sequence that fails.
async fn shrink(
    sequence: &mut impl ValueTree<Value = Vec<Op<Pick>>>,
    mut failure: Failure,
) -> Failure {
    let mut left = MAX_SHRINKS;
    let mut other = sequence.simplify();
    while other && left > 0 {
        left -= 1;
        other = match play(&sequence.current(), false).await {
            Ok(_) => sequence.complicate(),
            Err(simpler) => {
                failure = simpler;
                sequence.simplify()
            }
        };
    }
    failure
}

/// Leaves out every step that the failure can do without. That can't be done to the sequence:
/// without one of its operations, those that follow may pick other blobs.
async fn shorten(mut failure: Failure) -> Failure {
    let mut at = failure.steps.len();
    while at > 0 {
        at -= 1;
        for simpler in simpler(&failure.steps[at]) {
            let mut steps = failure.steps.clone();
            steps.splice(at..=at, simpler);
            if let Err(shorter) = replay(&steps).await {
                failure = shorter;
                at = failure.steps.len();
                break;
            }
        }
    }
    failure
}

/// No step, or part of one.
fn simpler(step: &Step) -> Vec<Option<Step>> {
    match &step.op {
        Op::DetachDuring { blob, other, .. } => vec![
            None,
            Some(Step { op: Op::Detach(*blob), creates: None }),
            Some(Step { op: (**other).clone(), creates: step.creates }),
        ],
        _ => vec![None],
    }
}
