#!/usr/bin/env bash
# Makes sure that the default images are in the store: debian:12, and debian:12-dev with a compiler when asked for by
# "image.sh dev". The tar files they come from are cached by content; an image made from the same tar is kept.
set -euo pipefail
cd "$(dirname "$0")/.."
cache=${XDG_CACHE_HOME:-$HOME/.cache}/spore

# state NAME prints what decides whether the image NAME is the one that would be made: the script that builds its tar, for which
# machine, and the tar itself.
state() {
    local tar=$cache/default-images/${1//:/-}.tar
    echo "$MACHTYPE $(<scripts/default-image.sh)"
    stat -Lc '%n %i %s %Y' "$tar"
}

# there NAME reports whether the store has the image NAME of that state.
there() {
    local known=$cache/default-images/${1//:/-}.state
    [ -e "$known" ] && [ "$(state "$1" 2>&1)" = "$(<"$known")" ] && bin/spore image inspect "$1" >/dev/null 2>&1
}

# ensure NAME [--dev] imports the image NAME unless the store has it from that very tar.
ensure() {
    local name=$1 tar
    shift
    if there "$name"; then
        echo "$name is there"
        return
    fi
    mkdir -p "$cache/default-images"
    exec 9>"$cache/image.lock"
    flock 9
    if there "$name"; then return; fi # somebody else has made it meanwhile
    tar=$cache/default-images/${name//:/-}.tar
    scripts/default-image.sh "$@" "$tar"
    bin/spore image import "tar:$tar" "$name"
    state "$name" >"$cache/default-images/${name//:/-}.state"
    exec 9>&-
}

ensure debian:12
if [ "${1:-}" = dev ]; then ensure debian:12-dev --dev; fi
