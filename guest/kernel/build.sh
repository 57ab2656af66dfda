#!/usr/bin/env bash
# Builds the guest kernel from Debian's linux-source-6.1, spore.config and patches/, once for each content of these and
# of this script, and prints the path of vmlinux; --path only prints where it is or would be. Everything is kept under
# $XDG_CACHE_HOME/spore/kernel/HASH: vmlinux, bzImage, config, build.log.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
source=/usr/src/linux-source-6.1.tar.xz

fail() { echo "kernel: $*" >&2; exit 1; }

hash=$(cat "$here/spore.config" "$here/build.sh" "$here"/patches/*.patch | sha256sum | cut -c1-16)
kernels=${XDG_CACHE_HOME:-$HOME/.cache}/spore/kernel
out=$kernels/$hash
if [ -e "$out/vmlinux" ] || [ "${1:-}" = --path ]; then echo "$out/vmlinux"; exit; fi
[ -e "$source" ] || fail "$source is missing: apt-get install linux-source-6.1"

mkdir -p "$kernels"
exec 9>"$kernels/lock"
flock 9
if [ -e "$out/vmlinux" ]; then echo "$out/vmlinux"; exit; fi

rm -rf "$kernels"/work.* # of builds that were interrupted: the lock is ours
work=$(mktemp -d "$kernels/work.XXXXXX")
trap 'rm -rf "$work"' EXIT
tar -xf "$source" -C "$work" --strip-components=1
cd "$work"
{
    for p in "$here"/patches/*.patch; do patch -p1 <"$p"; done
    make -s tinyconfig
    scripts/kconfig/merge_config.sh -m .config "$here/spore.config"
    make -s olddefconfig
} >"$work/build.log" 2>&1 || { tail -n 20 "$work/build.log" >&2; fail "configuration failed"; }
while read -r option; do
    grep -qxF "$option" .config || fail "$option did not survive olddefconfig: something it depends on is missing"
done < <(grep -E '^CONFIG_' "$here/spore.config")
while read -r option; do
    if grep -q "^$option=" .config; then fail "$option is still set: something selects it"; fi
done < <(sed -nE 's/^# (CONFIG_[A-Z0-9_]+) is not set$/\1/p' "$here/spore.config")
export KBUILD_BUILD_TIMESTAMP=1970-01-01 KBUILD_BUILD_USER=spore KBUILD_BUILD_HOST=spore
make -s -j"$(nproc)" vmlinux bzImage >>"$work/build.log" 2>&1 || { tail -n 30 "$work/build.log" >&2; fail "build failed"; }

rm -rf "$out" "$out.new"
mkdir -p "$out.new"
strip -g -o "$out.new/vmlinux" vmlinux
cp .config "$out.new/config"
cp arch/x86/boot/bzImage build.log "$out.new/"
mv "$out.new" "$out"
echo "$out/vmlinux"
