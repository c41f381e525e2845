#!/usr/bin/env bash
# Installs what is missing, and downloads and builds SPDK unless SPDK_ROOT_DIR names a built tree.
# With the argument asan it builds one with --enable-debug --enable-asan, next to the other.
# With the argument deb it also installs what is needed to build the packages.
# Safe to run again: finished steps are skipped, interrupted ones start over.
set -euo pipefail

given_root=${SPDK_ROOT_DIR:-}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=scripts/env.sh
. "$here/env.sh"

# What building SPDK and the extension needs, and what the tests and the demonstration use.
packages=(
	build-essential pkg-config libclang-dev jq shellcheck python3-venv
	nasm libnuma-dev uuid-dev libaio-dev libssl-dev libncurses-dev libfuse3-dev
	libkeyutils-dev autoconf automake libtool xz-utils
)
# The outside client: qemu-io and qemu-img, and their module for iSCSI.
client_packages=(qemu-utils qemu-block-extra)
python_packages=(
	meson==1.7.0 ninja==1.11.1.4 pyelftools==0.32
	spdk==26.1 tqdm==4.70.1 ruff==0.17.5 matplotlib==3.11.2 scipy==1.17.1
)

log_dir=$cache/log
mkdir -p "$log_dir"

say() { printf '==> %s\n' "$*" >&2; }
die() {
	printf 'setup: %s\n' "$*" >&2
	exit 1
}

# run_step NAME LOG TOTAL COUNT CMD...: runs CMD with its output in LOG, and shows its progress every ten
# seconds: COUNT is a function that prints a number, TOTAL roughly its final value. Use a TOTAL of 0 if
# progress can't be counted.
run_step() {
	local name=$1 log=$log_dir/$2 total=$3 count=$4 pid started=$SECONDS shown=$SECONDS part
	shift 4
	say "$name (log: $log)"
	"$@" >"$log" 2>&1 </dev/null &
	pid=$!
	# shellcheck disable=SC2064 # the current pid is meant
	trap "kill $pid 2>/dev/null" EXIT
	while kill -0 "$pid" 2>/dev/null; do
		sleep 0.2
		if ((SECONDS - shown >= 10)); then
			shown=$SECONDS
			part=
			((total == 0)) || part="$($count) of about $total, "
			printf '    %s: %s%d s\n' "$name" "$part" $((SECONDS - started)) >&2
		fi
	done
	trap - EXIT
	if ! wait "$pid"; then
		tail -n 20 "$log" | sed 's/^/    | /' >&2
		die "failed: $name. The whole log is $log"
	fi
}

