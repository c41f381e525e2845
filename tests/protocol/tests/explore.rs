//! Explores the protocol in every interleaving; and shows that each part of it is needed, by taking
//! that part out. See the crate's documentation for what is modelled.

use std::collections::BTreeSet;
use std::time::Instant;

use detach_protocol::cases;
use detach_protocol::detach::{DETACH, Find, Step, Step::*};
use detach_protocol::model::{
    DETACH_ENDS, NO_GARBAGE, NO_IO_WAITS, NO_USE_AFTER_FREE, NOTHING_STALE, OWN_DATA, Protocol,
    ZEROES_STAY,
};
use detach_protocol::state::{Case, Function};
use detach_protocol::trace::trace;
use stateright::{Checker, HasDiscoveries, Model};

/// Nothing goes wrong with these steps.
fn assert_safe(what: &str, steps: &[Step], cases: Vec<Case>) {
    let started = Instant::now();
    let number = cases.len();
    let protocol = Protocol { steps: steps.to_vec(), cases };
    let checker = protocol
        .checker()
        .finish_when(HasDiscoveries::AnyFailures)
        // Depth first takes the least memory.
        .spawn_dfs()
        .join();
    if let Some((property, path)) = checker.discoveries().into_iter().next() {
        panic!("{what}: not so: {property}\n{}", trace(checker.model(), path));
    }
    let (states, took) = (checker.unique_state_count(), started.elapsed());
    println!("{what}: {number} cases, {states} states, in {:.1} s", took.as_secs_f64());
}

/// With these steps something goes wrong, and this property shows it.
fn assert_broken(what: &str, steps: Vec<Step>, property: &'static str) {
    let protocol = Protocol { steps, cases: cases::pairs() };
    let checker = protocol
        .checker()
        .finish_when(HasDiscoveries::AllOf(BTreeSet::from([property])))
        // Breadth first finds a short way.
        .spawn_bfs()
        .join();
    let Some(path) = checker.discovery(property) else {
        panic!("{what}: still holds: {property}");
    };
    println!("{what} breaks \"{property}\", for instance:\n{}\n", trace(checker.model(), path));
}

fn with(step: Step, instead: &[Step]) -> Vec<Step> {
    let replaced = |own: &Step| if *own == step { instead.to_vec() } else { vec![*own] };
    DETACH.iter().flat_map(replaced).collect()
}

fn without(step: Step) -> Vec<Step> {
    with(step, &[])
}

/// The steps with `moved` taken out and put before `before`.
fn moved(moved: &[Step], before: Step) -> Vec<Step> {
    let mut steps = DETACH.to_vec();
    steps.retain(|step| !moved.contains(step));
    let place = steps.iter().position(|step| *step == before).expect("such a step");
    steps.splice(place..place, moved.iter().copied());
    steps
}

/// The steps without the wait that follows `walk`.
fn without_wait_after(walk: Step) -> Vec<Step> {
    let mut steps = DETACH.to_vec();
    let place = steps.iter().position(|step| *step == walk).expect("such a walk");
    assert_eq!(steps.remove(place + 1), Await);
    steps
}

const COPIES: Step = Walk(Find::Copies);
const READS: Step = Walk(Find::Reads);
const FIRST: Step = Stop(Function::IsZeroes);

#[test]
fn every_interleaving_is_safe() {
    assert_safe("a detach and two I/Os", DETACH, cases::pairs());
    assert_safe("a detach and three I/Os", DETACH, cases::triples());
}

#[test]
fn the_first_grace_period_is_needed() {
    let steps = with(COPIES, &[Peek(Find::Copies)]);
    assert_broken("copies looked for without a grace period", steps, ZEROES_STAY);
    let steps: Vec<_> = with(COPIES, &[Peek(Find::Copies)])
        .into_iter()
        .filter(|step| *step != Walk(Find::Nothing))
        .collect();
    assert_broken("no grace period before the swap", steps, OWN_DATA);
}

#[test]
fn the_grace_period_between_the_copies_and_the_swap_is_needed() {
    let steps = without(Walk(Find::Nothing));
    assert_broken("a swap as soon as the copies are done", steps, ZEROES_STAY);
}

#[test]
fn the_last_grace_period_is_needed() {
    let steps = with(READS, &[Peek(Find::Reads)]);
    assert_broken("reads looked for without a grace period", steps, NO_USE_AFTER_FREE);
}

#[test]
fn the_waits_are_needed() {
    let steps = without_wait_after(COPIES);
    assert_broken("copies not waited for", steps, ZEROES_STAY);
    let steps = without_wait_after(READS);
    assert_broken("reads not waited for", steps, NO_USE_AFTER_FREE);
    let steps = moved(&[Reply], READS);
    assert_broken("a reply before the reads are done", steps, NOTHING_STALE);
}

#[test]
fn descendants_are_waited_for() {
    let steps = with(COPIES, &[Walk(Find::CopiesOfRoot)]);
    assert_broken("the descendants' copies forgotten", steps, ZEROES_STAY);
    let steps = with(READS, &[Walk(Find::ReadsOfRoot)]);
    assert_broken("the descendants' reads forgotten", steps, NO_USE_AFTER_FREE);
}

#[test]
fn each_function_is_stopped_and_range_valid_last() {
    assert_broken("is_zeroes kept", without(FIRST), ZEROES_STAY);
    let steps = without(Stop(Function::TranslateLba));
    assert_broken("translate_lba kept", steps, OWN_DATA);
    let steps = without(Stop(Function::IsRangeValid));
    assert_broken("is_range_valid kept", steps, OWN_DATA);
    let steps = moved(&[Stop(Function::IsRangeValid)], FIRST);
    assert_broken("is_range_valid first", steps, OWN_DATA);
}

#[test]
fn reads_are_not_stopped_with_the_copies() {
    let steps = with(FIRST, &[Stop(Function::Read), Stop(Function::Readv), FIRST]);
    assert_broken("reads switched with the copies", steps, ZEROES_STAY);
}

#[test]
fn the_swap_comes_after_the_copies() {
    let steps = moved(&[ClearParentId, SwapBackBsDev], FIRST);
    assert_broken("a swap before the copies are stopped", steps, OWN_DATA);
    let steps = moved(&[ClearParentId, SwapBackBsDev], COPIES);
    assert_broken("a swap before the first grace period", steps.clone(), OWN_DATA);
    assert_broken("a swap before the first grace period", steps, NO_GARBAGE);
}

#[test]
fn nobody_waits() {
    let steps = with(COPIES, &[Walk(Find::CopiesOfAll)]);
    assert_broken("the neighbours' copies waited for", steps, DETACH_ENDS);
    let steps = with(Await, &[Spin]);
    assert_broken("a wait in a loop", steps, NO_IO_WAITS);
}

/// What the source may order as it likes.
#[test]
fn some_orders_make_no_difference() {
    let steps = moved(&[Stop(Function::TranslateLba)], FIRST);
    assert_safe("translate_lba before is_zeroes", &steps, cases::pairs());
    let steps = moved(&[SwapBackBsDev], ClearParentId);
    assert_safe("back_bs_dev before parent_id", &steps, cases::pairs());
}
