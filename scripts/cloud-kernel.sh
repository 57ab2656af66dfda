#!/usr/bin/env bash
# Unpacks Debian's cloud kernel into DIR and makes an initramfs with the modules that a guest of QEMU's microvm needs and
# the agent. Prints the directory with vmlinuz and initramfs.cpio.
set -euo pipefail
dir=$1
here=$(cd "$(dirname "$0")/.." && pwd)
out=$dir/cloud
mkdir -p "$out"
if [ ! -e "$out/vmlinuz" ]; then
    package=$(apt-cache depends linux-image-cloud-amd64 | sed -nE 's/^ *Depends: (linux-image-.*)$/\1/p' | head -n 1)
    work=$(mktemp -d "$dir/work.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    (cd "$work" && apt-get download -q "$package" >/dev/null 2>&1 && dpkg-deb -x ./*.deb root)
    rm -rf "$out/modules"
    mkdir -p "$out/modules"
    version=$(basename "$work"/root/lib/modules/*)
    depmod -b "$work/root" "$version"
    for m in virtio_mmio vmw_vsock_virtio_transport; do
        modprobe -d "$work/root" -S "$version" --show-depends "$m" | awk '$1 == "insmod" { print $2 }'
    done | awk '!seen[$0]++' | while read -r file; do
        n=$(ls "$out/modules" | wc -l)
        cp "$file" "$out/modules/$(printf %02d "$n")-$(basename "$file")"
    done
    cp "$work"/root/boot/vmlinuz-* "$out/vmlinuz"
fi
tree=$(mktemp -d "$dir/tree.XXXXXX")
trap 'rm -rf "$tree" "${work:-}"' EXIT
mkdir -p "$tree"/{bin,dev,proc,sys,lower,upper,newroot,modules}
cp /bin/busybox "$tree/bin/busybox"
cp "$here/bin/spore-agent" "$tree/agent"
cp "$out"/modules/* "$tree/modules/"
cat >"$tree/init" <<'I'
#!/bin/busybox sh
for m in /modules/*; do /bin/busybox insmod $m; done
exec /agent
I
chmod +x "$tree/init"
mknod "$tree/dev/console" c 5 1
(cd "$tree" && find . | cpio -o -H newc --quiet) >"$out/initramfs.cpio"
echo "$out"
