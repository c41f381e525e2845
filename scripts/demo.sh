#!/usr/bin/env bash
# Shows what bdev_lvol_detach_parent does, next to bdev_lvol_decouple_parent: on the stock spdk_tgt
# with the extension loaded, with data that an outside client writes and reads back.
# The exit status is 0 only if all checks pass.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=scripts/env.sh
. "$here/env.sh"
export PYTHONPATH=$here/../python PYTHONDONTWRITEBYTECODE=1

work=$(mktemp -d "${TMPDIR:-/tmp}/lvol-detach-demo.XXXXXX")
log=$work/spdk_tgt.log
target=
doing='starting'
failed=0

# Each lvol of the chain, from the oldest: the first of the clusters that it owns, and how many.
chain=(snap1 snap2 snap3 vol)
declare -A first=([snap1]=0 [snap2]=16 [snap3]=32 [vol]=44)
declare -A count=([snap1]=32 [snap2]=24 [snap3]=16 [vol]=8)
clusters=64 # of 1 MiB, in each lvol

step() {
	doing=$1
	printf '==> %s\n' "$doing" >&2
}

# --- The target ------------------------------------------------------------------------------

finish() {
	local status=$?
	set +e
	trap - EXIT
	trap '' HUP INT PIPE TERM
	if [ "$status" -gt 128 ]; then
		printf 'demo: interrupted while %s\n' "$doing" >&2
	elif [ "$status" -ne 0 ]; then
		printf 'demo: failed while %s. The last lines of the target'\''s log:\n' "$doing" >&2
		tail -n 20 "$log" | sed 's/^/    | /' >&2
	fi
	stop_target
	rm -rf "$work"
	exit "$status"
}

stop_target() {
	[ -n "$target" ] || return 0
	kill "$target"
	for _ in {1..50}; do
		kill -0 "$target" || break
		sleep 0.1
	done
	kill -9 "$target"
	wait "$target"
} 2>/dev/null

# die WHY: for errors that stop the demonstration.
die() {
	printf 'demo: %s\n' "$*" >&2
	exit 1
}

rpc() { spdk-rpc -s "$work/rpc.sock" --plugin spdk_lvol_detach "$@"; }

# prepare <<RPCS: one per line, all over one connection.
prepare() {
	local out
	out=$(rpc 2>&1) || die "$out"
}

start_target() {
	"$here/spdk_tgt" --no-huge -s 1536 --no-pci -m 0x1 --disable-cpumask-locks -r "$work/rpc.sock" \
		>"$log" 2>&1 </dev/null &
	target=$!
	for _ in {1..100}; do
		kill -0 "$target" 2>/dev/null || die 'the target has ended.'
		if [ -S "$work/rpc.sock" ] && rpc framework_wait_init >/dev/null 2>&1; then
			return
		fi
		sleep 0.1
	done
	die 'the target does not answer.'
}

# --- The outside client ----------------------------------------------------------------------

# client COMMAND...: quiet on success. Without a time limit, qemu would wait forever for a target
# that has died.
client() {
	timeout --foreground 60 "$@" >"$work/client.log" 2>&1 || { cat "$work/client.log" >&2 && false; }
}

url() { echo "iscsi://127.0.0.1:$port/iqn.2016-06.io.spdk:$1/0"; }

# write_layer LAYER LVOL: fills the clusters that LAYER is to own.
write_layer() {
	client qemu-io -f raw -t unsafe \
		-c "write -s $work/$1.data ${first[$1]}M ${count[$1]}M" "$(url "$2")"
}

# image NAME LAYER...: the contents of an lvol that shows just these layers, the last one on top, and
# zeroes elsewhere.
image() {
	local image=$work/$1.image layer
	shift
	truncate -s "${clusters}M" "$image"
	for layer in "$@"; do
		dd if="$work/$layer.data" of="$image" bs=1M seek="${first[$layer]}" conv=notrunc status=none
	done
}

# reads_as IMAGE LVOL: whether every byte of the lvol matches the image.
reads_as() { client qemu-img compare -f raw -F raw "$work/$1.image" "$(url "$2")"; }

# --- The two chains --------------------------------------------------------------------------

