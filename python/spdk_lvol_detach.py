"""Adds the method bdev_lvol_detach_parent to SPDK's own rpc.py.

    spdk-rpc --plugin spdk_lvol_detach bdev_lvol_detach_parent lvs/snap3

Installed, it is where the system's Python looks. From a checkout, or where another Python runs
rpc.py, PYTHONPATH has to name this file's folder.

It imports nothing of SPDK's, so that it works with any rpc.py that has --plugin.
"""

import argparse
import json

METHOD = 'bdev_lvol_detach_parent'

DESCRIPTION = """\
Part a lvol from its parent snapshot, without copying anything.

Afterwards the lvol has no parent at all, not even the former grandparent. The
clusters that it owns read as before; those that it doesn't own read as zeroes.
No cluster is allocated, freed, written or copied: one page of metadata is
rewritten. The lvol's own clones stay its clones and see the change through it.

It works on writable lvols and on snapshots. The former parent may be deleted as
soon as the command returns.

To keep what the lvol shows of its parent, use bdev_lvol_decouple_parent or
bdev_lvol_inflate instead, which copy it.
"""

EPILOG = """\
prints:
  true, when the change is on the device

errors:
  -32602  the name is missing or no string
  -19     there is no such bdev, or it is no lvol
  -22     the lvol has no parent, or its parent is an external snapshot
  -16     another operation holds the lvol: try again
  -12     out of memory
  -1      the lvol's lvstore belongs to another thread than the one that serves RPCs
  -5      the metadata could not be written: the lvol still has its parent

example:
  bdev_lvol_detach_parent lvs/snap3
"""


def bdev_lvol_detach_parent(args):
    result = args.client.call(METHOD, {'name': args.name})
    if result is not None:  # None comes from --dry-run, which sends nothing
        print(json.dumps(result))


def spdk_rpc_plugin_initialize(subparsers):
    if METHOD in subparsers.choices:
        return  # this rpc.py knows the method by itself
    parser = subparsers.add_parser(
        METHOD,
        help='Part a lvol from its parent snapshot, without copying anything',
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('name', help='UUID or alias (lvs/lvol) of the lvol')
    parser.set_defaults(func=bdev_lvol_detach_parent)
