#!/usr/bin/env bash
# Builds a Debian root file system as a tar file:
#
#   default-image.sh [--dev] OUT.tar [PACKAGE...]
#
# The plain flavour is Debian's minimal system with Python; --dev adds a compiler, git and what the end-to-end tests use.
# Import the results as debian:12 and debian:12-dev. The tar is kept in $XDG_CACHE_HOME/spore/rootfs under a
# name made of everything that decides its content (this script, suite, architecture, packages), so that a
# second call only links it; delete that directory to get newer packages. Needs root and debootstrap.
#
# DEBIAN_MIRROR names another mirror than Debian's own.
set -euo pipefail

suite=bookworm
base=(python3)
dev=(gcc libc6-dev make git sqlite3 procps file xz-utils)

fail() { echo "default-image: $*" >&2; exit 1; }

[ "${1:-}" = --dev ] && { base+=("${dev[@]}"); shift; }
[ $# -ge 1 ] || fail "usage: default-image.sh [--dev] OUT.tar [PACKAGE...]"
out=$1
shift
packages=$(printf '%s\n' "${base[@]}" "$@" | sort -u | paste -sd,)
command -v debootstrap >/dev/null || fail "debootstrap is missing: apt-get install debootstrap"
arch=$(dpkg --print-architecture)

cache=${XDG_CACHE_HOME:-$HOME/.cache}/spore/rootfs
mkdir -p "$cache" "$(dirname "$out")"
key=$({ cat "$0"; echo "$suite $arch $packages"; } | sha256sum | cut -c1-16)
tar=$cache/debian-$suite-$arch-$key.tar

# deliver puts the cached file at $out, without a second copy where the file system allows it.
deliver() {
    [ "$out" -ef "$tar" ] && return
    rm -f "$out"
    ln "$tar" "$out" 2>/dev/null || cp --reflink=auto "$tar" "$out"
}

exec 9>"$cache/lock"
flock 9
if [ -e "$tar" ]; then
    deliver
    exit
fi
[ "$(id -u)" = 0 ] || fail "debootstrap needs root"

work=$(mktemp -d "$cache/work.XXXXXX")
# A bootstrap that was interrupted may have left /proc mounted inside.
cleanup() {
    umount "$work/root/proc" "$work/root/sys" "$work/root/dev" 2>/dev/null || true
    mountpoint -q "$work" && umount -l "$work"
    rm -rf --one-file-system "$work"
}
trap cleanup EXIT
# In memory it goes faster, packages being synced to disk one by one otherwise.
if [ "$(awk '/MemAvailable/ { print int($2 / 1024) }' /proc/meminfo)" -gt 6000 ]; then
    mount -t tmpfs -o size=3g,mode=700 tmpfs "$work" || true
fi

# Downloaded packages are kept between flavours.
mkdir -p "$cache/debs"
debootstrap --variant=minbase --arch="$arch" --include="$packages" --cache-dir="$cache/debs" \
    "$suite" "$work/root" "${DEBIAN_MIRROR:-http://deb.debian.org/debian}" >"$work/log" 2>&1 9>&- ||
    { tail -n 30 "$work/log" "$work/root/debootstrap/debootstrap.log" >&2; fail "debootstrap failed"; }

cd "$work/root"
umount proc sys 2>/dev/null || true
rm -rf var/lib/apt/lists/* var/cache/apt/*.bin var/cache/apt/archives/*.deb var/cache/debconf/*-old var/log/* \
    var/cache/ldconfig/aux-cache usr/share/man/* usr/share/info/* usr/share/locale/* usr/share/lintian \
    usr/share/bug var/lib/dpkg/*-old etc/*- run/* tmp/* debootstrap
find usr/share/doc -not -type d -not -name copyright -delete
find usr/share/doc -type d -empty -delete
find dev -mindepth 1 -delete
# A debugging aid for GCC's own developers, of 30 MiB.
rm -f usr/bin/*lto-dump*
# What debootstrap takes over from this machine.
rm -f etc/hostname etc/resolv.conf
echo localhost >etc/hostname
printf '127.0.0.1 localhost\n::1 localhost\n' >etc/hosts
: >etc/resolv.conf
: >etc/machine-id
cd /

tar --create --file "$work/out.tar" --directory "$work/root" --numeric-owner --sort=name --format=pax \
    --pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime --xattrs --xattrs-include='security.capability' .
cp "$work/out.tar" "$tar.new"
mv "$tar.new" "$tar"
deliver
