"""Starts an spdk_tgt, reaches it and stops it: for the benchmark and the example."""

import contextlib
import functools
import os
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

from spdk.rpc.client import JSONRPCClient, JSONRPCException

LAUNCHER = Path(__file__).resolve().parents[1] / 'scripts/spdk_tgt'
START_SECONDS = 60
STOP_SECONDS = 30


class Failure(Exception):
    """What stops the work, in words for an operator."""


@dataclass
class Options:
    """How to start a target, and how long to wait for a reply."""

    cpus: list
    memory_mib: int
    reply_seconds: float
    program: object = LAUNCHER
    environment: dict = field(default_factory=dict)
    client: type = JSONRPCClient


class TargetProcess:
    """Runs until `stop`. Its log and its socket are NAME.log and NAME.sock in the folder."""

    def __init__(self, name, folder, options):
        self.name = name
        self.log = folder / f'{name}.log'
        self.client = None
        self.socket = str(folder / f'{name}.sock')
        arguments = ['--no-huge', '-s', str(options.memory_mib), '--no-pci', '-r', self.socket]
        arguments += ['-m', f'[{",".join(map(str, options.cpus))}]', '--disable-cpumask-locks']
        # A target that is killed would leave the shared memory of its trace behind.
        arguments += ['--num-trace-entries', '0']
        with self.log.open('a') as log:
            self.process = subprocess.Popen(
                [options.program, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **options.environment},
                # Ctrl-C is for the script, which stops the target.
                start_new_session=True,
            )
        try:
            self.client = self._connect(options)
            self.client.call('framework_wait_init')
        except BaseException:
            self.stop()
            raise

    def _connect(self, options):
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise Failure(f'the target {self.name} has ended: {self.log.read_text()[-2000:]}')
            try:
                return options.client(self.socket, timeout=options.reply_seconds)
            except JSONRPCException:
                time.sleep(0.05)
        raise Failure(f'the target {self.name} does not answer')

    def rpc(self, method, **params):
        try:
            return self.client.call(method, params)
        except (JSONRPCException, OSError) as error:
            raise Failure(f'{method} on the target {self.name}: {error}') from error

    @functools.cached_property
    def _names_bdevs(self):
        """SPDK 26.05 takes several names for bdev_get_iostat, and no longer one."""
        version = self.rpc('spdk_get_version')['fields']
        return (version['major'], version['minor']) >= (26, 5)

    def iostat(self, bdev):
        """What the bdev has been asked to do so far."""
        which = {'names': [bdev]} if self._names_bdevs else {'name': bdev}
        (stat,) = self.rpc('bdev_get_iostat', **which)['bdevs']
        return stat

    def stop(self):
        if self.client:
            with contextlib.suppress(OSError):  # it is closed already when the target has ended
                self.client.close()
        self.process.terminate()
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
