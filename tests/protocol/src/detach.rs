//! The steps of the detach, all on the metadata thread, from when the page is on the device; and what
//! its user does next.

use crate::state::{Case, Device, Event, Function, MD_THREAD, NEIGHBOUR, ROOT, State, Thread};
use Step::*;

/// One step. Steps that follow one another are one event, except where it says otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// A function of the former device is replaced by one that says "zeroes" whatever it is asked.
    Stop(Function),
    /// A grace period: a message visits each thread between two of its events, and finds I/O that is
    /// under way there. The event ends.
    Walk(Find),
    /// What a walk finds, without a message: other threads may be in the middle of anything.
    Peek(Find),
    /// The I/Os found are waited for, by looking again now and then. The event ends.
    Await,
    /// They are waited for in a loop.
    Spin,
    /// `parent_id` gets SPDK_BLOBID_INVALID.
    ClearParentId,
    /// `back_bs_dev` gets the zeroes device.
    SwapBackBsDev,
    /// `locked_operation_in_progress` is cleared.
    Unlock,
    /// The former device is freed, and with it the reference on the parent's blob.
    Free,
    /// The answer is sent.
    Reply,
    /// The user has the answer, and deletes the former parent: its blob is freed. An event by itself.
    /// (`bs_delete_open_cpl` refuses as long as somebody else has a reference.)
    DeleteParent,
    /// The parent's cluster goes to another lvol, and is written. An event by itself.
    ReuseCluster,
}

/// What a walk looks for on each thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Find {
    /// The first of `need_cluster_alloc`, if it is an I/O to the lvol or a descendant.
    Copies,
    /// The same, if it is an I/O to the lvol itself.
    CopiesOfRoot,
    /// The first of `need_cluster_alloc`, of whatever lvol.
    CopiesOfAll,
    /// Reads of the lvol or a descendant that have a request set for the parent's blob.
    Reads,
    /// The same, of the lvol itself.
    ReadsOfRoot,
    /// It only goes by.
    Nothing,
}

/// What the detach does. The mutants in `tests/` are this with one thing changed.
pub const DETACH: &[Step] = &[
    // Who finds `is_range_valid` replaced must find the others replaced as well: they must not be
    // asked about what is beyond the parent's end.
    Stop(Function::IsZeroes),
    Stop(Function::TranslateLba),
    Stop(Function::IsRangeValid),
    Walk(Find::Copies),
    Await,
    // A read may have looked for the lvol's own cluster just before the last copy was inserted, and
    // not yet loaded `back_bs_dev`. It must not find zeroes there: the next read gets the copy.
    Walk(Find::Nothing),
    ClearParentId,
    SwapBackBsDev,
    Unlock,
    Walk(Find::Reads),
    Await,
    Free,
    Reply,
    DeleteParent,
    ReuseCluster,
];

/// What may happen next of the detach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// The next step.
    Step,
    /// The walk visits this thread.
    Visit(usize),
}

/// All that may happen next of the detach.
pub fn next(steps: &[Step], case: &Case, state: &State) -> Vec<Next> {
    let between_events = |thread: usize| state.threads[thread].event == Event::None;
    let on_md_thread = between_events(MD_THREAD) || state.threads[MD_THREAD].event == Event::Detach;
    match steps.get(state.detach.step) {
        Some(Walk(_)) => case
            .threads()
            .filter(|thread| state.detach.visited & 1 << thread == 0 && between_events(*thread))
            .map(Next::Visit)
            .collect(),
        Some(Await) if is_any_under_way(state) => Vec::new(),
        Some(Spin) if spins(state) => Vec::new(),
        Some(_) if on_md_thread => vec![Next::Step],
        _ => Vec::new(),
    }
}

/// The loop has begun, and can't end yet.
fn spins(state: &State) -> bool {
    state.threads[MD_THREAD].event == Event::Detach && is_any_under_way(state)
}

fn is_any_under_way(state: &State) -> bool {
    let mut ios = state.ios.iter().enumerate();
    ios.any(|(io, at)| state.detach.found & 1 << io != 0 && (at.at.is_copy() || at.at.is_read()))
}

/// That happens.
pub fn take(steps: &[Step], case: &Case, state: &mut State, next: Next) {
    let Some(step) = steps.get(state.detach.step) else { return };
    match (next, *step) {
        (Next::Visit(thread), Walk(find)) => {
            look(case, state, thread, find);
            state.detach.visited |= 1 << thread;
            if case.threads().any(|thread| state.detach.visited & 1 << thread == 0) {
                return;
            }
            state.detach.visited = 0;
        }
        (_, Peek(find)) => case.threads().for_each(|thread| look(case, state, thread, find)),
        (_, Stop(function)) => state.stopped[function as usize] = true,
        (_, Spin) if is_any_under_way(state) => {
            state.threads[MD_THREAD].event = Event::Detach;
            return;
        }
        (_, Await | Spin) => state.detach.found = 0,
        (_, ClearParentId) => state.has_parent = false,
        (_, SwapBackBsDev) => state.back_bs_dev = Device::Zeroes,
        (_, Unlock) => state.locked = false,
        (_, Free) => state.device_freed = true,
        (_, Reply) => state.replied = true,
        (_, DeleteParent) => state.parent_freed = true,
        (_, ReuseCluster) => state.cluster_reused = true,
        (Next::Step, Walk(_)) => {}
    }
    state.detach.step += 1;
    // Whoever comes back from a walk does so by an event of its own, and the last thread visited is
    // between two of its.
    if !matches!(step, Walk(_)) {
        let next = steps.get(state.detach.step);
        let ends = matches!(next, None | Some(Walk(_) | Await | DeleteParent | ReuseCluster));
        state.threads[MD_THREAD].event = if ends { Event::None } else { Event::Detach };
    }
}

/// Notes what is under way on a thread.
fn look(case: &Case, state: &mut State, thread: usize, find: Find) {
    let Thread { need_cluster_alloc, .. } = &state.threads[thread];
    for io in 0..state.ios.len() {
        let submission = case.ios[io];
        let first = need_cluster_alloc.first() == Some(&(io as u8));
        let found = match find {
            Find::Copies => first && submission.blob != NEIGHBOUR,
            Find::CopiesOfRoot => first && submission.blob == ROOT,
            Find::CopiesOfAll => first,
            Find::Nothing => false,
            Find::Reads => submission.thread == thread && state.ios[io].at.is_read(),
            Find::ReadsOfRoot => {
                submission.thread == thread && submission.blob == ROOT && state.ios[io].at.is_read()
            }
        };
        if found {
            state.detach.found |= 1 << io;
        }
    }
}
