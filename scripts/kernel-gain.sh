#!/usr/bin/env bash
# What each cut of guest/kernel/spore.config and each of guest/kernel/patches gains: switches one group of options on again, or leaves
# a patch out, builds, and compares with the guest kernel in instructions from the kernel's first to the start of init, and in size. Prints
# a Markdown table; what is done meanwhile goes to stderr. docs/guest-kernel.md says what the numbers mean.
#
#   scripts/kernel-gain.sh DIR [GROUP...]    all groups if none is named; DIR, 2 GB, is kept, and what is in it not built again
#   scripts/kernel-gain.sh DIR profile       the functions of the present kernel with most instructions instead
#
# Needs what guest/kernel/build.sh needs, and qemu-system-x86_64, gdb and cpio; no KVM. A group with options or a patch is built, which
# takes minutes. JOBS (2) is how many compilers run side by side. After a change of the kernel, use another DIR.
set -euo pipefail
cd "$(dirname "$0")/.."
dir=$(mkdir -p "${1:?a directory to build in}" && cd "$1" && pwd)
shift
jobs=${JOBS:-2}
export KBUILD_BUILD_TIMESTAMP=1970-01-01 KBUILD_BUILD_USER=spore KBUILD_BUILD_HOST=spore KBUILD_BUILD_VERSION=1

# Groups: name|what|options switched on|word left out of the command line|functions that return at once|patch left out. What options
# select or bring along by default comes too; a group without options or a patch is the present kernel.
groups='
acpi|ACPI drivers of hardware: processor, thermal, fan, battery, container|ACPI_PROCESSOR ACPI_THERMAL ACPI_FAN ACPI_CONTAINER ACPI_AC ACPI_BATTERY ACPI_SPCR_TABLE ACPI_TABLE_UPGRADE X86_PM_TIMER THERMAL
input|Input: keyboards, mice, i8042, the ACPI button|INPUT SERIO_I8042 KEYBOARD_ATKBD MOUSE_PS2 ACPI_BUTTON
vt|Virtual consoles, with all of input|VT VT_CONSOLE VGA_CONSOLE
ptys|256 old-style ptys|LEGACY_PTYS
cpufreq|Frequency scaling and idle governors, with the ACPI drivers that they bring|CPU_FREQ X86_INTEL_PSTATE X86_ACPI_CPUFREQ CPU_IDLE CPU_IDLE_GOV_MENU CPU_IDLE_GOV_LADDER SCHED_MC SCHED_CLUSTER SCHED_MC_PRIO
tables|MP tables, DMI, MTRR, microcode, machine checks|X86_MPPARSE DMI MTRR MICROCODE MICROCODE_INTEL MICROCODE_AMD X86_MCE
5level|Five-level page tables|X86_5LEVEL
suspend|Suspend and hibernation, with swap|SUSPEND HIBERNATION SWAP
swap|Swap|SWAP
storage|Partitions, BTT, device DAX, I/O schedulers|MSDOS_PARTITION EFI_PARTITION BTT NVDIMM_DAX MQ_IOSCHED_DEADLINE MQ_IOSCHED_KYBER BLOCK_LEGACY_AUTOLOAD
net|Network: SIT, vsock loopback and list, WLAN, Ethernet, PTP|IPV6_SIT VSOCKETS_DIAG VSOCKETS_LOOPBACK WIRELESS WLAN ETHERNET PTP_1588_CLOCK NETWORK_FILESYSTEMS
kallsyms|Kallsyms, and file names in warnings|KALLSYMS DEBUG_BUGVERBOSE
debug|Debugging in the allocator and the scheduler|SLUB_DEBUG SCHED_DEBUG
decompress|Decompressors for the initramfs and EROFS|RD_GZIP RD_BZIP2 RD_LZMA RD_XZ RD_LZO RD_LZ4 RD_ZSTD EROFS_FS_ZIP
modules|Loadable modules|MODULES MODULE_UNLOAD
mitigations|Mitigations, compiled in|CPU_MITIGATIONS RETPOLINE RETHUNK PAGE_TABLE_ISOLATION|mitigations=off
smp|No `noreplace-smp`||noreplace-smp
quiet|No `quiet`||quiet
param_sysfs|Without `param_sysfs_init`|||param_sysfs_init
poison|Poison in freed initial memory||||0002-no-poison-in-freed-init-memory
ioapic|The I/O APIC saved and restored at the start||||0003-ioapic-is-empty
cpuid|CPUID asked again and again||||0004-cpuid-once
slabs|`/sys/kernel/slab`||||0005-no-sysfs-for-slabs
uevents|Uevents before init||||0006-no-uevents-before-init
params|Each parameter of a module by itself||||0007-parameters-of-a-module-at-once
entries|Clear entries of page tables looked up||||0008-clear-entries-are-clear
percpu|Areas of processors by blocks of 2 MB||||0009-percpu-areas-by-the-page
'

