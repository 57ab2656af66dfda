#!/usr/bin/env bash
# Takes and restores snapshots of one sandbox, CYCLES times, while it works: fio writes its disk at random and verifies every block, if
# the image has it, in turns with files that are read back and compared; and a stream of STREAM_MIB goes into it and back through vsock. A
# stream that a snapshot is taken under comes back whole. One that a restore ends has brought nothing wrong until then, and does not hang. Run by hand, where guests run:
# scripts/cycles.sh, or on the emulated host 'bin/spore host run -- scripts/cycles.sh'.
set -euo pipefail
cd "$(dirname "$0")/.."
image=${IMAGE:-debian:12}
state=$(mktemp -d) programs=$(mktemp -d)
cp -r bin/cni bin/spore bin/spore-* bin/initramfs.cpio "$programs" # the emulated host would read them over 9p for every command
export PATH=$programs:$PATH SPORE_NATIVE=1 SPORE_STATE_DIR=$state
cleanup() { spore ls -aq | xargs -r spore rm -f >/dev/null 2>&1 || true; rm -rf "$state" "$programs"; }
trap cleanup EXIT
: "${CYCLES:=20}" "${STREAM_MIB:=2}" "${KEEP:=5}" "${LIMIT:=60}" # KEEP snapshots at most; a stream takes no longer than LIMIT seconds
work='cd /tmp; i=0; while :; do i=$((i+1))
if command -v fio >/dev/null; then
    fio --output=said --name=v --filename=v --size=1M --bs=4k --rw=randwrite --direct=1 --ioengine=libaio --iodepth=8 --thread \
        --verify=crc32c --do_verify=1 --verify_fatal=1 || { echo LOST $i; tail -n 20 said; exit 1; }
fi
head -c 1M /dev/urandom >f; sha256sum f >s; cp f g; sync
sha256sum f | cmp -s - s && cmp -s f g || { echo LOST $i; exit 1; }; echo $i; done'
head -c $((STREAM_MIB << 20)) /dev/urandom >"$state/data"

# The emulated host loses a guest now and then (docs/testing.md): it is counted and rolled back like any other, or begun anew.
messages=$state/messages gone=0 broken=0 first="" last="" chain=0
lost() { echo "$1"; spore logs w 2>/dev/null | tail -n 3; sort "$messages" | uniq -c; exit 1; }
said() { sed -E 's/[0-9a-f]{12,}/ID/g; s/[0-9]+ ?(ms|s|bytes)/N \1/g' "$1" >>"$messages"; }
begin() {
    spore rm -f w >/dev/null 2>&1 || true
    spore run -d --name w "$image" sh -c "$work" >/dev/null
    first="" last="" chain=0
}
stream() { timeout -k 5 "$LIMIT" spore exec -i w cat <"$state/data" >"$state/$1" 2>"$state/$1.err"; }
# came says whether what a stream brought is the beginning of what was sent; all of it with "whole".
came() { head -c "$(stat -c %s "$state/$1")" "$state/data" | cmp -s - "$state/$1" && { [ "$2" != whole ] || cmp -s "$state/data" "$state/$1"; }; }
descriptors() { ls "/proc/$(spore inspect w | sed -nE 's/^ *"supervisor_pid": ([0-9]+),?$/\1/p' | head -n 1)/fd" | wc -l; }

touch "$messages"
begin
for n in $(seq "$CYCLES"); do
    if [ "$chain" -ge "$KEEP" ]; then # the chain goes as one: a snapshot with children is not removed alone
        spore snapshot rm --children "$first" >/dev/null
        first="" last="" chain=0
    fi
    stream during & taking=$!
    sleep 0.3
    if id=$(spore snapshot take w 2>"$state/err"); then
        last=$id first=${first:-$id} chain=$((chain + 1))
    else
        gone=$((gone + 1)); said "$state/err"
    fi
    if wait "$taking"; then
        came during whole || lost "cycle $n: a stream under a snapshot came back other than it was sent"
    else
        broken=$((broken + 1)); said "$state/during.err"
        came during part || lost "cycle $n: a stream that broke had brought other bytes than were sent"
    fi
    if [ -z "$last" ]; then begin; continue; fi
    stream cut & cutting=$!
    sleep 0.3
    until spore snapshot restore w "$last" 2>"$state/err"; do
        gone=$((gone + 1)); said "$state/err"
        [ "$gone" -le "$CYCLES" ] || lost "cycle $n: it cannot be restored"
    done
    code=0; wait "$cutting" || code=$?
    [ "$code" != 124 ] && [ "$code" != 137 ] || lost "cycle $n: a stream that a restore ended hangs"
    came cut part || lost "cycle $n: a stream that a restore ended had brought other bytes than were sent"
    if spore logs w | grep LOST; then lost "cycle $n: a file"; fi
    [ "$n" != 10 ] || fds=$(descriptors)
    [ $((n % 10)) != 0 ] || echo "after $n cycles: nothing lost; failed takes and restores: $gone, broken streams: $broken"
done
rounds() { spore logs w | grep -c '^[0-9][0-9]*$' || true; } # that it has written, verified and compared
before=$(rounds)
for _ in $(seq 60); do [ "$(rounds)" = "$before" ] || break; sleep 1; done
[ "$(rounds)" != "$before" ] || lost "it does not write any more"
now=$(descriptors)
echo "$CYCLES cycles, $(rounds) rounds of writes, nothing lost on the disk or in a stream; failed takes and restores: $gone, broken streams: $broken; the supervisor's descriptors: ${fds:-$now}, at the end $now"
sort "$messages" | uniq -c
