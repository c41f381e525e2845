/* SPDX-License-Identifier: BSD-3-Clause */

/*
 * An SPDK application that has subsystems, but no bdevs. It starts and ends.
 */

#include "spdk/stdinc.h"
#include "spdk/event.h"

static void
started(void *ctx)
{
	spdk_app_stop(0);
}

int
main(int argc, char **argv)
{
	struct spdk_app_opts opts;
	int rc;

	spdk_app_opts_init(&opts, sizeof(opts));
	opts.name = "no_bdevs";
	opts.no_huge = true;
	opts.mem_size = 256;
	opts.no_pci = true;
	opts.rpc_addr = NULL;
	opts.num_entries = 0;
	opts.disable_cpumask_locks = true;
	rc = spdk_app_start(&opts, started, NULL);
	spdk_app_fini();
	return rc;
}
