"""What an engine does with two replicas of a volume, one of which is damaged."""

import contextlib
import time
from dataclasses import dataclass

from tqdm import tqdm

from client import Mirror, first_difference
from replica import CLUSTER, alias
from spdk_target import Failure
from steps import note, step
from target import PATIENCE
from volume import LVOLS, SNAPSHOTS


@dataclass
class Measured:
    sent: int = 0
    read_for_head: int = 0
    written: int = 0
    seconds: float = 0.0


class Engine:
    """The engine, for one rebuild."""

    def __init__(self, healthy, replica, volume, seed):
        self.healthy = healthy
        self.replica = replica
        self.measured = Measured()
        self._volume = volume
        self._seed = seed
        self._written_before = replica.iostat('base')['bytes_written']
        self._started = None

    def by_detach(self):
        with self.head_on('snap3'):
            step('detaching snap3 from snap2')
            self.replica.detach_parent('snap3')
            step('deleting snap2')
            self.replica.delete('snap2')
            self.send('snap2', 'snap1')
            step('putting snap3 on the new snap2')
            self.replica.set_parent('snap3', 'snap2')

    def by_decouple(self):
        with self.head_on('snap3'):
            step('decoupling snap3 from snap2, which copies clusters of snap2 into it')
            self.replica.decouple_parent('snap3')
            step('deleting snap2')
            self.replica.delete('snap2')
            difference = self.difference('snap3')
            if difference is None:
                raise Failure('snap3 should have got damaged clusters, but is what it should be')
            step(f'snap3 has them now, it differs at byte {difference}: deleting it')
            self.replica.delete('snap3')
            self.send('snap2', 'snap1')
            self.send('snap3', 'snap2')

    def in_full(self):
        step('a snapshot of the healthy head, so that it can be sent; deleting the whole replica')
        self.healthy.snapshot('head', 'snap4')
        for lvol in reversed(LVOLS):
            self.replica.delete(lvol)
        with self.head_on('snap4', new=True):
            self.send('snap1', None)
            self.send('snap2', 'snap1')
            self.send('snap3', 'snap2')
            self.send('snap4', 'snap3')
        step("deleting snap4 on both: its clusters become the head's")
        self.healthy.delete('snap4')
        self.replica.delete('snap4')

    @contextlib.contextmanager
    def head_on(self, snapshot, new=False):
        """The head is a clone of the healthy replica's snapshot, over NVMe-oF, and takes writes.

        A write to a part of a cluster that the head doesn't own copies the whole cluster from the
        head's parent, and the head keeps that. On its own chain it would copy damage while snap2 is
        damaged, and zeroes while snap2 is missing, and setting a parent later doesn't undo it. So
        the head is on its own chain only when that is whole again.

        No write is under way while the head's parent changes: SPDK doesn't wait for reads of the
        former one.
        """
        with self.healthy.lent_to(self.replica, snapshot) as lent:
            step(f"putting the head on the healthy replica's {snapshot}, over NVMe-oF")
            if new:
                self.replica.clone_bdev(lent, 'head')
            else:
                self.replica.set_parent_bdev('head', lent)
            allocated = self.replica.allocated('head')
            heads = [replica.url('head') for replica in (self.healthy, self.replica)]
            with Mirror(heads, self._volume.size, self._seed) as mirror:
                step('the volume takes writes from here on')
                mirror.wait_for(10)
                yield
                mirror.wait_for(10)
                writes = mirror.writes
                with mirror.held():
                    step(f'putting the head on its own {snapshot}, after {writes} writes')
                    self.replica.set_parent('head', snapshot)
                    self._measure(lent, mirror, self.replica.allocated('head') - allocated)
                mirror.wait_for(10)
            step(f'the volume is at rest, after {mirror.writes} writes')

    def _measure(self, lent, mirror, copied_on_write):
        """Leaves out what the volume's writes cost: their bytes and the clusters they copied."""
        written = self.replica.iostat('base')['bytes_written'] - self._written_before
        self.measured.written = written - mirror.bytes - copied_on_write
        self.measured.read_for_head = self.replica.iostat(lent)['bytes_read']
        self.measured.seconds = time.monotonic() - self._started

    def send(self, snapshot, parent):
        """Makes a snapshot on the replica anew, from the healthy replica's."""
        step(f'sending {snapshot} into a writable lvol on {parent or "nothing"}, over NVMe-oF')
        if parent:
            self.replica.clone(parent, 'incoming')
        else:
            self.replica.create('incoming', self._volume.size)
        with self.replica.lent_to(self.healthy, 'incoming') as bdev:
            self._shallow_copy(snapshot, bdev)
            self.measured.sent += self.healthy.iostat(bdev)['bytes_written']
        step(f'the writable lvol becomes the snapshot {snapshot}')
        self.replica.snapshot('incoming', snapshot)
        self.replica.delete('incoming')

    def _shallow_copy(self, snapshot, bdev):
        copy = self.healthy.rpc(
            'bdev_lvol_start_shallow_copy', src_lvol_name=alias(snapshot), dst_bdev_name=bdev
        )
        total = self.healthy.allocated(snapshot)
        deadline = time.monotonic() + PATIENCE
        with tqdm(total=total, desc=f'    {snapshot}', unit='B', unit_scale=True) as bar:
            while True:
                status = self.healthy.rpc('bdev_lvol_check_shallow_copy', **copy)
                bar.update(status['copied_clusters'] * CLUSTER - bar.n)
                if status['state'] == 'complete':
                    return
                if status['state'] == 'error' or time.monotonic() > deadline:
                    raise Failure(f'the copy of {snapshot}: {status}')
                time.sleep(0.05)

    def difference(self, lvol):
        """The first byte in which the replicas' lvols differ; None if none does."""
        return first_difference(self.healthy.url(lvol), self.replica.url(lvol))

    def find_damage(self):
        step('comparing the snapshots with the healthy replica')
        differing = []
        for snapshot in SNAPSHOTS:
            difference = self.difference(snapshot)
            if difference is None:
                note(f'{snapshot} is the same')
            else:
                note(f'{snapshot} differs at byte {difference}')
                differing.append(snapshot)
        if differing != ['snap2', 'snap3']:
            raise Failure(f'snap2, and snap3 through it, should differ, not {differing}')
        self._started = time.monotonic()

    def verify(self):
        step('comparing every byte of the snapshots and the head with the healthy replica')
        for lvol in LVOLS:
            difference = self.difference(lvol)
            if difference is not None:
                raise Failure(f"{lvol} differs from the healthy replica's at byte {difference}")
        shapes = [replica.shape(LVOLS) for replica in (self.healthy, self.replica)]
        if shapes[0] != shapes[1]:
            raise Failure(f'the chains differ: {shapes[0]} and {shapes[1]}')
        note('all the same, and so are their parents and how many clusters each owns')
