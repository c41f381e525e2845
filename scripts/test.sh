#!/usr/bin/env bash
# Runs every test, or those selected by arguments for cargo test (--test detach), and sums up:
# "N passed, N failed" is the last line.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

# Tests kill targets and crash SPDK on purpose: core dumps would fill the disk.
ulimit -c 0

log=$(mktemp)
trap 'rm -f "$log"' EXIT

# Each test starts a target of its own; two at a time suit a machine with two cores.
cargo test --release --locked --workspace --no-fail-fast "$@" -- \
	--test-threads "${TEST_THREADS:-2}" --nocapture 2>&1 | tee "$log"
status=${PIPESTATUS[0]}

# What a target logs may come between two parts of a line of cargo's.
awk 'match($0, /[0-9]+ passed; [0-9]+ failed;/) {
         split(substr($0, RSTART, RLENGTH), words, " ")
         passed += words[1]
         failed += words[3]
     }
     END { printf "%d passed, %d failed\n", passed, failed }' "$log"
exit "$status"
