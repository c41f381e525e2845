"""Adds bdev_lvol_detach_parent and bdev_lvol_check_detach_parent to SPDK's own rpc.py.

    spdk-rpc --plugin spdk_lvol_detach bdev_lvol_check_detach_parent lvs/snap3 --tree
    spdk-rpc --plugin spdk_lvol_detach bdev_lvol_detach_parent lvs/snap3

Once installed, the system's Python finds it. In a checkout, or if a different Python runs
rpc.py, PYTHONPATH has to include this file's folder.

It imports nothing from SPDK, so it works with any rpc.py that has --plugin.
"""

import argparse
import json
import os
import sys
import textwrap

DETACH = 'bdev_lvol_detach_parent'
CHECK = 'bdev_lvol_check_detach_parent'

DETACH_DESCRIPTION = """\
Detach an lvol from its parent snapshot, without copying anything.

Afterwards the lvol has no parent at all, not even the former grandparent. The
clusters that it owns read as before; those that it doesn't own read as zeroes.
No cluster is allocated, freed, written or copied: one page of metadata is
rewritten. The lvol's own clones stay its clones and see the change through it.

It works on writable lvols and on snapshots. The former parent may be deleted as
soon as the command returns.

Run bdev_lvol_check_detach_parent --tree first to see what would be lost. To keep
what the lvol shows of its parent, use bdev_lvol_decouple_parent or
bdev_lvol_inflate instead, which copy it.
"""

CHECK_DESCRIPTION = """\
Show what bdev_lvol_detach_parent would do to an lvol, without changing anything.

It shows which ancestors the lvol reads through, how many of its clusters read
their data now and would read as zeroes, the same for each lvol that reads
through it, which of these lvols are in use, whether a detach would succeed or
with which error it would fail, and whether it could be undone.
"""

# Every error code that either method returns.
CODES = """\
  -32602  the name is missing or not a string, or another parameter is wrong
  -32601  the target has no such method: the extension is not loaded
  -19     there is no such bdev, or it is not an lvol
  -22     the lvol has no parent, or its parent is an external snapshot
  -16     another operation is in progress on the lvol, its parent or an lvol that
          reads through it: try again
  -117    the target's view of the chain in memory can't be right, as after an
          operation that failed half-way: copy what can be read before a restart
  -84     the metadata on the device is not what the target has in memory
  -5      the metadata could not be read or written: the lvol still has its parent
  -131    the metadata write failed, and so did writing the old metadata back: the
          lvol still has its parent, but may come up without it after a restart
  -1      the lvol's lvstore belongs to a thread other than the one that serves RPCs
  -108    the target is about to stop
  -12     out of memory
  -95     like -5: the base bdev of the lvstore can't be flushed as expected
  -125    like -5: SPDK has dropped a request that was in progress
"""

DETACH_EPILOG = f"""\
prints:
  true, when the change is on the device

errors (nothing has changed, except after -131):
{CODES}
example:
  bdev_lvol_detach_parent lvs/snap3
"""

CHECK_EPILOG = f"""\
prints:
  JSON, or a picture with --tree

errors (if the detach itself would be refused, the output says so instead):
{CODES}
examples:
  bdev_lvol_check_detach_parent lvs/snap3 --tree
  bdev_lvol_check_detach_parent lvs/snap3 --ranges
"""

# If there are more, the picture omits ancestors in the middle of which the lvol shows nothing.
MANY_ANCESTORS = 12


def bdev_lvol_detach_parent(args):
    result = args.client.call(DETACH, {'name': args.name})
    if result is not None:  # None comes from --dry-run, which sends nothing
        print(json.dumps(result))


def bdev_lvol_check_detach_parent(args):
    params = {'name': args.name}
    if args.ranges:
        params['ranges'] = True
    result = args.client.call(CHECK, params)
    if result is None:
        return
    print(picture(result) if args.tree else json.dumps(result, indent=2))


def picture(found):
    """Shows the result of a check in a form that needs no explanation."""
    parts = [chain(found)] if 'ancestors' in found else []
    parts += [losses(found), next_steps(found)]
    parts += [wrapped(f'Mind: {warning["message"]}.') for warning in found['warnings']]
    return '\n\n'.join(part for part in parts if part)


def chain(found):
    name = found['name']
    rows = []
    for ancestor in reversed(shortened(found['ancestors'])):
        if ancestor is None:
            rows += [('  ...', f'more ancestors, of which {name} shows nothing'), ('    |', '')]
            continue
        what = f'{name} shows {clusters(found, ancestor["num_shown_clusters"])} of it'
        if ancestor['kind'] == 'external_snapshot':
            what += '; an external snapshot'
        rows += [(f'  {ancestor["name"] or "(unknown)"}', what), ('    |', '')]
    if found['cycle']:
        rows = [('  (a cycle: it goes on below)', ''), ('    |', ''), *rows]
    if rows:
        rows[-1] = ('    X', '<-- a detach parts the chain here')
    rows.append((f'  {name}', state(found, found)))
    below = {}
    for reader in found['readers']:
        below.setdefault(reader['parent'], []).append(reader)
    # Not recursive: a chain may be deeper than Python's recursion limit.
    left = [(reader, 1) for reader in reversed(below.get(name, []))]
    while left:
        reader, depth = left.pop()
        rows.append((f'{"    " * depth}+- {reader["name"]}', state(found, reader)))
        left += [(more, depth + 1) for more in reversed(below.get(reader['name'], []))]
    width = max(len(left) for left, right in rows if right)
    return '\n'.join(f'{left:{width}}   {right}'.rstrip() for left, right in rows)


