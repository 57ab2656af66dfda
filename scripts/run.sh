#!/usr/bin/env bash
# The main job, from nothing: set up what is missing, then run the program on standard input (or
# examples/untrusted.sh when that is a terminal or nothing) in a microVM. Prints how long each step took.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/steps.sh

program=-
if [ -t 0 ] || [ ! -r /dev/stdin ] || [ /dev/stdin -ef /dev/null ]; then program=examples/untrusted.sh; fi

step "packages" scripts/setup.sh
step "build" make --no-print-directory build
prepare
start=$(now)
status=0
bin/spore run --rm --report --program "$program" debian:12 || status=$?
report "run" "$start"
report "all" "$began"
exit "$status"
