"""The volume that both replicas hold: its chain, its data, and the damage."""

import hashlib
import os
import random

from replica import CLUSTER
from spdk_target import Failure
from steps import note

# From the oldest. The head is on top.
SNAPSHOTS = ('snap1', 'snap2', 'snap3')
LVOLS = (*SNAPSHOTS, 'head')

# The clusters that each owns: the first and the one after the last, in parts of the volume.
PARTS = 16
OWNED = {'snap1': (0, 12), 'snap2': (4, 8), 'snap3': (6, 12), 'head': (10, 12)}


class Volume:
    def __init__(self, folder, clusters, seed):
        self.size = clusters * CLUSTER
        self._folder = folder
        self._clusters = clusters
        source = random.Random(seed)
        for lvol in LVOLS:
            _, length = self.range(lvol)
            self.data(lvol).write_bytes(source.randbytes(length))

    def range(self, lvol):
        """Where in the volume an lvol's own data is: offset and length."""
        first, end = (edge * self._clusters // PARTS * CLUSTER for edge in OWNED[lvol])
        return first, end - first

    def data(self, lvol):
        """The file with an lvol's own data."""
        return self._folder / f'{lvol}.data'

    def damage(self, disk, lvol):
        """Overwrites what an lvol owns on a disk, and nothing else.

        A target can't be asked where on its device a cluster is. But the data is random: a cluster
        of the device that has the content of one of the lvol's is that one.
        """
        own = {hashlib.sha256(cluster).digest() for cluster in clusters_of(self.data(lvol))}
        found = 0
        with disk.open('r+b') as device:
            for index, cluster in enumerate(clusters_of(disk)):
                if hashlib.sha256(cluster).digest() in own:
                    device.seek(index * CLUSTER)
                    device.write(os.urandom(CLUSTER))
                    found += 1
        if found != len(own):
            raise Failure(f'{found} of the {len(own)} clusters of {lvol} are on the device')
        note(f'{found} clusters')


def clusters_of(path):
    with path.open('rb') as file:
        while cluster := file.read(CLUSTER):
            yield cluster
