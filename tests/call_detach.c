/* SPDX-License-Identifier: BSD-3-Clause */

/*
 * Gives the target that loads it RPCs which call lvol_detach_from_parent and lvol_detach_check, found as a plugin
 * would find them, and say what the callbacks were given.
 */

#include "spdk/stdinc.h"
#include "spdk/jsonrpc.h"
#include "spdk/lvol.h"
#include "spdk/rpc.h"
#include "spdk/thread.h"
#include "spdk/util.h"
#include "spdk_internal/lvolstore.h"

#include "blobstore.h"
#include "spdk_lvol_detach.h"

#include <dlfcn.h>

/* What a callback on a thread that didn't call leaves in place of the outcome. */
#define WRONG_THREAD 1
/* When the target has not started yet. */
#define NO_CALLBACK 2

typedef void (*detach_fn)(struct spdk_lvol *, lvol_detach_op_complete, void *);

struct params {
	char *lvs;
	char *lvol;
	char *made_up;
	char *from;
	uint32_t times;
};

struct call {
	struct spdk_jsonrpc_request *request;
	struct spdk_lvol *lvol;
	struct spdk_lvol made_up;
	struct spdk_thread *thread;
	pthread_t pthread;
	uint32_t times;
	/* How many callbacks have come, and what each was given. */
	uint32_t count;
	int outcomes[8];
	bool is_last_look;
	struct spdk_poller *poller;
};

static detach_fn g_detach;
static int g_early = NO_CALLBACK;

static void
early_done(void *cb_arg, int lvolerrno)
{
	g_early = lvolerrno;
}

__attribute__((constructor)) static void
call_early(void)
{
	g_detach = (detach_fn)dlsym(RTLD_DEFAULT, "lvol_detach_from_parent");
	if (g_detach != NULL) {
		/* The lvol isn't looked at. */
		g_detach((struct spdk_lvol *)16, early_done, NULL);
	}
}

static void
done(void *cb_arg, int lvolerrno)
{
	struct call *call = cb_arg;
	bool is_same = spdk_get_thread() == call->thread &&
		       (call->thread != NULL || pthread_equal(pthread_self(), call->pthread));

	if (call->count < SPDK_COUNTOF(call->outcomes)) {
		call->outcomes[call->count] = is_same ? lvolerrno : WRONG_THREAD;
	}
	__atomic_add_fetch(&call->count, 1, __ATOMIC_RELEASE);
}

static void
call_detach(void *arg)
{
	struct call *call = arg;
	uint32_t i;

	call->thread = spdk_get_thread();
	call->pthread = pthread_self();
	for (i = 0; i < call->times; i++) {
		g_detach(call->lvol, done, call);
	}
}

/* As if the lvstore had been loaded on another thread. */
static void
call_for_another(struct call *call)
{
	struct spdk_blob_store *bs = call->lvol->lvol_store->blobstore;
	struct spdk_thread *md_thread = bs->md_thread;

	bs->md_thread = NULL;
	call_detach(call);
	bs->md_thread = md_thread;
}

static void
call_and_exit(void *arg)
{
	call_detach(arg);
	spdk_thread_exit(spdk_get_thread());
}

static void *
call_on_pthread(void *arg)
{
	call_detach(arg);
	return NULL;
}

/* Answers when all callbacks have come, and some time after that, in which one too many would come. */
static int
look(void *arg)
{
	struct call *call = arg;
	struct spdk_json_write_ctx *w;
	uint32_t i, count = __atomic_load_n(&call->count, __ATOMIC_ACQUIRE);

	if (count < call->times) {
		return SPDK_POLLER_IDLE;
	}
	if (!call->is_last_look) {
		call->is_last_look = true;
		return SPDK_POLLER_IDLE;
	}
	w = spdk_jsonrpc_begin_result(call->request);
	spdk_json_write_array_begin(w);
	for (i = 0; i < spdk_min(count, SPDK_COUNTOF(call->outcomes)); i++) {
		spdk_json_write_int32(w, call->outcomes[i]);
	}
	spdk_json_write_array_end(w);
	spdk_jsonrpc_end_result(call->request, w);
	spdk_poller_unregister(&call->poller);
	free(call);
	return SPDK_POLLER_BUSY;
}

static const struct spdk_json_object_decoder g_decoders[] = {
	{"lvs", offsetof(struct params, lvs), spdk_json_decode_string, true},
	{"lvol", offsetof(struct params, lvol), spdk_json_decode_string, true},
	{"made_up", offsetof(struct params, made_up), spdk_json_decode_string, true},
	{"from", offsetof(struct params, from), spdk_json_decode_string},
	{"times", offsetof(struct params, times), spdk_json_decode_uint32},
};

