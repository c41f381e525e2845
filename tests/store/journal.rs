//! Every write to a device, and every image that a crash may leave of them.
//!
//! Here that is a device without a volatile cache; [`super::power_cut`] is about one that has one. A
//! device may do the writes that it has under way in any order. So a crash leaves those that
//! were completed, and any of those that were not; and it may tear one of them, in units of a
//! block: every subset of its blocks may be there.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::os::raw::{c_int, c_void};
use std::rc::Rc;

use spdk_lvol_detach::internals::memory_dev::{BLOCK_LEN, Image};
use spdk_sys as sys;

use super::hooked_dev::{self, Hook};

/// Of a torn write with more changed blocks than this only prefixes, suffixes, and those that lack
/// one block are tried. A metadata page has eight.
const MAX_BLOCKS_FOR_ALL_SUBSETS: usize = 8;

#[derive(Debug)]
enum Event {
    Write {
        offset: usize,
        bytes: Vec<u8>,
    },
    Flush,
    /// The write or the flush that is this event was completed, and has worked.
    Completed(usize),
}

/// A write of [`Journal::writes`]: its event, its offset, its bytes, and whether they are there for sure.
pub type Written = (usize, usize, Vec<u8>, bool);

pub struct Journal {
    base: Vec<u8>,
    log: Rc<RefCell<Log>>,
}

#[derive(Default)]
struct Log {
    events: Vec<Event>,
    /// Nothing is noted any more.
    is_closed: bool,
    /// How many writes and flushes work until one fails.
    until_failure: Option<usize>,
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
    /// A journal of what is done to the image from now on by the device with this hook.
    pub fn start(image: &Image) -> (Journal, Hook) {
        let log = Rc::new(RefCell::new(Log::default()));
        let noted = Rc::clone(&log);
        let target = Rc::clone(image);
        let hook: Hook = Box::new(move |event| note(&noted, &target, event));
        (Journal { base: image.borrow().clone(), log }, hook)
    }

    /// Starts again: what was written before is on the device for good.
    pub fn restart(&mut self, image: &Image) {
        self.log.borrow_mut().events.clear();
        self.base.clone_from(&image.borrow());
    }

    /// Notes nothing any more.
    pub fn close(&self) {
        self.log.borrow_mut().is_closed = true;
    }

    /// One write or flush fails: the next one after so many. A write that fails may all the same be
    /// done.
    pub fn fail_after(&self, works: usize) {
        self.log.borrow_mut().until_failure = Some(works);
    }

    /// Whether what [`Journal::fail_after`] asked for has come.
    pub fn has_failed(&self) -> bool {
        self.log.borrow().until_failure.is_none()
    }

    /// How many events there were.
    pub fn now(&self) -> usize {
        self.log.borrow().events.len()
    }

    /// A clock that outlives the borrow.
    pub fn clock(&self) -> impl Fn() -> usize + use<> {
        let log = Rc::clone(&self.log);
        move || log.borrow().events.len()
    }

    /// When each flush that has worked was completed: the event that says so.
    pub fn flushes(&self) -> Vec<usize> {
        let events = &self.log.borrow().events;
        let is_flush = |event: &Event| match event {
            Event::Completed(of) => matches!(events[*of], Event::Flush),
            _ => false,
        };
        (0..events.len()).filter(|&index| is_flush(&events[index])).collect()
    }

    /// What is on the device for sure after the first events, and what else was written by then: each
    /// write with its event, its offset and its bytes, in order. The flag says that it was completed
    /// before a flush was begun which has been completed as well.
    pub fn writes(&self, at: usize) -> (Vec<u8>, Vec<Written>) {
        let events = &self.log.borrow().events;
        let mut completed = BTreeSet::new();
        let mut covered = BTreeMap::new();
        let mut durable = BTreeSet::new();
        for (index, event) in events[..at].iter().enumerate() {
            match event {
                Event::Write { .. } => {}
                Event::Flush => drop(covered.insert(index, completed.clone())),
                Event::Completed(of) => match covered.remove(of) {
                    Some(writes) => durable.extend(writes),
                    None => drop(completed.insert(*of)),
                },
            }
        }
        let writes = events[..at].iter().enumerate().filter_map(|(index, event)| match event {
            Event::Write { offset, bytes } => {
                Some((index, *offset, bytes.clone(), durable.contains(&index)))
            }
            _ => None,
        });
        (self.base.clone(), writes.collect())
    }

    /// Every crash. One that leaves the same as one before it is there again only if something was
    /// `promised` in between, at that count of events. Writes from `data_start` on, which hold
    /// what users have written, are not torn: that one of them may be is up to the user.
    pub fn crashes(&self, promised: &BTreeSet<usize>, data_start: usize) -> Vec<Crash> {
        let mut completed: Vec<usize> = Vec::new();
        let mut in_flight: Vec<usize> = Vec::new();
        let mut crashes = vec![Crash { at: 0, landed: Vec::new(), torn: None }];
        let events = &self.log.borrow().events;
        for (index, event) in events.iter().enumerate() {
            let at = index + 1;
            let newest = match event {
                Event::Write { .. } => Some(index),
                Event::Flush => None,
                Event::Completed(of) if matches!(events[*of], Event::Flush) => None,
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
        let events = &self.log.borrow().events;
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
        let events = &self.log.borrow().events;
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
            _ => unreachable!("only writes land"),
        }
    }
}

fn note(log: &Rc<RefCell<Log>>, image: &Image, event: hooked_dev::Event<'_>) -> c_int {
    let mut noted = log.borrow_mut();
    let index = noted.events.len();
    let event = match event {
        _ if noted.is_closed => return 0,
        hooked_dev::Event::Read { .. } => return 0,
        hooked_dev::Event::Write { offset, bytes } => {
            Event::Write { offset: offset as usize, bytes: bytes.to_vec() }
        }
        hooked_dev::Event::Flush => Event::Flush,
    };
    let fails = noted.until_failure == Some(0);
    noted.until_failure = if fails { None } else { noted.until_failure.map(|count| count - 1) };
    if fails && let Event::Write { offset, bytes } = &event {
        image.borrow_mut()[*offset..offset + bytes.len()].copy_from_slice(bytes);
    }
    noted.events.push(event);
    if fails {
        return -libc::EIO;
    }
    announce_completion(log, index);
    0
}

/// Notes when something is completed: right before SPDK learns of it, as the device sends its own
/// message after this one.
fn announce_completion(log: &Rc<RefCell<Log>>, event: usize) {
    type Note = (Rc<RefCell<Log>>, usize);
    unsafe extern "C" fn note(ctx: *mut c_void) {
        // SAFETY: the box is from below, and comes back once.
        let (log, event) = *unsafe { Box::from_raw(ctx.cast::<Note>()) };
        let mut log = log.borrow_mut();
        if !log.is_closed {
            log.events.push(Event::Completed(event));
        }
    }
    let ctx = Box::into_raw(Box::new((Rc::clone(log), event))).cast();
    // SAFETY: a device is used on an SPDK thread, and the message runs on the same one.
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
