//! A device whose I/O fails.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::os::raw::c_int;
use std::rc::Rc;

use spdk_lvol_detach::internals::memory_dev::{BLOCK_LEN, Image};

use super::hooked_dev::{Event, Hook};

/// What a write that is reported as failed has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    Nothing,
    Half,
    All,
}

/// What may fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Io {
    Any,
    Write,
    Flush,
}

/// Which of them fail.
#[derive(Debug, Clone, Copy)]
pub struct Fault {
    pub io: Io,
    pub first: usize,
    pub times: usize,
    pub effect: Effect,
}

/// As often as there are any.
pub const FOR_GOOD: usize = usize::MAX;

pub struct FaultyDev {
    image: Image,
    fault: Fault,
    /// Whether something may fail now.
    on: bool,
    /// How often something has come that may fail.
    count: usize,
    /// Whether anything has failed.
    pub fired: bool,
    /// How many writes and flushes have failed.
    pub failed_changes: usize,
    /// Whether a write came after the last flush that worked.
    pub is_unflushed: bool,
    /// The pages of which there is half.
    torn: BTreeSet<usize>,
    crashes: Vec<Vec<u8>>,
}

impl FaultyDev {
    /// The device, and the hook to make it with.
    pub fn new(image: &Image, fault: Fault) -> (Rc<RefCell<FaultyDev>>, Hook) {
        let dev = Rc::new(RefCell::new(FaultyDev {
            image: Rc::clone(image),
            fault,
            on: false,
            count: 0,
            fired: false,
            failed_changes: 0,
            is_unflushed: false,
            torn: BTreeSet::new(),
            crashes: Vec::new(),
        }));
        let hooked = Rc::clone(&dev);
        (dev, Box::new(move |event| hooked.borrow_mut().ask(event)))
    }

    /// From now on something may fail, or not any more.
    pub fn turn(&mut self, on: bool) {
        self.on = on;
        self.is_unflushed = false;
    }

    /// What a crash would have left each time from the first failure on, but where it would have left
    /// SPDK a page in part.
    pub fn take_crashes(&mut self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.crashes)
    }

    /// Whether every page is there as a whole. If not, SPDK can't load its blob.
    pub fn is_whole(&self) -> bool {
        self.torn.is_empty()
    }

    fn ask(&mut self, event: Event<'_>) -> c_int {
        let may_fail = match self.fault.io {
            Io::Any => true,
            Io::Write => matches!(event, Event::Write { .. }),
            Io::Flush => matches!(event, Event::Flush),
        };
        let fails = self.on && may_fail && self.fails_next();
        match event {
            Event::Read { .. } => {}
            Event::Write { offset, bytes } => self.write(offset as usize, bytes, fails),
            Event::Flush => self.is_unflushed &= fails,
        }
        if fails && !matches!(event, Event::Read { .. }) {
            self.failed_changes += 1;
        }
        if self.on && self.fired && self.is_whole() {
            self.crashes.push(self.image.borrow().clone());
        }
        if fails { -libc::EIO } else { 0 }
    }

    fn fails_next(&mut self) -> bool {
        let Fault { first, times, .. } = self.fault;
        let fails = (first..first.saturating_add(times)).contains(&self.count);
        self.count += 1;
        self.fired |= fails;
        fails
    }

    fn write(&mut self, offset: usize, bytes: &[u8], fails: bool) {
        let done = match self.fault.effect {
            Effect::Nothing if fails => 0,
            Effect::Half if fails => bytes.len() / BLOCK_LEN / 2 * BLOCK_LEN,
            _ => bytes.len(),
        };
        let mut image = self.image.borrow_mut();
        let target = &mut image[offset..offset + bytes.len()];
        let old = target.to_vec();
        target[..done].copy_from_slice(&bytes[..done]);
        let was_torn = self.torn.contains(&offset);
        let is_torn = *target != *bytes && (was_torn || *target != *old);
        if is_torn {
            self.torn.insert(offset);
        } else {
            self.torn.remove(&offset);
        }
        self.is_unflushed = true;
    }
}
