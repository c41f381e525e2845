//! Work that is done once for all who wait for it: grace periods and flushes.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod store;

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use spdk_lvol_detach::internals::batch::{self, Batches};
use spdk_lvol_detach::internals::task;
use store::run;

thread_local! {
    static ALL: Batches<&'static str, usize> = Batches::default();
}

/// Work that says how often it has begun, and ends when it is let.
#[derive(Clone, Default)]
struct Work {
    begun: Rc<Cell<usize>>,
    may_end: Rc<Cell<usize>>,
}

impl Work {
    async fn wait_for(cell: &Cell<usize>, count: usize) {
        for _ in 0..100_000 {
            if cell.get() >= count {
                return;
            }
            task::next_round().await;
        }
        panic!("{} instead of {count}, and nothing happens any more", cell.get());
    }

    /// So many who wait for it from here on. What they get comes into the list.
    fn join(&self, key: &'static str, count: usize) -> Rc<RefCell<Vec<Option<usize>>>> {
        let results = Rc::new(RefCell::new(Vec::new()));
        for _ in 0..count {
            let (work, results) = (self.clone(), Rc::clone(&results));
            let body = async move || {
                let number = work.begun.get() + 1;
                work.begun.set(number);
                Work::wait_for(&work.may_end, number).await;
                number
            };
            // SAFETY: this is the test's SPDK thread.
            unsafe {
                task::spawn(async move {
                    let result = batch::join(&ALL, key, body).await;
                    results.borrow_mut().push(result);
                });
            }
        }
        results
    }
}

async fn rounds() {
    for _ in 0..20 {
        task::next_round().await;
    }
}

#[test]
fn who_comes_while_it_is_done_gets_the_next() {
    run(async {
        let work = Work::default();
        let early = work.join("a", 3);
        Work::wait_for(&work.begun, 1).await;
        let late = work.join("a", 2);
        rounds().await;
        assert_eq!((work.begun.get(), early.borrow().len(), late.borrow().len()), (1, 0, 0));

        work.may_end.set(1);
        Work::wait_for(&work.begun, 2).await;
        rounds().await;
        assert_eq!(*early.borrow(), [Some(1); 3]);
        assert_eq!(late.borrow().len(), 0);

        work.may_end.set(2);
        rounds().await;
        assert_eq!(*late.borrow(), [Some(2); 2]);
        assert_eq!(work.begun.get(), 2);

        // Nobody has waited for a while.
        work.may_end.set(3);
        let again = work.join("a", 1);
        rounds().await;
        assert_eq!(*again.borrow(), [Some(3)]);
    });
}

#[test]
fn work_on_one_thing_does_not_wait_for_work_on_another() {
    run(async {
        let (work, other) = (Work::default(), Work::default());
        let waiting = work.join("a", 1);
        Work::wait_for(&work.begun, 1).await;

        other.may_end.set(1);
        let done = other.join("b", 2);
        rounds().await;

        assert_eq!(*done.borrow(), [Some(1); 2]);
        assert_eq!(waiting.borrow().len(), 0);
        work.may_end.set(1);
        rounds().await;
        assert_eq!(*waiting.borrow(), [Some(1)]);
    });
}
