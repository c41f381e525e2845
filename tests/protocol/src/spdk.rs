//! The steps of SPDK's I/O. Names are SPDK's; all of it is in `lib/blob`.
//!
//! The programs below are the C functions with everything left out that neither loads what a detach
//! stores nor is seen by it. A function of the clone's device (`blob_bs_*` in `blob_bs_dev.c`, called
//! with the root as its blob) is written out in place. The clone's own `back_bs_dev` and `parent_id`
//! stay what they are, as do the clusters of a root that is a snapshot; they need no steps.

use crate::state::{
    At, Byte, CLONE, Case, Code, Device, Event, Function, Kind, Load, MD_THREAD, NEIGHBOUR,
    ParentHas, ROOT, Release, Running, Stage, State, Submission, Wrong,
};
use Function::{IsRangeValid, IsZeroes, Read, Readv, TranslateLba};
use Instruction::*;
use Load::{Callee, Count, Lba, This};

/// One statement of SPDK's.
#[derive(Debug, Clone, Copy)]
pub enum Instruction {
    /// `bs_io_unit_is_allocated`. If there is a cluster the I/O goes there, and is done.
    LookUp,
    /// `back_bs_dev` is loaded so many times, for that.
    Load(&'static [Load]),
    /// `back_bs_dev->blocklen`, for an assertion or an alignment.
    Blocklen,
    /// A function is called through a pointer in the device, with what is loaded for it.
    Call(Function, &'static [Load]),
    /// `parent_id` decides whether a buffer is needed.
    ParentIdForBuffer,
    /// `need_cluster_alloc` gets the I/O.
    Enqueue,
    /// `parent_id` decides whether the new cluster is filled.
    ParentIdForCopy,
    /// `bs_sequence_copy_dev`
    Offload,
    /// `blob_insert_cluster_on_md_thread`, with a new cluster that is unmapped.
    InsertUnmapped,
    /// All of a neighbour's copy-on-write.
    Neighbour,
    /// `locked_operation_in_progress`: while it is set, an unmap gives nothing back.
    Locked,
    /// `blob_backed_with_zeroes_dev`: only if it is, an unmap gives the cluster back.
    BackedWithZeroes,
}

/// Whether an instruction is reached.
type If = fn(&Case, &Running) -> bool;

const ALWAYS: If = |_, _| true;
const OFFLOAD: If = |case, _| case.offload;
const VALID: If = |_, at| at.is_valid_range;
const VALID_AND_OFFLOAD: If = |case, at| case.offload && at.is_valid_range;
const NEEDS_BUFFER: If = |_, at| at.has_buffer;
const COPIES_BY_OFFLOAD: If = |_, at| at.copies && at.can_copy;
const COPIES_BY_READ: If = |_, at| at.copies && !at.can_copy;
const COPIES_NOTHING: If = |_, at| !at.copies;

type Program = &'static [(If, Instruction)];

/// `blob_request_submit_rw_iov`. Of the clone: its device's `blob_bs_dev_readv` calls the same for the
/// root, which has no cluster there either, so that only the look-up is the clone's.
const READ: Program = &[
    (ALWAYS, LookUp),
    // blob_calculate_lba_and_lba_count
    (ALWAYS, Load(&[Lba, Count])),
    // bs_sequence_readv_bs_dev
    (ALWAYS, Call(Readv, &[Callee])),
];

/// `bs_allocate_and_copy_cluster` for a write to the root, by `blob_request_submit_op_single` or
/// `blob_request_submit_rw_iov`.
const WRITE_TO_ROOT: Program = &[
    (ALWAYS, LookUp),
    // blob_calculate_lba_and_lba_count, of which a write needs only whether there is a cluster; and
    // assert(blob->bs->cluster_sz % blob->back_bs_dev->blocklen == 0)
    (ALWAYS, Blocklen),
    (ALWAYS, Call(IsRangeValid, &[Callee, This, Lba, Count])),
    // blob_can_copy
    (VALID_AND_OFFLOAD, Load(&[Lba])),
    (VALID_AND_OFFLOAD, Call(TranslateLba, &[Callee, This])),
    (VALID, Call(IsZeroes, &[Callee, This, Lba, Count])),
    (ALWAYS, ParentIdForBuffer),
    (NEEDS_BUFFER, Blocklen),
    (ALWAYS, Enqueue),
    (ALWAYS, ParentIdForCopy),
    // blob_copy
    (COPIES_BY_OFFLOAD, Load(&[Count])),
    (COPIES_BY_OFFLOAD, Offload),
    // bs_sequence_read_bs_dev
    (COPIES_BY_READ, Call(Read, &[Callee, Lba, Count])),
    (COPIES_NOTHING, InsertUnmapped),
];

/// The same for a write to the clone.
const WRITE_TO_CLONE: Program = &[
    (ALWAYS, LookUp),
    // blob_can_copy, blob_bs_translate_lba
    (OFFLOAD, Call(IsRangeValid, &[Callee, This, Count])),
    (VALID_AND_OFFLOAD, Call(TranslateLba, &[Callee, This, Lba])),
    // blob_bs_is_zeroes
    (ALWAYS, Call(IsRangeValid, &[Callee, This])),
    (VALID, Call(IsZeroes, &[Callee, This, Lba, Count])),
    (ALWAYS, Enqueue),
    (ALWAYS, ParentIdForCopy),
    (COPIES_BY_OFFLOAD, Offload),
    // blob_bs_dev_read, blob_request_submit_op_single: blob_calculate_lba_and_lba_count, and
    // bs_batch_read_bs_dev
    (COPIES_BY_READ, Load(&[Lba, Count])),
    (COPIES_BY_READ, Call(Read, &[Callee])),
    (COPIES_NOTHING, InsertUnmapped),
];

const WRITE_TO_NEIGHBOUR: Program = &[(ALWAYS, Neighbour)];

/// `blob_request_submit_op_single`. (24.09 doesn't look at the lock, which is as if it weren't set.)
const UNMAP: Program = &[(ALWAYS, LookUp), (ALWAYS, Locked), (ALWAYS, BackedWithZeroes)];

/// The instruction that a running I/O is at.
pub fn instruction(case: &Case, state: &State, io: usize) -> Option<Instruction> {
    match &state.ios[io].at {
        At::Running(at) => program(case, io).get(at.next).map(|(_, instruction)| *instruction),
        _ => None,
    }
}

fn program(case: &Case, io: usize) -> Program {
    let submission = case.ios[io];
    match (submission.kind, submission.blob) {
        (Kind::Read, _) => READ,
        (Kind::Unmap, _) => UNMAP,
        (Kind::Write, ROOT) => WRITE_TO_ROOT,
        (Kind::Write, CLONE) => WRITE_TO_CLONE,
        (Kind::Write, _) => WRITE_TO_NEIGHBOUR,
    }
}

/// A user submits the I/O: an event of its thread begins.
pub fn submit(case: &Case, state: &mut State, io: usize) {
    let Submission { blob, thread, .. } = case.ios[io];
    state.ios[io].after_zeroes = blob != NEIGHBOUR && state.seen_zeroes[blob];
    execute(case, state, thread, io);
}

/// `bs_user_op_execute`, or its first time.
fn execute(case: &Case, state: &mut State, thread: usize, io: usize) {
    state.threads[thread].event = Event::Io(io as u8);
    state.ios[io].at = At::Running(Running {
        next: 0,
        stage: Stage::Start,
        loaded: [None; 4],
        is_valid_range: case.release == Release::V24_01,
        can_copy: false,
        is_zeroes: false,
        has_buffer: false,
        copies: false,
    });
}

/// What is executed again in the same event comes next; otherwise the event is over.
fn go_on(case: &Case, state: &mut State, thread: usize) {
    let again = &mut state.threads[thread].again;
    if again.is_empty() {
        state.threads[thread].event = Event::None;
    } else {
        let io = usize::from(again.remove(0));
        execute(case, state, thread, io);
    }
}

/// The event leaves the I/O there.
fn leave(case: &Case, state: &mut State, io: usize, at: At) {
    state.ios[io].at = at;
    go_on(case, state, case.ios[io].thread);
}

/// The outcomes that the next step of a running I/O may have: which of the values that it loads are
/// those after the change, as bits.
///
/// C leaves open in which order an expression loads, and a compiler may load once for several. But
/// `back_bs_dev` changes once. So if that happens between the first load and the last, each of them
/// may have the new value, though not all; otherwise there is one outcome.
pub fn outcomes(case: &Case, state: &State, io: usize) -> std::ops::Range<u8> {
    match (&state.ios[io].at, state.back_bs_dev) {
        (At::Running(Running { stage: Stage::Began, next, .. }), Device::Zeroes) => {
            0..(1 << wanted(program(case, io)[*next].1).len()) - 1
        }
        _ => 0..1,
    }
}

fn wanted(instruction: Instruction) -> &'static [Load] {
    match instruction {
        Load(wanted) | Call(_, wanted) => wanted,
        Blocklen => &[Count],
        _ => &[],
    }
}

/// The next step of a running I/O, with one of its [`outcomes`].
pub fn step(case: &Case, state: &mut State, io: usize, newer: u8) {
    let At::Running(mut at) = state.ios[io].at.clone() else { return };
    let instruction = program(case, io)[at.next].1;
    match at.stage {
        Stage::Start if !wanted(instruction).is_empty() => {
            let wanted = wanted(instruction);
            if wanted.len() > 1 && state.back_bs_dev == Device::Former {
                at.stage = Stage::Began;
            } else {
                for load in wanted {
                    at.loaded[*load as usize] = Some(state.back_bs_dev);
                }
                at.stage = Stage::Loaded;
            }
            state.ios[io].at = At::Running(at);
        }
        Stage::Began => {
            for (bit, load) in wanted(instruction).iter().enumerate() {
                let device = if newer & 1 << bit != 0 { Device::Zeroes } else { Device::Former };
                at.loaded[*load as usize] = Some(device);
            }
            at.stage = Stage::Loaded;
            state.ios[io].at = At::Running(at);
        }
        // `blocklen` never changes. That it is read so late is the worst for a device that is freed.
        Stage::Loaded => {
            if state.device_freed && at.loaded.contains(&Some(Device::Former)) {
                state.fail(Wrong::DeviceAfterFree);
            }
            match instruction {
                Call(function, _) => {
                    at.stage = Stage::Fetched(fetch(state, function, at.loaded[Callee as usize]));
                    state.ios[io].at = At::Running(at);
                }
                Load(_) => advance(case, state, io, at),
                _ => {
                    at.loaded = [None; 4];
                    advance(case, state, io, at);
                }
            }
        }
        Stage::Fetched(code) => call(case, state, io, at, instruction, code),
        Stage::Start => run(case, state, io, at, instruction),
    }
}

/// To the next instruction that is reached.
fn advance(case: &Case, state: &mut State, io: usize, mut at: Running) {
    let program = program(case, io);
    at.stage = Stage::Start;
    at.next += 1;
    while let Some((reached, instruction)) = program.get(at.next)
        && (!reached(case, &at) || is_missing(case, *instruction))
    {
        at.next += 1;
    }
    state.ios[io].at = At::Running(at);
}

fn is_missing(case: &Case, instruction: Instruction) -> bool {
    case.release == Release::V24_01 && matches!(instruction, Call(IsRangeValid, _))
}

fn fetch(state: &State, function: Function, callee: Option<Device>) -> Code {
    match callee {
        Some(Device::Zeroes) => Code::Zeroes,
        _ if state.stopped[function as usize] => Code::Stopped,
        _ => Code::Blobs,
    }
}

/// What a call does that has been fetched.
fn call(
    case: &Case,
    state: &mut State,
    io: usize,
    mut at: Running,
    instruction: Instruction,
    code: Code,
) {
    let Call(function, _) = instruction else { return };
    let [callee, this, lba, count] = at.loaded;
    if code == Code::Blobs {
        let of_zeroes = Some(Device::Zeroes);
        // A read passes the device whose function it has fetched.
        let this = if matches!(function, Read | Readv) { callee } else { this };
        let wrong = if this == of_zeroes {
            Some(Wrong::FunctionOfAnotherDevice)
        } else if lba == of_zeroes || count == of_zeroes {
            Some(Wrong::LbaOrCountOfAnotherDevice)
        } else if state.device_freed {
            Some(Wrong::DeviceAfterFree)
        } else if state.parent_freed {
            Some(Wrong::ParentAfterFree)
        } else if case.parent_has == ParentHas::Ended && matches!(function, TranslateLba | IsZeroes)
        {
            Some(Wrong::BeyondTheParentsClusters)
        } else {
            None
        };
        if let Some(wrong) = wrong {
            return state.fail(wrong);
        }
    }
    let of_parent = code == Code::Blobs;
    match function {
        IsRangeValid => at.is_valid_range = !of_parent || case.parent_has != ParentHas::Ended,
        TranslateLba => at.can_copy = of_parent && case.parent_has == ParentHas::Data,
        IsZeroes => at.is_zeroes = !of_parent || case.parent_has == ParentHas::Nothing,
        Readv if of_parent && case.parent_has == ParentHas::Data => {
            return leave(case, state, io, At::Reading);
        }
        Readv => {
            deliver(case, state, io, Byte::Zero, Via::Device);
            return leave(case, state, io, At::Done);
        }
        Read if !at.has_buffer => {
            state.fail(Wrong::ReadIntoNull);
            return;
        }
        Read if of_parent && case.parent_has == ParentHas::Data => {
            return leave(case, state, io, At::Copying);
        }
        // `zeroes_read` fills `dev->blocklen * lba_count`, with the `blocklen` of its own.
        Read if code == Code::Zeroes && count == Some(Device::Former) => {
            return leave(case, state, io, At::Inserting(Byte::Garbage));
        }
        // Nothing, or the zeroes beyond the end (`zero_trailing_bytes`).
        Read => return leave(case, state, io, At::Inserting(Byte::Zero)),
    }
    at.loaded = [None; 4];
    advance(case, state, io, at);
}

/// An instruction that doesn't call through a device.
fn run(case: &Case, state: &mut State, io: usize, mut at: Running, instruction: Instruction) {
    let Submission { blob, kind, thread } = case.ios[io];
    let has_parent = blob == CLONE || state.has_parent;
    let queue = &mut state.threads[thread].need_cluster_alloc;
    match instruction {
        LookUp => match (state.own[blob], kind) {
            (Some(byte), Kind::Read) => {
                deliver(case, state, io, byte, Via::OwnCluster);
                return leave(case, state, io, At::Done);
            }
            (None, Kind::Unmap) | (Some(_), Kind::Write) => {
                return leave(case, state, io, At::Done);
            }
            (None, Kind::Write) if !queue.is_empty() => {
                queue.push(io as u8);
                return leave(case, state, io, At::Queued);
            }
            _ => {}
        },
        ParentIdForBuffer => at.has_buffer = has_parent && !at.is_zeroes && !at.can_copy,
        Enqueue => {
            // The clone's parent is there for good: one look at `parent_id` says what two would.
            if blob == CLONE {
                at.has_buffer = !at.is_zeroes && !at.can_copy;
            }
            queue.push(io as u8);
        }
        ParentIdForCopy => at.copies = has_parent && !at.is_zeroes,
        Offload if at.loaded[Count as usize] == Some(Device::Zeroes) => {
            state.fail(Wrong::LbaOrCountOfAnotherDevice);
            return;
        }
        Offload => return leave(case, state, io, At::Copying),
        InsertUnmapped => return leave(case, state, io, At::Inserting(Byte::Zero)),
        Neighbour => {
            let first = queue.is_empty();
            queue.push(io as u8);
            let at = if first { At::NeighbourCopies } else { At::Queued };
            return leave(case, state, io, at);
        }
        Locked if state.locked => {
            unmap(state, blob);
            return leave(case, state, io, At::Done);
        }
        BackedWithZeroes => {
            unmap(state, blob);
            let gives_back = state.back_bs_dev == Device::Zeroes;
            let at = if gives_back { At::GivingBack } else { At::Done };
            return leave(case, state, io, at);
        }
        _ => {}
    }
    advance(case, state, io, at);
}

/// What an unmapped cluster holds.
fn unmap(state: &mut State, blob: usize) {
    if let Some(byte) = &mut state.own[blob] {
        *byte = Byte::Zero;
    }
}

/// The thread on which something about this I/O is to happen next, if the I/O is under way and not in
/// the middle of an event.
pub fn completes_on(case: &Case, state: &State, io: usize) -> Option<usize> {
    match state.ios[io].at {
        At::Reading | At::Copying | At::Inserted | At::NeighbourCopies => Some(case.ios[io].thread),
        At::Inserting(_) | At::GivingBack => Some(MD_THREAD),
        At::NotSubmitted | At::Running(_) | At::Queued | At::Done => None,
    }
}

/// That happens: a completion by the device, or a message.
pub fn complete(case: &Case, state: &mut State, io: usize) {
    let Submission { blob, thread, .. } = case.ios[io];
    match state.ios[io].at {
        // blob_bs_dev_read_cpl
        At::Reading => {
            let byte = parents_byte(state);
            deliver(case, state, io, byte, Via::Device);
            state.ios[io].at = At::Done;
        }
        // blob_write_copy, blob_write_copy_cpl: the write of the new cluster takes time, as the
        // message to the metadata thread does, and that is all.
        At::Copying => state.ios[io].at = At::Inserting(parents_byte(state)),
        // blob_insert_cluster_msg, and what it writes to the metadata
        At::Inserting(byte) => {
            state.ios[io].at = At::Inserted;
            // Otherwise another thread was faster (-EEXIST).
            if state.own[blob].is_none() {
                state.own[blob] = Some(byte);
                if state.replied && byte == Byte::Parents {
                    state.fail(Wrong::ParentsByteAfterReply);
                }
            }
        }
        // blob_free_cluster_msg
        At::GivingBack => {
            state.own[blob] = None;
            state.ios[io].at = At::Done;
        }
        // blob_allocate_and_copy_cluster_cpl: all that are queued are executed again, this one first.
        At::Inserted | At::NeighbourCopies => {
            let queue = std::mem::take(&mut state.threads[thread].need_cluster_alloc);
            let is_neighbour = blob == NEIGHBOUR;
            state.ios[io].at = if is_neighbour { At::Done } else { At::Queued };
            let again = queue.into_iter().skip(usize::from(is_neighbour));
            state.threads[thread].again = again.collect();
            go_on(case, state, thread);
        }
        At::NotSubmitted | At::Running(_) | At::Queued | At::Done => {}
    }
}

/// What comes from the parent's cluster when the device is done with it. The parent's blob is used as
/// well: a read that came while the parent was frozen has waited in `queued_io`, and is executed only
/// now.
fn parents_byte(state: &mut State) -> Byte {
    if state.parent_freed {
        state.fail(Wrong::ParentAfterFree);
    }
    if state.cluster_reused { Byte::Tenants } else { Byte::Parents }
}

/// By which way a byte was read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Via {
    OwnCluster,
    Device,
}

