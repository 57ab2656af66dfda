#!/usr/bin/env bash
# Makes SANDBOXES sandboxes (200) on one network, by forks of one, AT_ONCE (20) of them at a time; each has to have an address of its own and to
# reach the first. It removes them, and looks for what is left. It is run by hand, where guests run: scripts/many.sh, or on the
# emulated host 'bin/spore host run -- scripts/many.sh'.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH=$PWD/bin:$PATH SPORE_NATIVE=1
image=${IMAGE:-debian:12} count=${SANDBOXES:-200} at_once=${AT_ONCE:-20} network=internal:many
SPORE_STATE_DIR=$(mktemp -d)
export SPORE_STATE_DIR
trap 'spore ls -aq | xargs -r spore rm -f >/dev/null 2>&1 || true; rm -rf "$SPORE_STATE_DIR"' EXIT
# there lists what a network leaves behind when it is not taken away: interfaces, namespaces, rules, addresses given out, mounts.
there() {
    ls /sys/class/net
    ls /run/netns /var/run/netns 2>/dev/null || true
    nft list tables 2>/dev/null || true
    iptables-save 2>/dev/null | grep -v '^#' || true
    find "$SPORE_STATE_DIR" /var/lib/cni -path '*cni*' -type f ! -name lock ! -name last_reserved_ip.0 2>/dev/null | sort || true
    awk '{print $5}' /proc/self/mountinfo
    pgrep -x spore-vmm || true
}
seconds() { awk "BEGIN { printf \"%.1f\", ($(date +%s%N) - $1) / 1e9 }"; }

spore run --network $network "$image" true # leaves the template
spore network rm $network >/dev/null
there >"$SPORE_STATE_DIR/before"
t=$(date +%s%N)
spore run -d --name first --timeout 2h --network $network -u 0 "$image" sh -c 'cd /tmp && exec python3 -m http.server 80' >/dev/null
addresses() { sed -nE 's|^ *"([0-9.]+)/[0-9]+",?$|\1|p'; } # of what inspect says
address=$(spore inspect first | addresses)
tries=0
until spore exec first bash -c "exec 3<>/dev/tcp/$address/80" 2>/dev/null; do
    [ $((tries += 1)) -lt 60 ] || { echo "the first does not serve" >&2; exit 1; }
    sleep 1
done
made=1 failed=0 reached=0 peak=0 twice=0
while [ "$made" -lt "$count" ]; do
    n=$((count - made < at_once ? count - made : at_once))
    spore fork -n "$n" first >"$SPORE_STATE_DIR/copies" || true
    alive=$(wc -l <"$SPORE_STATE_DIR/copies")
    failed=$((failed + n - alive)) made=$((made + n)) peak=$((alive > peak ? alive : peak))
    while read -r id; do
        spore exec "$id" bash -c "exec 3<>/dev/tcp/$address/80" && reached=$((reached + 1))
    done <"$SPORE_STATE_DIR/copies"
    twice=$((twice + $(xargs -r spore inspect <"$SPORE_STATE_DIR/copies" | addresses | sort | uniq -d | wc -l)))
    xargs -r spore rm -f <"$SPORE_STATE_DIR/copies" >/dev/null
done
spore rm -f first >/dev/null
spore network rm $network >/dev/null
echo "$made made and removed, at most $((peak + 1)) at once, in $(seconds "$t") s: $failed did not run, $reached of $((made - 1)) reached the first, $twice addresses were given twice"
there >"$SPORE_STATE_DIR/after"
left=$(comm -13 <(sort "$SPORE_STATE_DIR/before") <(sort "$SPORE_STATE_DIR/after"))
echo "left: ${left:-nothing}"
[ "$reached" = "$((made - 1))" ] && [ "$twice" = 0 ] && [ -z "$left" ]
