#!/usr/bin/env bash
# Measures Spore beside QEMU's microvm where guests run, and writes bench/results/latest.json. BENCH_FLAGS go to the
# program, for example BENCH_FLAGS='-boots 5 -repeats 1' for a quick look. How long the VMM itself takes to wake is measured
# natively, with a bare-metal guest, into bench/results/native.json.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/steps.sh
cache=${XDG_CACHE_HOME:-$HOME/.cache}/spore

step "packages" scripts/setup.sh
step "build" make --no-print-directory build
prepare
step "bench" go build -o bin/bench ./bench
step "floor" scripts/bench-floor.sh bin
kernel=$(guest/kernel/build.sh)

# an image with fio, iperf3 and ping
work=$cache/bench
mkdir -p "$work"
step "image" scripts/default-image.sh "$work/net.tar" fio iperf3 iputils-ping
bin/spore image inspect bench:net >/dev/null 2>&1 || bin/spore image import --quiet "tar:$work/net.tar" bench:net >/dev/null
image=$(bin/spore image inspect bench:net | sed -nE 's/^ *"path": "(.*)",$/\1/p' | head -n 1)

# Debian's cloud kernel, as its package has it, with the modules that the agent needs
cloud=$(scripts/cloud-kernel.sh "$work")

echo "== natively"
mkdir -p bench/results/raw
bin/bench -bin bin -only wake,pool,netwake -out "$work/native" -wakes "${WAKES:-1000}"
cp "$work/native/latest.json" bench/results/native.json
cp "$work/native/raw/latest.json" bench/results/raw/native.json
command -v gnuplot >/dev/null || { apt-get update -qq && apt-get install -y -qq gnuplot-nox >/dev/null; }
# plot draws every file of results whose samples are here.
plot() {
    local f new=$work/plot.svg
    for f in bench/results/*.json; do
        [ -f "bench/results/raw/${f##*/}" ] || continue
        bin/bench -plot "$f" | gnuplot >"$new"
        mv "$new" "${f%.json}.svg"
    done
}
plot
bin/spore host stop 2>/dev/null || true

echo "== where guests run"
where="bin/spore host run --"
shared=$work/out
if bin/spore doctor >/dev/null; then where=""; else shared=$(bin/spore host start && bin/spore host status --json | sed -nE 's/^ *"shared": "(.*)",?$/\1/p')/bench; fi
mkdir -p "$shared"
# Everything that either side reads is copied to where it is measured: the emulated host sees this machine's files over 9p, and
# that is not what is measured.
cat >"$shared/measure.sh" <<MEASURE
set -e
modprobe -a vhost_vsock tun 2>/dev/null || true
d=\$(mktemp -d)
trap 'rm -rf "\$d"' EXIT
cp '$PWD/bin/spore-vmm' '$PWD/bin/initramfs.cpio' '$PWD/bin/bench' "\$d"
cp '$kernel' "\$d/vmlinux"; cp '$image' "\$d/image"
cp '$cloud/vmlinuz' "\$d/cloud-vmlinuz"; cp '$cloud/initramfs.cpio' "\$d/cloud-initramfs.cpio"
truncate -s 128M "\$d/layer" && /sbin/mkfs.ext4 -q -F -m 0 -O ^has_journal "\$d/layer"
"\$d/bench" -bin "\$d" -out '$shared' -scratch "\$d" -kernel "\$d/vmlinux" -image "\$d/image" -writable "\$d/layer" \
    -cloud-kernel "\$d/cloud-vmlinuz" -cloud-initramfs "\$d/cloud-initramfs.cpio" -only wakelinux,boot,own,block,calls,net ${BENCH_FLAGS:-}
MEASURE
$where bash "$shared/measure.sh"
mkdir -p bench/results/raw
cp "$shared/latest.json" bench/results/latest.json
cp "$shared/raw/latest.json" bench/results/raw/latest.json
plot
