//! What happened, one line an event, for a person to read.

use std::fmt::Write;

use stateright::Path;

use crate::detach::Next;
use crate::model::{Action, Protocol};
use crate::spdk;
use crate::state::{CLONE, Case, Kind, MD_THREAD, ROOT, State, Submission};

/// The way to a state.
pub fn trace(protocol: &Protocol, path: Path<State, Action>) -> String {
    let last = path.last_state().clone();
    let case = protocol.case(&last);
    let mut text = format!(
        "{:?}, the parent: {:?}, offload: {}\n",
        case.release, case.parent_has, case.offload
    );
    let (mut who, mut what) = (String::new(), String::new());
    for (state, action) in path.into_vec() {
        let Some(action) = action else { break };
        let (next_who, next_what) = describe(protocol, case, &state, action);
        if next_who != who {
            let _ =
                write!(text, "{}{next_who}: {next_what}", if who.is_empty() { "" } else { "\n" });
        } else if next_what != what {
            let _ = write!(text, ", {next_what}");
        }
        (who, what) = (next_who, next_what);
    }
    let _ = write!(text, "\n-> {:?}", last.wrong);
    text
}

/// Who does something, and what.
fn describe(protocol: &Protocol, case: &Case, state: &State, action: Action) -> (String, String) {
    let io = |io: usize| {
        let Submission { blob, kind, thread } = case.ios[io];
        let kind = match kind {
            Kind::Read => "read",
            Kind::Write => "write",
            Kind::Unmap => "unmap",
        };
        let blob = match blob {
            ROOT => "lvol",
            CLONE => "clone",
            _ => "neighbour",
        };
        format!("thread {thread}, {kind} {} of the {blob}", io + 1)
    };
    match action {
        Action::Submit(number) => (io(number), "begins".to_owned()),
        Action::Io(number, _) => {
            let instruction = spdk::instruction(case, state, number);
            (io(number), instruction.map_or_else(String::new, |at| format!("{at:?}")))
        }
        Action::Complete(number) => (io(number), format!("{:?} is over", state.ios[number].at)),
        Action::Detach(next) => {
            let step = protocol.steps.get(state.detach.step);
            let step = step.map_or_else(String::new, |step| format!("{step:?}"));
            match next {
                Next::Step => (format!("thread {MD_THREAD}, detach"), step),
                Next::Visit(thread) => (format!("thread {thread}, detach"), step),
            }
        }
    }
}
