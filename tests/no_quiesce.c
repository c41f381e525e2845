/* SPDX-License-Identifier: BSD-3-Clause */

/*
 * The first time that the target which loads it quiesces a range of a bdev, there is no memory.
 */

#include "spdk/stdinc.h"
#include "spdk/bdev_module.h"

#include <dlfcn.h>

int
spdk_bdev_quiesce_range(struct spdk_bdev *bdev, struct spdk_bdev_module *module,
			uint64_t offset, uint64_t length,
			spdk_bdev_quiesce_cb cb_fn, void *cb_arg)
{
	static bool called;
	__typeof__(&spdk_bdev_quiesce_range) quiesce_range = dlsym(RTLD_NEXT, "spdk_bdev_quiesce_range");

	if (!called) {
		called = true;
		return -ENOMEM;
	}
	return quiesce_range(bdev, module, offset, length, cb_fn, cb_arg);
}
