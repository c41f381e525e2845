"""A running spdk_tgt with a base bdev and an lvstore on it."""

import json
import os
import re
import signal
import tempfile
import time
from pathlib import Path

from spdk.rpc.client import JSONRPCClient

from spdk_target import Failure, Options, TargetProcess

OURS = 'extension'
# A malloc bdev of 1 GiB, and 10,000 lvols.
MEMORY_MIB = 4096
REPLY_SECONDS = 600
# An lvstore has 512 request sets for its metadata (SPDK_LVOL_BLOB_OPTS_CHANNEL_OPS).
AT_ONCE = 480
STEPS = ('open', 'write', 'copies', 'reads', 'release')


class Connection(JSONRPCClient):
    """SPDK's client, which can also send many requests before it reads the first reply."""

    def pipelined(self, requests):
        """Seconds from the first byte sent to the last reply read; each must be a success."""
        sent = ''.join(
            json.dumps({'jsonrpc': '2.0', 'id': number, **request})
            for number, request in enumerate(requests)
        ).encode()
        self.sock.settimeout(self.timeout)
        replies = bytearray()
        lines = 0
        started = time.perf_counter()
        self.sock.sendall(sent)
        while lines < len(requests):
            chunk = self.sock.recv(1 << 20)
            if not chunk:
                raise Failure('the target closed the connection')
            lines += chunk.count(b'\n')
            replies += chunk
        seconds = time.perf_counter() - started
        for line in replies.splitlines():
            reply = json.loads(line)
            if 'error' in reply:
                raise Failure(f'{requests[reply["id"]]}: {reply["error"]}')
        return seconds


class Target(TargetProcess):
    """One of the compared targets. While it is paused it uses no CPU."""

    def __init__(self, name, program, cpus, preloaded=(), variables=None):
        self.is_ours = name == OURS
        # It is removed when the target stops, or when this program ends.
        self.folder = tempfile.TemporaryDirectory(prefix='spdk-lvol-detach-bench-')
        self.disk = Path(self.folder.name) / 'disk'
        options = Options(cpus, MEMORY_MIB, REPLY_SECONDS, program, client=Connection)
        options.environment = environment(program, preloaded) | (variables or {})
        super().__init__(name, Path(self.folder.name), options)

    def stop(self):
        self.resume()
        super().stop()
        self.folder.cleanup()

    def pause(self):
        self.process.send_signal(signal.SIGSTOP)

    def resume(self):
        self.process.send_signal(signal.SIGCONT)

    def pipelined(self, requests):
        return self.client.pipelined(requests)

    def in_parts(self, requests, at_once=AT_ONCE):
        """As `pipelined`, for any number of requests."""
        starts = range(0, len(requests), at_once)
        return sum(self.pipelined(requests[start : start + at_once]) for start in starts)

    def make_lvstore(self, base='aio', gib=64, **options):
        """An lvstore `lvs` on a new base bdev."""
        self.base = base
        if base == 'aio':
            with self.disk.open('wb') as file:
                file.truncate(gib << 30)
            file = {'filename': str(self.disk), 'fallocate': True}
            self.rpc('bdev_aio_create', name='base', block_size=4096, **file)
        else:
            blocks = (gib << 30) // 4096
            self.rpc('bdev_malloc_create', name='base', num_blocks=blocks, block_size=4096)
        options = {'clear_method': 'none', **options}
        self.rpc('bdev_lvol_create_lvstore', bdev_name='base', lvs_name='lvs', **options)

    def drop_lvstore(self):
        """Removes the base bdev, not the lvols: forgetting them is faster than deleting them."""
        self.rpc(f'bdev_{self.base}_delete', name='base')
        self.disk.unlink(missing_ok=True)

    def create(self, lvol, mib, thin=True):
        self.pipelined([create_request(lvol, mib, thin)])

    def create_full(self, lvol, mib):
        """A thin lvol that owns all its clusters, without a parent; nothing is written to it."""
        self.create(lvol, mib, thin=False)
        # A thick lvol becomes thin when it has a snapshot, and takes over the clusters of that.
        self.snapshot(lvol, f'{lvol}-passing')
        self.delete(f'{lvol}-passing')

    def create_with_parents(self, lvols, mib):
        """Thin lvols that own nothing, each with a parent that owns nothing."""
        self.in_parts([create_request(lvol, mib) for lvol in lvols])
        self.in_parts([snapshot_request(lvol, parent_of(lvol)) for lvol in lvols])

    def snapshot(self, lvol, snapshot):
        self.pipelined([snapshot_request(lvol, snapshot)])

    def set_parent(self, lvol, parent):
        self.pipelined([set_parent_request(lvol, parent)])

    def delete(self, lvol):
        self.rpc('bdev_lvol_delete', name=f'lvs/{lvol}')

    def allocated_clusters(self, lvol):
        (bdev,) = self.rpc('bdev_get_bdevs', name=f'lvs/{lvol}')
        return bdev['driver_specific']['lvol']['num_allocated_clusters']

    def device(self):
        """What the base bdev has been asked to do so far."""
        stats = self.iostat('base')
        return {
            'writes': stats['num_write_ops'],
            'bytes_written': stats['bytes_written'],
            'reads': stats['num_read_ops'],
            'bytes_read': stats['bytes_read'],
        }

    def busy_us(self):
        """How long the SPDK thread that serves requests has been at work so far."""
        stats = self.rpc('thread_get_stats')
        (busy,) = (each['busy'] for each in stats['threads'] if each['name'] == 'app_thread')
        return busy * 1e6 / stats['tick_rate']

    def watch(self, action):
        """Runs it; returns its result and what the base bdev did meanwhile."""
        before = self.device()
        result = action()
        after = self.device()
        return result, {name: after[name] - before[name] for name in after}

    def show_steps(self):
        """From now on the log shows how long each step took, if the target has the extension."""
        if self.is_ours:
            self.rpc('log_set_flag', flag='lvol_detach')
            self.rpc('log_set_print_level', level='INFO')

    def hide_steps(self):
        if self.is_ours:
            self.rpc('log_clear_flag', flag='lvol_detach')
            self.rpc('log_set_print_level', level='NOTICE')

    def steps_of(self, detach):
        """Sends the request: the microseconds of each step; None if the target doesn't say."""
        if not self.is_ours:
            self.pipelined([detach])
            return None
        pattern = ', '.join(rf'{step} ([0-9.]+) us' for step in STEPS)
        with self.log.open('rb') as log:
            log.seek(0, os.SEEK_END)
            self.pipelined([detach])
            # The line may come after the reply.
            written = ''
            while not (found := re.search(pattern, written)):
                written += log.read().decode()
        return dict(zip(STEPS, map(float, found.groups()), strict=True))


