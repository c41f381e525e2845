"""Prints the Debian copyright file (DEP-5) of what is built: of this project, of the SPDK tree that
is linked in with its DPDK and isa-l, of the crates, and of Rust's standard library.

    SPDK_ROOT_DIR=/path/to/spdk python3 scripts/copyright.py

An unknown licence is an error: someone has to look at it.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SPDK = Path(os.environ['SPDK_ROOT_DIR'])


def fail(reason):
    sys.exit(f'copyright: {reason}')


def dpdk():
    """DPDK's sources: SPDK's own, or those beside what `--with-dpdk` names."""
    config = (SPDK / 'mk/config.mk').read_text()
    named = Path(re.search(r'^CONFIG_DPDK_DIR\?=(.*)$', config, re.MULTILINE)[1])
    for folder in (SPDK / 'dpdk', named, named.parent):
        if (folder / 'license').is_dir():
            return folder
    fail(f'the sources of DPDK are neither in {SPDK / "dpdk"} nor at {named}')


DPDK = dpdk()

# Of the licences that a file offers, those by which it is used here.
TAKEN = {
    'BSD-3-Clause': ['BSD-3-Clause'],
    '(BSD-3-Clause OR GPL-2.0)': ['BSD-3-Clause'],
    '(BSD-3-Clause OR LGPL-2.1)': ['BSD-3-Clause'],
    '((GPL-2.0 WITH Linux-syscall-note) OR BSD-3-Clause)': ['BSD-3-Clause'],
    '((GPL-2.0 WITH Linux-syscall-note) OR BSD-2-Clause)': ['BSD-2-Clause'],
    'BSD-2-Clause': ['BSD-2-Clause'],
    'BSD-2-Clause-FreeBSD': ['BSD-2-Clause'],
    'MIT': ['MIT'],
    'ISC AND BSD-2-Clause': ['ISC', 'BSD-2-Clause'],
}
# The same for crates, whose words are DEP-5's but for their case.
CRATES = {
    'MIT': 'MIT',
    'MIT OR Apache-2.0': 'MIT or Apache-2.0',
    'Apache-2.0 OR MIT': 'MIT or Apache-2.0',
    'MIT/Apache-2.0': 'MIT or Apache-2.0',
    'Apache-2.0/MIT': 'MIT or Apache-2.0',
    'Unlicense OR MIT': 'MIT',
    'BSD-3-Clause': 'BSD-3-Clause',
}

# Folder, name, and where it has what is linked.
COMPONENTS = [
    (SPDK, 'spdk', ['app/spdk_tgt', 'include', 'lib', 'module']),
    (DPDK, 'dpdk', ['drivers/bus/pci', 'drivers/mempool/ring', 'drivers/power', 'lib']),
    (SPDK / 'isa-l', 'isa-l', ['.']),
    (SPDK / 'isa-l-crypto', 'isa-l-crypto', ['.']),
]

RUST = """\
Files: rust-std/*
Copyright: The Rust Project Developers
License: MIT or Apache-2.0
Comment: Rust's standard library and what is linked into it: addr2line, adler2, cfg-if, gimli,
 hashbrown, libc, memchr, miniz_oxide, object, rustc-demangle.
"""


def sources(folder):
    for suffix in ('*.c', '*.h', '*.asm'):
        yield from (file for file in folder.rglob(suffix) if file.is_file())


def marks(folders):
    """The licences and the copyright lines in a component's sources."""
    licences, holders = set(), set()
    for folder in folders:
        for file in sources(folder):
            text = file.read_text(errors='replace')
            for found in re.findall(r'SPDX-License-Identifier: *([^*\n]+)', text):
                expression = found.strip()
                if expression not in TAKEN:
                    fail(f'{file} is {expression}, which is not known here')
                licences.update(TAKEN[expression])
            for found in re.findall(r'Copyright ?\([cC]\)([^*\n]+)', text):
                holder = re.sub(r'All rights reserved.*', '', found, flags=re.IGNORECASE)
                holder = re.sub(r'^[\s\d,;-]+(?:by )?', '', holder).strip(' .,;')
                if holder:
                    holders.add(holder)
    return licences, holders


def component(folder, name, parts):
    licences, holders = marks([folder / part for part in parts])
    # isa-l has no marks, but one LICENSE.
    licence = ' and '.join(sorted(licences or {'BSD-3-Clause'}, reverse=True))
    holders = holders or {f'the authors of {name}'}
    lines = '\n '.join(sorted(holders, key=lambda holder: (holder.lower(), holder)))
    return f'Files: {name}/*\nCopyright: {lines}\nLicense: {licence}\n'


def crates():
    """The crates that are linked in, from cargo's graph."""
    output = subprocess.run(
        ['cargo', 'metadata', '--format-version', '1', '--locked'],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    metadata = json.loads(output.stdout)
    packages = {package['id']: package for package in metadata['packages']}
    nodes = {node['id']: node for node in metadata['resolve']['nodes']}
    found, left = set(), [metadata['resolve']['root']]
    while left:
        node = left.pop()
        if node not in found and not is_proc_macro(packages[node]):
            found.add(node)
            left += [dep['pkg'] for dep in nodes[node]['deps'] if is_linked(dep)]
    # Those without a source are this project's own.
    linked = (packages[node] for node in found)
    return sorted((p for p in linked if p['source']), key=lambda package: package['name'])


def is_linked(dependency):
    return any(
        kind['kind'] is None and (not kind['target'] or 'windows' not in kind['target'])
        for kind in dependency['dep_kinds']
    )


def is_proc_macro(package):
    return any('proc-macro' in target['kind'] for target in package['targets'])


def crate(package):
    name = f'{package["name"]}-{package["version"]}'
    if package['license'] not in CRATES:
        fail(f'the crate {name} is {package["license"]}, which is not known here')
    holders = []
    for file in sorted(Path(package['manifest_path']).parent.glob('LICEN*')):
        text = file.read_text(errors='replace')
        holders += re.findall(r'^ *(Copyright .*\d.*)$', text, re.MULTILINE)
    holders = [re.sub(r'^Copyright *(?:\([cC]\))? *', '', holder) for holder in holders]
    holders = holders or package['authors'] or [f'the authors of {package["name"]}']
    lines = '\n '.join(dict.fromkeys(holders))
    return f'Files: crates/{name}/*\nCopyright: {lines}\nLicense: {CRATES[package["license"]]}\n'


def texts(packages):
    def mit():
        for package in packages:
            for file in Path(package['manifest_path']).parent.glob('LICENSE-MIT*'):
                text = file.read_text()
                return text[text.index('Permission is') :]
        fail('no crate has the text of the MIT licence')

    def licence(name):
        text = (DPDK / f'license/{name}.txt').read_text()
        return text[text.index('Redistribution') if 'bsd' in name else text.index('Permission') :]

    apache = 'On Debian systems the text is in /usr/share/common-licenses/Apache-2.0.\n'
    return {
        'BSD-3-Clause': licence('bsd-3-clause'),
        'BSD-2-Clause': licence('bsd-2-clause'),
        'ISC': licence('isc'),
        'MIT': mit(),
        'Apache-2.0': apache,
    }


def paragraph(name, text):
    lines = [' ' + line.strip() if line.strip() else ' .' for line in text.strip().splitlines()]
    return f'License: {name}\n' + '\n'.join(lines) + '\n'


def main():
    packages = crates()
    paragraphs = [
        'Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n'
        'Upstream-Name: spdk-lvol-detach\n'
        'Comment: The program spdk_tgt has SPDK, DPDK and isa-l linked in, from one SPDK tree.\n'
        ' It and the libraries have the crates and the standard library of Rust.\n',
        'Files: *\nCopyright: the spdk-lvol-detach authors\nLicense: BSD-3-Clause\n',
        *(component(*each) for each in COMPONENTS),
        *(crate(package) for package in packages),
        RUST,
    ]
    named = set(re.findall(r'^License: (.*)$', '\n'.join(paragraphs), re.MULTILINE))
    named = {name for names in named for name in re.split(r' (?:and|or) ', names)}
    known = texts(packages)
    paragraphs += [paragraph(name, known[name]) for name in sorted(named)]
    print('\n'.join(paragraphs), end='')


main()
