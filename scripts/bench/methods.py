"""What a detach costs next to the methods that copy, or that name another parent.

Each is called on a clone of its own of the same snapshot in mid-chain, which owns all its clusters:

    root  <-  parent  <-  lvol
"""

from .target import clone_request, detach_request, request, set_parent_request

METHODS = {
    'bdev_lvol_detach_parent': detach_request('lvol'),
    'bdev_lvol_set_parent': set_parent_request('lvol', 'root'),
    'bdev_lvol_decouple_parent': request('bdev_lvol_decouple_parent', name='lvs/lvol'),
    'bdev_lvol_inflate': request('bdev_lvol_inflate', name='lvs/lvol'),
}
COPYING = ('bdev_lvol_decouple_parent', 'bdev_lvol_inflate')
CLUSTER = 1 << 20


def measure(targets, options, progress):
    """A list with one entry for each target, size and method."""
    sizes_mib = (64, 1024) if options.quick else (64, 512, 2048, 8192)
    times, copies = (5, 1) if options.quick else (30, 3)
    figures = []
    for mib in sizes_mib:
        entries = {
            (target.name, method): {
                'target': target.name,
                'method': method,
                'parent_mib': mib,
                'samples': [],
            }
            for target in targets
            for method in METHODS
        }
        progress(f'methods: a parent of {mib} MiB')
        for target in targets.each():
            target.make_lvstore(cluster_sz=CLUSTER)
            prepare(target, mib)
        for round in range(times):
            for target in targets.each():
                for method, call in METHODS.items():
                    if method not in COPYING or round < copies:
                        entries[target.name, method]['samples'].append(sample(target, call))
        for target in targets.each():
            target.drop_lvstore()
        figures += entries.values()
    return figures


def prepare(target, mib):
    target.create('root-origin', mib)
    target.snapshot('root-origin', 'root')
    target.create_full('head', mib)
    target.set_parent('head', 'root')
    target.snapshot('head', 'parent')


def sample(target, call):
    target.pipelined([clone_request('parent', 'lvol')])
    clusters = target.allocated_clusters('lvol')
    seconds, device = target.watch(lambda: target.pipelined([call]))
    clusters = target.allocated_clusters('lvol') - clusters
    target.delete('lvol')
    return {**device, 'clusters_allocated': clusters, 'wall_ms': seconds * 1000}
