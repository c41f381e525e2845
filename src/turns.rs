//! Limits how many operations run at a time: a fixed number for each lvstore, and none when the target stops.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

use async_lock::{Semaphore, SemaphoreGuardArc};

use crate::base::error::{Error, Result};
use crate::base::task::Rests;
use crate::chain::blob::Blobstore;

/// Each takes some memory and an open descriptor for each lvol of its family, and may wait for a long time. The
/// operations on one lvstore must not block those on another.
const FOR_EACH_STORE: usize = 256;

#[derive(Default)]
struct Turns {
    stores: HashMap<usize, Arc<Semaphore>>,
    under_way: usize,
    are_over: bool,
}

thread_local! {
    /// Of the thread that serves RPCs, which is the one that all operations are on.
    static TURNS: RefCell<Turns> = RefCell::default();
}

/// The permission for one operation to run.
#[derive(Debug)]
pub struct Turn {
    store: usize,
    _permit: SemaphoreGuardArc,
}

/// A turn on a store if one is free. The target doesn't stop before the turn is over.
pub fn try_take(bs: Blobstore) -> Option<Turn> {
    let store = bs.as_ptr() as usize;
    let permit = semaphore(store).try_acquire_arc()?;
    let mut turn = None;
    TURNS.with_borrow_mut(|turns| {
        if !turns.are_over {
            turns.under_way += 1;
            turn = Some(Turn { store, _permit: permit });
        }
    });
    turn
}

/// Waits until a turn on a store is free, which may be gone by then.
pub async fn wait(bs: Blobstore) -> Result<()> {
    if !are_over() {
        semaphore(bs.as_ptr() as usize).acquire_arc().await;
    }
    if are_over() {
        return Err(Error::new(libc::ESHUTDOWN, "the target is about to stop"));
    }
    Ok(())
}

fn semaphore(store: usize) -> Arc<Semaphore> {
    TURNS.with_borrow_mut(|turns| {
        let new = || Arc::new(Semaphore::new(FOR_EACH_STORE));
        Arc::clone(turns.stores.entry(store).or_insert_with(new))
    })
}

impl Drop for Turn {
    fn drop(&mut self) {
        TURNS.with_borrow_mut(|turns| {
            turns.under_way -= 1;
            // One of them is the map's, one the permit's.
            if turns.stores.get(&self.store).is_some_and(|store| Arc::strong_count(store) == 2) {
                turns.stores.remove(&self.store);
            }
        });
    }
}

/// Whether the target is about to stop.
pub fn are_over() -> bool {
    TURNS.with_borrow(|turns| turns.are_over)
}

/// Refuses new operations, and waits for the running ones.
pub async fn end() {
    TURNS.with_borrow_mut(|turns| turns.are_over = true);
    let rests = Rests::start();
    while TURNS.with_borrow(|turns| turns.under_way > 0) {
        rests.rest().await;
    }
}
