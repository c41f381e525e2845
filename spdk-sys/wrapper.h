/* SPDX-License-Identifier: BSD-3-Clause */

#include "spdk/stdinc.h"
#include "spdk/bdev.h"
#include "spdk/bit_array.h"
#include "spdk/bdev_module.h"
#include "spdk/blob.h"
#include "spdk/crc32.h"
#include "spdk/env.h"
#include "spdk/event.h"
#include "spdk/json.h"
#include "spdk/jsonrpc.h"
#include "spdk/log.h"
#include "spdk/lvol.h"
#include "spdk/rpc.h"
#include "spdk/thread.h"
#include "spdk/version.h"
#include "spdk_internal/lvolstore.h"

#include "compat.h"

/* Private headers of SPDK's blobstore library and lvol module. */
#include "blobstore.h"
#include "vbdev_lvol.h"

/* Casts, which bindgen can't read: src/lib.rs has them again. */
_Static_assert(SPDK_BLOBID_INVALID == UINT64_MAX, "SPDK_BLOBID_INVALID");
_Static_assert(SPDK_BLOBID_EXTERNAL_SNAPSHOT == UINT64_MAX - 1, "SPDK_BLOBID_EXTERNAL_SNAPSHOT");
