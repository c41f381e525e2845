//! Work that is done once for all who wait for it when it begins.

use std::cell::RefCell;
use std::collections::HashMap;
use std::hash::Hash;
use std::thread::LocalKey;

use crate::base::task;

/// Who waits for the next batch of work, by what the work is on. An entry means that a task does that
/// work.
pub type Batches<K, T> = RefCell<HashMap<K, Vec<oneshot::Sender<T>>>>;

/// The result of work on `key` that begins after this call. The first who waits does it for all
/// others: what they bring is not run. `None` never comes, as who does it never gives up.
pub async fn join<K, T>(
    all: &'static LocalKey<Batches<K, T>>,
    key: K,
    work: impl AsyncFn() -> T + 'static,
) -> Option<T>
where
    K: Copy + Eq + Hash,
    T: Clone,
{
    let (sender, receiver) = oneshot::channel();
    let is_first = all.with_borrow_mut(|all| {
        let waiters = all.get_mut(&key);
        let is_first = waiters.is_none();
        match waiters {
            Some(waiters) => waiters.push(sender),
            None => drop(all.insert(key, vec![sender])),
        }
        is_first
    });
    if is_first {
        // SAFETY: tasks run on one SPDK thread, where work has its callbacks.
        unsafe { task::spawn(serve(all, key, work)) };
    }
    receiver.await.ok()
}

/// `work` runs only while somebody waits for it.
async fn serve<K: Copy + Eq + Hash, T: Clone>(
    all: &'static LocalKey<Batches<K, T>>,
    key: K,
    work: impl AsyncFn() -> T,
) {
    loop {
        // Those who come in this round of the thread's come along.
        task::next_round().await;
        let waiters = all.with_borrow_mut(|all| {
            let waiters = all.get_mut(&key).map(std::mem::take).unwrap_or_default();
            if waiters.is_empty() {
                all.remove(&key);
            }
            waiters
        });
        if waiters.is_empty() {
            return;
        }
        let result = work().await;
        for waiter in waiters {
            // Waiters never give up.
            let _ = waiter.send(result.clone());
        }
    }
}
