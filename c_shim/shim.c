/* SPDX-License-Identifier: BSD-3-Clause */

/*
 * What Rust can't say: SPDK's registration macros, which make constructors.
 */

#include "spdk/stdinc.h"
#include "spdk/log.h"
#include "compat.h"

void lvol_detach_init(void);
void lvol_detach_fini(void);

static struct spdk_subsystem lvol_detach = {
	.name = "lvol_detach",
	.init = lvol_detach_init,
	.fini = lvol_detach_fini,
};

SPDK_SUBSYSTEM_REGISTER(lvol_detach)
SPDK_SUBSYSTEM_DEPEND(lvol_detach, bdev)
SPDK_LOG_REGISTER_COMPONENT(lvol_detach)