def shortened(ancestors):
    """The ancestors to show, with at most one None for those that are omitted."""
    if len(ancestors) <= MANY_ANCESTORS:
        return ancestors
    kept = []
    for number, ancestor in enumerate(ancestors):
        if ancestor['num_shown_clusters'] or number in (0, len(ancestors) - 1):
            kept.append(ancestor)
        elif kept[-1] is not None:
            kept.append(None)
    return kept


def state(found, lvol):
    lost = lvol['num_lost_clusters']
    words = [f'WOULD LOSE {clusters(found, lost)}' if lost else 'would lose nothing']
    words.append(f'owns {lvol["num_allocated_clusters"]} of {lvol["num_clusters"]}')
    words.append('read-only' if lvol['read_only'] else 'writable')
    if use := in_use(lvol):
        words.append(f'IN USE: {use}')
    words += [f'{name} {limit}' for name, limit in lvol.get('assigned_rate_limits', {}).items()]
    return '; '.join(words)


def in_use(lvol):
    words = [word for word in ('open', 'claimed') if lvol[word]]
    if lvol['num_io_in_flight']:
        words.append(f'{lvol["num_io_in_flight"]} I/O in flight')
    return ', '.join(words)


def clusters(found, count):
    return f'{count} cluster{"s" * (count != 1)} ({size(count * found["cluster_size"])})'


def size(number):
    units = ['B', 'KiB', 'MiB', 'GiB', 'TiB']
    power = min(max(number.bit_length() - 1, 0) // 10, len(units) - 1)
    return f'{number / (1 << 10 * power):.4g} {units[power]}'


def losses(found):
    name = found['name']
    if 'num_lost_clusters' not in found:
        return ''
    lost = [
        f'  {lvol["name"]}: {clusters(found, lvol["num_lost_clusters"])}'
        for lvol in [found, *found['readers']]
        if lvol['num_lost_clusters']
    ]
    if not lost:
        return f'Neither {name} nor what reads through it would lose any data by a detach.'
    text = 'Would be lost to view by a detach (reads data of an ancestor now, and zeroes then):\n'
    text += '\n'.join(lost)
    users = [lvol['name'] for lvol in [found, *found['readers']] if in_use(lvol)]
    if users:
        text += '\n\n' + wrapped(
            f'Stop whoever uses {", ".join(users)} first: they would see data turn into zeroes, '
            'and what they write meanwhile makes the loss permanent.'
        )
    return text


def next_steps(found):
    name = found['name']
    refusal = found['refusal']
    if refusal:
        what = wrapped(refusal['message'], '  ')
        return f'A detach would be refused now, with {refusal["code"]}:\n{what}'
    program = os.path.basename(sys.argv[0])
    lines = [
        'A detach would be done now. What to type next:',
        f'  {program} --plugin {__name__} {DETACH} {name}',
        '      to detach it',
        f'  {program} bdev_lvol_decouple_parent {name}',
        '      instead, to keep all that it shows, damage and all: copies what its parent owns',
    ]
    undo = found.get('undo', {})
    if undo.get('possible'):
        lines += [
            f'  {program} bdev_lvol_set_parent {name} {found["parent"]}',
            wrapped(f'to take the detach back, as long as {undo["as_long_as"]}', '      '),
        ]
    elif undo:
        lines.append(wrapped(f'It could not be taken back: {undo["why_not"]}.'))
    return '\n'.join(lines)


def wrapped(text, indent=''):
    return textwrap.fill(
        text,
        88,
        initial_indent=indent,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def spdk_rpc_plugin_initialize(subparsers):
    def add(method, function, help, description, epilog):
        if method in subparsers.choices:
            return None  # this rpc.py already has the method
        parser = subparsers.add_parser(
            method,
            help=help,
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        parser.add_argument('name', help='UUID or alias (lvs/lvol) of the lvol')
        parser.set_defaults(func=function)
        return parser

    add(
        DETACH,
        bdev_lvol_detach_parent,
        'Detach an lvol from its parent snapshot, without copying anything',
        DETACH_DESCRIPTION,
        DETACH_EPILOG,
    )
    check = add(
        CHECK,
        bdev_lvol_check_detach_parent,
        'Show what bdev_lvol_detach_parent would do, without changing anything',
        CHECK_DESCRIPTION,
        CHECK_EPILOG,
    )
    if check:
        check.add_argument('--ranges', action='store_true', help='also list the clusters')
        check.add_argument('--tree', action='store_true', help='show a picture instead of JSON')