# Progress counters for run_step. They see the variables of the function that calls run_step.
count_packages() { echo $((${#missing[@]} - $(missing_packages | wc -l))); }
count_python_packages() { find "$venv" -name '*.dist-info' | wc -l; }
count_mebibytes() { du -sm "$apt" | cut -f1; }
count_files() { find "$tree" -type f | wc -l; }
count_objects() { find "$tree" -name '*.o' | wc -l; }

list_needs() {
	cat >&2 <<-EOT
		This set-up installs packages as root on Debian 12 or later only. Elsewhere, install the
		equivalents of these Debian packages yourself:
		    ${packages[*]} ${client_packages[*]}
		then point SPDK_ROOT_DIR at a built SPDK tree and run the command again:
		    ./configure --with-shared && make    # in the SPDK tree
		    SPDK_ROOT_DIR=/path/to/spdk make test
	EOT
}

# apt as if nothing were installed: it reports the available versions.
apt_anew() { "$1" -o Dir::State::status=/dev/null "${@:2}"; }

# The client's dependencies. Empty if apt has no lists yet.
client_libraries() {
	apt_anew apt-cache depends --important "${client_packages[@]}" 2>/dev/null |
		awk '/^[^ ]/ { of = $1 }
		     $1 == "Depends:" && (of == "qemu-utils" || $2 ~ /^libiscsi/) { print $2 }'
}

missing_packages() {
	local package
	for package in "${packages[@]}" $(client_libraries); do
		dpkg-query -W -f '${db:Status-Abbrev}' "$package" 2>/dev/null | grep -q '^ii' || echo "$package"
	done
}

install_packages() {
	local missing
	if ! command -v apt-get >/dev/null || ! command -v dpkg-query >/dev/null; then
		# Not Debian: trust the user if the tools that we call are there.
		command -v pkg-config jq qemu-io shellcheck >/dev/null && return
		list_needs
		exit 1
	fi
	mapfile -t missing < <(missing_packages)
	[ ${#missing[@]} -gt 0 ] || return 0
	if [ "$(id -u)" -ne 0 ]; then
		say "missing: ${missing[*]}"
		list_needs
		exit 1
	fi
	export DEBIAN_FRONTEND=noninteractive
	run_step "apt-get update" apt-update.log 0 : apt-get update
	mapfile -t missing < <(missing_packages)
	run_step "installing ${#missing[@]} packages" apt-install.log ${#missing[@]} \
		count_packages apt-get install -y --no-install-recommends --no-remove "${missing[@]}"
}

# The client is unpacked beside the system's packages, not installed. Tools and module must be of one
# build, so where the tools that are installed come from elsewhere (from backports, say) apt would take
# them away; and the module's package wants a whole qemu-system.
unpack_client() {
	cd "$1"
	apt_anew apt-get download "${client_packages[@]}"
	local deb
	for deb in *.deb; do dpkg-deb -x "$deb" .; done
	usr/bin/qemu-io --version
}

install_client() {
	local client=$cache/qemu
	[ ! -e "$client/.complete" ] || return 0
	# Not Debian: install_packages has seen the user's own.
	command -v dpkg-deb >/dev/null || return 0
	rm -rf "$client"
	mkdir -p "$client"
	run_step "unpacking ${client_packages[*]}" client.log 0 : unpack_client "$client"
	touch "$client/.complete"
}

install_python_packages() {
	local venv=$cache/venv stamp
	stamp=$venv/.complete
	[ "$(cat "$stamp" 2>/dev/null)" = "${python_packages[*]}" ] && return
	rm -rf "$venv"
	run_step "making a Python environment" venv.log 0 : python3 -m venv "$venv"
	run_step "installing ${python_packages[*]}" pip.log 20 \
		count_python_packages "$venv/bin/pip" install "${python_packages[@]}"
	echo "${python_packages[*]}" >"$stamp"
}

# The mirror that this system's own apt uses for Debian.
debian_mirror() {
	# shellcheck disable=SC2016 # apt expands them
	apt-get indextargets --format '$(SITE) $(ORIGIN) $(COMPONENT)' 'Created-By: Packages' |
		awk '$2 == "Debian" && $3 == "main" { print $1; exit }'
}

# Debian's source package ceph contains a complete SPDK with the submodules that it needs. A private source
# list, lists and cache leave the user's apt configuration untouched.
fetch_tarball() {
	local apt=$1 mirror
	mirror=$(debian_mirror)
	[ -n "$mirror" ] || die "apt's configuration names no Debian mirror: run 'apt-get update' and try again"
	mkdir -p "$apt/sources" "$apt/lists/partial" "$apt/cache/archives/partial"
	cat >"$apt/sources/spdk.sources" <<-EOT
		Types: deb-src
		URIs: $mirror
		Suites: sid
		Components: main
		Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
	EOT
	local private=(
		-o Dir::Etc::SourceList=/dev/null -o "Dir::Etc::SourceParts=$apt/sources"
		-o "Dir::State::Lists=$apt/lists" -o "Dir::Cache=$apt/cache" -o APT::Sandbox::User=root
	)
	cd "$apt"
	apt-get "${private[@]}" update
	apt-get "${private[@]}" source --download-only --tar-only ceph
}

unpack_spdk() {
	local tarball=$1 tree=$2
	mkdir -p "$tree"
	tar -xf "$tarball" -C "$tree" --wildcards --strip-components=5 '*/src/nvmeof/gateway/spdk/*'
	[ -x "$tree/configure" ] || {
		echo "$tarball has no SPDK at src/nvmeof/gateway/spdk" >&2
		return 1
	}
	# Two fixes without which it doesn't link as shared libraries.
	if ! grep -q spdk_notify_type_register_once "$tree/lib/notify/spdk_notify.map"; then
		sed -i 's/^\tspdk_notify_type_register;/&\n\tspdk_notify_type_register_once;/' \
			"$tree/lib/notify/spdk_notify.map"
	fi
	if ! grep -q 'REGISTER_COMPONENT(reservation)' "$tree/lib/nvmf/subsystem_rbd_resrv.c"; then
		echo 'SPDK_LOG_REGISTER_COMPONENT(reservation)' >>"$tree/lib/nvmf/subsystem_rbd_resrv.c"
	fi
}

configure_spdk() {
	cd "$1" && shift
	./configure --disable-tests --disable-unit-tests --disable-examples \
		--without-vhost --without-virtio --without-nvme-cuse "$@"
}

# build_spdk TREE CONFIGURE-OPTION...: leaves a built tree at TREE. The stamp is written last; a tree
# without it was interrupted, and is built again.
build_spdk() {
	local tree=$1 apt=$cache/apt tarball
	shift
	[ ! -e "$tree/.complete" ] || return 0
	exec 9>"$cache/lock"
	if ! flock -n 9; then
		say "another set-up is building SPDK in $cache: waiting for it"
		flock 9
		[ ! -e "$tree/.complete" ] || return 0
	fi
	rm -rf "$tree"
	if ! compgen -G "$apt/ceph_*.orig.tar.*" >/dev/null; then
		rm -rf "$apt"
		mkdir -p "$apt"
		run_step "downloading SPDK (in Debian's source package ceph, MiB)" download.log 245 \
			count_mebibytes fetch_tarball "$apt"
	fi
	tarball=$(compgen -G "$apt/ceph_*.orig.tar.*" | grep -v '\.asc$')
	run_step "unpacking SPDK (files)" unpack.log 14000 count_files unpack_spdk "$tarball" "$tree"
	run_step "configuring SPDK" configure.log 0 : configure_spdk "$tree" "$@"
	run_step "building SPDK (object files)" build.log 1250 count_objects \
		make -C "$tree" -j "$(($(nproc) + 1))"
	touch "$tree/.complete"
	rm -rf "$apt"
	exec 9>&-
}

# Debian 12's own Rust is too old.
check_rust() {
	local needed found
	needed=$(awk -F'"' '/^rust-version = / { print $2; exit }' "$here/../Cargo.toml")
	command -v cargo rustc >/dev/null ||
		die "Rust is missing: install $needed or later from https://rustup.rs, then run this again"
	found=$(rustc --version | awk '{ print $2 }')
	printf '%s\n' "$needed" "$found" | sort -CV ||
		die "Rust $found is too old: install $needed or later from https://rustup.rs, then run this again"
}

# In a function, so that bash has read all of it before it starts.
main() {
	local flavour=${1:-}
	check_rust
	install_packages
	install_client
	install_python_packages
	case $flavour in
	'')
		if [ -z "$given_root" ]; then
			build_spdk "$SPDK_ROOT_DIR" --with-shared
		elif [ ! -x "$given_root/build/bin/spdk_tgt" ]; then
			die "SPDK_ROOT_DIR=$given_root is no built SPDK tree: it has no build/bin/spdk_tgt. Run ./configure --with-shared && make there, or unset SPDK_ROOT_DIR to have one built"
		fi
		;;
	asan)
		# For make test-asan: with SPDK's own assertions and the address sanitizer.
		SPDK_ROOT_DIR=$cache/spdk-asan
		build_spdk "$SPDK_ROOT_DIR" --with-shared --enable-debug --enable-asan
		;;
	deb)
		packages+=(lintian)
		install_packages
		;;
	*) die "unknown: $flavour" ;;
	esac
	say "SPDK $(spdk_version "$SPDK_ROOT_DIR") at $SPDK_ROOT_DIR"
}

main "$@"
