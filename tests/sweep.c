/* SPDX-License-Identifier: BSD-3-Clause */

/*
 * Lets a test choose which writes of a base bdev fail, the n-th and no other, also while an lvstore is
 * being loaded from it; and reads and writes lvols, so that a look at one takes no time.
 */

#include "spdk/stdinc.h"
#include "spdk/bdev_module.h"
#include "spdk/blob.h"
#include "spdk/env.h"
#include "spdk/json.h"
#include "spdk/rpc.h"
#include "spdk/string.h"
#include "spdk/thread.h"
#include "spdk_internal/lvolstore.h"
/* For what a blob really reads through: SPDK's lists may say something else. */
#include "../lib/blob/blobstore.h"

#include <dlfcn.h>
#include <malloc.h>

/* The only module whose bdevs are told to fail. */
#define BASE_MODULE "aio"

static const struct spdk_bdev_fn_table *g_base_fn_table;
static struct spdk_bdev_fn_table g_failing_fn_table;
/* Writes since sweep_arm, and which of them fail. */
static uint64_t g_writes;
static uint64_t g_first_to_fail = UINT64_MAX;
static uint64_t g_num_to_fail;

static bool
is_write(const struct spdk_bdev_io *bdev_io)
{
	switch (bdev_io->type) {
	case SPDK_BDEV_IO_TYPE_WRITE:
	case SPDK_BDEV_IO_TYPE_WRITE_ZEROES:
	case SPDK_BDEV_IO_TYPE_UNMAP:
		return true;
	default:
		return false;
	}
}

static void
submit_request(struct spdk_io_channel *ch, struct spdk_bdev_io *bdev_io)
{
	if (is_write(bdev_io)) {
		uint64_t number = ++g_writes;

		if (number >= g_first_to_fail && number - g_first_to_fail < g_num_to_fail) {
			spdk_bdev_io_complete(bdev_io, SPDK_BDEV_IO_STATUS_FAILED);
			return;
		}
	}
	g_base_fn_table->submit_request(ch, bdev_io);
}

static int
module_init(void)
{
	return 0;
}

static struct spdk_bdev_module g_sweep_module;

/* Comes before the lvol module looks for an lvstore on the bdev. */
static void
examine_config(struct spdk_bdev *bdev)
{
	if (strcmp(spdk_bdev_get_module_name(bdev), BASE_MODULE) == 0) {
		g_base_fn_table = bdev->fn_table;
		g_failing_fn_table = *bdev->fn_table;
		g_failing_fn_table.submit_request = submit_request;
		bdev->fn_table = &g_failing_fn_table;
	}
	spdk_bdev_module_examine_done(&g_sweep_module);
}

static struct spdk_bdev_module g_sweep_module = {
	.name = "sweep",
	.module_init = module_init,
	.examine_config = examine_config,
};
SPDK_BDEV_MODULE_REGISTER(sweep, &g_sweep_module)

/*
 * Memory that was freed is not used again, and is full of a byte that makes no address: whoever still
 * uses it crashes, every time. The address sanitizer does this better. It isn't to be asked for anything
 * before it has started: what is freed by then stays as it is.
 */
static void
spoil(void *memory)
{
	memset(memory, 0x5a, malloc_usable_size(memory));
}

static void (*g_free)(void *memory);

__attribute__((constructor)) static void
find_sanitizer(void)
{
	g_free = dlsym(RTLD_DEFAULT, "__asan_init") ? dlsym(RTLD_NEXT, "free") : spoil;
}

void
free(void *memory)
{
	if (g_free && memory) {
		g_free(memory);
	}
}

struct params {
	char *name;
	uint64_t cluster_size;
	uint64_t cluster;
	uint8_t fill;
	uint64_t first;
	uint64_t count;
};

static const struct spdk_json_object_decoder g_decoders[] = {
	{"name", offsetof(struct params, name), spdk_json_decode_string, true},
	{"cluster_size", offsetof(struct params, cluster_size), spdk_json_decode_uint64, true},
	{"cluster", offsetof(struct params, cluster), spdk_json_decode_uint64, true},
	{"fill", offsetof(struct params, fill), spdk_json_decode_uint8, true},
	{"first", offsetof(struct params, first), spdk_json_decode_uint64, true},
	{"count", offsetof(struct params, count), spdk_json_decode_uint64, true},
};

static bool
decode(struct spdk_jsonrpc_request *request, const struct spdk_json_val *json, struct params *params)
{
	memset(params, 0, sizeof(*params));
	if (spdk_json_decode_object(json, g_decoders, SPDK_COUNTOF(g_decoders), params)) {
		spdk_jsonrpc_send_error_response(request, -EINVAL, "wrong parameters");
		return false;
	}
	return true;
}

