# SPDX-License-Identifier: BSD-3-Clause

# Each target is enough by itself, and safe to run again. `setup` installs what is missing and gets
# and builds SPDK unless SPDK_ROOT_DIR names a built tree.

SHELL := /bin/bash -o pipefail
ENV := . scripts/env.sh &&

.PHONY: all build setup demo test lint clean

all: build

setup:
	@scripts/setup.sh

build: setup
	@$(ENV) cargo build --release --locked

demo: build
	@$(ENV) scripts/demo.sh

# One line that sums up cargo's many, so that a reader and CI need not add.
test: build
	@$(ENV) scripts/test.sh

lint: setup
	@$(ENV) cargo fmt --all --check
	@$(ENV) cargo clippy --workspace --all-targets --release --locked -- -D warnings
	@$(ENV) shellcheck -x scripts/*.sh scripts/spdk_tgt tests/*.sh .ci/run

clean:
	cargo clean
