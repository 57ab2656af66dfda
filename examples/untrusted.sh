#!/bin/sh
# A program nobody has vetted: it looks around, tries to do harm, and reports. It starts no other program.
# untrusted.py does the same in Python.

# field NAME FILE sets value to the first word after NAME in FILE.
field() {
    value=
    while read -r name value rest; do
        if [ "$name" = "$1" ]; then return 0; fi
    done <"$2"
    return 1
}

# attempt WHAT COMMAND... says whether the command came through.
attempt() {
    what=$1
    shift
    if { "$@"; } 2>/dev/null; then echo "$what: it worked!"; else echo "$what: refused"; fi
}

overwrite() { true >>"$1"; } # opens it, and writes nothing: who runs this outside a sandbox loses nothing
peek() { read -r line <"$1"; }
route() { { read -r header && read -r line; } </proc/net/route; }

read -r host </proc/sys/kernel/hostname
read -r kernel </proc/sys/kernel/osrelease
field Uid: /proc/self/status
echo "hello from $host kernel $kernel as uid $value"
set -- /proc/[0-9]*
echo "processes in sight: $#"
interfaces=
while IFS=' :' read -r name rest; do
    case $rest in *'|'*) ;; *) interfaces="$interfaces $name" ;; esac
done </proc/net/dev
echo "network interfaces in sight:$interfaces"
attempt "overwrite /bin/sh" overwrite /bin/sh
attempt "read the shadow file" peek /etc/shadow
attempt "write to a disk" overwrite /dev/vda
attempt "read the kernel's log" peek /dev/kmsg
attempt "find a way out to a network" route
echo "the answer is $((6 * 7))"
