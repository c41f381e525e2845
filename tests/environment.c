/* SPDX-License-Identifier: BSD-3-Clause */

/*
 * Gives the target that loads it an RPC which says what of LD_PRELOAD its children would get.
 */

#include "spdk/stdinc.h"
#include "spdk/jsonrpc.h"
#include "spdk/rpc.h"

static void
get_preload(struct spdk_jsonrpc_request *request, const struct spdk_json_val *params)
{
	struct spdk_json_write_ctx *w = spdk_jsonrpc_begin_result(request);

	spdk_json_write_string(w, getenv("LD_PRELOAD") ?: "");
	spdk_jsonrpc_end_result(request, w);
}
SPDK_RPC_REGISTER("get_preload", get_preload, SPDK_RPC_RUNTIME)