/// A user's read gets the byte.
fn deliver(case: &Case, state: &mut State, io: usize, byte: Byte, via: Via) {
    let blob = case.ios[io].blob;
    match byte {
        Byte::Zero => state.seen_zeroes[blob] = true,
        Byte::Parents if state.ios[io].after_zeroes => {
            state.fail(Wrong::ParentsByteAfterZeroes);
        }
        Byte::Parents if state.replied && via == Via::Device => {
            state.fail(Wrong::ParentsByteAfterReply);
        }
        Byte::Parents => {}
        Byte::Tenants => state.fail(Wrong::TenantsByte),
        Byte::Garbage => state.fail(Wrong::Garbage),
    }
}

/// A read by one more thread, done in no time, after each step: what it gets follows from the state.
pub fn observe(case: &Case, state: &mut State) {
    for blob in [ROOT, CLONE] {
        let through_parent = state.back_bs_dev == Device::Former
            && !state.stopped[Readv as usize]
            && case.parent_has == ParentHas::Data;
        let byte = match state.own[blob] {
            Some(byte) => byte,
            None if !through_parent => Byte::Zero,
            None if state.cluster_reused => Byte::Tenants,
            None => Byte::Parents,
        };
        match byte {
            Byte::Zero => state.seen_zeroes[blob] = true,
            Byte::Parents if state.seen_zeroes[blob] => state.fail(Wrong::ParentsByteAfterZeroes),
            Byte::Parents if state.replied && state.own[blob].is_none() => {
                state.fail(Wrong::ParentsByteAfterReply);
            }
            Byte::Parents => {}
            Byte::Tenants => state.fail(Wrong::TenantsByte),
            Byte::Garbage => state.fail(Wrong::Garbage),
        }
    }
}
