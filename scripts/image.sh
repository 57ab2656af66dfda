#!/usr/bin/env bash
# Makes sure that the default images are in the store: debian:12, and debian:12-dev with a compiler when asked for by
# "image.sh dev". The tar files they come from are cached by content; an image made from the same tar is kept.
set -euo pipefail
cd "$(dirname "$0")/.."
cache=${XDG_CACHE_HOME:-$HOME/.cache}/spore

# ensure NAME [--dev] imports the image NAME unless the store has it from that very tar.
ensure() {
    local name=$1 tar known
    shift
    tar=$cache/default-images/${name//:/-}.tar
    known=$cache/default-images/${name//:/-}.imported
    scripts/default-image.sh "$@" "$tar"
    if [ "$(readlink -f "$tar"; stat -Lc '%s %Y' "$tar")" = "$(cat "$known" 2>/dev/null)" ] && bin/spore image inspect "$name" >/dev/null 2>&1; then
        echo "$name is there"
        return
    fi
    bin/spore image import "tar:$tar" "$name"
    { readlink -f "$tar"; stat -Lc '%s %Y' "$tar"; } >"$known"
}

mkdir -p "$cache/default-images"
exec 9>"$cache/image.lock"
flock 9
ensure debian:12
if [ "${1:-}" = dev ]; then ensure debian:12-dev --dev; fi
