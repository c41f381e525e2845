#!/usr/bin/env bash
# Tests bdev_lvol_detach_parent on a live SPDK target that has the method, through RPCs alone.
#
#     RPC=/path/to/rpc.py SPDK_RPC_SOCK=/var/tmp/spdk.sock ./lvol_detach.sh
#
# It needs bash, jq and an rpc.py, and spdk_lvol_detach.py beside it or in ../python. RPC names the
# rpc.py, with arguments if need be (default: spdk-rpc or rpc.py, whichever is there); SPDK_RPC_SOCK
# the target's socket. Everything happens in an lvstore of its own on a malloc bdev of 64 MiB, and
# all of it is removed again. Exit status: 0 all passed, 1 something failed, 2 it could not run.
set -euo pipefail
export LC_ALL=C

usage() { sed -n '2,/^set /s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; }

case ${1-} in
'') ;;
-h | --help)
	usage
	exit 0
	;;
*)
	printf 'lvol_detach.sh: it takes no arguments:\n' >&2
	usage >&2
	exit 2
	;;
esac

socket=${SPDK_RPC_SOCK:-/var/tmp/spdk.sock}
tag=lvol_detach_test_$(printf '%(%s)T' -1)_$$_$RANDOM
lvs=$tag
base=${tag}_base         # the bdev that the lvstore is on
external=${tag}_external # an external snapshot
nested=${tag}_nested     # see own_clusters
passed=0
failed=0

cannot_run() {
	printf 'lvol_detach.sh: %s\n' "$*" >&2
	exit 2
}

# --- Results ---------------------------------------------------------------------------------

pass() {
	passed=$((passed + 1))
	printf 'PASS  %s\n' "$1"
}

