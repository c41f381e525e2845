/* SPDX-License-Identifier: BSD-3-Clause */

/** \file
 * Detaches an lvol from its parent snapshot by rewriting only metadata
 *
 * The functions are in libspdk_lvol_detach.so and libspdk_lvol_detach.a, for applications that use SPDK's
 * bdev layer. The library is an SPDK subsystem, lvol_detach, which registers itself. When the
 * application starts its subsystems (spdk_app_start() does), the guard runs: it verifies on an lvstore in memory
 * that the library was built for the running SPDK. Until the guard has passed, every operation is
 * refused with -ENOTSUP. That includes applications whose subsystems have not started yet or never do, a library
 * loaded by dlopen() after they have started, and a library built for another SPDK. The log says which.
 *
 * Operations run on one SPDK thread: the one that the subsystems were started on, the app thread. It is the
 * metadata thread of every lvstore that the bdev layer has loaded.
 */

#ifndef SPDK_LVOL_DETACH_H
#define SPDK_LVOL_DETACH_H

#include <stdbool.h>

#ifdef __cplusplus
extern "C" {
#endif

/** The version of this header. */
#define LVOL_DETACH_VERSION "0.2.0"
#define LVOL_DETACH_VERSION_MAJOR 0
#define LVOL_DETACH_VERSION_MINOR 2
#define LVOL_DETACH_VERSION_PATCH 0

struct spdk_lvol;

/**
 * Callback definition for operations on an lvol. It is SPDK's spdk_lvol_op_complete.
 *
 * \param cb_arg Custom arguments
 * \param lvolerrno 0 on success, or negative errno
 */
typedef void (*lvol_detach_op_complete)(void *cb_arg, int lvolerrno);

/**
 * Detach an lvol from its parent snapshot.
 *
 * The lvol is then thin provisioned and has no parent: clusters that it owns read as before, all others
 * read as zeroes. Data that only its ancestors hold is no longer visible through it or its
 * clones. Nothing is allocated, copied or freed, and no I/O is held back. The lvol may be a snapshot, and have
 * clones of its own.
 *
 * After 0 the lvol has no parent, in memory and on the device, flushed if the device has a cache that can be
 * flushed: a crash doesn't bring the parent back. No I/O goes through the former parent any more, which may be
 * deleted at once. After an error nothing has changed, unless it is -ENOTRECOVERABLE.
 *
 * cb_fn is called exactly once, on the thread that calls this function, and possibly before it returns. It may
 * call any function of this library and of SPDK, as an spdk_msg_fn may.
 *
 * The lvol need not stay open meanwhile. If it is deleted while the operation is still queued, the result is
 * -ENODEV. Once the operation has started, the lvol's deletion waits until it is detached.
 *
 * lvolerrno is 0, or
 * -ENOTSUP if the guard has not passed; on any thread;
 * -EPERM if the current thread is not the app thread, or not the metadata thread of the lvol's lvstore;
 * -EINVAL if lvol is NULL, has no parent, or its parent is an external snapshot;
 * -ENODEV if the lvol has no bdev: it is being opened or deleted, or was never given one;
 * -EBUSY if another operation on the lvol, its parent, or an lvol that reads through it has been in progress
 * for 3 s;
 * -EUCLEAN if the state of its chain in memory can't be right, as after an operation that failed half-way;
 * -EILSEQ if its metadata on the device is not what is in memory;
 * -EIO, or another error from the device, if the metadata write or the flush failed, and the old metadata was
 * written back;
 * -ECANCELED, like -EIO: SPDK has dropped a request that was in progress;
 * -ENOTRECOVERABLE if writing the old metadata back failed as well: the lvol still has its parent, but may come
 * up without it after a restart;
 * -ESHUTDOWN if the application is about to stop;
 * -ENOMEM if out of memory.
 * The log has a line for each, with the name of the lvol and what is wrong.
 *
 * \param lvol Handle to the lvol, as provided by SPDK. It is accessed during the call only, on the app thread.
 * \param cb_fn Completion callback. Without one nothing is done.
 * \param cb_arg Completion callback custom arguments
 */
void lvol_detach_from_parent(struct spdk_lvol *lvol, lvol_detach_op_complete cb_fn, void *cb_arg);

/**
 * Callback definition for a check.
 *
 * \param cb_arg Custom arguments
 * \param json The result of the JSON-RPC method bdev_lvol_check_detach_parent, an object, as text that ends with
 * a NUL. It is valid until the callback returns. NULL after an error.
 * \param lvolerrno 0 on success, or negative errno
 */
typedef void (*lvol_detach_check_complete)(void *cb_arg, const char *json, int lvolerrno);

/**
 * Say what lvol_detach_from_parent() would do to an lvol, and change nothing.
 *
 * The result says what the lvol and everything that reads through it would lose, whether a detach would be done or
 * with which error it would be refused ("refusal"), and whether it could be undone. docs/jsonrpc.md describes it.
 *
 * cb_fn is called as for lvol_detach_from_parent(), and lvol is accessed in the same way. An lvol of the chain that
 * is deleted meanwhile is deleted when the check is done with it.
 *
 * lvolerrno is 0, also if a detach would be refused, or
 * -ENOTSUP, -EPERM, -ENODEV, -ESHUTDOWN or -ENOMEM as for lvol_detach_from_parent();
 * -EINVAL if lvol is NULL;
 * -EBUSY if the chain has changed each time that it was looked at.
 *
 * \param lvol Handle to the lvol, as provided by SPDK
 * \param ranges Whether the result has which clusters would be lost
 * \param cb_fn Completion callback. Without one nothing is done.
 * \param cb_arg Completion callback custom arguments
 */
void lvol_detach_check(struct spdk_lvol *lvol, bool ranges, lvol_detach_check_complete cb_fn,
		       void *cb_arg);

/**
 * Get the version of the library that is linked or loaded. Any thread may call it, at any time.
 *
 * \return LVOL_DETACH_VERSION of the library; it stays valid.
 */
const char *lvol_detach_version(void);

#ifdef __cplusplus
}
#endif

#endif /* SPDK_LVOL_DETACH_H */