static void
rpc_call_detach(struct spdk_jsonrpc_request *request, const struct spdk_json_val *json)
{
	struct params params = {};
	struct call *call = calloc(1, sizeof(*call));
	pthread_t pthread;

	if (call == NULL || g_detach == NULL ||
	    spdk_json_decode_object(json, g_decoders, SPDK_COUNTOF(g_decoders), &params) != 0) {
		spdk_jsonrpc_send_error_response(request, SPDK_JSONRPC_ERROR_INVALID_PARAMS, "no function");
		free(call);
		return;
	}
	call->request = request;
	call->times = params.times;
	if (params.made_up != NULL) {
		/* As one that is not open yet: it has an id, and no bdev. */
		snprintf(call->made_up.unique_id, sizeof(call->made_up.unique_id), "%s", params.made_up);
		call->lvol = &call->made_up;
	} else if (params.lvs != NULL && params.lvol != NULL) {
		call->lvol = spdk_lvol_get_by_names(params.lvs, params.lvol);
	}
	if (strcmp(params.from, "app thread") == 0) {
		call_detach(call);
	} else if (strcmp(params.from, "app thread, but not the lvstore's") == 0) {
		call_for_another(call);
	} else if (strcmp(params.from, "another SPDK thread") == 0) {
		spdk_thread_send_msg(spdk_thread_create("another", NULL), call_and_exit, call);
	} else {
		pthread_create(&pthread, NULL, call_on_pthread, call);
		pthread_join(pthread, NULL);
	}
	call->poller = spdk_poller_register(look, call, 20 * 1000);
	free(params.lvs);
	free(params.lvol);
	free(params.made_up);
	free(params.from);
}
SPDK_RPC_REGISTER("call_detach", rpc_call_detach, SPDK_RPC_RUNTIME)

/* Without a callback nothing is done, and nobody can be told. */
static void
rpc_call_without_callback(struct spdk_jsonrpc_request *request, const struct spdk_json_val *params)
{
	g_detach(spdk_lvol_get_by_names("lvs", "vol"), NULL, NULL);
	spdk_jsonrpc_send_bool_response(request, true);
}
SPDK_RPC_REGISTER("call_without_callback", rpc_call_without_callback, SPDK_RPC_RUNTIME)

typedef void (*check_fn)(struct spdk_lvol *, bool, lvol_detach_check_complete, void *);

/* A check, and whom to answer. It is gone when it is answered: a second callback would be for nothing. */
struct check {
	struct spdk_jsonrpc_request *request;
	struct spdk_lvol *lvol;
	struct spdk_thread *thread;
	bool ranges;
};

static void
checked(void *cb_arg, const char *json, int lvolerrno)
{
	struct check *check = cb_arg;
	struct spdk_json_write_ctx *w;

	if (spdk_get_thread() != check->thread) {
		spdk_jsonrpc_send_error_response(check->request, WRONG_THREAD, "another thread");
	} else if (lvolerrno != 0) {
		spdk_jsonrpc_send_error_response(check->request, lvolerrno, json ? json : "no text");
	} else {
		w = spdk_jsonrpc_begin_result(check->request);
		spdk_json_write_val_raw(w, json, strlen(json));
		spdk_jsonrpc_end_result(check->request, w);
	}
	free(check);
}

static void
call_check(void *arg)
{
	struct check *check = arg;
	check_fn function = (check_fn)dlsym(RTLD_DEFAULT, "lvol_detach_check");

	check->thread = spdk_get_thread();
	function(check->lvol, check->ranges, checked, check);
}

static void
call_check_and_exit(void *arg)
{
	call_check(arg);
	spdk_thread_exit(spdk_get_thread());
}

/* `times` is 1 for a check with ranges. */
static void
rpc_call_check(struct spdk_jsonrpc_request *request, const struct spdk_json_val *json)
{
	struct params params = {};
	struct check *check = calloc(1, sizeof(*check));

	if (check == NULL ||
	    spdk_json_decode_object(json, g_decoders, SPDK_COUNTOF(g_decoders), &params) != 0 ||
	    params.lvs == NULL || params.lvol == NULL) {
		spdk_jsonrpc_send_error_response(request, SPDK_JSONRPC_ERROR_INVALID_PARAMS, "params");
		free(check);
		return;
	}
	check->request = request;
	check->lvol = spdk_lvol_get_by_names(params.lvs, params.lvol);
	check->ranges = params.times == 1;
	if (strcmp(params.from, "app thread") == 0) {
		call_check(check);
	} else {
		spdk_thread_send_msg(spdk_thread_create("another", NULL), call_check_and_exit, check);
	}
	free(params.lvs);
	free(params.lvol);
	free(params.from);
}
SPDK_RPC_REGISTER("call_check", rpc_call_check, SPDK_RPC_RUNTIME)

/* What came of the call before the target had started. */
static void
rpc_get_early(struct spdk_jsonrpc_request *request, const struct spdk_json_val *params)
{
	struct spdk_json_write_ctx *w = spdk_jsonrpc_begin_result(request);

	spdk_json_write_int32(w, g_early);
	spdk_jsonrpc_end_result(request, w);
}
SPDK_RPC_REGISTER("get_early", rpc_get_early, SPDK_RPC_RUNTIME)
