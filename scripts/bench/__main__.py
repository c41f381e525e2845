"""Measures, and writes DIR/performance.md and its charts; the samples go to target/bench/."""

import argparse
import functools
import json
import os
import re
import signal
import sys
import tempfile
import time
from pathlib import Path

from . import charts, check, cost, growth, machine, methods, page, pause, waiting
from .target import OURS, Targets

PROJECT = Path(__file__).resolve().parents[2]
PARTS = {
    'methods': methods.measure,
    'throughput': cost.measure_throughput,
    'steps': cost.measure_steps,
    'pause': pause.measure,
    'waiting': waiting.measure,
    'check': check.measure,
    **{
        f'growth-{dimension.name}': functools.partial(growth.measure, dimension)
        for dimension in growth.DIMENSIONS
    },
}


def main():
    parser = argparse.ArgumentParser(prog='bench', description=__doc__)
    parser.add_argument('--quick', action='store_true', help='fewer points and repetitions')
    parser.add_argument('--only', choices=PARTS, help='one part')
    parser.add_argument('--output', metavar='DIR', type=Path, default=PROJECT / 'docs')
    options = parser.parse_args()

    started = time.monotonic()

    def progress(what):
        print(f'==> {time.monotonic() - started:4.0f} s  {what}', file=sys.stderr, flush=True)

    programs = {OURS: str(PROJECT / 'scripts/spdk_tgt')}
    if baseline := os.environ.get('BASELINE_SPDK_TGT'):
        programs['baseline'] = baseline
    # The targets get one core and this program another, if there are two.
    options.cpus = sorted(os.sched_getaffinity(0))
    *others, core = options.cpus
    # So that everything that was started is stopped, and its files are removed.
    for number in (signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    targets = Targets(programs, core)
    try:
        if others:
            os.sched_setaffinity(0, others)
        results = {'machine': machine.describe(targets, tempfile.gettempdir())}
        results['machine']['quick'] = options.quick
        for name, measure in PARTS.items():
            if options.only in (None, name):
                results[name] = measure(targets, options, progress)
    finally:
        targets.stop()

    folder = options.output / 'performance'
    folder.mkdir(parents=True, exist_ok=True)
    samples = PROJECT / 'target/bench'
    samples.mkdir(parents=True, exist_ok=True)
    (samples / 'results.json').write_text(one_line_a_list(json.dumps(results, indent=1)) + '\n')
    charts.draw(results, folder)
    page.write(results, options.output / 'performance.md')
    progress(f'done: {options.output / "performance.md"}')


def one_line_a_list(text):
    """JSON with one line for each list of samples instead of one for each sample."""
    return re.sub(r'\[[^][{}]*\]', lambda found: ' '.join(found[0].split()), text)


main()
