#!/usr/bin/env bash
# Measures snapshots and forks through the command line, where guests run: how long a guest stands still, how large files are,
# what copies cost, whether depth matters. FORKS and DEPTH say how many, PARTS which of "stop forks depth". It is run by hand:
# scripts/bench-snapshots.sh, or on the emulated host 'bin/spore host run -- scripts/bench-snapshots.sh'.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH=$PWD/bin:$PATH SPORE_NATIVE=1
image=${IMAGE:-debian:12}
state=$(mktemp -d)
export SPORE_STATE_DIR=$state
cleanup() { spore ls -aq | xargs -r spore rm -f >/dev/null 2>&1 || true; rm -rf "$state"; }
trap cleanup EXIT
ms() { echo $((($(date +%s%N) - $1) / 1000000)); }
field() { sed -nE "s/^ *\"$1\": \"?([^\",]*)\"?,?\$/\1/p" | head -n 1; } # of indented JSON; starting python takes seconds there
wants() { [[ " ${PARTS:=stop forks depth} " == *" $1 "* ]]; }
median() { sort -n | awk '{a[NR]=$1} END{print a[int((NR+1)/2)]}'; }

spore run "$image" true # leaves the template
spore run -d --name p "$image" sh -c 'sleep 100000' >/dev/null

if wants stop; then
    echo "== how long a guest stands still: 512 MiB, then with 32 MiB more written"
    for what in "as it woke" "32 MiB more"; do
        [ "$what" = "as it woke" ] || spore exec p sh -c 'head -c 32M /dev/urandom >/dev/shm/x'
        for kind in live stop; do
            flag=$([ $kind = stop ] && echo --stop || true)
            for _ in 1 2 3 4 5; do
                spore snapshot take --json $flag p >"$state/out"
                echo "$(field stopped_ns <"$state/out") $(field bytes <"$state/out") $(field before_bytes <"$state/out") $(field during_bytes <"$state/out")"
                spore snapshot rm --children "$(field id <"$state/out")" >/dev/null
            done >"$state/rows"
            echo "$what, $kind: stopped $(awk '{print $1/1e6}' "$state/rows" | median) ms, file $(awk '{print $2/1048576}' "$state/rows" | median) MiB," \
                "copied before $(awk '{print $3/1048576}' "$state/rows" | median) MiB, during $(awk '{print $4/1048576}' "$state/rows" | median) MiB"
        done
    done
fi

if wants forks; then
    echo "== ${FORKS:=100} forks"
    free_before=$(awk '/MemAvailable/{print $2}' /proc/meminfo)
    t=$(date +%s%N)
    spore fork -n "$FORKS" p >"$state/forks" || true # the emulated host loses a guest now and then
    echo "wall time $(ms "$t") ms, $(wc -l <"$state/forks") run"
    # pss NAME prints each process's PSS in KiB: all of it, and what is not guest memory (anonymous and large, or of a file of that name).
    pss() {
        for pid in $(pgrep -x "$1"); do
            awk '/^[0-9a-f]+-/{guest=/\/memory/} /^Size:/{guest=guest || $2>=65536} /^Pss:/{all+=$2; if (!guest) own+=$2} END{print all, own}' /proc/"$pid"/smaps
        done
    }
    pss spore-vmm >"$state/vmms"
    pss spore >"$state/supervisors"
    each() { awk '{a+=$1; o+=$2; n++} END{printf "%d with %.2f MiB each, %.2f without guest memory", n, a/1024/n, o/1024/n}' "$1"; }
    echo "PSS: VMMs $(each "$state/vmms"); supervisors $(each "$state/supervisors")"
    cat "$state/vmms" "$state/supervisors" | awk -v n="$(($(wc -l <"$state/vmms")))" \
        '{a+=$1; o+=$2} END{printf "a machine: %.2f MiB, %.2f before its guest writes\n", a/1024/n, o/1024/n}'
    echo "MemAvailable went down by $((($free_before - $(awk '/MemAvailable/{print $2}' /proc/meminfo)) / 1024 / FORKS)) MiB each"
    answered=0
    while read -r id; do [ "$(spore exec "$id" echo yes)" = yes ] && answered=$((answered + 1)); done <"$state/forks"
    echo "$answered of $FORKS answer"
    xargs spore rm -f <"$state/forks" >/dev/null
fi

if wants depth; then
    echo "== wake at depth 1 and at depth ${DEPTH:=50}"
    first=$(spore snapshot take p)
    last=$first
    for _ in $(seq 2 "$DEPTH"); do last=$(spore snapshot take p); done
    for node in "$first" "$last" "$first" "$last"; do
        for _ in 1 2 3 4 5; do
            t=$(date +%s%N)
            spore run --from "$node" -- true
            ms "$t"
        done >"$state/rows"
        echo "$node: $(median <"$state/rows") ms until true has run"
    done
    spore snapshot rm --children "$first" >/dev/null
fi
spore rm -f p >/dev/null
