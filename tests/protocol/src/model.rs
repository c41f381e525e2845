//! The model as the checker sees it: what may happen next, and what must hold at every moment.

use stateright::{Model, Property};

use crate::detach::{self, Next, Step};
use crate::spdk;
use crate::state::{At, Case, Detach, Device, Event, Io, NEIGHBOUR, State, Wrong};

/// A detach by these steps, in each of these cases.
#[derive(Debug, Clone)]
pub struct Protocol {
    /// The steps of the detach.
    pub steps: Vec<Step>,
    /// What each state's number stands for.
    pub cases: Vec<Case>,
}

/// What may happen next. Nothing says when: each thread takes its next step at any time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// A user submits this I/O. An event begins.
    Submit(usize),
    /// The event of this I/O takes its next step, with one of its [`spdk::outcomes`].
    Io(usize, u8),
    /// The device is done, or a message arrives.
    Complete(usize),
    /// The detach goes on.
    Detach(Next),
}

/// No I/O stops for as long as the detach takes.
pub const NO_IO_WAITS: &str = "no I/O waits for the detach";
/// It waits for nothing but I/O of the family that had begun.
pub const DETACH_ENDS: &str = "the detach ends when the family's I/O does";
/// Each function is called with what belongs to its device.
pub const OWN_DATA: &str = "no function gets what belongs to another device";
/// Neither the former device nor the parent's blob.
pub const NO_USE_AFTER_FREE: &str = "nothing is used that is freed";
/// Neither by a read that was submitted later, nor in a cluster that was inserted later.
pub const NOTHING_STALE: &str = "the parent's data doesn't show after the reply";
/// A block that has once been read as zeroes doesn't become the parent's data.
pub const ZEROES_STAY: &str = "zeroes stay zeroes";
/// A new cluster has the parent's data or zeroes.
pub const NO_GARBAGE: &str = "no garbage";

impl Model for Protocol {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let start = |(number, case): (usize, &Case)| State {
            case: number as u16,
            back_bs_dev: Device::Former,
            has_parent: true,
            locked: true,
            stopped: [false; 5],
            device_freed: false,
            parent_freed: false,
            cluster_reused: false,
            own: [None; 2],
            detach: Detach::default(),
            ios: vec![Io::default(); case.ios.len()],
            threads: Default::default(),
            seen_zeroes: [false; 2],
            replied: false,
            wrong: None,
        };
        self.cases.iter().enumerate().map(start).collect()
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if state.wrong.is_some() {
            return;
        }
        let case = self.case(state);
        let between_events = |thread: usize| state.threads[thread].event == Event::None;
        for (io, Io { at, .. }) in state.ios.iter().enumerate() {
            match at {
                At::NotSubmitted if between_events(case.ios[io].thread) => {
                    actions.push(Action::Submit(io));
                }
                At::Running(_) => {
                    let outcomes = spdk::outcomes(case, state, io);
                    actions.extend(outcomes.map(|newer| Action::Io(io, newer)));
                }
                _ if spdk::completes_on(case, state, io).is_some_and(between_events) => {
                    actions.push(Action::Complete(io));
                }
                _ => {}
            }
        }
        let next = detach::next(&self.steps, case, state);
        actions.extend(next.into_iter().map(Action::Detach));
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        let case = self.case(state);
        let mut state = state.clone();
        match action {
            Action::Submit(io) => spdk::submit(case, &mut state, io),
            Action::Io(io, newer) => spdk::step(case, &mut state, io, newer),
            Action::Complete(io) => spdk::complete(case, &mut state, io),
            Action::Detach(next) => detach::take(&self.steps, case, &mut state, next),
        }
        spdk::observe(case, &mut state);
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(OWN_DATA, |_, state| !is_wrong(state, OWN_DATA)),
            Property::always(NO_USE_AFTER_FREE, |_, state| !is_wrong(state, NO_USE_AFTER_FREE)),
            Property::always(NOTHING_STALE, |_, state| !is_wrong(state, NOTHING_STALE)),
            Property::always(ZEROES_STAY, |_, state| !is_wrong(state, ZEROES_STAY)),
            Property::always(NO_GARBAGE, |_, state| !is_wrong(state, NO_GARBAGE)),
            Property::always(NO_IO_WAITS, Protocol::no_io_waits),
            Property::always(DETACH_ENDS, Protocol::detach_ends),
        ]
    }
}

impl Protocol {
    /// The case that a state is of.
    pub fn case(&self, state: &State) -> &Case {
        &self.cases[usize::from(state.case)]
    }

    /// Each I/O that isn't done can go on, or is behind one that can: an event comes to its end, and a
    /// thread that is between events takes what comes. So none is held by more than an event of the
    /// detach, and what such an event does next must not have to wait.
    fn no_io_waits(&self, state: &State) -> bool {
        if state.wrong.is_some() {
            return true;
        }
        let case = self.case(state);
        let event_goes_on = |thread: usize| match state.threads[thread].event {
            Event::None | Event::Io(_) => true,
            Event::Detach => !detach::next(&self.steps, case, state).is_empty(),
        };
        let first = |thread: usize| state.threads[thread].need_cluster_alloc.first();
        state.ios.iter().enumerate().all(|(io, Io { at, .. })| {
            let thread = case.ios[io].thread;
            match at {
                At::NotSubmitted | At::Running(_) => event_goes_on(thread),
                At::Queued => {
                    event_goes_on(thread) && first(thread).is_some()
                        || state.threads[thread].again.contains(&(io as u8))
                }
                At::Done => true,
                _ => spdk::completes_on(case, state, io).is_some_and(event_goes_on),
            }
        })
    }

    /// When nothing of the family is under way, the detach goes on, whatever others do.
    fn detach_ends(&self, state: &State) -> bool {
        let case = self.case(state);
        let is_over = |(io, Io { at, .. }): (usize, &Io)| {
            case.ios[io].blob == NEIGHBOUR || matches!(at, At::NotSubmitted | At::Queued | At::Done)
        };
        let between_events = |thread: usize| !matches!(state.threads[thread].event, Event::Io(_));
        state.wrong.is_some()
            || state.detach.step == self.steps.len()
            || !state.ios.iter().enumerate().all(is_over)
            || !case.threads().all(between_events)
            || !detach::next(&self.steps, case, state).is_empty()
    }
}

/// What was broken, if something was.
fn is_wrong(state: &State, property: &str) -> bool {
    let broken = state.wrong.map(|wrong| match wrong {
        Wrong::FunctionOfAnotherDevice
        | Wrong::BeyondTheParentsClusters
        | Wrong::LbaOrCountOfAnotherDevice
        | Wrong::ReadIntoNull => OWN_DATA,
        Wrong::DeviceAfterFree | Wrong::ParentAfterFree => NO_USE_AFTER_FREE,
        Wrong::ParentsByteAfterReply | Wrong::TenantsByte => NOTHING_STALE,
        Wrong::ParentsByteAfterZeroes => ZEROES_STAY,
        Wrong::Garbage => NO_GARBAGE,
    });
    broken == Some(property)
}
