#!/usr/bin/env bash
# Runs every test on an SPDK that was built with --enable-debug --enable-asan: SPDK's own assertions
# are on, and whatever the address sanitizer finds ends the target, and so fails the test.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/env.sh
. scripts/env.sh

export SPDK_ROOT_DIR=$cache/spdk-asan
export CARGO_TARGET_DIR=$PWD/target/asan
# The extension is preloaded, and so comes before the sanitizer, which has nothing against it.
export ASAN_OPTIONS=verify_asan_link_order=0:${ASAN_OPTIONS:-}
# Leaks of SPDK's own, and of nobody else.
export LSAN_OPTIONS=suppressions=$PWD/tests/lsan.supp:print_suppressions=0:${LSAN_OPTIONS:-}

cargo build --release --locked --workspace
# Less of the same than make test; and the model of the protocol has nothing of SPDK.
export KILLS=${KILLS:-30} STRESS_DETACHES=${STRESS_DETACHES:-300}
exec scripts/test.sh --exclude detach-protocol "$@"
