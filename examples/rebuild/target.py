"""A target: the stock spdk_tgt with the extension, in a process of its own."""

import os
import socket

from spdk_target import Options, TargetProcess

PATIENCE = 60  # seconds; only what hangs takes so long


def free_port():
    with socket.create_server(('127.0.0.1', 0)) as server:
        return server.getsockname()[1]


class Target(TargetProcess):
    """Runs until `stop`, or until the end of a with statement."""

    def __init__(self, name, folder, cpu):
        super().__init__(name, folder, Options([cpu], memory_mib=1536, reply_seconds=PATIENCE))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()


def two_cpus():
    """The CPUs for two targets: one each, if there are two."""
    cpus = sorted(os.sched_getaffinity(0))
    return cpus[0], cpus[1 % len(cpus)]
