# Sourced by the scripts beside it: steps with their times, and the kernel and image that all of them need.
now() { echo "${EPOCHREALTIME/[.,]/}"; } # in microseconds
began=${EPOCHREALTIME/[.,]/}

# report NAME START prints how long ago START was.
report() {
    local took=$((${EPOCHREALTIME/[.,]/} - $2))
    printf 'spore: %-9s %4d.%02d s\n' "$1" $((took / 1000000)) $((took / 10000 % 100)) >&2
}

# step NAME CMD... runs CMD with its output kept aside, shown only when it fails.
step() {
    local name=$1 start=${EPOCHREALTIME/[.,]/} said
    shift
    if ! said=$("$@" 2>&1 </dev/null); then
        printf '%s\n' "$said" >&2
        echo "spore: $name failed: the output above says why" >&2
        return 1
    fi
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
