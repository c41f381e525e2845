"""What a whole check costs: the maps of a chain are read once."""

import os
import re
import time

from .growth import MIB_PER_TIB
from .target import request

TIB = 64
SLICES = re.compile(rb'check of (\d+) slices, (\d+) longer than 100 us, the longest (\d+) us')
# The clusters of the lvstore in MiB, and the ancestors. The maps of more would not fit into memory:
# SPDK itself keeps 16 bytes for each cluster of each lvol.
POINTS = ((1, 1), (4, 10), (64, 200))
QUICK_POINTS = ((64, 20),)


def measure(targets, options, progress):
    """A list with one entry for each point; of targets that have the method."""
    rounds = 3 if options.quick else 10
    figures = []
    for cluster_mib, ancestors in QUICK_POINTS if options.quick else POINTS:
        progress(f'check: {TIB} TiB in clusters of {cluster_mib} MiB, {ancestors} ancestors')
        for target in targets.each():
            if not target.is_ours:
                continue
            target.make_lvstore(cluster_sz=cluster_mib << 20, num_md_pages_per_cluster_ratio=1000)
            target.create('lvol', TIB * MIB_PER_TIB)
            for level in range(ancestors):
                target.snapshot('lvol', f'snapshot{level}')
            target.show_steps()
            samples = [one(target) for _ in range(rounds)]
            target.hide_steps()
            target.drop_lvstore()
            clusters = TIB * MIB_PER_TIB // cluster_mib
            figures.append(
                {
                    'target': target.name,
                    'cluster_mib': cluster_mib,
                    'clusters': clusters,
                    'ancestors': ancestors,
                    'ms': [sample['ms'] for sample in samples],
                    # The lvol's own map is read twice, as it may grow meanwhile.
                    'ns_each': [
                        sample['ms'] * 1e6 / clusters / (ancestors + 2) for sample in samples
                    ],
                    'slice_us': [sample['ms'] * 1e3 / sample['slices'] for sample in samples],
                    'long_slices': [sample['long'] for sample in samples],
                    'longest_us': [sample['longest_us'] for sample in samples],
                }
            )
    return figures


def one(target):
    with target.log.open('rb') as log:
        log.seek(0, os.SEEK_END)
        started = time.perf_counter()
        target.pipelined([request('bdev_lvol_check_detach_parent', name='lvs/lvol')])
        seconds = time.perf_counter() - started
        # The line may come after the reply.
        written = b''
        while not (found := SLICES.search(written)):
            written += log.read()
    slices, long, longest = map(int, found.groups())
    return {'ms': seconds * 1e3, 'slices': slices, 'long': long, 'longest_us': longest}
