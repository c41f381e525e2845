#!/usr/bin/env python3
"""Rebuilds a damaged snapshot of a replica as a storage engine would, in three ways, and measures.

Two targets are two replicas of one volume, snap1 <- snap2 <- snap3 <- head. On one of them snap2 is
damaged. Each way starts from the same two disks and ends when every snapshot and the head are byte
for byte what the healthy replica has. The volume takes writes meanwhile.

Exit status 0 only if everything is as it should be.
"""

import argparse
import contextlib
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from client import write_file
from engine import Engine
from replica import MIB, Replica
from spdk_target import Failure
from steps import doing, step
from target import two_cpus
from volume import LVOLS, PARTS, Volume

WAYS = {
    'bdev_lvol_detach_parent': Engine.by_detach,
    'bdev_lvol_decouple_parent': Engine.by_decouple,
    'full rebuild': Engine.in_full,
}


def both_replicas(stack, folder):
    """Starts them on the folder's disks."""
    return [
        stack.enter_context(Replica(name, folder, cpu, folder / f'{name}.disk'))
        for name, cpu in zip(('healthy', 'damaged'), two_cpus())
    ]


def build(folder, volume):
    """Leaves the disks of two replicas that are alike."""
    step(f'building two replicas of a volume of {volume.size // MIB} MiB')
    for name in ('healthy', 'damaged'):
        with (folder / f'{name}.disk').open('wb') as disk:
            disk.truncate(4 * volume.size + 64 * MIB)
    with contextlib.ExitStack() as stack:
        for replica in both_replicas(stack, folder):
            replica.create_lvstore()
            replica.create('head', volume.size)
            for lvol in LVOLS:
                write_file(replica.url('head'), volume.data(lvol), *volume.range(lvol))
                if lvol != 'head':
                    replica.snapshot('head', lvol)


def rebuild(way, original, folder, volume, seed):
    """One way, on copies of the original disks."""
    for disk in original.glob('*.disk'):
        subprocess.run(['cp', '--sparse=always', disk, folder], check=True)
    with contextlib.ExitStack() as stack:
        healthy, replica = both_replicas(stack, folder)
        engine = Engine(healthy, replica, volume, seed)
        engine.find_damage()
        WAYS[way](engine)
        engine.verify()
    return engine.measured


def show(results):
    def size(count):
        return f'{count / MIB:.1f} MiB'

    print(f'\n{"":27}{"sent":>11}{"read for head":>16}{"written":>12}{"time":>9}')
    for way, measured in results.items():
        print(
            f'{way:27}{size(measured.sent):>11}{size(measured.read_for_head):>16}'
            f'{size(measured.written):>12}{measured.seconds:>7.1f} s'
        )
    print(
        '\nsent: over NVMe-oF into the replica. read for head: over NVMe-oF, by the head until\n'
        "its own chain was whole. written: on the replica's device, without what the volume's\n"
        'writes cost. time: until the head was on its own chain.\n'
    )


def parse_arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--clusters',
        type=int,
        default=96,
        metavar='N',
        help=f'clusters of 1 MiB in the volume: {PARTS} or a multiple of it (default: %(default)s)',
    )
    parser.add_argument(
        '--seed',
        type=int,
        default=1,
        metavar='N',
        help='for the data and the writes (default: %(default)s)',
    )
    arguments = parser.parse_args()
    if arguments.clusters <= 0 or arguments.clusters % PARTS:
        parser.error(f'the number of clusters is a multiple of {PARTS}')
    return arguments


def stop_at_signals():
    """Ctrl-C and the like end the script, and what it started, once."""
    signals = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)

    def stop(number, _):
        for each in signals:
            signal.signal(each, signal.SIG_IGN)
        print(f'rebuild: interrupted while: {doing()}', file=sys.stderr)
        sys.exit(128 + number)

    for each in signals:
        signal.signal(each, stop)


def show_failure(error, folder):
    print(f'rebuild: failed while: {doing()}\n{error}', file=sys.stderr)
    # The two targets that were started last.
    for log in sorted(folder.rglob('*.log'), key=lambda log: log.stat().st_mtime)[-2:]:
        print(f"The last lines of {log.name}, a target's:", file=sys.stderr)
        for line in log.read_text(errors='replace').splitlines()[-20:]:
            print(f'    | {line}', file=sys.stderr)


def main():
    arguments = parse_arguments()
    stop_at_signals()
    with tempfile.TemporaryDirectory(prefix='lvol-rebuild-') as name:
        folder = Path(name)
        try:
            volume = Volume(folder, arguments.clusters, arguments.seed)
            build(folder, volume)
            step('overwriting the clusters of snap2 on the device of one replica')
            volume.damage(folder / 'damaged.disk', 'snap2')
            results = {}
            for way in WAYS:
                print(f'\n{way}', flush=True)
                copies = folder / 'copies'
                copies.mkdir()
                results[way] = rebuild(way, folder, copies, volume, arguments.seed)
                # Not when it failed: the targets' logs are in it.
                shutil.rmtree(copies)
        except (Failure, subprocess.SubprocessError, OSError) as error:
            show_failure(error, folder)
            return 1
    show(results)
    print('Every byte verified.')
    return 0


if __name__ == '__main__':
    sys.exit(main())
