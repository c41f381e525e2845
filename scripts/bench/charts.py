"""The SVG charts: medians, with bars from the smallest to the largest sample."""

import matplotlib
from matplotlib import pyplot

from .pause import CONCERNED, CORES, FLUSH, NO_CHANGE
from .samples import in_target, spread
from .target import STEPS

COLOURS = {
    'bdev_lvol_detach_parent': 'C0',
    'bdev_lvol_set_parent': 'C1',
    'bdev_lvol_decouple_parent': 'C2',
    'bdev_lvol_inflate': 'C3',
    'spdk_get_version': 'C7',
    NO_CHANGE: 'C7',
    FLUSH: 'C3',
}
# What a detach by itself takes, in the charts of growth.
IN_TARGET = 'one detach, in the target'
COLOURS[IN_TARGET] = 'C2'
PAUSED = [(changed, writer) for changed, writers in CONCERNED.items() for writer in writers]
CORE_LINES = dict(zip(CORES, (':', '-'), strict=True))
LINES = {'extension': '-', 'baseline': '--'}
# So that a line hidden under another one is visible.
MARKERS = {'bdev_lvol_detach_parent': 'o', 'bdev_lvol_set_parent': 'x', IN_TARGET: '^'}
POINTS = 100


def draw(results, folder):
    # The same results produce the same files.
    matplotlib.use('svg')
    pyplot.rcParams.update({'svg.hashsalt': 'bench', 'svg.fonttype': 'none', 'axes.grid': True})
    if 'methods' in results:
        draw_methods(results['methods'], folder)
    if 'throughput' in results:
        draw_throughput(results['throughput'], folder)
    if 'steps' in results:
        draw_steps(results['steps'], folder)
    if 'pause' in results:
        draw_pauses(results['pause'], folder)
    for name, entries in results.items():
        if name.startswith('growth-'):
            draw_growth(name, entries, folder)


def draw_methods(entries, folder):
    """Bars, as lines of methods that cost the same would hide each other."""
    parents = list(dict.fromkeys(e['parent_mib'] for e in entries))
    bars = list(dict.fromkeys((e['target'], e['method']) for e in entries))
    width = 0.8 / len(bars)
    for figure, label in (('bytes_written', 'bytes written'), ('wall_ms', 'wall time, ms')):
        chart, axes = pyplot.subplots(figsize=(7, 4.5), layout='constrained')
        for number, (target, method) in enumerate(bars):
            lines = [e for e in entries if (e['target'], e['method']) == (target, method)]
            samples = [[sample[figure] for sample in e['samples']] for e in lines]
            low, middle, high = zip(*map(spread, samples), strict=True)
            axes.bar(
                [index - 0.4 + (number + 0.5) * width for index in range(len(parents))],
                middle,
                width,
                yerr=errors(low, middle, high),
                ecolor='grey',
                color=COLOURS[method],
                alpha=1 if target == 'extension' else 0.5,
                label=f'{method} ({target})',
            )
        axes.set(yscale='log', xlabel='clusters of the parent', ylabel=label)
        axes.set_xticks(range(len(parents)), [size(mib) for mib in parents])
        axes.grid(visible=False, axis='x')
        save(chart, axes, folder / f'methods-{figure}.svg')


def draw_growth(name, entries, folder):
    chart, axes = pyplot.subplots(figsize=(7, 4.5), layout='constrained')
    for target in dict.fromkeys(e['target'] for e in entries):
        lines = [e for e in entries if e['target'] == target]
        points = [e['at'] for e in lines]
        for method in lines[0]['us_each']:
            line(axes, target, method, points, [e['us_each'][method] for e in lines])
        alone = [[in_target(sample) for sample in e['alone'] if sample['steps_us']] for e in lines]
        if all(alone):
            line(axes, target, IN_TARGET, points, alone)
    unit = entries[0]['unit']
    in_mib = unit.startswith('MiB ')
    axes.set(
        xscale='log',
        yscale='log',
        xlabel=f'size {unit.removeprefix("MiB ")}' if in_mib else unit,
        ylabel='us, pipelined unless it says otherwise',
    )
    points = list(dict.fromkeys(e['at'] for e in entries))
    axes.set_xticks(points, [size(at) if in_mib else f'{at:,}' for at in points])
    axes.set_xticks([], minor=True)
    save(chart, axes, folder / f'{name}.svg')


