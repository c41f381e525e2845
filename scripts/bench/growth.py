"""Whether a detach costs more where there is more of something.

At each point some lvols are detached, all in one connection, and get their parent back by
bdev_lvol_set_parent, which writes the same metadata by SPDK's own code; again and again. Then one
is detached alone.
"""

import itertools
from dataclasses import dataclass

from .target import (
    AT_ONCE,
    clone_request,
    create_request,
    detach_request,
    parent_of,
    set_parent_request,
    snapshot_request,
)

LVOL_MIB = 64
MIB_PER_TIB = 1 << 20
PAGE = 4096
# From struct spdk_blob_md_descriptor_extent_table: how much one page of metadata holds, and what
# each of its entries stands for.
ENTRIES_PER_PAGE = 507
CLUSTERS_PER_ENTRY = 512


@dataclass
class Dimension:
    """`prepare(target, point, lvols)` makes the lvols, and names their parents if some share."""

    name: str
    unit: str
    points: tuple
    quick_points: tuple
    lvols: int
    prepare: object
    lvstore: dict
    rounds: int = 20


def of_size(target, mib, lvols):
    target.create_with_parents(lvols, mib)


def of_pages(target, pages, lvols):
    """An lvol that owns all its clusters has the most metadata."""
    clusters = ((pages - 1) * ENTRIES_PER_PAGE + ENTRIES_PER_PAGE // 2) * CLUSTERS_PER_ENTRY
    mib = clusters * PAGE >> 20
    for lvol in lvols:
        target.create(f'{lvol}-origin', mib)
        target.snapshot(f'{lvol}-origin', parent_of(lvol))
        target.delete(f'{lvol}-origin')
        target.create_full(lvol, mib)
        target.set_parent(lvol, parent_of(lvol))


def of_clones(target, clones, lvols):
    """The lvols are snapshots here."""
    heads = [f'{lvol}-head' for lvol in lvols]
    target.pipelined([create_request(head, LVOL_MIB) for head in heads])
    for names in (map(parent_of, lvols), lvols):
        target.pipelined([snapshot_request(*pair) for pair in zip(heads, names, strict=True)])
    # The head is a clone, too. A snapshot is cloned by one request at a time.
    for number in range(clones - 1):
        target.pipelined([clone_request(lvol, f'{lvol}-{number}') for lvol in lvols])


def of_depth(target, depth, lvols):
    target.pipelined([create_request(lvol, LVOL_MIB) for lvol in lvols])
    for level in range(depth - 1):
        target.pipelined([snapshot_request(lvol, f'{lvol}-{level}') for lvol in lvols])
    target.pipelined([snapshot_request(lvol, parent_of(lvol)) for lvol in lvols])


def of_store(target, count, lvols):
    """Half of the store's lvols are snapshots."""
    others = [f'other{number}' for number in range(count // 2 - len(lvols))]
    # The others come first: SPDK keeps the snapshots in a list, in which ours are last.
    target.create_with_parents([*others, *lvols], LVOL_MIB)


def of_batch(target, snapshots, lvols):
    """Each snapshot has as many of the lvols as clones; its head is one of them."""
    parents = [parent_of(lvol) for lvol in lvols[:snapshots]]
    target.create_with_parents(lvols[:snapshots], LVOL_MIB)
    for first in range(snapshots, len(lvols), snapshots):
        pairs = zip(parents, lvols[first : first + snapshots], strict=False)
        target.pipelined([clone_request(*pair) for pair in pairs])
    return itertools.islice(itertools.cycle(parents), len(lvols))


DIMENSIONS = (
    Dimension(
        name='size',
        unit='MiB of the lvol',
        points=(64, 1024, 16 * 1024, 256 * 1024, 4 * MIB_PER_TIB, 64 * MIB_PER_TIB),
        quick_points=(64, 256 * 1024),
        lvols=4,
        prepare=of_size,
        lvstore={'cluster_sz': 4 << 20},
    ),
    Dimension(
        name='metadata',
        unit='pages of metadata of the lvol',
        points=(1, 4, 16, 64),
        quick_points=(1, 4),
        lvols=2,
        prepare=of_pages,
        lvstore={'gib': 256, 'cluster_sz': PAGE, 'num_md_pages_per_cluster_ratio': 1},
    ),
    Dimension(
        name='clones',
        unit='clones of the lvol',
        points=(1, 10, 100, 1000),
        quick_points=(1, 100),
        lvols=8,
        prepare=of_clones,
        lvstore={'cluster_sz': 1 << 20},
    ),
    Dimension(
        name='depth',
        unit='snapshots above the lvol',
        points=(1, 4, 20, 50, 200),
        quick_points=(1, 20),
        lvols=8,
        prepare=of_depth,
        lvstore={'cluster_sz': 1 << 20},
    ),
    Dimension(
        name='store',
        unit='lvols in the lvstore',
        points=(20, 100, 1000, 10000),
        quick_points=(20, 100),
        lvols=8,
        prepare=of_store,
        lvstore={'cluster_sz': 1 << 20},
    ),
    Dimension(
        name='batch',
        unit='snapshots that are the parents of a batch of 2,000 lvols',
        points=(20, 200, 2000),
        quick_points=(200, 2000),
        lvols=2000,
        prepare=of_batch,
        lvstore={'cluster_sz': 1 << 20},
        rounds=5,
    ),
)


def measure(dimension, targets, options, progress):
    """A list with one entry for each target and point."""
    rounds, alone = (5, 5) if options.quick else (dimension.rounds, 20)
    names = [f'lvol{number}' for number in range(dimension.lvols)]
    detach = [detach_request(name) for name in names]
    figures = []
    for point in dimension.quick_points if options.quick else dimension.points:
        progress(f'growth: {point} {dimension.unit}')
        entries = {}
        for target in targets.each():
            target.make_lvstore(**dimension.lvstore)
            parents = list(dimension.prepare(target, point, names) or map(parent_of, names))
            attach = list(map(set_parent_request, names, parents))
            # It locks the parent: a second request for it would be refused.
            attach_at_once = min(AT_ONCE, len(set(parents)))
            entries[target.name] = {
                'target': target.name,
                'dimension': dimension.name,
                'unit': dimension.unit,
                'at': point,
                'requests': len(names),
                'us_each': {'bdev_lvol_detach_parent': [], 'bdev_lvol_set_parent': []},
                'alone': [],
            }
        for _ in range(rounds):
            for target in targets.each():
                us_each = entries[target.name]['us_each']
                for method, batch, at_once in zip(
                    us_each, (detach, attach), (AT_ONCE, attach_at_once), strict=True
                ):
                    seconds = target.in_parts(batch, at_once)
                    us_each[method].append(seconds * 1e6 / len(names))
        for target in targets.each():
            target.show_steps()
            for _ in range(alone):
                entries[target.name]['alone'].append(one_alone(target, detach[0]))
                target.pipelined([attach[0]])
            target.hide_steps()
            target.drop_lvstore()
        figures += entries.values()
    return figures


def one_alone(target, call):
    steps, device = target.watch(lambda: target.steps_of(call))
    return {**device, 'steps_us': steps}
