/* SPDX-License-Identifier: BSD-3-Clause */

/*
 * What differs between SPDK's releases, found out from the tree.
 */

/* Subsystems became public with 26.05. */
#if __has_include("spdk_internal/init.h")
#include "spdk_internal/init.h"
#else
#include "spdk/init.h"
#endif
