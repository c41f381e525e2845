"""The page that shows the results: `page.md` with its tables filled in."""

import string
from pathlib import Path

from scipy.stats import ks_2samp

from .pause import FLUSH, NO_CHANGE
from .samples import in_target, quantile, spread

TEMPLATE = Path(__file__).parent / 'page.md'
NOT_MEASURED = '(not measured in this run)'

# Figures from here on are shown without decimals.
WHOLE = 100


def write(results, path):
    tables = {
        'machine': machine(results['machine']),
        'quick': ' (with `--quick`: few samples)' if results['machine']['quick'] else '',
        'methods': NOT_MEASURED,
        'requests': NOT_MEASURED,
        'throughput': NOT_MEASURED,
        'steps': NOT_MEASURED,
        'pauses': NOT_MEASURED,
        'waiting': NOT_MEASURED,
        'checks': NOT_MEASURED,
    }
    if entries := results.get('methods'):
        tables['methods'] = methods(entries)
    if entries := results.get('throughput'):
        tables['requests'] = entries[0]['requests']
        tables['throughput'] = throughput(entries)
    if entries := results.get('steps'):
        tables['steps'] = steps(entries)
    if entries := results.get('pause'):
        tables['pauses'] = pauses(entries)
    if entries := results.get('waiting'):
        tables['waiting'] = waiting(entries)
    if entries := results.get('check'):
        tables['checks'] = checks(entries)
    tables['growth'] = '\n\n'.join(
        growth(name, entries) for name, entries in results.items() if name.startswith('growth-')
    )
    page = string.Template(TEMPLATE.read_text()).substitute(tables)
    path.write_text(page)


def machine(machine):
    targets = '; '.join(
        f'{name}: {target["spdk"]}'
        + (f' with the extension {target["extension"]}' if target['extension'] else '')
        for name, target in machine['targets'].items()
    )
    return (
        f'{machine["cpu"]}, {machine["cores"]} cores, {machine["memory_gib"]} GiB, '
        f'Linux {machine["kernel"]}, load average {machine["load_average_before"]:.1f} before, '
        f'{machine["base_bdev"]} ({targets})'
    )


def methods(entries):
    head = ['parent, MiB', 'method', 'target', 'writes', 'written, B', 'reads', 'read, B']
    head += ['clusters allocated', 'wall time, ms', 'samples']
    figures = ['writes', 'bytes_written', 'reads', 'bytes_read', 'clusters_allocated', 'wall_ms']
    return table(
        head,
        [
            [entry['parent_mib'], f'`{entry["method"]}`', entry['target']]
            + [cell([sample[figure] for sample in entry['samples']]) for figure in figures]
            + [len(entry['samples'])]
            for entry in entries
        ],
    )


def throughput(entries):
    return table(
        ['base bdev', 'method', 'target', 'us each', 'at work, us each', 'samples'],
        [
            [entry['base_bdev'], f'`{entry["method"]}`', entry['target']]
            + [cell(entry['us_each']), cell(entry['us_busy'])]
            + [len(entry['us_each'])]
            for entry in entries
        ],
    )


def steps(entries):
    names = list(entries[0]['steps_us'])
    rows = []
    for entry in entries:
        samples = list(entry['steps_us'].values())
        totals = [sum(steps) for steps in zip(*samples, strict=True)]
        rows.append([entry['base_bdev'], *map(cell, samples), cell(totals), len(totals)])
    return table(['base bdev', *names, 'all', 'samples'], rows)


def pauses(entries):
    """With the p values of a row's samples against those of no change, and of a flush."""

    def where(entry):
        return entry['base_bdev'], entry['changed'], entry['writer'], entry['core']

    samples = {(entry['method'], where(entry)): entry['longest_write_us'] for entry in entries}

    def as_if(method, entry):
        others = samples.get((method, where(entry)))
        if others is None or entry['method'] == method:
            return ''
        return p_value(entry['longest_write_us'], others)

    head = ['base bdev', 'changed', 'writer', 'core', 'what', 'p50', 'p99', 'longest']
    return table(
        [*head, 'as no change, p', 'as a flush, p', 'samples'],
        [
            [*where(entry), method_name(entry['method'])]
            + [quantile(entry['longest_write_us'], of_1000) for of_1000 in (500, 990, 1000)]
            + [as_if(NO_CHANGE, entry), as_if(FLUSH, entry), len(entry['longest_write_us'])]
            for entry in entries
        ],
    )


def waiting(entries):
    """With the p value of the samples against those of no waiting detach."""
    none, *_ = entries
    rows = []
    for entry in entries:
        row = [entry['waiting']]
        for figure in ('p50', 'p99'):
            samples = entry[figure]
            row += [cell(samples), '' if entry is none else p_value(samples, none[figure])]
        rows.append([*row, len(entry['p50'])])
    head = ['waiting detaches', 'p50 of a write, us', 'as none, p', 'p99, us', 'as none, p']
    return table([*head, 'samples'], rows)


def p_value(samples, others):
    """Of a Kolmogorov-Smirnov test: small if the two differ."""
    return f'{ks_2samp(samples, others).pvalue:.2g}'


def checks(entries):
    head = ['cluster size, MiB', 'clusters', 'ancestors', 'whole check, ms']
    head += [
        'per cluster of each lvol, ns',
        'slice, us',
        'slices over 100 us',
        'longest, us',
    ]
    figures = ['ms', 'ns_each', 'slice_us', 'long_slices', 'longest_us']
    return table(
        [*head, 'samples'],
        [
            [entry['cluster_mib'], entry['clusters'], entry['ancestors']]
            + [cell(entry[figure]) for figure in figures]
            + [len(entry['ms'])]
            for entry in entries
        ],
    )


def method_name(method):
    return method if method in (NO_CHANGE, FLUSH) else f'`{method}`'


def growth(name, entries):
    head = [entries[0]['unit'], 'target', 'detach', 'set_parent', 'in the target']
    head += ['writes', 'written, B', 'reads', 'lvols', 'samples']
    rows = []
    for entry in entries:
        each, alone = entry['us_each'], entry['alone']
        totals = [in_target(sample) for sample in alone if sample['steps_us']]
        rows.append(
            [entry['at'], entry['target'], *map(cell, each.values()), cell(totals)]
            + [
                cell([sample[figure] for sample in alone])
                for figure in ('writes', 'bytes_written', 'reads')
            ]
            + [entry['requests'], len(each['bdev_lvol_detach_parent'])]
        )
    return f'![{entries[0]["unit"]}](performance/{name}.svg)\n\n{table(head, rows)}'


def cell(samples):
    """The median, and the smallest and largest sample if they differ."""
    if not samples:
        return ''
    low, middle, high = (f'{value:.{0 if value >= WHOLE else 1}f}' for value in spread(samples))
    low, middle, high = (text.removesuffix('.0') for text in (low, middle, high))
    return middle if low == high else f'{middle} ({low}-{high})'


def table(head, rows):
    lines = [head, ['---'] * len(head), *rows]
    return '\n'.join('| ' + ' | '.join(map(str, line)) + ' |' for line in lines)
