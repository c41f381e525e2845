# SPDX-License-Identifier: BSD-3-Clause

# Each target works on its own and is safe to run again. `setup` installs what is missing, and downloads
# and builds SPDK unless SPDK_ROOT_DIR names a built tree.

SHELL := /bin/bash -o pipefail
ENV := . scripts/env.sh &&

PREFIX ?= /usr/local
DESTDIR ?=
NAME := spdk-lvol-detach
BIN := $(DESTDIR)$(PREFIX)/bin
LIB := $(DESTDIR)$(PREFIX)/lib/$(NAME)
SHARE := $(DESTDIR)$(PREFIX)/share/$(NAME)
MAN := $(DESTDIR)$(PREFIX)/share/man/man8
DOC := $(DESTDIR)$(PREFIX)/share/doc/$(NAME)
EXAMPLES := $(DOC)/examples
INCLUDE := $(DESTDIR)$(PREFIX)/include
PKGCONFIG := $(DESTDIR)$(PREFIX)/lib/pkgconfig
VERSION := $(shell awk -F'"' '/^version = / { print $$2; exit }' Cargo.toml)
# Where the prefix's own Python looks for modules, so that rpc.py finds the plugin. Empty if there is no
# such Python: then PYTHONPATH has to include the plugin's folder.
PYTHON := $(firstword $(wildcard $(PREFIX)/bin/python3 /usr/bin/python3) python3)
MODULES := $(shell $(PYTHON) -c 'import site; \
	print(next((d for d in site.getsitepackages() if d.startswith("$(PREFIX)/lib/")), ""))' 2>/dev/null)
OUT := $(or $(CARGO_TARGET_DIR),target)/release
BUILT := $(addprefix $(OUT)/,libspdk_lvol_detach.so libspdk_lvol_detach.a spdk_tgt)

.PHONY: all build static setup demo rebuild test test-static test-asan sweep bench lint install uninstall
.PHONY: deb clean

all: build

setup:
	@scripts/setup.sh

build: setup
	@$(ENV) cargo build --release --locked --workspace

# The build makes both; this name is for those who only want the static target.
static: build

demo: build
	@$(ENV) scripts/demo.sh

# A replica with a damaged snapshot, rebuilt as a storage engine would do it.
rebuild: build
	@$(ENV) PYTHONPATH=python python3 -B examples/rebuild/rebuild.py

# Ends with one line that sums up all of cargo's results.
test: build
	@$(ENV) scripts/test.sh

# The tests that start a target, run with the target that has the extension linked in. (The others are linked
# statically in any case, or choose themselves what they start.)
TARGET_TESTS := $(patsubst tests/%.rs,--test %,$(shell grep -L -e 'mod store;' -e spdk_sys \
	-e target_folder -e deb.sh -e setup.sh -e 'fn extension' \
	-e no_messages -e 'mod own_app;' tests/*.rs))

test-static: build
	@$(ENV) KILLS=$${KILLS:-30} STRESS_DETACHES=$${STRESS_DETACHES:-300} LVOL_DETACH_TGT=static \
		scripts/test.sh $(TARGET_TESTS)

# Each SPDK operation on a chain with each of its writes failing, followed by a detach of each lvol;
# make test only does one of them. SWEEP selects operations by a part of their names.
sweep: build
	@$(ENV) SWEEP="$(SWEEP)" cargo test --release --locked --test sweep -- --nocapture

# Every test, on an SPDK built with assertions and the address sanitizer.
test-asan:
	@scripts/setup.sh asan
	@$(ENV) scripts/test_asan.sh

# Every figure of docs/performance.md. BENCH holds further arguments: --help lists them.
bench: build
	@$(ENV) PYTHONPATH=python:scripts PYTHONDONTWRITEBYTECODE=1 python3 -m bench $(BENCH)

lint: setup
	@$(ENV) cargo fmt --all --check
	@$(ENV) cargo clippy --workspace --all-targets --release --locked -- -D warnings
	@$(ENV) RUSTDOCFLAGS='-D warnings' cargo doc --release --no-deps --locked --quiet
	@$(ENV) shellcheck -x scripts/*.sh scripts/spdk_tgt tests/*.sh .ci/run
	@$(ENV) python3 scripts/copyright.py >/dev/null
	@$(ENV) ruff check --quiet --no-cache python examples scripts
	@$(ENV) ruff format --quiet --no-cache --check python examples scripts

install:
	@for file in $(BUILT); do [ -e "$$file" ] || { echo "$$file is not built: run make"; exit 1; }; done
	install -Dm 755 scripts/spdk_tgt $(BIN)/spdk_tgt-lvol-detach
	install -Dm 755 -t $(LIB) $(OUT)/spdk_tgt
	install -Dm 644 -t $(LIB) $(OUT)/libspdk_lvol_detach.so $(OUT)/libspdk_lvol_detach.a
	install -Dm 755 -t $(SHARE) tests/lvol_detach.sh
	install -Dm 644 -t $(SHARE) python/spdk_lvol_detach.py
	$(if $(MODULES),install -Dm 644 -t $(DESTDIR)$(MODULES) python/spdk_lvol_detach.py)
	install -d $(MAN)
	sed 's|/usr/|$(PREFIX)/|g' docs/spdk_tgt-lvol-detach.8 >$(MAN)/spdk_tgt-lvol-detach.8
	install -Dm 644 -t $(DOC) LICENSE README.md CHANGELOG.md
	install -Dm 644 -t $(DOC)/docs docs/*.md docs/*.json
	install -Dm 644 -t $(DOC)/docs/performance docs/performance/*
	install -Dm 644 -t $(INCLUDE) include/spdk_lvol_detach.h
	install -d $(PKGCONFIG)
	sed 's|@PREFIX@|$(PREFIX)|; s|@VERSION@|$(VERSION)|' spdk_lvol_detach.pc.in >$(PKGCONFIG)/spdk_lvol_detach.pc
	install -Dm 644 -t $(EXAMPLES)/rebuild examples/rebuild/*.py
	install -Dm 644 -t $(EXAMPLES) examples/chain.json
	install -Dm 644 -t $(EXAMPLES)/c examples/c/detach.c examples/c/Makefile
	sed 's|/usr/|$(PREFIX)/|g' examples/$(NAME).service >$(EXAMPLES)/$(NAME).service

uninstall:
	rm -f $(BIN)/spdk_tgt-lvol-detach $(MAN)/spdk_tgt-lvol-detach.8
	rm -f $(INCLUDE)/spdk_lvol_detach.h $(PKGCONFIG)/spdk_lvol_detach.pc
	$(if $(MODULES),rm -f $(DESTDIR)$(MODULES)/spdk_lvol_detach.py)
	rm -rf $(LIB) $(SHARE) $(DOC)

# In target/debian. The package version names the SPDK release that they are for.
deb: build
	@scripts/setup.sh deb
	@scripts/deb.sh $(OUT)/../debian
	@lintian --allow-root --fail-on error $(OUT)/../debian/*.deb

clean:
	cargo clean
