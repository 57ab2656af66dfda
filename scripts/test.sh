#!/usr/bin/env bash
# Everything a change must pass: set-up, the rules over the source tree, every package natively under the race
# detector, and what needs Linux guests, cgroup v2 or real KVM on the emulated host, or natively where that works.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/steps.sh

# packages whose tests also run where guests run, with what must be there
guest_packages="kvm doctor jailer jailer/cgroup network test/e2e"

step "packages" scripts/setup.sh
step "build" make --no-print-directory build
prepare
step "dev image" scripts/image.sh dev
# with cgo: the policy compiler is a package of its own that needs libseccomp
step "vet" env CGO_ENABLED=1 go vet ./...

start=$(now)
# The race detector needs cgo, and with it the test binary is no longer static: it cannot run in an empty root.
REQUIRE=holes,tmpfs,disk,hugepages CGO_ENABLED=1 go test -race -timeout 20m -p 2 $(go list ./... | grep -vE '/(test/e2e|jailer)$')
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

# try PACKAGE FLAGS... runs a package's tests where guests run.
try() {
    local p=$1
    shift
    (cd "$p" && in_guest_host timeout -k 10 "$test_limit" env REQUIRE=kvm,root,cgroup2,guest,network SPORE_BIN="$root/bin" \
        "$root/bin/test/${p//\//-}.test" -test.timeout 39m "$@")
}
export -f try in_guest_host
export root=$PWD native test_limit=400

# attempt PACKAGE FLAGS... is try, three times at most on the emulated host, and says so each time: its QEMU now and then
# loses a guest (docs/testing.md), or stops answering. A mistake of ours fails all three. Nothing is tried again where
# guests run natively.
attempt() {
    local n status
    for n in 1 2 3; do
        status=0
        limited $((test_limit + 10)) bash -c 'try "$@"' try "$@" || status=$?
        if [ "$status" = 0 ] || $native || [ "$n" = 3 ]; then return "$status"; fi
        echo "spore: attempt $n of $* failed (status $status) on the emulated host: once more" >&2
        case $status in 124 | 125 | 137) fresh_host ;; esac
    done
}

fresh_host
for p in $guest_packages; do
    start=$(now)
    echo "== ./$p, where guests run"
    case $p in
    test/e2e) # each boots guests: one at a time, so that little is repeated
        for t in $(bin/test/test-e2e.test -test.list '^Test'); do attempt "$p" -test.v -test.run "^$t\$"; done
        ;;
    *) attempt "$p" ;;
    esac
    report "$p" "$start"
done
report "all" "$began"
