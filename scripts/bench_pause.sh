#!/usr/bin/env bash
# Prints how long a writer waits at most while a lvol is detached, next to bdev_lvol_set_parent and
# to a request that does nothing: on the lvol, on a clone of it and on a neighbour. Each is done
# 1,000 times, or as often as PAUSES says.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/env.sh
. scripts/env.sh

cargo build --release --locked --workspace
cargo test --release --locked --test stress -- --ignored --exact pauses --nocapture 2>&1 |
	grep -E '^pause:|panicked|^test result'
