/* SPDX-License-Identifier: BSD-3-Clause */

/*
 * An SPDK application of its own that detaches the lvol lvs/vol from its parent snapshot lvs/snap, and says
 * before what that would do. SPDK makes both from the configuration, on a malloc bdev. The Makefile beside it says how it is linked.
 *
 *	make SPDK_ROOT_DIR=/path/to/spdk
 *	./detach --no-huge -s 1024 --no-pci -c ../chain.json
 */

#include "spdk/stdinc.h"
#include "spdk/event.h"
#include "spdk/lvol.h"
#include "spdk/string.h"

#include "spdk_lvol_detach.h"

static int
count_clone(void *cb_arg, struct spdk_lvol *clone)
{
	int *count = cb_arg;

	(*count)++;
	return 0;
}

/* How many lvols have lvs/snap as their parent. */
static int
count_clones(void)
{
	struct spdk_lvol *snapshot = spdk_lvol_get_by_names("lvs", "snap");
	int count = 0, rc;

	if (snapshot == NULL) {
		return -ENODEV;
	}
	rc = spdk_lvol_iter_immediate_clones(snapshot, count_clone, &count);
	return rc < 0 ? rc : count;
}

static void
detached(void *cb_arg, int lvolerrno)
{
	int clones = count_clones();

	if (lvolerrno != 0) {
		fprintf(stderr, "lvs/vol could not be detached: %s\n", spdk_strerror(-lvolerrno));
		spdk_app_stop(1);
		return;
	}
	printf("lvs/vol is detached: lvs/snap has %d clones\n", clones);
	spdk_app_stop(clones == 0 ? 0 : 1);
}

static void
checked(void *cb_arg, const char *json, int lvolerrno)
{
	struct spdk_lvol *lvol = cb_arg;

	if (lvolerrno != 0) {
		fprintf(stderr, "lvs/vol could not be checked: %s\n", spdk_strerror(-lvolerrno));
		spdk_app_stop(1);
		return;
	}
	/* For a program of its own to parse; see "refusal" and "num_lost_clusters". */
	printf("%s\n", json);
	lvol_detach_from_parent(lvol, detached, NULL);
}

static void
started(void *ctx)
{
	struct spdk_lvol *lvol = spdk_lvol_get_by_names("lvs", "vol");

	if (lvol == NULL) {
		fprintf(stderr, "there is no lvol lvs/vol: is chain.json the configuration?\n");
		spdk_app_stop(1);
		return;
	}
	printf("spdk_lvol_detach %s: lvs/snap has %d clones\n", lvol_detach_version(), count_clones());
	lvol_detach_check(lvol, false, checked, lvol);
}

int
main(int argc, char **argv)
{
	struct spdk_app_opts opts;
	int rc;

	spdk_app_opts_init(&opts, sizeof(opts));
	opts.name = "detach";
	opts.rpc_addr = NULL;
	rc = spdk_app_parse_args(argc, argv, &opts, NULL, NULL, NULL, NULL);
	if (rc != SPDK_APP_PARSE_ARGS_SUCCESS) {
		return rc == SPDK_APP_PARSE_ARGS_HELP ? 0 : 1;
	}
	rc = spdk_app_start(&opts, started, NULL);
	spdk_app_fini();
	return rc == 0 ? 0 : 1;
}
