//! A device whose writes fail.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::os::raw::c_int;
use std::rc::Rc;

use spdk_lvol_detach::memory_dev::{BLOCK_LEN, Image, WriteHook};

/// Where the superblock has the first metadata page (`struct spdk_bs_super_block`), in pages.
const MD_START: usize = 48;
const MD_PAGE_LEN: usize = 4096;
/// Where a metadata page has the next one of the same blob (`struct spdk_blob_md_page`).
const NEXT: usize = 4088;
/// `SPDK_INVALID_MD_PAGE`
const NO_PAGE: u32 = u32::MAX;

/// What a write that is reported as failed has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    Nothing,
    Half,
    All,
}

/// Which of the writes fail.
#[derive(Debug, Clone, Copy)]
pub struct Fault {
    pub first: usize,
    pub times: usize,
    pub effect: Effect,
}

/// As often as there are writes.
pub const FOR_GOOD: usize = usize::MAX;

pub struct FaultyDev {
    image: Image,
    fault: Fault,
    /// Whether writes may fail now.
    pub on: bool,
    /// Writes while it was on.
    count: usize,
    /// Whether one has failed.
    pub fired: bool,
    /// The superblock, root pages and the like of which there is half.
    torn: BTreeSet<usize>,
    /// New pages that are not there.
    missing: BTreeSet<usize>,
    /// Root pages that refer to those.
    broken: BTreeSet<usize>,
    /// Where the metadata pages start.
    md_start: usize,
    crashes: Vec<Vec<u8>>,
}

impl FaultyDev {
    /// The device, and the hook to make it with.
    pub fn new(image: &Image, fault: Fault) -> (Rc<RefCell<FaultyDev>>, WriteHook) {
        let dev = Rc::new(RefCell::new(FaultyDev {
            image: Rc::clone(image),
            fault,
            on: false,
            count: 0,
            fired: false,
            torn: BTreeSet::new(),
            missing: BTreeSet::new(),
            broken: BTreeSet::new(),
            md_start: read_u32(&image.borrow(), MD_START) as usize,
            crashes: Vec::new(),
        }));
        let hooked = Rc::clone(&dev);
        (dev, Box::new(move |offset, bytes| hooked.borrow_mut().write(offset as usize, bytes)))
    }

    /// What a crash would have left after each write from the first one that failed, but where it
    /// would have left SPDK a page that counts in part or not at all.
    pub fn take_crashes(&mut self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.crashes)
    }

    /// Whether every page that counts is there as a whole. If not, SPDK can't load the blob.
    pub fn is_whole(&self) -> bool {
        self.torn.is_empty() && self.broken.is_empty()
    }

    /// Whether half of the superblock was overwritten.
    pub fn superblock_is_torn(&self) -> bool {
        self.torn.contains(&0)
    }

    fn write(&mut self, offset: usize, bytes: &[u8]) -> c_int {
        let Fault { first, times, effect } = self.fault;
        let fails = self.on && (first..first.saturating_add(times)).contains(&self.count);
        self.count += usize::from(self.on);
        self.fired |= fails;
        let done = match effect {
            Effect::Nothing if fails => 0,
            Effect::Half if fails => bytes.len() / BLOCK_LEN / 2 * BLOCK_LEN,
            _ => bytes.len(),
        };
        self.put(offset, bytes, done);
        if self.on && self.fired && self.is_whole() {
            self.crashes.push(self.image.borrow().clone());
        }
        if fails { -libc::EIO } else { 0 }
    }

    /// Writes the first `done` of the bytes.
    fn put(&mut self, offset: usize, bytes: &[u8], done: usize) {
        let nonzero = |bytes: &[u8]| bytes.iter().any(|&byte| byte != 0);
        let mut image = self.image.borrow_mut();
        let target = &mut image[offset..offset + bytes.len()];
        let old = target.to_vec();
        target[..done].copy_from_slice(&bytes[..done]);
        let (is_new, is_old) = (target == bytes, *target == *old);
        let overwrites = nonzero(&old) && nonzero(bytes);
        drop(image);
        let was_torn = self.torn.contains(&offset);
        note(&mut self.torn, offset, overwrites && !is_new && (was_torn || !is_old));
        note(&mut self.missing, offset, !overwrites && nonzero(bytes) && !is_new);
        if is_new {
            let broken = overwrites && offset != 0 && self.refers_to_missing_page(bytes);
            note(&mut self.broken, offset, broken);
        }
    }

    fn refers_to_missing_page(&self, root: &[u8]) -> bool {
        let image = self.image.borrow();
        let mut next = read_u32(root, NEXT);
        while next != NO_PAGE {
            let offset = (self.md_start + next as usize) * MD_PAGE_LEN;
            if self.missing.contains(&offset) {
                return true;
            }
            next = read_u32(&image[offset..], NEXT);
        }
        false
    }
}

fn note(set: &mut BTreeSet<usize>, offset: usize, is_in: bool) {
    if is_in {
        set.insert(offset);
    } else {
        set.remove(&offset);
    }
}

fn read_u32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}
