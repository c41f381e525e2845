//! A model of what a detach does in memory and of the I/O that runs meanwhile, explored in every
//! interleaving. A detach holds back no I/O, so this is where its safety is demonstrated.
//!
//! An SPDK thread runs each event to its end, but what the event loads is loaded one after the other,
//! while the detach stores on the metadata thread. So each of these loads is a step of its own, and
//! between two of them any other thread may take any number of steps: two and three threads, each with
//! I/O of its own, the metadata thread as well.
//!
//! # Files
//!
//! - [`detach`]: the steps of the detach ([`detach::DETACH`]), and of the user who deletes the parent
//!   once he has the answer.
//! - [`spdk`]: the steps of reads, writes (copy-on-write) and unmaps, as SPDK has them.
//! - [`model`]: the two put together, and what must hold at every moment.
//! - [`state`]: what there is to remember. [`cases`]: which I/Os. [`trace`]: a way to a failure, to read.
//!
//! `tests/explore.rs` explores it, and takes parts out of the detach to see that each is needed.
//!
//! # What stands for what
//!
//! The lvol that is detached is the *root*: a leaf, which is written to, or a snapshot with a *clone*
//! that reads through it. All files are in `lib/blob`, functions without a file in `blobstore.c`.
//!
//! | in the model | in SPDK |
//! |---|---|
//! | [`spdk::Instruction::LookUp`] | `bs_io_unit_is_allocated` (`blobstore.h`): `active.clusters` |
//! | `Load`, then its next step | `blob->back_bs_dev`, then `->blocklen`, in `bs_dev_io_unit_to_lba`, `bs_dev_byte_to_lba`, `bs_io_unit_to_back_dev_lba` (`blobstore.h`) |
//! | `Call`: loads, fetch, run | `blob->back_bs_dev->f(blob->back_bs_dev, lba, count)`: the loads of the pointer for the callee, the argument and the two `blocklen`; the load of `f` and of `blocklen`; the function itself |
//! | `READ` | `blob_request_submit_rw_iov`, `blob_calculate_lba_and_lba_count`, `bs_sequence_readv_bs_dev` (`request.c`) |
//! | the clone's `READ` | the same, to `blob_bs_dev_readv` (`blob_bs_dev.c`), and the same for the root |
//! | `WRITE_TO_ROOT` | `bs_allocate_and_copy_cluster`, `blob_can_copy`, `blob_copy`, `bs_sequence_read_bs_dev` (`request.c`) |
//! | `WRITE_TO_CLONE` | the same, to `blob_bs_translate_lba`, `blob_bs_is_zeroes`, `blob_bs_dev_read` (`blob_bs_dev.c`), and `blob_request_submit_op_single` for the root |
//! | `Code::Blobs` on the former device | `blob_bs_*` (`blob_bs_dev.c`), with the parent as its blob |
//! | `Code::Zeroes` | `zeroes_*` (`zeroes.c`). `zeroes_read` fills `dev->blocklen * lba_count` |
//! | `need_cluster_alloc`, `Queued` | the list of `struct spdk_bs_channel`: one copy-on-write a thread, the rest waits |
//! | `Reading`, `Copying` | a read or copy by the base bdev, which may take any time |
//! | `Inserting`, `Inserted` | `blob_insert_cluster_on_md_thread`, `blob_insert_cluster_msg` with its `-EEXIST`; then `blob_op_cluster_msg_cpl` and, in that event, `blob_allocate_and_copy_cluster_cpl` |
//! | `UNMAP`, `GivingBack` | `blob_request_submit_op_single`, `blob_backed_with_zeroes_dev` (`zeroes.c`), `blob_free_cluster_msg` |
//! | [`detach::Step::Walk`] | `spdk_for_each_channel` (`lib/thread/thread.c`), the threads in any order |
//! | `DeleteParent`, `ReuseCluster` | `spdk_bs_delete_blob`, and a write by whoever gets the cluster |
//!
//! Each I/O is to one and the same cluster. Writes go beside the block that is followed, so that what a
//! copy-on-write puts there stays to be seen. [`spdk::observe`] reads that block after each step, on one
//! more thread.
//!
//! # What must hold
//!
//! - No function is called with what belongs to another device: not with the device, an lba or a count
//!   of the other's, nor is the parent asked about clusters beyond its end.
//! - The former device and the parent's blob aren't used once they are freed.
//! - After the reply nothing of the parent is delivered, and none of it gets into a new cluster.
//! - A block that was read as zeroes isn't read as the parent's data later. So it is the parent's until it
//!   is zeroes, or until the copy is the lvol's own, for good.
//! - What is in a new cluster is the parent's data or zeroes, all of it.
//! - No I/O waits for the detach. The detach ends when the I/O of its family does, whatever others do.
//!
//! # Why it is enough
//!
//! - *More I/O, more threads.* I/Os meet only in a cluster of their own, in `need_cluster_alloc`, and in
//!   what the detach does. Three of them show a copy-on-write that another overtakes while a third reads.
//! - *Orders.* In C the loads of an expression come in any order, and a compiler may do one for several.
//!   `back_bs_dev` changes once, so only what lies on which side of that matters: each mix is tried.
//!   Between look-up, lba and call there are calls to other files, so that their order is SPDK's own.
//! - *Weakly ordered memory.* Loads of one field by one thread never go back to an older value. The
//!   functions are different fields: `is_range_valid` is stored last, with release, and what is stored
//!   there begins with an acquire fence. Everything else has a walk in between, whose messages order it.
//! - *`blocklen`*: 4,096 here. With 512, as the zeroes device has, fewer mixes do harm.
//! - *Deeper chains.* What lies between the root and a descendant stays as it is. What lies behind the
//!   parent is the parent's data, its lack of it, or its end.
//! - *Left out*: errors and -ENOMEM, after which an I/O is over or begins anew; frozen I/O of the family,
//!   which its locks keep off (that of the parent is there: `spdk::complete`); allocation of clusters; what
//!   the metadata thread alone loads, such as `is_degraded`; loads whose value nobody uses, next to others
//!   in the same event.
//!
//! # Releases
//!
//! 24.01 has no `is_range_valid`, and looks for clusters beyond the parent's end by itself: that case is
//! left out for it. Nor does an unmap give a cluster back there. In 24.09 an unmap gives one back whether
//! the blob is locked or not; only with the zeroes device behind it, though, so that the lock makes no
//! difference here. In 26.05 messages to the metadata thread may wait in a queue: they take longer.
//! Otherwise 24.09, 25.05, 26.01 and 26.05 have the same steps.

pub mod cases;
pub mod detach;
pub mod model;
pub mod spdk;
pub mod state;
pub mod trace;
