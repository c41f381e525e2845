//! SPDK's lists, as `sys/queue.h` makes them.

use std::ptr::NonNull;

/// The elements of a `TAILQ`, from the first on; `next` is an element's `link.tqe_next`.
pub fn elements<T>(first: *mut T, next: impl Fn(*mut T) -> *mut T) -> impl Iterator<Item = *mut T> {
    std::iter::successors(NonNull::new(first), move |element| NonNull::new(next(element.as_ptr())))
        .map(NonNull::as_ptr)
}

/// `TAILQ_REMOVE(&head, element, link)`. The element must be in the list, which nobody else uses meanwhile.
macro_rules! tailq_remove {
    ($head:expr, $element:expr) => {{
        let (next, prev) = ((*$element).link.tqe_next, (*$element).link.tqe_prev);
        if next.is_null() {
            $head.tqh_last = prev;
        } else {
            (*next).link.tqe_prev = prev;
        }
        *prev = next;
    }};
}
pub(crate) use tailq_remove;
