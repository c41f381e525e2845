# Sourced by the other scripts: where the set-up keeps things, and which SPDK is in use.
# shellcheck shell=bash

cache=${SPDK_LVOL_DETACH_CACHE:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/spdk-lvol-detach}
export SPDK_LVOL_DETACH_CACHE=$cache

# A tree given by the user wins over the one that the set-up builds.
export SPDK_ROOT_DIR=${SPDK_ROOT_DIR:-$cache/spdk}

# meson, ninja, pyelftools and rpc.py come from a virtual environment of our own, qemu-io and cargo-deb
# from folders of our own.
export PATH=$cache/venv/bin:$cache/qemu/usr/bin:$cache/cargo/bin:$PATH
