/* SPDX-License-Identifier: BSD-3-Clause */

/*
 * In the target that loads it there is no memory for a blobstore.
 */

#include "spdk/stdinc.h"
#include "spdk/env.h"

#include <dlfcn.h>

void *
spdk_zmalloc(size_t size, size_t align, uint64_t *unused, int numa_id, uint32_t flags)
{
	__typeof__(&spdk_zmalloc) zmalloc = dlsym(RTLD_NEXT, "spdk_zmalloc");
	Dl_info caller;

	if (dladdr(__builtin_return_address(0), &caller) != 0 &&
	    strstr(caller.dli_fname, "libspdk_blob.so") != NULL) {
		return NULL;
	}
	return zmalloc(size, align, unused, numa_id, flags);
}
