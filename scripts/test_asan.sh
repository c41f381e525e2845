#!/usr/bin/env bash
# Runs every test on an SPDK that was built with --enable-debug --enable-asan: SPDK's own assertions
# are on, and anything that the address sanitizer finds aborts the target, and so fails the test.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/env.sh
. scripts/env.sh

export SPDK_ROOT_DIR=$cache/spdk-asan
export CARGO_TARGET_DIR=$PWD/target/asan
# The extension is preloaded, and so is loaded before the sanitizer, which is harmless.
export ASAN_OPTIONS=verify_asan_link_order=0:${ASAN_OPTIONS:-}
# Only leaks of SPDK's own.
export LSAN_OPTIONS=suppressions=$PWD/tests/lsan.supp:print_suppressions=0:${LSAN_OPTIONS:-}

cargo build --release --locked --workspace
# Fewer repetitions than make test; and the model of the protocol doesn't contain any SPDK code.
export KILLS=${KILLS:-30} STRESS_DETACHES=${STRESS_DETACHES:-300} PROPTEST_CASES=${PROPTEST_CASES:-1000}
exec scripts/test.sh --exclude detach-protocol "$@"
