#!/usr/bin/env bash
# Everything a change must pass: set-up, the rules over the source tree, every package natively under the race
# detector, and what needs Linux guests, cgroup v2 or real KVM on the emulated host, or natively where that works.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/steps.sh

# packages whose tests also run where guests run, with what must be there
guest_packages="kvm vmm doctor jailer sandbox test/e2e"

step "packages" scripts/setup.sh
step "build" make --no-print-directory build
prepare
step "dev image" scripts/image.sh dev
step "vet" go vet ./...

start=$(now)
CGO_ENABLED=1 go test -race -timeout 20m -p 2 $(go list ./... | grep -v '/test/e2e$')
report "unit" "$start"

start=$(now)
mkdir -p bin/test
for p in $guest_packages; do
    go test -c -o "bin/test/${p//\//-}.test" "./$p"
done
report "compile" "$start"

where="bin/spore host run --"
if bin/spore doctor >/dev/null; then where=""; fi
for p in $guest_packages; do
    start=$(now)
    echo "== ./$p, where guests run"
    (cd "$p" && run_in=$OLDPWD && ${where:+$run_in/}${where:-} env REQUIRE=kvm,root,cgroup2,guest SPORE_BIN="$run_in/bin" \
        "$run_in/bin/test/${p//\//-}.test" -test.timeout 40m -test.failfast=false)
    report "$p" "$start"
done
report "all" "$began"
