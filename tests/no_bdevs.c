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
	opts.rpc_addr = NULL;
	rc = spdk_app_parse_args(argc, argv, &opts, NULL, NULL, NULL, NULL);
	if (rc != SPDK_APP_PARSE_ARGS_SUCCESS) {
		return 1;
	}
	rc = spdk_app_start(&opts, started, NULL);
	spdk_app_fini();
	return rc;
}
