# Sourced by the other scripts: where setup keeps its files, and which SPDK is used.
# shellcheck shell=bash

cache=${SPDK_LVOL_DETACH_CACHE:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/spdk-lvol-detach}
export SPDK_LVOL_DETACH_CACHE=$cache

# A tree given by the user takes precedence over the one that setup builds.
export SPDK_ROOT_DIR=${SPDK_ROOT_DIR:-$cache/spdk}

# meson, ninja, pyelftools and rpc.py come from a private virtual environment, qemu-io from a private
# folder.
export PATH=$cache/venv/bin:$cache/qemu/usr/bin:$PATH

# spdk_version TREE: as 26.01.
spdk_version() {
	awk '$2 == "SPDK_VERSION_MAJOR" { major = $3 }
	     $2 == "SPDK_VERSION_MINOR" { printf "%d.%02d\n", major, $3; exit }' "$1/include/spdk/version.h"
}
