/* SPDX-License-Identifier: BSD-3-Clause */

/*
 * Makes the target that loads it one that has a bdev_lvol_detach_parent of its own.
 */

#include "spdk/stdinc.h"
#include "spdk/rpc.h"

static void
own_method(struct spdk_jsonrpc_request *request, const struct spdk_json_val *params)
{
	spdk_jsonrpc_send_bool_response(request, false);
}
SPDK_RPC_REGISTER("bdev_lvol_detach_parent", own_method, SPDK_RPC_RUNTIME)
