#!/usr/bin/env bash
# Measures a Python handler that stands ready in its template beside one that is started, and beside a cold boot, where guests run: request to
# first byte of the answer. RUNS says how often each, in turns. It is run by hand: scripts/bench-handler.sh, or on the emulated host
# 'bin/spore host run -- scripts/bench-handler.sh'.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH=$PWD/bin:$PATH SPORE_NATIVE=1
image=${IMAGE:-debian:12}
SPORE_STATE_DIR=$(mktemp -d)
export SPORE_STATE_DIR
trap 'rm -rf "$SPORE_STATE_DIR"' EXIT
handler="import sys, json
def handle(q): return json.dumps({'answer': int(q) + 1})"
# The template is taken when the first question has been answered: then the handler waits for the next.
ready="mkfifo /tmp/q /tmp/a
python3 -c \"$handler
while True:
    q = open('/tmp/q').read()
    open('/tmp/a', 'w').write(handle(q))
\" </dev/null >/tmp/handler.log 2>&1 &
echo 0 >/tmp/q
cat /tmp/a"
first() { # first ARGS...: milliseconds from the request to the first byte of output, which has to be the right answer
    spore run --timing "$@" >"$SPORE_STATE_DIR/out" 2>"$SPORE_STATE_DIR/err" || { cat "$SPORE_STATE_DIR/err" >&2; return 1; }
    grep -qx '{"answer": 42}' "$SPORE_STATE_DIR/out" || { echo "it answered: $(cat "$SPORE_STATE_DIR/out")" >&2; return 1; }
    sed -nE 's/.*t0 → t5 .* ([0-9.]+) ms$/\1/p' "$SPORE_STATE_DIR/err"
}
prepared() { first --prepare "$ready" "$image" sh -c 'echo 41 >/tmp/q; read -r a </tmp/a; echo "$a"'; }
unprepared() { first "$image" python3 -c "$handler
print(handle(41))"; }
cold() { first --cold "$image" python3 -c "$handler
print(handle(41))"; }
for what in prepared unprepared; do for _ in 1 2; do $what >/dev/null; done; done # leaves the templates and what they learn
for _ in $(seq "${RUNS:=10}"); do
    for what in prepared unprepared; do $what >>"$SPORE_STATE_DIR/$what"; done
done
for _ in 1 2 3; do cold >>"$SPORE_STATE_DIR/cold"; done
for what in prepared unprepared cold; do
    sort -n "$SPORE_STATE_DIR/$what" | awk -v what=$what '{a[NR]=$1} END{printf "%s: first byte after %.0f ms (median of %d, %.0f to %.0f)\n", what, a[int((NR+1)/2)], NR, a[1], a[NR]}'
done
