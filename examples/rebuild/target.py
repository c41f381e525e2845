"""A target: the stock spdk_tgt with the extension, in a process of its own."""

import contextlib
import os
import socket
import subprocess
import time
from pathlib import Path

from spdk.rpc.client import JSONRPCClient, JSONRPCException

LAUNCHER = Path(__file__).resolve().parents[2] / 'scripts/spdk_tgt'
PATIENCE = 60  # seconds; only what hangs takes so long


class Failure(Exception):
    """What stops the rebuild, in words for an operator."""


def free_port():
    with socket.create_server(('127.0.0.1', 0)) as server:
        return server.getsockname()[1]


class Target:
    """Runs until `stop`, or until the end of a with statement."""

    def __init__(self, name, folder, cpu):
        self.name = name
        self.log = folder / f'{name}.log'
        self._client = None
        rpc_socket = folder / f'{name}.sock'
        with self.log.open('a') as log:
            self._process = subprocess.Popen(
                [LAUNCHER, '--no-huge', '-s', '1536', '--no-pci', '-m', f'[{cpu}]']
                + ['--disable-cpumask-locks', '--num-trace-entries', '0', '-r', rpc_socket],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Ctrl-C is for the script, which stops the target.
                start_new_session=True,
            )
        try:
            self._client = self._connect(rpc_socket)
            self.rpc('framework_wait_init')
        except BaseException:
            self.stop()
            raise

    def _connect(self, rpc_socket):
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise Failure(f'the target {self.name} has ended')
            try:
                return JSONRPCClient(str(rpc_socket), timeout=PATIENCE)
            except JSONRPCException:
                time.sleep(0.05)
        raise Failure(f'the target {self.name} does not answer')

    def rpc(self, method, **params):
        try:
            return self._client.call(method, params)
        except (JSONRPCException, OSError) as error:
            raise Failure(f'{method} on the target {self.name}: {error}') from error

    def stop(self):
        if self._client:
            with contextlib.suppress(OSError):  # it is closed already when the target has ended
                self._client.close()
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()


def two_cpus():
    """The CPUs for two targets: one each, if there are two."""
    cpus = sorted(os.sched_getaffinity(0))
    return cpus[0], cpus[1 % len(cpus)]
