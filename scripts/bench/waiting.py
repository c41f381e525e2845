"""How fast a writer is while many detaches wait for I/O through their former parent.

Each of many clones of one snapshot has reads in flight that take a long time. The load generator
of the tests writes to an lvol of another lvstore: first while only the reads wait, then while as
many detaches wait for them.
"""

import threading
import time

from .pause import BLOCK, CLUSTER, load_request, with_load
from .target import OURS, Connection, Target, request

WAITING = 250
LVOL_MIB = 8
# Longer than what is measured meanwhile.
READ_SECONDS = 8
SAMPLE_SECONDS = 0.1
SAMPLES = 20


def measure(_, options, progress):
    """A list with one entry for each number of waiting detaches."""
    rounds = 1 if options.quick else 2
    program, preloaded = with_load()
    target = Target(OURS, program, options.cpus[:2], preloaded)
    try:
        prepare(target)
        figures = [{'waiting': count, 'p50': [], 'p99': []} for count in (0, WAITING)]
        for number in range(rounds):
            progress(f'waiting: round {number + 1} of {rounds}')
            measure_round(target, number, figures)
        return figures
    finally:
        target.stop()


def prepare(target):
    """A lvstore for the writer, and a slow one with a snapshot that owns its clusters."""
    options = {'cluster_sz': CLUSTER, 'num_md_pages_per_cluster_ratio': 400}
    target.make_lvstore('malloc', 1, **options)
    target.create('writer', LVOL_MIB)
    target.rpc('bdev_malloc_create', name='disk', num_blocks=1 << 16, block_size=BLOCK)
    kinds = ('avg_read', 'p99_read', 'avg_write', 'p99_write')
    latencies = {f'{kind}_latency': 0 for kind in kinds}
    target.rpc('bdev_delay_create', base_bdev_name='disk', name='slow', **latencies)
    target.rpc('bdev_lvol_create_lvstore', bdev_name='slow', lvs_name='slow', **options)
    lvol = {'lvol_name': 'lvol', 'size_in_mib': LVOL_MIB, 'clear_method': 'none'}
    target.rpc('bdev_lvol_create', lvs_name='slow', thin_provision=False, **lvol)
    target.rpc('bdev_lvol_snapshot', lvol_name='slow/lvol', snapshot_name='parent')


def measure_round(target, number, figures):
    clones = [f'clone{number}-{index}' for index in range(WAITING)]
    for clone in clones:
        # A snapshot is cloned by one request at a time.
        target.rpc('bdev_lvol_clone', snapshot_name='slow/parent', clone_name=clone)
    delay(target, READ_SECONDS)
    names = [f'slow/{clone}' for clone in clones]
    target.pipelined([load_request(name, 1, reads=1) for name in names])
    # The reads that are in flight keep the time that they were given.
    delay(target, 0)
    began = time.monotonic()

    without, waiting = figures
    time.sleep(1)
    sample(target, without)
    # Its own connection: the replies come when the reads end.
    connection = Connection(target.socket, timeout=60)
    calls = [request('bdev_lvol_detach_parent', name=name) for name in names]
    detaches = threading.Thread(target=connection.pipelined, args=(calls,))
    detaches.start()
    time.sleep(1)
    sample(target, waiting)
    if not detaches.is_alive() or time.monotonic() - began > READ_SECONDS:
        raise RuntimeError('the detaches have not waited all the time')
    detaches.join()
    connection.close()
    target.pipelined([request('load_close', name=name) for name in names])
    for name in names:
        target.rpc('bdev_lvol_delete', name=name)


def delay(target, seconds):
    for kind in ('avg_read', 'p99_read'):
        latency = {'latency_type': kind, 'latency_us': seconds * 1_000_000}
        target.rpc('bdev_delay_update_latency', delay_bdev_name='slow', **latency)


def sample(target, figure):
    for _ in range(SAMPLES):
        target.pipelined([load_request('lvs/writer', 1, writes=1)])
        time.sleep(SAMPLE_SECONDS)
        written = target.rpc('load_close', name='lvs/writer')['write_us']
        for quantile in ('p50', 'p99'):
            figure[quantile].append(written[quantile])
