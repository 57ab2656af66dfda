#!/usr/bin/env bash
# Everything a change must pass: set-up, the rules over the source tree, every package natively under the race
# detector, and what needs Linux guests, cgroup v2 or real KVM on the emulated host, or natively where that works.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/steps.sh

# packages whose tests also run where guests run, with what must be there
guest_packages="kvm doctor jailer test/e2e"

step "packages" scripts/setup.sh
step "build" make --no-print-directory build
prepare
step "dev image" scripts/image.sh dev
# with cgo: the policy compiler is a package of its own that needs libseccomp
step "vet" env CGO_ENABLED=1 go vet ./...

start=$(now)
# The race detector needs cgo, and a program with cgo cannot jail itself: its threads are not all Go's.
CGO_ENABLED=1 go test -race -timeout 20m -p 2 $(go list ./... | grep -vE '/(test/e2e|jailer)$')
CGO_ENABLED=0 go test -timeout 20m ./jailer
report "unit" "$start"

start=$(now)
mkdir -p bin/test
for p in $guest_packages; do
    CGO_ENABLED=0 go test -c -o "bin/test/${p//\//-}.test" "./$p"
done
report "compile" "$start"

# in_guest_host CMD... runs a command where guests run: here, or on the emulated host.
native=false
if bin/spore doctor >/dev/null; then native=true; fi
in_guest_host() {
    if $native; then "$@"; else "$root/bin/spore" host run -- "$@"; fi
}

# limited SECONDS CMD... ends a command that takes longer, with 124.
limited() {
    local seconds=$1
    shift
    timeout -k 10 "$seconds" "$@"
}

# fresh_host gives the emulated host a new start, from a snapshot of its own making.
fresh_host() {
    $native && return
    limited 60 bin/spore host stop || true
    rm -rf "${XDG_CACHE_HOME:-$HOME/.cache}/spore/emuhost/snapshot"
    limited 300 bin/spore host start
}

# try PACKAGE runs a package's tests where guests run. An emulated host that stops answering (exit code 124 or 137 of
# timeout, 125 of the host) says nothing about the package: it gets a new one, twice at most, and says so.
try() {
    local p=$1 status=0
    (cd "$p" && in_guest_host timeout -k 10 1190 env REQUIRE=kvm,root,cgroup2,guest SPORE_BIN="$root/bin" \
        "$root/bin/test/${p//\//-}.test" -test.timeout 39m) || status=$?
    return "$status"
}
export -f try in_guest_host
export root=$PWD native

fresh_host
for p in $guest_packages; do
    start=$(now)
    echo "== ./$p, where guests run"
    for attempt in 1 2 3; do
        status=0
        limited 1200 bash -c "try $p" || status=$?
        case $status in
        0) break ;;
        124 | 125 | 137)
            [ "$attempt" = 3 ] && exit "$status"
            echo "spore: the emulated host stopped answering (status $status): ./$p once more on a new one" >&2
            fresh_host
            ;;
        *) exit "$status" ;;
        esac
    done
    report "$p" "$start"
done
report "all" "$began"
