//! Every write to a device, and every image that a crash may leave of them.
//!
//! A device may do the writes that it has under way in any order. So a crash leaves those that
//! were completed, and any of those that were not; and it may tear one of them, in units of a
//! block: every subset of its blocks may be there.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::os::raw::c_void;
use std::rc::Rc;

use spdk_lvol_detach::memory_dev::{BLOCK_LEN, Image, WriteHook};
use spdk_sys as sys;

/// Of a torn write with more changed blocks than this only prefixes, suffixes, and those that lack
/// one block are tried. A metadata page has eight.
const MAX_BLOCKS_FOR_ALL_SUBSETS: usize = 8;

#[derive(Debug)]
enum Event {
    Write {
        offset: usize,
        bytes: Vec<u8>,
    },
    /// The write that is this event was completed.
    Completed(usize),
}

pub struct Journal {
    base: Vec<u8>,
    events: Rc<RefCell<Vec<Event>>>,
}

/// What a crash leaves.
#[derive(Debug, Clone)]
pub struct Crash {
    /// How many events came before it.
    pub at: usize,
    /// The writes that are there.
    landed: Vec<usize>,
    /// One more, of which a part is there.
    pub torn: Option<Torn>,
}

#[derive(Debug, Clone)]
pub struct Torn {
    write: usize,
    /// The blocks of it that are there.
    blocks: Vec<usize>,
    pub offset: usize,
    pub len: usize,
    /// It overwrites something that counts, other than with zeroes.
    pub overwrites: bool,
}

impl Journal {
    /// A journal of what is written to the image from now on by the device with this hook.
    pub fn start(image: &Image) -> (Journal, WriteHook) {
        let events = Rc::new(RefCell::new(Vec::new()));
        let log = Rc::clone(&events);
        let hook: WriteHook = Box::new(move |offset, bytes| {
            let mut events = log.borrow_mut();
            let write = events.len();
            events.push(Event::Write { offset: offset as usize, bytes: bytes.to_vec() });
            announce_completion(&log, write);
            0
        });
        (Journal { base: image.borrow().clone(), events }, hook)
    }

    /// How many events there were.
    pub fn now(&self) -> usize {
        self.events.borrow().len()
    }

    /// A clock that outlives the borrow.
    pub fn clock(&self) -> impl Fn() -> usize + use<> {
        let events = Rc::clone(&self.events);
        move || events.borrow().len()
    }

    /// Every crash. One that leaves the same as one before it is there again only if something was
    /// `promised` in between, at that count of events. Writes from `data_start` on, which hold
    /// what users have written, are not torn: that one of them may be is up to the user.
    pub fn crashes(&self, promised: &BTreeSet<usize>, data_start: usize) -> Vec<Crash> {
        let mut completed: Vec<usize> = Vec::new();
        let mut in_flight: Vec<usize> = Vec::new();
        let mut crashes = vec![Crash { at: 0, landed: Vec::new(), torn: None }];
        for (index, event) in self.events.borrow().iter().enumerate() {
            let at = index + 1;
            let newest = match event {
                Event::Write { .. } => Some(index),
                Event::Completed(write) => {
                    in_flight.retain(|other| other != write);
                    completed.push(*write);
                    None
                }
            };
            if newest.is_some() || promised.contains(&at) {
                for older in subsets(&in_flight) {
                    let landed: Vec<_> = older.into_iter().chain(newest).collect();
                    for last in 0..landed.len() {
                        let mut others = landed.clone();
                        let last = others.remove(last);
                        let without =
                            Crash { at, landed: [&*completed, &*others].concat(), torn: None };
                        crashes.extend(self.torn_by(&without, last, data_start));
                    }
                    crashes.push(Crash {
                        at,
                        landed: [&*completed, &*landed].concat(),
                        torn: None,
                    });
                }
            }
            in_flight.extend(newest);
        }
        crashes
    }