say() { echo "kernel-gain: $*" >&2; }
fail() { say "$*"; exit 1; }

# build OBJECTS OPTION... makes vmlinux of the guest kernel's configuration and these options in OBJECTS.
build() {
    local objects=$1 option log=$1/build.log
    shift
    rm -f "$objects/vmlinux" "$objects/vmlinux.stripped"
    cp "$config" "$objects/.config"
    for option in "$@"; do "$dir/source/scripts/config" --file "$objects/.config" -e "$option"; done
    timeout 120 make -s -C "$dir/source" O="$objects" olddefconfig >"$log" 2>&1 </dev/null || fail "olddefconfig failed: $log"
    for option in "$@"; do
        grep -q "^CONFIG_$option=y" "$objects/.config" || fail "$option did not survive olddefconfig"
    done
    timeout 3600 nice -n 19 make -s -j"$jobs" -C "$dir/source" O="$objects" vmlinux >>"$log" 2>&1 </dev/null ||
        { tail -n 20 "$log" >&2; fail "build failed: $log"; }
    strip -g -o "$objects/vmlinux.stripped" "$objects/vmlinux"
}

# boot OBJECTS IMAGE WORDS [FUNCTION...] prints how many instructions the virtual machine has executed at the kernel's (or the
# decompressor's) first, and from there to the start of init. QEMU counts, so host and load do not matter. As under KVM
# nothing is calibrated: gdb says the frequencies of TSC and timer, both 1 GHz, where the kernel would measure them. Nothing
# else may stop the machine once it has timers: its clock then jumps.
boot() {
    local objects=$1 image=$2 words=$3 function skip=()
    for function in "${@:4}"; do skip+=(-ex "set {int}&$function = 0xc3c031"); done # xor eax, eax; ret
    timeout -k 5 200 gdb -nx -batch "$objects/vmlinux.stripped" -ex 'set confirm off' -ex 'set remotetimeout 60' \
        -ex "target remote | exec timeout -k 5 190 qemu-system-x86_64 -nodefaults -no-user-config -display none -gdb stdio -S \
            -M microvm,acpi=on,pit=off,pic=off,isa-serial=off,auto-kernel-cmdline=off -cpu max,erms=off -m 128 -seed 1 \
            -device virtio-serial-device -device virtconsole -device virtio-balloon-device,free-page-reporting=on \
            -object rng-builtin,id=rng -device virtio-rng-device,rng=rng -rtc base=2026-01-01,clock=vm \
            ${trace:+-singlestep -d exec,nochain -D '$trace'} -accel tcg -icount shift=0,sleep=off,rr=record,rrfile=/dev/null -kernel $image \
            -initrd $dir/initramfs.cpio -append '$words'" \
        -ex 'hbreak *((long)&pvh_start_xen - 0xffffffff80000000)' -ex 'hbreak *0x100000' -ex continue \
        -ex 'monitor info replay' -ex delete \
        -ex 'hbreak *&native_calibrate_cpu_early' -ex continue -ex 'set $rax = 1000000' \
        -ex 'set $rip = *(long *)$rsp' -ex 'set $rsp = $rsp + 8' -ex 'set {int}&lapic_timer_period = 10000000' \
        "${skip[@]}" -ex delete \
        -ex 'hbreak *&run_init_process' -ex continue -ex 'monitor info replay' -ex kill >"$objects/boot.log" 2>&1 </dev/null || true
    awk -v file="$objects/boot.log" '/instruction count = / { n[++seen] = $NF }
        END { if (seen != 2) { print "no two counts in " file >"/dev/stderr"; exit 1 } print n[1], n[2] - n[1] }' "$objects/boot.log"
}

# size_of OBJECTS prints the bytes of all functions and objects (sections are padded to 2 MB), and of vmlinux.
size_of() {
    echo "$(nm -t d -S "$1/vmlinux.stripped" | awk 'NF == 4 { n += $2 } END { printf "%d", n }') $(stat -c %s "$1/vmlinux.stripped")"
}

# row WHAT OBJECTS IMAGE WORDS [FUNCTION...] measures three boots, which must agree, and prints a row of the table: the difference to
# the present kernel.
row() {
    local what=$1 objects=$2 counts i
    for i in 1 2 3; do counts[i]=$(boot "$objects" "${@:3}"); done
    [ "${counts[1]}" = "${counts[2]}" ] && [ "${counts[2]}" = "${counts[3]}" ] || fail "$what: boots differ: ${counts[*]}"
    echo "$what|${counts[1]#* }|$(size_of "$objects" | tr ' ' '|')" | awk -F'|' -v b="$base" '{
        split(b, p, " ")
        if (!p[1]) printf "| %s | %.3f M | | %.2f MB | %.2f MB |\n", $1, $2 / 1e6, $3 / 1e6, $4 / 1e6
        else printf "| %s | %+.3f M | %+.1f %% | %+.0f kB | %+.0f kB |\n", $1, ($2 - p[1]) / 1e6, ($2 - p[1]) * 100 / p[1], ($3 - p[2]) / 1e3, ($4 - p[3]) / 1e3
    }'
}

