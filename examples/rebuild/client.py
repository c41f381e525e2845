"""The outside client: qemu, over the targets' iSCSI."""

import contextlib
import random
import re
import subprocess
import threading
import time

from spdk_target import Failure
from target import PATIENCE

BLOCK = 4096
PROMPT = b'qemu-io> '


def run(*command):
    """Runs one of qemu's commands: its exit status and what it printed."""
    # Without a time limit it would wait for ever for a target that has died.
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=PATIENCE,
        start_new_session=True,
    )
    return done.returncode, done.stdout.strip()


def write_file(url, path, offset, length):
    """Writes what the file has to an lvol."""
    # Lvols have no flush, and nothing that would need one: hence -t unsafe.
    command = f'write -s {path} {offset} {length}'
    status, said = run('qemu-io', '-f', 'raw', '-t', 'unsafe', '-c', command, url)
    if status != 0 or 'failed' in said:
        raise Failure(f'writing: {said}')


def first_difference(one, other):
    """Where two lvols begin to differ, in bytes; None if they are the same in every byte."""
    status, said = run('qemu-img', 'compare', '-f', 'raw', '-F', 'raw', one, other)
    if status == 0:
        return None
    mismatch = re.search(r'Content mismatch at offset (\d+)!', said)
    if not mismatch:
        raise Failure(f'comparing: {said}')
    return int(mismatch[1])


class QemuIo:
    """A qemu-io that keeps an lvol open and takes one command after another."""

    def __init__(self, url):
        self._process = subprocess.Popen(
            ['qemu-io', '-f', 'raw', '-t', 'unsafe', url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            bufsize=0,
            start_new_session=True,
        )

    def send(self, command):
        self._process.stdin.write(f'{command}\n'.encode())

    def answer(self):
        """What it prints until it asks for the next command."""
        said = b''
        while not said.endswith(PROMPT):
            more = self._process.stdout.read(4096)
            if not more:
                raise Failure(f'qemu-io has ended: {said.decode()}')
            said += more
        return said.removesuffix(PROMPT).decode().strip()

    def end(self):
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()


class Mirror:
    """Writes to both heads, the same to both, until the end of a with statement.

    It is the engine's part that serves the volume: a write is done when both replicas have it.
    """

    PAUSE = 0.04  # seconds between two writes: the copy needs the machine too

    def __init__(self, urls, size, seed):
        self._size = size
        self._random = random.Random(seed)
        self._writing = threading.Lock()
        self._ended = threading.Event()
        self._error = None
        self.writes = 0
        self.bytes = 0
        self._heads = []
        try:
            for url in urls:
                head = QemuIo(url)
                self._heads.append(head)
                head.answer()
        except BaseException:
            self._end_clients()
            raise
        self._thread = threading.Thread(target=self._write_until_ended, daemon=True)
        self._thread.start()

    def _write_until_ended(self):
        try:
            while not self._ended.wait(self.PAUSE):
                with self._writing:
                    self._write()
        except Exception as error:
            self._error = error

    def _write(self):
        """A write of some blocks anywhere: most often a part of a cluster."""
        length = self._random.randint(1, 32) * BLOCK
        offset = self._random.randint(0, (self._size - length) // BLOCK) * BLOCK
        command = f'write -P {self._random.randint(1, 255)} {offset} {length}'
        for head in self._heads:
            head.send(command)
        for head in self._heads:
            said = head.answer()
            if not said.startswith(f'wrote {length}/{length} bytes'):
                raise Failure(f'a write to the head: {said}')
        self.writes += 1
        self.bytes += length

    @contextlib.contextmanager
    def held(self):
        """No write is in progress or starts in the body of the with statement."""
        if not self._writing.acquire(timeout=PATIENCE):
            raise Failure('a write to the head hangs')
        try:
            self._check()
            yield
        finally:
            self._writing.release()

    def wait_for(self, count):
        """Returns when so many more writes are done."""
        wanted = self.writes + count
        deadline = time.monotonic() + PATIENCE
        while self.writes < wanted:
            self._check()
            if time.monotonic() > deadline:
                raise Failure('the writes to the head hang')
            time.sleep(self.PAUSE)

    def _check(self):
        if self._error:
            raise Failure(str(self._error)) from self._error

    def _end_clients(self):
        for head in self._heads:
            head.end()

    def __enter__(self):
        return self

    def __exit__(self, failure, *_):
        self._ended.set()
        # With a target that hangs, the thread ends when its clients do.
        self._thread.join(1 if failure else PATIENCE)
        self._end_clients()
        if not failure:
            self._check()