# fail WHAT DETAILS...
fail() {
	failed=$((failed + 1))
	printf 'FAIL  %s\n' "$1"
	shift
	[ $# -eq 0 ] || printf '%s\n' "$@" | while IFS= read -r line; do printf '      %s\n' "$line"; done
}

# --- RPCs ------------------------------------------------------------------------------------

rpc() { "${rpc_command[@]}" -s "$socket" "$@"; }

# batch RPC...: sends them over one connection, so that each follows the one before at once.
batch() { printf '%s\n' "$@" | rpc --plugin spdk_lvol_detach; }

detach() { rpc --plugin spdk_lvol_detach bdev_lvol_detach_parent "$@"; }

check() { rpc --plugin spdk_lvol_detach bdev_lvol_check_detach_parent "$@"; }

# losses LVOL: what a check says of it, and of each lvol that reads through it: would it lose, and what does it own.
losses() {
	check "$1" | jq -r --arg prefix "$lvs/" '
		[., .readers[]] | map("\(.name | ltrimstr($prefix)) loses \(.num_lost_clusters)") | sort | join(", ")'
}

# detach_raw PARAMS: sends these JSON params, which rpc.py itself would never send.
detach_raw() { rpc --plugin lvol_detach_raw raw bdev_lvol_detach_parent "$1"; }

# prepare RPC...: what the next steps build on. If it fails, there is no point in going on.
prepare() {
	local out
	if ! out=$(rpc "$@" 2>&1); then
		fail "preparing: $*" "$out"
		exit 1
	fi
}

# own_clusters LVOL COUNT: makes the lvol own its first 1, 2 or 3 clusters of 1 MiB. It takes a
# write to allocate a cluster, and without a data client something in the target has to write: here
# an lvstore of 8 MiB inside the lvol, whose metadata takes 4 KiB for each of its own clusters.
own_clusters() {
	local sizes=([1]=1048576 [2]=32768 [3]=16384)
	prepare bdev_lvol_create_lvstore "$1" "$nested" --cluster-sz "${sizes[$2]}" --clear-method none
	prepare bdev_lvol_delete_lvstore -l "$nested"
}

uuid_of() { rpc bdev_get_bdevs -b "$1" | jq -r '.[0].name'; }

# Each lvol: its name, parent, clones, allocated clusters, thin or thick.
lvols() {
	rpc bdev_get_bdevs | jq -r --arg prefix "$lvs/" '
		[.[] | select(.aliases[0] // "" | startswith($prefix))] | sort_by(.aliases[0])[]
		| .driver_specific.lvol as $lvol
		| [ (.aliases[0] | ltrimstr($prefix)),
		    (if $lvol.esnap_clone then "external" else $lvol.base_snapshot // "-" end),
		    ($lvol.clones // [] | sort | join(",") | if . == "" then "-" else . end),
		    ($lvol.num_allocated_clusters // "?"),
		    (if $lvol.thin_provision then "thin" else "thick" end) ]
		| join(" ")'
}

# --- Checks ----------------------------------------------------------------------------------

# check_lvols WHAT <<TABLE: the lvstore holds these lvols and no others, in lvols' order and form.
check_lvols() {
	local found expected='' name parent clones clusters thin
	found=$(lvols)
	while read -r name parent clones clusters thin; do
		[ "$counts_clusters" = yes ] || clusters='?'
		expected+=${expected:+$'\n'}"$name $parent $clones $clusters $thin"
	done
	if [ "$found" = "$expected" ]; then
		pass "$1"
	else
		fail "$1" 'expected (lvol, parent, clones, allocated clusters, thin):' "$expected" 'found:' "$found"
	fi
}

# check_output WHAT EXPECTED COMMAND...
check_output() {
	local what=$1 expected=$2 out
	shift 2
	if out=$("$@" 2>"$scratch/stderr") && [ "$out" = "$expected" ]; then
		pass "$what"
	else
		fail "$what" "expected $expected, got: $out" "$(<"$scratch/stderr")"
	fi
}

# check_refused WHAT CODE TEXT COMMAND...: it fails with this code, and a message that has TEXT.
check_refused() {
	local what=$1 code=$2 text=$3 out error
	shift 3
	if out=$("$@" 2>&1); then
		fail "$what" "expected error $code, but it was accepted: $out"
		return
	fi
	error=$(jq -r '"\(.code) \(.message)"' <<<"${out##*response:}" 2>/dev/null) || error=$out
	if [[ $error == "$code "*"$text"* ]]; then
		pass "$what: $error"
	else
		fail "$what" "expected error $code${text:+ with \"$text\"}, got: $error"
	fi
}

# --- Cleaning up -----------------------------------------------------------------------------

# What is there of ours, by name.
leftovers() {
	{ rpc bdev_get_bdevs && rpc bdev_lvol_get_lvstores; } |
		jq -r --arg tag "$tag" '.[] | .name, .aliases[]? | select(startswith($tag))'
}

# An RPC that was interrupted may still be at work in the target, hence more than one try.
remove_all() {
	local try left=''
	for try in 1 2 3 4 5; do
		[ "$try" -eq 1 ] || sleep 1
		rpc bdev_lvol_delete_lvstore -l "$nested" || true
		rpc bdev_lvol_delete_lvstore -l "$lvs" || true
		rpc bdev_malloc_delete "$external" || true
		rpc bdev_malloc_delete "$base" || true
		left=$(leftovers) && [ -z "$left" ] && return 0
	done >/dev/null 2>&1
	printf '%s\n' "${left:-The target does not answer.}"
	return 1
}

finish() {
	local status=$? left
	set +e
	trap - EXIT
	trap '' HUP INT PIPE TERM
	if [ "$status" -gt 128 ]; then
		fail 'interrupted'
	elif [ "$status" -ne 0 ] && [ "$failed" -eq 0 ]; then
		fail "stopped half-way with status $status"
	fi
	if left=$(remove_all); then
		pass 'nothing is left behind'
	else
		fail 'nothing is left behind' "$left"
	fi
	rm -rf "$scratch"
	printf '%d passed, %d failed\n' "$passed" "$failed"
	[ "$status" -eq 0 ] && [ "$failed" -gt 0 ] && status=1
	exit "$status"
}

# --- What is needed --------------------------------------------------------------------------

command -v jq >/dev/null || cannot_run 'jq is missing.'

if [ -z "${RPC:-}" ]; then
	RPC=$(command -v spdk-rpc || command -v rpc.py) ||
		cannot_run 'found neither spdk-rpc nor rpc.py: name one with RPC=.'
fi
if command -v "$RPC" >/dev/null; then
	rpc_command=("$RPC")
else
	read -ra rpc_command <<<"$RPC"
fi
command -v "${rpc_command[0]}" >/dev/null || cannot_run "there is no command ${rpc_command[0]}: name an rpc.py with RPC=."

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
for plugin_dir in "$here" "$here/../python" ''; do
	[ ! -e "$plugin_dir/spdk_lvol_detach.py" ] || break
done
[ -n "$plugin_dir" ] || cannot_run "spdk_lvol_detach.py is neither in $here nor in $here/../python."

methods=$(rpc rpc_get_methods 2>&1) || cannot_run "no target answers at $socket: ${methods%%$'\n'*}."
jq -e 'index("bdev_lvol_detach_parent")' <<<"$methods" >/dev/null 2>&1 ||
	cannot_run "the target at $socket has no method bdev_lvol_detach_parent: start it with libspdk_lvol_detach.so preloaded."

scratch=$(mktemp -d)
trap finish EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM
trap 'exit 141' PIPE
cat >"$scratch/lvol_detach_raw.py" <<'PYTHON'
import json


def spdk_rpc_plugin_initialize(subparsers):
    parser = subparsers.add_parser('raw')
    parser.add_argument('method')
    parser.add_argument('params', type=json.loads)
    parser.set_defaults(func=lambda args: print(args.client.call(args.method, args.params)))
PYTHON
export PYTHONPATH=$plugin_dir:$scratch${PYTHONPATH:+:$PYTHONPATH}
export PYTHONDONTWRITEBYTECODE=1

# --- A leaf ----------------------------------------------------------------------------------

prepare bdev_malloc_create -b "$base" 64 4096
prepare bdev_lvol_create_lvstore "$base" "$lvs" --cluster-sz 1048576

# A thick lvol owns all of its clusters, and a snapshot of it takes them over.
prepare bdev_lvol_create -l "$lvs" leaf 8
counts_clusters=$(rpc bdev_get_bdevs -b "$lvs/leaf" |
	jq -r '.[0].driver_specific.lvol | if has("num_allocated_clusters") then "yes" else "no" end')
[ "$counts_clusters" = yes ] ||
	echo 'This target does not report allocated clusters (SPDK before 24.05), so they are not checked.'
prepare bdev_lvol_snapshot "$lvs/leaf" base
own_clusters "$lvs/leaf" 2
check_lvols 'a chain: base <- leaf' <<-TABLE
	base  -     leaf  8  thick
	leaf  base  -     2  thin
TABLE

check_output 'detach the leaf' true detach "$lvs/leaf"
check_lvols 'the leaf has no parent, base has no clone, and both own the clusters that they owned' <<-TABLE
	base  -  -  8  thick
	leaf  -  -  2  thin
TABLE

prepare bdev_lvol_delete "$lvs/base"
prepare bdev_lvol_resize "$lvs/leaf" 9
prepare bdev_lvol_snapshot "$lvs/leaf" leaf_snap
own_clusters "$lvs/leaf" 1
check_lvols 'the detached leaf can be resized, snapshotted and written to' <<-TABLE
	leaf       leaf_snap  -     1  thin
	leaf_snap  -          leaf  2  thin
TABLE

check_output 'detach it from that snapshot too, and delete the snapshot at once' true \
	batch "bdev_lvol_detach_parent $lvs/leaf" "bdev_lvol_delete $lvs/leaf_snap"
prepare bdev_lvol_inflate "$lvs/leaf"
check_lvols 'and it can be inflated' <<-TABLE
	leaf  -  -  9  thick
TABLE
prepare bdev_lvol_delete "$lvs/leaf"

# --- A snapshot with children ----------------------------------------------------------------

prepare bdev_lvol_create -l "$lvs" vol 8
prepare bdev_lvol_snapshot "$lvs/vol" snap1
own_clusters "$lvs/vol" 3
prepare bdev_lvol_snapshot "$lvs/vol" snap2
own_clusters "$lvs/vol" 2
prepare bdev_lvol_snapshot "$lvs/vol" snap3
own_clusters "$lvs/vol" 1
prepare bdev_lvol_clone "$lvs/snap3" clone
check_lvols 'a chain: snap1 <- snap2 <- snap3 <- vol, clone' <<-TABLE
	clone  snap3  -          0  thin
	snap1  -      snap2      8  thick
	snap2  snap1  snap3      3  thin
	snap3  snap2  clone,vol  2  thin
	vol    snap3  -          1  thin
TABLE

check_output 'the check says what would be lost' 'clone loses 6, snap3 loses 6, vol loses 6' \
	losses "$lvs/snap3"
check_output 'and changes nothing' "$lvs/snap2" eval "check $lvs/snap3 | jq -r .parent"
check_output 'it shows it as a picture' 1 eval "check --tree $lvs/snap3 | grep -c 'a detach parts the chain here'"

check_output 'detach snap3' true detach "$lvs/snap3"
check_output 'what has no parent has nothing to lose' 'clone loses 0, snap3 loses 0, vol loses 0' \
	losses "$lvs/snap3"
check_lvols 'snap3 has no parent, not even snap1; its clones stay its clones; clusters stay' <<-TABLE
	clone  snap3  -          0  thin
	snap1  -      snap2      8  thick
	snap2  snap1  -          3  thin
	snap3  -      clone,vol  2  thin
	vol    snap3  -          1  thin
TABLE

check_output 'detach snap2 by its UUID, and delete its former parent snap1 at once' true \
	batch "bdev_lvol_detach_parent $(uuid_of "$lvs/snap2")" "bdev_lvol_delete $lvs/snap1"
check_lvols 'snap1 is gone, snap2 has no parent, and no other lvol has changed' <<-TABLE
	clone  snap3  -          0  thin
	snap2  -      -          3  thin
	snap3  -      clone,vol  2  thin
	vol    snap3  -          1  thin
TABLE

check_output 'detach the clone, which owns no cluster' true detach "$lvs/clone"
check_lvols 'it owns none still, and snap3 has one clone left' <<-TABLE
	clone  -      -    0  thin
	snap2  -      -    3  thin
	snap3  -      vol  2  thin
	vol    snap3  -    1  thin
TABLE

# What the device did meanwhile. Its counters are read over the same connection.
detach_vol_delete_snap3() {
	batch bdev_get_iostat "bdev_lvol_detach_parent $lvs/vol" bdev_get_iostat "bdev_lvol_delete $lvs/snap3" |
		jq -rs --arg base "$base" '
			map(objects | .bdevs[] | select(.name == $base)) as [$before, $after]
			| def grown($key): $after[$key] - $before[$key];
			"\(grown("num_read_ops")) read, \(grown("bytes_read")) bytes, " +
			"\(grown("num_write_ops")) write, \(grown("bytes_written")) bytes, " +
			"\(grown("num_unmap_ops")) unmaps"'
}
check_output 'detach vol and delete snap3 at once: the device sees a read and a write of 4096 bytes' \
	'1 read, 4096 bytes, 1 write, 4096 bytes, 0 unmaps' detach_vol_delete_snap3

# --- Refusals --------------------------------------------------------------------------------

prepare bdev_lvol_snapshot "$lvs/vol" parent
prepare bdev_malloc_create -b "$external" 8 4096
prepare bdev_lvol_clone_bdev "$external" "$lvs" esnap_clone
# One table for before and after.
untouched() {
	cat <<-TABLE
		clone        -         -    0  thin
		esnap_clone  external  -    0  thin
		parent       -         vol  1  thin
		snap2        -         -    3  thin
		vol          parent    -    0  thin
	TABLE
}
check_lvols 'a clone of an external snapshot, and two lvols without parent' < <(untouched)

check_refused 'no parent' -22 parent detach "$lvs/clone"
check_refused 'external snapshot' -22 'external snapshot' detach "$lvs/esnap_clone"
check_refused 'no such lvol' -19 '' detach "$lvs/no_such_lvol"
check_refused 'a bdev that is not an lvol' -19 '' detach "$base"
check_refused 'no name' -32602 '' detach_raw '{}'
check_refused 'a name that is no string' -32602 '' detach_raw '{"name": 1}'
check_refused 'an unknown parameter' -32602 '' detach_raw "{\"name\": \"$lvs/vol\", \"force\": true}"
check_lvols 'after the refusals every lvol is as it was' < <(untouched)