# profile prints in which functions a boot of the present kernel has most of its instructions. QEMU tells each one that it executes.
profile() {
    local trace=$dir/trace counts=$dir/counts
    rm -f "$trace" && mkfifo "$trace"
    timeout 250 awk -F'[][/]' '/^Trace/ { n[$3]++ } END { for (a in n) print a, 1, n[a] }' "$trace" >"$counts" &
    boot "$dir/present" "$vmlinux" "$words" >/dev/null
    wait
    rm "$trace"
    { nm "$dir/present/vmlinux.stripped" | awk 'NF == 3 && $2 ~ /[tTwW]/ { print $1, 0, $3 }'; cat "$counts"; } | sort |
        awk '!$2 { f = $3; next } { n[f] += $3; all += $3 } END { for (f in n) printf "%.1f%% %d %s\n", 100 * n[f] / all, n[f], f ? f : "before paging" }' |
        sort -rn | head -n 40
}

# prepare builds the present kernel, once, and keeps its tree in $dir/base: what the groups start from. All are built in
# $dir/objects, as the kernel's own tools are built again in another place, and then everything is.
prepare() {
    local p
    restore
    [ ! -e "$dir/base" ] || return 0
    say "the present kernel"
    rm -rf "$dir/source" "$dir/objects"
    mkdir -p "$dir/source" "$dir/objects"
    tar -xf "$(sed -n 's/^source=//p' guest/kernel/build.sh)" -C "$dir/source" --strip-components=1
    for p in "$PWD"/guest/kernel/patches/*.patch; do patch -s -d "$dir/source" -p1 <"$p"; done
    build "$dir/objects"
    cmp <(nm "$dir/objects/vmlinux.stripped") <(nm "$vmlinux") || # the banners differ by a build number
        fail "what is built here is not the guest kernel of build.sh: another compiler?"
    mv "$dir/objects" "$dir/base"
}

# without PATCH builds like build, in $dir/objects, from a source without it. The files come back with their times, so that what they are part
# of is not built again for the next; after an interruption too, by the next run.
without() {
    local patch=$PWD/guest/kernel/patches/$1.patch files
    files=$(sed -nE 's#^\+\+\+ b/([^[:space:]]+).*#\1#p' "$patch")
    # shellcheck disable=SC2086 # files are words
    tar -C "$dir/source" -cf "$dir/patched.new" $files
    mv "$dir/patched.new" "$dir/patched.tar"
    patch -s -R -d "$dir/source" -p1 <"$patch"
    build "$dir/objects"
    restore
}

restore() {
    [ -e "$dir/patched.tar" ] || return 0
    tar -C "$dir/source" -xf "$dir/patched.tar"
    rm "$dir/patched.tar"
}

vmlinux=$(guest/kernel/build.sh)
config=${vmlinux%/*}/config
words=$(sed -nE 's/^\t\{"([^"]+)", .*/\1/p' guest/cmdline.go | paste -sd ' ')
mkdir -p "$dir/tree" "$dir/present" && cp "$vmlinux" "$dir/present/vmlinux.stripped"
printf '#!/init\n' >"$dir/tree/init" # found by the kernel, never run
chmod +x "$dir/tree/init"
(cd "$dir/tree" && find . | cpio -o -H newc --quiet) >"$dir/initramfs.cpio"

if [ "$*" = profile ]; then profile; exit; fi
echo "| Switched on again, or left out | Instructions | | code and data | vmlinux |"
echo "|---|---|---|---|---|"
base=
row "The present kernel" "$dir/present" "$vmlinux" "$words"
base="$(boot "$dir/present" "$vmlinux" "$words" | cut -d ' ' -f 2) $(size_of "$dir/present")"
while IFS='|' read -r name what options word skipped patch; do
    case " ${*:-$name} " in *" $name "*) ;; *) continue ;; esac
    objects=$dir/present
    if [ -n "$options$patch" ]; then
        prepare
        say "$name"
        objects=$dir/$name
        if [ ! -e "$objects/vmlinux.stripped" ]; then
            rm -rf "$dir/objects" && cp -a "$dir/base" "$dir/objects"
            # shellcheck disable=SC2086 # options are words
            if [ -n "$patch" ]; then without "$patch"; else build "$dir/objects" $options; fi
            mkdir -p "$objects" && mv "$dir/objects/vmlinux.stripped" "$objects/"
        fi
    fi
    # shellcheck disable=SC2086 # functions are words
    row "$what" "$objects" "$objects/vmlinux.stripped" "$(sed "s/\(^\| \)$word\b//" <<<"$words")" $skipped
done < <(grep . <<<"$groups")
case " ${*:-bzimage} " in *" bzimage "*) row "As a bzImage, LZ4" "$dir/present" "${vmlinux%/*}/bzImage" "$words" ;; esac
