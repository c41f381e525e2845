"""What a detach costs by itself: many on one connection, and its steps."""

from .target import AT_ONCE, detach_request, parent_of, request, set_parent_request

LVOL_MIB = 64


def measure_throughput(targets, options, progress):
    """A list with one entry for each target, base bdev and request."""
    lvols, rounds = AT_ONCE, 5 if options.quick else 40
    names = [f'lvol{number}' for number in range(lvols)]
    requests = {
        'bdev_lvol_detach_parent': [detach_request(name) for name in names],
        'bdev_lvol_set_parent': [set_parent_request(name, parent_of(name)) for name in names],
        'spdk_get_version': [request('spdk_get_version')] * lvols,
    }
    figures = []
    for base, gib in (('malloc', 1), ('aio', 16)):
        progress(f'throughput: {lvols} requests in one connection, on {base}')
        entries = {
            (target.name, method): {
                'target': target.name,
                'base_bdev': base,
                'method': method,
                'requests': lvols,
                'us_each': [],
                'us_busy': [],
            }
            for target in targets
            for method in requests
        }
        for target in targets.each():
            target.make_lvstore(base, gib, cluster_sz=1 << 20, num_md_pages_per_cluster_ratio=400)
            target.create_with_parents(names, LVOL_MIB)
        for _ in range(rounds):
            for target in targets.each():
                # It has just been resumed: the first requests find cold caches, and aren't counted.
                for batch in requests.values():
                    target.pipelined(batch)
                for method, batch in requests.items():
                    entry = entries[target.name, method]
                    busy_before = target.busy_us()
                    entry['us_each'].append(target.pipelined(batch) * 1e6 / lvols)
                    entry['us_busy'].append((target.busy_us() - busy_before) / lvols)
        for target in targets.each():
            target.drop_lvstore()
        figures += entries.values()
    return figures


def measure_steps(targets, options, progress):
    """A list with one entry for each base bdev; of targets whose log tells of the steps."""
    times = 20 if options.quick else 300
    figures = []
    for base, gib in (('malloc', 1), ('aio', 16)):
        progress(f'steps: {times} detaches, one by one, on {base}')
        for target in targets.each():
            if not target.is_ours:
                continue
            target.make_lvstore(base, gib, cluster_sz=1 << 20)
            target.create_with_parents(['lvol'], LVOL_MIB)
            target.show_steps()
            samples = []
            for _ in range(times):
                samples.append(target.steps_of(detach_request('lvol')))
                target.set_parent('lvol', parent_of('lvol'))
            target.hide_steps()
            target.drop_lvstore()
            steps_us = {step: [sample[step] for sample in samples] for step in samples[0]}
            figures.append({'target': target.name, 'base_bdev': base, 'steps_us': steps_us})
    return figures
