# Sourced by the scripts beside it: steps with their times, and the kernel and image that all of them need.
now() { date +%s%N; }
began=$(now)

# report NAME START prints how long ago START was.
report() { printf 'spore: %-9s %7.2f s\n' "$1" "$(awk "BEGIN { print ($(now) - $2) / 1e9 }")" >&2; }

# step NAME CMD... runs CMD with its output kept aside, shown only when it fails.
step() {
    local name=$1 start log
    shift
    start=$(now)
    log=$(mktemp)
    if ! "$@" >"$log" 2>&1 </dev/null; then
        cat "$log" >&2
        rm -f "$log"
        echo "spore: $name failed: the output above says why" >&2
        return 1
    fi
    rm -f "$log"
    report "$name" "$start"
}

# prepare makes the guest kernel and the default image, side by side: one needs the processors, the other
# mostly the network.
prepare() {
    local image status=0
    step "image" scripts/image.sh &
    image=$!
    step "kernel" guest/kernel/build.sh || status=$?
    wait "$image" || status=$?
    return "$status"
}