/* From now on count writes, of which `count` fail from the `first` on; the first is 1. */
static void
sweep_arm(struct spdk_jsonrpc_request *request, const struct spdk_json_val *json)
{
	struct params params;

	if (!decode(request, json, &params)) {
		return;
	}
	g_writes = 0;
	g_first_to_fail = params.first;
	g_num_to_fail = params.count;
	spdk_jsonrpc_send_bool_response(request, true);
}
SPDK_RPC_REGISTER("sweep_arm", sweep_arm, SPDK_RPC_RUNTIME)

/* No more write fails. Returns how many there were since sweep_arm. */
static void
sweep_disarm(struct spdk_jsonrpc_request *request, const struct spdk_json_val *json)
{
	struct spdk_json_write_ctx *w;

	g_first_to_fail = UINT64_MAX;
	w = spdk_jsonrpc_begin_result(request);
	spdk_json_write_uint64(w, g_writes);
	spdk_jsonrpc_end_result(request, w);
}
SPDK_RPC_REGISTER("sweep_disarm", sweep_disarm, SPDK_RPC_RUNTIME)

static bool
is_lvol(struct spdk_bdev *bdev)
{
	return strcmp(spdk_bdev_get_module_name(bdev), "lvol") == 0;
}

static void
write_clones(struct spdk_json_write_ctx *w, struct spdk_lvol *lvol)
{
	struct spdk_blob_store *bs = lvol->lvol_store->blobstore;
	spdk_blob_id *ids;
	size_t count = 0, i;

	spdk_blob_get_clones(bs, lvol->blob_id, NULL, &count);
	ids = calloc(count + 1, sizeof(*ids));
	spdk_blob_get_clones(bs, lvol->blob_id, ids, &count);
	spdk_json_write_named_array_begin(w, "clones");
	for (i = 0; i < count; i++) {
		spdk_json_write_uint64(w, ids[i]);
	}
	spdk_json_write_array_end(w);
	free(ids);
}

/* Every lvol that has a bdev. */
static void
sweep_list(struct spdk_jsonrpc_request *request, const struct spdk_json_val *json)
{
	struct spdk_json_write_ctx *w = spdk_jsonrpc_begin_result(request);
	struct spdk_bdev *bdev;

	spdk_json_write_array_begin(w);
	for (bdev = spdk_bdev_first(); bdev != NULL; bdev = spdk_bdev_next(bdev)) {
		struct spdk_lvol *lvol = bdev->ctxt;
		const struct spdk_bdev_alias *alias = TAILQ_FIRST(spdk_bdev_get_aliases(bdev));

		if (!is_lvol(bdev)) {
			continue;
		}
		spdk_json_write_object_begin(w);
		spdk_json_write_named_uint64(w, "id", lvol->blob_id);
		spdk_json_write_named_string(w, "alias", alias ? alias->alias.name : "");
		spdk_json_write_named_uint64(w, "parent", lvol->blob->parent_id);
		spdk_json_write_named_uint64(w, "size", spdk_bdev_get_num_blocks(bdev) *
					     spdk_bdev_get_block_size(bdev));
		spdk_json_write_named_bool(w, "read_only", spdk_blob_is_read_only(lvol->blob));
		spdk_json_write_named_bool(w, "thin", spdk_blob_is_thin_provisioned(lvol->blob));
		spdk_json_write_named_bool(w, "clone", spdk_blob_is_clone(lvol->blob));
		spdk_json_write_named_bool(w, "external", spdk_blob_is_esnap_clone(lvol->blob));
		write_clones(w, lvol);
		spdk_json_write_object_end(w);
	}
	spdk_json_write_array_end(w);
	spdk_jsonrpc_end_result(request, w);
}
SPDK_RPC_REGISTER("sweep_list", sweep_list, SPDK_RPC_RUNTIME)

struct io {
	struct spdk_jsonrpc_request *request;
	struct spdk_bdev_desc *desc;
	struct spdk_io_channel *ch;
	uint8_t *buffer;
	uint64_t cluster_size;
	uint64_t length;
};

static void
bdev_event(enum spdk_bdev_event_type type, struct spdk_bdev *bdev, void *ctx)
{
}

static struct io *
io_begin(struct spdk_jsonrpc_request *request, struct params *params, bool write)
{
	struct io *io = calloc(1, sizeof(*io));
	int rc;

	io->request = request;
	io->cluster_size = params->cluster_size;
	rc = spdk_bdev_open_ext(params->name, write, bdev_event, NULL, &io->desc);
	free(params->name);
	if (rc != 0) {
		spdk_jsonrpc_send_error_response(request, rc, spdk_strerror(-rc));
		free(io);
		return NULL;
	}
	io->ch = spdk_bdev_get_io_channel(io->desc);
	return io;
}

