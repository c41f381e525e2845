"""What the benchmark ran on."""

import os
import platform
import re
import shutil
from pathlib import Path

DETACH = 'bdev_lvol_detach_parent'


def describe(targets, folder):
    cpuinfo = Path('/proc/cpuinfo').read_text()
    model = re.search(r'^model name\s*:\s*(.*)$', cpuinfo, re.MULTILINE)
    memory = re.search(r'^MemTotal:\s*(\d+)', Path('/proc/meminfo').read_text(), re.MULTILINE)
    return {
        'cpu': model.group(1) if model else platform.machine(),
        'cores': os.cpu_count(),
        'memory_gib': round(int(memory.group(1)) / (1 << 20), 1),
        'kernel': platform.release(),
        'load_average_before': os.getloadavg()[0],
        'base_bdev': f'AIO on a sparse file on {file_system(folder)}, or malloc where it says so',
        'free_disk_gib': round(shutil.disk_usage(folder).free / (1 << 30), 1),
        'targets': {target.name: describe_target(target) for target in targets.each()},
    }


def describe_target(target):
    version = target.rpc('spdk_get_version')['version']
    registered = re.search(rf'{DETACH} is registered \(version (.*)\)', target.log.read_text())
    return {'spdk': version, 'extension': registered and registered.group(1)}


def file_system(folder):
    """The type of the one that the folder is on: that of the longest mount point above it."""
    mounts = [line.split()[1:3] for line in Path('/proc/mounts').read_text().splitlines()]
    above = [mount for mount in mounts if Path(folder).resolve().is_relative_to(mount[0])]
    return max(above, key=lambda mount: len(mount[0]))[1]
