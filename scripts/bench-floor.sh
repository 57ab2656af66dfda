#!/usr/bin/env bash
# Builds the floor of the wake benchmark (bench/floor) into a directory: what a fresh start costs in C. bin/bench -only wake takes
# turns with it where it finds it.
set -euo pipefail
cd "$(dirname "$0")/.."
for program in floor floor-vmm; do
    source=${program#floor-}
    gcc -O2 -static -Wall -Wextra -Werror -o "${1:-bin}/$program" "bench/floor/$source.c"
done