static void
io_end(struct io *io)
{
	spdk_put_io_channel(io->ch);
	spdk_bdev_close(io->desc);
	spdk_dma_free(io->buffer);
	free(io);
}

/* The byte that each cluster is full of; -1 if it is full of several. */
static void
write_data(struct spdk_json_write_ctx *w, struct io *io)
{
	uint64_t offset, i;

	spdk_json_write_named_array_begin(w, "data");
	for (offset = 0; offset < io->length; offset += io->cluster_size) {
		uint8_t *cluster = io->buffer + offset;

		for (i = 1; i < io->cluster_size && cluster[i] == cluster[0]; i++) {
		}
		spdk_json_write_int32(w, i < io->cluster_size ? -1 : cluster[0]);
	}
	spdk_json_write_array_end(w);
}

/* Which of its clusters an lvol owns. */
static void
write_owned(struct spdk_json_write_ctx *w, struct io *io)
{
	struct spdk_bdev *bdev = spdk_bdev_desc_get_bdev(io->desc);
	struct spdk_lvol *lvol = bdev->ctxt;
	uint64_t io_units, offset;

	if (!is_lvol(bdev)) {
		return;
	}
	io_units = io->cluster_size / spdk_bs_get_io_unit_size(lvol->lvol_store->blobstore);
	spdk_json_write_named_array_begin(w, "owned");
	for (offset = 0; offset < io->length / io->cluster_size * io_units; offset += io_units) {
		uint64_t next = spdk_blob_get_next_allocated_io_unit(lvol->blob, offset);

		spdk_json_write_bool(w, next == offset);
	}
	spdk_json_write_array_end(w);
}

static void
read_done(struct spdk_bdev_io *bdev_io, bool success, void *ctx)
{
	struct io *io = ctx;
	struct spdk_json_write_ctx *w;

	spdk_bdev_free_io(bdev_io);
	if (success) {
		w = spdk_jsonrpc_begin_result(io->request);
		spdk_json_write_object_begin(w);
		write_data(w, io);
		write_owned(w, io);
		spdk_json_write_object_end(w);
		spdk_jsonrpc_end_result(io->request, w);
	} else {
		spdk_jsonrpc_send_error_response(io->request, -EIO, "the read failed");
	}
	io_end(io);
}

/* Reads all of a bdev. */
static void
sweep_read(struct spdk_jsonrpc_request *request, const struct spdk_json_val *json)
{
	struct params params;
	struct spdk_bdev *bdev;
	struct io *io;
	int rc;

	if (!decode(request, json, &params) || !(io = io_begin(request, &params, false))) {
		return;
	}
	bdev = spdk_bdev_desc_get_bdev(io->desc);
	io->length = spdk_bdev_get_num_blocks(bdev) * spdk_bdev_get_block_size(bdev);
	io->buffer = spdk_dma_zmalloc(io->length, 4096, NULL);
	rc = spdk_bdev_read(io->desc, io->ch, io->buffer, 0, io->length, read_done, io);
	if (rc != 0) {
		spdk_jsonrpc_send_error_response(request, rc, spdk_strerror(-rc));
		io_end(io);
	}
}
SPDK_RPC_REGISTER("sweep_read", sweep_read, SPDK_RPC_RUNTIME)

static void
write_done(struct spdk_bdev_io *bdev_io, bool success, void *ctx)
{
	struct io *io = ctx;

	spdk_bdev_free_io(bdev_io);
	if (success) {
		spdk_jsonrpc_send_bool_response(io->request, true);
	} else {
		spdk_jsonrpc_send_error_response(io->request, -EIO, "the write failed");
	}
	io_end(io);
}

/* Fills a cluster of a bdev. */
static void
sweep_write(struct spdk_jsonrpc_request *request, const struct spdk_json_val *json)
{
	struct params params;
	struct io *io;
	int rc;

	if (!decode(request, json, &params) || !(io = io_begin(request, &params, true))) {
		return;
	}
	io->buffer = spdk_dma_zmalloc(io->cluster_size, 4096, NULL);
	memset(io->buffer, params.fill, io->cluster_size);
	rc = spdk_bdev_write(io->desc, io->ch, io->buffer, params.cluster * io->cluster_size,
			     io->cluster_size, write_done, io);
	if (rc != 0) {
		spdk_jsonrpc_send_error_response(request, rc, spdk_strerror(-rc));
		io_end(io);
	}
}
SPDK_RPC_REGISTER("sweep_write", sweep_write, SPDK_RPC_RUNTIME)
