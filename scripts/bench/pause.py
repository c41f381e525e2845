"""The longest time that a writer waits while an lvol is detached.

The load generator of the tests writes, on each core, 4 KiB after 4 KiB to each of three lvols:

    parent  <-  lvol                  detached first; its own writer waits
    parent  <-  snap  <-  clone       snap is detached then; what reads through it waits
    neighbour                         nothing to do with either

Of each request it says how long the longest write took that ended in the WINDOW seconds after it
was sent: on the core that serves requests, and on the other one. The same when the request changes
nothing, and then another file on the same disk is flushed.
"""

import os
import random
import time
from pathlib import Path

from .target import (
    OURS,
    Target,
    clone_request,
    create_request,
    detach_request,
    request,
    set_parent_request,
    snapshot_request,
)

PROJECT = Path(__file__).resolve().parents[2]
WRITERS = ('lvol', 'clone', 'neighbour')
# Whom a change of which lvol could concern.
CONCERNED = {'lvol': ('lvol', 'neighbour'), 'snap': ('clone',)}
NO_CHANGE = 'no change'
FLUSH = 'another file flushed'
# Each on a base bdev of so many GiB, and with these variables.
STORES = {
    'malloc': ('malloc', 1, {}),
    'aio': ('aio', 16, {}),
    'aio-no-flush': ('aio', 16, {'LVOL_DETACH_FLUSH': 'off'}),
}
LONGEST = 'load_longest_writes'
# The same after each request, as the longest of more writes is longer: more than any of them takes.
WINDOW = 0.024
CORES = ('that serves requests', 'other')
LVOL_MIB = 8
CLUSTER = 1 << 18
BLOCK = 4096


def measure(_, options, progress):
    """A list with one entry for each store, lvol that is changed, method, writer and core."""
    times = 50 if options.quick else 250
    program, preloaded = with_load()
    cores = dict(zip(map(str, options.cpus), CORES))
    cpus = options.cpus[: len(CORES)]
    figures = []
    for store, (base, gib, variables) in STORES.items():
        progress(f'pause: {times} of each request under writes, on {store}')
        target = Target(OURS, program, cpus, preloaded, variables)
        try:
            target.make_lvstore(base, gib, cluster_sz=CLUSTER, num_md_pages_per_cluster_ratio=100)
            prepare(target)
            for changed in CONCERNED:
                figures += pauses(target, store, changed, cores, times)
        finally:
            target.stop()
    return figures


def with_load():
    """The program, and what to load into it: the extension, unless it is inside, and the load."""
    built = Path(os.environ.get('CARGO_TARGET_DIR', PROJECT / 'target')) / 'release'
    load = built / 'liblvol_load.so'
    tree = Path(os.environ['SPDK_ROOT_DIR'])
    if not (tree / 'build/lib/libspdk_blob.so').exists():
        return built / 'spdk_tgt', [load]
    return tree / 'build/bin/spdk_tgt', [built / 'libspdk_lvol_detach.so', load]


def prepare(target):
    for call in (
        create_request('neighbour', LVOL_MIB),
        create_request('vol', LVOL_MIB),
        snapshot_request('vol', 'parent'),
        snapshot_request('vol', 'snap'),
        clone_request('snap', 'clone'),
        clone_request('parent', 'lvol'),
    ):
        target.pipelined([call])
    for number, writer in enumerate(WRITERS, 1):
        target.pipelined([load_request(f'lvs/{writer}', number, writes=1)])


def load_request(lvol, number, reads=0, writes=0):
    """On each core, one I/O of a block after the other. What is written has the number in it."""
    kinds = {'reads': reads, 'writes': writes, 'write_zeroes': 0, 'unmaps': 0}
    size = {'cluster_blocks': CLUSTER // BLOCK, 'max_blocks': 1, 'sparseness': 1}
    which = {'name': lvol, 'tag': number, 'seed': number, 'queue_depth': 1}
    return request('load_open', **which, **size, **kinds)


def pauses(target, store, changed, cores, times):
    calls = {
        NO_CHANGE: request('spdk_get_version'),
        'bdev_lvol_detach_parent': detach_request(changed),
        'bdev_lvol_set_parent': set_parent_request(changed, 'parent'),
    }
    if target.base == 'aio':
        calls[FLUSH] = calls[NO_CHANGE]
    entries = {
        (method, writer, core): {
            'base_bdev': store,
            'changed': changed,
            'method': method,
            'writer': writer,
            'core': name,
            'longest_write_us': [],
        }
        for method in calls
        for writer in CONCERNED[changed]
        for core, name in cores.items()
    }
    longest = request(LONGEST, names=[f'lvs/{writer}' for writer in CONCERNED[changed]])
    for _ in range(times):
        for method, call in calls.items():
            # A file system has pauses of its own, which may come in the rhythm of the requests.
            time.sleep(random.uniform(0, 2 * WINDOW))
            # In one piece, so that no write counts that completed long before the call.
            ends = time.monotonic() + WINDOW
            target.pipelined([longest, call])
            if method == FLUSH:
                flush_beside(target)
            time.sleep(max(0, ends - time.monotonic()))
            of_writers = target.rpc(LONGEST, **longest['params'])
            for writer, on_cores in zip(CONCERNED[changed], of_writers, strict=True):
                for core, ns in on_cores.items():
                    entries[method, writer, core]['longest_write_us'].append(round(ns / 1000))
    return list(entries.values())


def flush_beside(target):
    """What a detach does, to another file on the disk: writes a page of it, and flushes it."""
    file = os.open(Path(target.folder.name, 'other'), os.O_WRONLY | os.O_CREAT)
    os.pwrite(file, bytes(BLOCK), 0)
    os.fsync(file)
    os.close(file)