def size(mib):
    """As a person reads it."""
    units = ('MiB', 'GiB', 'TiB')
    power = (mib.bit_length() - 1) // 10
    return f'{mib >> 10 * power} {units[power]}'


def draw_throughput(entries, folder):
    chart, axes = pyplot.subplots(figsize=(7, 0.4 * len(entries) + 1), layout='constrained')
    labels = [f'{e["method"]} ({e["target"]}, {e["base_bdev"]})' for e in entries]
    low, middle, high = zip(*(spread(e['us_each']) for e in entries), strict=True)
    axes.barh(labels, middle, xerr=errors(low, middle, high), ecolor='grey')
    axes.invert_yaxis()
    axes.set(xlabel='us each, many in one connection', xlim=(0, None))
    save(chart, axes, folder / 'throughput.svg')


def draw_steps(entries, folder):
    chart, axes = pyplot.subplots(figsize=(7, 2.5), layout='constrained')
    labels = [e['base_bdev'] for e in entries]
    left = [0.0] * len(entries)
    for step in STEPS:
        medians = [spread(e['steps_us'][step])[1] for e in entries]
        axes.barh(labels, medians, left=left, label=step)
        left = [sum(pair) for pair in zip(left, medians, strict=True)]
    axes.set(xlabel='us, medians')
    save(chart, axes, folder / 'steps.svg')


def draw_pauses(entries, folder):
    for base in dict.fromkeys(e['base_bdev'] for e in entries):
        chart, panels = pyplot.subplots(1, 3, figsize=(11, 4), sharey=True, layout='constrained')
        for axes, (changed, writer) in zip(panels, PAUSED, strict=True):
            for entry in entries:
                if (entry['base_bdev'], entry['changed'], entry['writer']) == (
                    base,
                    changed,
                    writer,
                ):
                    method, core = entry['method'], entry['core']
                    samples, share = curve(entry['longest_write_us'])
                    # The legend has each line once.
                    label = f'{method}, core {core}' if axes is panels[0] else None
                    style = {'color': COLOURS[method], 'linestyle': CORE_LINES[core]}
                    axes.step(samples, share, label=label, **style)
            axes.set(
                xscale='log', yscale='log', xlabel='us', title=f'{writer}, as {changed} is changed'
            )
        panels[0].set(ylabel='share of requests with a longer write')
        save(chart, panels[0], folder / f'pause-{base}.svg')


def curve(samples):
    """How many of the samples are longer than which, in no more points than can be seen."""
    samples = sorted(samples)
    # Most of them where few are longer, as the axis is logarithmic.
    ranks = {len(samples) - 1 - round(len(samples) ** (i / POINTS)) for i in range(POINTS + 1)}
    ranks = sorted({0} | {rank for rank in ranks if rank >= 0})
    return [samples[rank] for rank in ranks], [1 - rank / len(samples) for rank in ranks]


def line(axes, target, method, x, samples):
    low, middle, high = zip(*map(spread, samples), strict=True)
    axes.errorbar(
        x,
        middle,
        yerr=errors(low, middle, high),
        color=COLOURS[method],
        linestyle=LINES[target],
        marker=MARKERS.get(method, '.'),
        fillstyle='none',
        capsize=3,
        label=f'{method} ({target})',
    )


def errors(low, middle, high):
    return [
        [m - least for least, m in zip(low, middle, strict=True)],
        [most - m for m, most in zip(middle, high, strict=True)],
    ]


def save(chart, axes, path):
    if axes.get_legend_handles_labels()[0]:
        chart.legend(loc='outside lower center', ncols=2, fontsize='small')
    chart.savefig(path, bbox_inches='tight', metadata={'Date': None})
    pyplot.close(chart)