class Targets:
    """The targets to compare, all on one core, of which one runs at a time."""

    def __init__(self, programs, core):
        self.targets = []
        try:
            for name, program in programs.items():
                self.targets.append(Target(name, program, [core]))
                self.targets[-1].pause()
        except BaseException:
            self.stop()
            raise

    def __iter__(self):
        return iter(self.targets)

    def each(self):
        """Each in turn, running."""
        for target in self.targets:
            target.resume()
            yield target
            target.pause()

    def stop(self):
        for target in self.targets:
            target.stop()


def environment(program, preloaded):
    """For a target from a built SPDK tree that has shared libraries, and with these loaded."""
    tree = Path(program).resolve().parent.parent.parent
    libraries = [str(tree / 'build/lib'), str(tree / 'dpdk/build/lib')]
    added = {}
    if Path(libraries[0]).is_dir():
        before = os.environ.get('LD_LIBRARY_PATH')
        added['LD_LIBRARY_PATH'] = ':'.join([*libraries, *([before] if before else [])])
    if preloaded:
        added['LD_PRELOAD'] = ':'.join(map(str, preloaded))
    return added


def request(method, **params):
    return {'method': method, 'params': params} if params else {'method': method}


def create_request(lvol, mib, thin=True):
    return request(
        'bdev_lvol_create',
        lvs_name='lvs',
        lvol_name=lvol,
        size_in_mib=mib,
        thin_provision=thin,
        clear_method='none',
    )


def snapshot_request(lvol, snapshot):
    return request('bdev_lvol_snapshot', lvol_name=f'lvs/{lvol}', snapshot_name=snapshot)


def clone_request(snapshot, clone):
    return request('bdev_lvol_clone', snapshot_name=f'lvs/{snapshot}', clone_name=clone)


def parent_of(lvol):
    return f'{lvol}-parent'


def detach_request(lvol):
    return request('bdev_lvol_detach_parent', name=f'lvs/{lvol}')


def set_parent_request(lvol, parent):
    return request('bdev_lvol_set_parent', lvol_name=f'lvs/{lvol}', parent_name=f'lvs/{parent}')
