/* SPDX-License-Identifier: BSD-3-Clause */

/*
 * As long as there is a file "no_messages" next to this library, there is no memory for the
 * extension's messages to SPDK threads.
 */

#include "spdk/stdinc.h"
#include "spdk/thread.h"

#include <dlfcn.h>

static bool
is_extension(spdk_msg_fn fn)
{
	Dl_info info;

	return dladdr((void *)fn, &info) != 0 && strstr(info.dli_fname, "lvol_detach") != NULL;
}

static bool
is_switched_on(void)
{
	char path[PATH_MAX];
	Dl_info info;

	if (dladdr((void *)is_switched_on, &info) == 0) {
		return false;
	}
	snprintf(path, sizeof(path), "%.*s/no_messages",
		 (int)(strrchr(info.dli_fname, '/') - info.dli_fname), info.dli_fname);
	return access(path, F_OK) == 0;
}

int
spdk_thread_send_msg(const struct spdk_thread *thread, spdk_msg_fn fn, void *ctx)
{
	__typeof__(&spdk_thread_send_msg) send_msg = dlsym(RTLD_NEXT, "spdk_thread_send_msg");

	if (is_extension(fn) && is_switched_on()) {
		return -ENOMEM;
	}
	return send_msg(thread, fn, ctx);
}