# build_chain PREFIX: both have the same lvols with the same data.
build_chain() {
	local lvol
	prepare <<-RPCS
		bdev_lvol_create -l lvs -t $1vol $clusters
		iscsi_create_target_node $1vol $1vol lvs/$1vol:0 1:1 64 -d
	RPCS
	for lvol in "${chain[@]}"; do
		write_layer "$lvol" "$1vol"
		[ "$lvol" = vol ] || prepare <<<"bdev_lvol_snapshot lvs/$1vol $1$lvol"
	done
	prepare <<<"iscsi_create_target_node $1snap3 $1snap3 lvs/$1snap3:0 1:1 64 -d"
}

# lvols PREFIX: an object with each lvol's parent and its allocated clusters.
lvols() {
	rpc bdev_get_bdevs | jq -c --arg prefix "lvs/$1" '
		[.[] | select((.aliases[0] // "") | test("^\($prefix)(snap.|vol)$"))
			| { key: (.aliases[0] | ltrimstr($prefix)),
			    value: (.driver_specific.lvol
				| { parent: (.base_snapshot // "none" | ltrimstr($prefix | ltrimstr("lvs/"))),
				    clusters: (.num_allocated_clusters // "?") }) }]
		| from_entries'
}

# measure METHOD PREFIX: calls METHOD on snap3 and deletes snap2 at once. Prints what the device
# did for METHOD alone.
measure() {
	local out
	out=$(
		rpc <<-RPCS
			bdev_get_iostat
			$1 lvs/$2snap3
			bdev_get_iostat
			bdev_lvol_delete lvs/$2snap2
		RPCS
	) || die "$out"
	jq -cs '
		map(objects) as [$before, $after]
		| def of($stat): $stat.bdevs[] | select(.name == "base");
		  def grown($key): of($after)[$key] - of($before)[$key];
		  { writes: grown("num_write_ops"), written: grown("bytes_written"),
		    reads: grown("num_read_ops"), read: grown("bytes_read"), unmaps: grown("num_unmap_ops"),
		    ms: (($after.ticks - $before.ticks) * 1000 / $before.tick_rate | round) }' <<<"$out"
}

# --- What is printed -------------------------------------------------------------------------

# arrows LVOLS: the chain on one line; no arrow where an lvol has no parent.
arrows() {
	jq -r '. as $lvols
		| reduce ("snap1", "snap2", "snap3", "vol" | select(in($lvols))) as $lvol ("";
			. + (if . == "" then "" elif $lvols[$lvol].parent == "none" then "    " else " <- " end) + $lvol)' \
		<<<"$1"
}

# columns LVOL LVOLS...: the lvol's parent and allocated clusters in each of these states.
columns() {
	local lvol=$1 state
	printf '  %-19s' "$lvol"
	for state in "${@:2}"; do
		jq -r --arg lvol "$lvol" '.[$lvol] // { parent: "(deleted)", clusters: "" } | "\(.parent)\t\(.clusters)"' \
			<<<"$state" | { IFS=$'\t' read -r parent allocated && printf '     %-10s%3s' "$parent" "$allocated"; }
	done
	printf '\n'
}

# io_row METHOD IO
io_row() {
	jq -r 'def size: if . < 1048576 then "\(.) B" else "\(. / 1048576 * 10 | round / 10) MiB" end;
		[.writes, (.written | size), .reads, (.read | size), .unmaps, "\(.ms) ms"] | map("\(.)") | @tsv' <<<"$2" |
		{ IFS=$'\t' read -ra row && printf '  %-26s%7s%12s%7s%12s%8s%9s\n' "$1" "${row[@]}"; }
}

# check WHAT COMMAND...: the command's exit status decides.
check() {
	local what=$1
	shift
	if "$@"; then
		printf '  ok      %s\n' "$what"
	else
		printf '  FAILED  %s\n' "$what"
		failed=$((failed + 1))
	fi
}

is() { [ "$1" = "$2" ]; }

# --- The demonstration -----------------------------------------------------------------------

trap finish EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM
trap 'exit 141' PIPE
: >"$log"

step 'starting the target'
start_target
rpc rpc_get_methods | jq -e 'index("bdev_lvol_detach_parent")' >/dev/null ||
	die 'the target has no method bdev_lvol_detach_parent.'
version=$(rpc spdk_get_version | jq -r '.version | split(" ")[:2] | join(" ")')

step 'building the chains'
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
truncate -s 512M "$work/disk"
# With fallocate the file can unmap, so that an unmap would be noticed. SPDK before 24.05 doesn't have it.
rpc bdev_aio_create "$work/disk" base 4096 --fallocate >/dev/null 2>&1 ||
	prepare <<<"bdev_aio_create '$work/disk' base 4096"
prepare <<-RPCS
	bdev_lvol_create_lvstore base lvs --cluster-sz 1048576
	iscsi_create_portal_group 1 127.0.0.1:$port
	iscsi_create_initiator_group 1 ANY 127.0.0.1/32
RPCS
for layer in "${chain[@]}"; do
	head -c "${count[$layer]}M" /dev/urandom >"$work/$layer.data"
done
build_chain ''
build_chain twin-
before=$(lvols '')

step 'reading the chains before the change'
image vol_before snap1 snap2 snap3 vol
image snap3_before snap1 snap2 snap3
image vol_detached snap3 vol
image snap3_detached snap3
for lvol in vol snap3; do
	for prefix in '' twin-; do
		reads_as "${lvol}_before" "$prefix$lvol" || die "lvs/$prefix$lvol does not hold what was written."
	done
done
is "$before" "$(lvols twin-)" || die 'the two chains differ.'

step 'asking what a detach of snap3 would do'
tree=$(rpc bdev_lvol_check_detach_parent lvs/snap3 --tree)
lost=$(rpc bdev_lvol_check_detach_parent lvs/snap3 | jq -c '[.num_lost_clusters, .readers[].num_lost_clusters]')
is "$before" "$(lvols '')" || die 'the check has changed something.'

step 'detaching snap3 from snap2'
detach_io=$(measure bdev_lvol_detach_parent '')
detached=$(lvols '')

step 'decoupling the twin of snap3 from the twin of snap2'
decouple_io=$(measure bdev_lvol_decouple_parent twin-)
decoupled=$(lvols twin-)

doing='showing the result'
cat <<-TEXT

	The spdk_tgt of $version with libspdk_lvol_detach.so preloaded. An lvstore with clusters of 1 MiB
	on a file; lvols of $clusters clusters; random data, written and read back by qemu over iSCSI.

	The chain
	  before                      $(arrows "$before")
	  bdev_lvol_detach_parent     $(arrows "$detached")
	  bdev_lvol_decouple_parent   $(arrows "$decoupled")     (on a twin of the chain)
	  Each was called on snap3; snap2 was deleted as soon as it returned.

	What bdev_lvol_check_detach_parent --tree said before
  ${tree//$'\n'/$'\n'  }

	Parent and allocated clusters
	                          before            detached          decoupled
TEXT
for lvol in "${chain[@]}"; do
	columns "$lvol" "$before" "$detached" "$decoupled"
done
printf '\nWhat the device did\n  %-26s%7s%12s%7s%12s%8s%9s\n' '' writes written reads read unmaps time
io_row bdev_lvol_detach_parent "$detach_io"
io_row bdev_lvol_decouple_parent "$decouple_io"
echo '  (a flush is not counted; time: from reply to reply, most of that of the detach is rpc.py'\''s and the RPC'
echo '  server'\''s own)'

printf '\nVerified\n'
expected=$(jq -c 'del(.snap2) | .snap3.parent = "none"' <<<"$before")
check 'snap3 has no parent; allocated clusters and all other parents are as before' is "$detached" "$expected"
check 'the detach was one read and one write of 4096 bytes, no unmap' \
	is "$(jq -r '"\(.reads) \(.read) \(.writes) \(.written) \(.unmaps)"' <<<"$detach_io")" '1 4096 1 4096 0'
check 'the check said what is lost: 32 clusters for snap3, 32 for vol' is "$lost" '[32,32]'
others=$((clusters - count[snap3]))
check "snap3, every byte: its own ${count[snap3]} clusters as written, the other $others read as zeroes" \
	reads_as snap3_detached snap3
check 'vol, every byte: its own and snap3'\''s clusters as written, all others read as zeroes' \
	reads_as vol_detached vol
check 'the decoupled twins show every byte that they showed before' \
	eval 'reads_as snap3_before twin-snap3 && reads_as vol_before twin-vol'

echo
if [ "$failed" -gt 0 ]; then
	doing='verifying'
	exit 1
fi
echo 'Every byte verified.'