    /// What a crash leaves on the device.
    pub fn image(&self, crash: &Crash) -> Vec<u8> {
        let events = self.events.borrow();
        let mut image = self.base.clone();
        for &write in &crash.landed {
            let (offset, bytes) = events[write].write();
            image[offset..offset + bytes.len()].copy_from_slice(bytes);
        }
        if let Some(torn) = &crash.torn {
            let (_, bytes) = events[torn.write].write();
            for &index in &torn.blocks {
                image[torn.offset..][block(index)].copy_from_slice(&bytes[block(index)]);
            }
        }
        image
    }

    /// The crashes that leave a write in part, on top of what another crash leaves.
    fn torn_by(&self, without: &Crash, write: usize, data_start: usize) -> Vec<Crash> {
        let events = self.events.borrow();
        let (offset, bytes) = events[write].write();
        if offset >= data_start {
            return Vec::new();
        }
        let image = self.image(without);
        let old = &image[offset..offset + bytes.len()];
        let overwrites = [old, bytes].iter().all(|bytes| bytes.iter().any(|&byte| byte != 0));
        let changed: Vec<_> = (0..bytes.len() / BLOCK_LEN)
            .filter(|&index| old[block(index)] != bytes[block(index)])
            .collect();
        let torn = |blocks| Torn { write, blocks, offset, len: bytes.len(), overwrites };
        let parts = parts(&changed).into_iter();
        parts.map(|blocks| Crash { torn: Some(torn(blocks)), ..without.clone() }).collect()
    }
}

impl Event {
    fn write(&self) -> (usize, &[u8]) {
        match self {
            Event::Write { offset, bytes } => (*offset, bytes),
            Event::Completed(_) => unreachable!("only writes land"),
        }
    }
}

/// Notes when a write is completed: right before SPDK learns of it, as the device sends its own
/// message after this one.
fn announce_completion(log: &Rc<RefCell<Vec<Event>>>, write: usize) {
    type Note = (Rc<RefCell<Vec<Event>>>, usize);
    unsafe extern "C" fn note(ctx: *mut c_void) {
        // SAFETY: the box is from below, and comes back once.
        let (log, write) = *unsafe { Box::from_raw(ctx.cast::<Note>()) };
        log.borrow_mut().push(Event::Completed(write));
    }
    let ctx = Box::into_raw(Box::new((Rc::clone(log), write))).cast();
    // SAFETY: a device is written to on an SPDK thread, and the message runs on the same one.
    let rc = unsafe { sys::spdk_thread_send_msg(sys::spdk_get_thread(), Some(note), ctx) };
    assert_eq!(rc, 0);
}

fn block(index: usize) -> std::ops::Range<usize> {
    index * BLOCK_LEN..(index + 1) * BLOCK_LEN
}

/// The subsets of the changed blocks that are neither all of them nor none.
fn parts(changed: &[usize]) -> Vec<Vec<usize>> {
    let count = changed.len();
    let mut parts = if count <= MAX_BLOCKS_FOR_ALL_SUBSETS {
        subsets(changed)
    } else {
        let prefixes = (1..count).map(|len| changed[..len].to_vec());
        let suffixes = (1..count).map(|start| changed[start..].to_vec());
        let but_one = (0..count).map(|gap| [&changed[..gap], &changed[gap + 1..]].concat());
        prefixes.chain(suffixes).chain(but_one).collect()
    };
    parts.retain(|part| !part.is_empty() && part.len() < count);
    parts
}

fn subsets(items: &[usize]) -> Vec<Vec<usize>> {
    assert!(items.len() <= MAX_BLOCKS_FOR_ALL_SUBSETS, "too many subsets");
    let member = |set: usize, index: usize| set >> index & 1 == 1;
    (0..1 << items.len())
        .map(|set| {
            let indices = (0..items.len()).filter(|&index| member(set, index));
            indices.map(|index| items[index]).collect()
        })
        .collect()
}
