# The part of reproduce.sh that carries OUT between machines that keep nothing: parts of a tar file in the folder STATE.
# It is read by reproduce.sh, whose `out` it uses.

part_bytes=$((15 << 20))
most_parts=7

# unpack: where OUT is empty, begin with STATE.
unpack() {
    if [ ! -e "${STATE:-}/state.tar.00" ] || [ -n "$(ls -A "$out" 2> /dev/null)" ]; then return; fi
    mkdir -p "$out"
    cat "$STATE"/state.tar.* | tar xf - -C "$out"
    echo "Unpacked $STATE into $out." >&2
}

# keep FILE ...: have those files of OUT packed that are there and have not been met, all or none, if there is room.
keep() {
    local file files=() size
    for file in "$@"; do
        if [ -e "$file" ] && [ -z "${met[$file]:-}" ]; then files+=("$file"); fi
        met[$file]=1
    done
    if [ ${#files[@]} = 0 ]; then return; fi
    size=$(tar cf - -- "${files[@]}" | wc -c)
    if [ "$size" -gt "$room" ]; then
        echo "STATE has no room for these $(((size >> 20) + 1)) MiB: ${files[*]}" >&2
        return
    fi
    room=$((room - size))
    kept+=("${files[@]}")
}

# keep_end RUN FILES: have the newest of its checkpoints packed that FILES names, and what a run needs beside it.
keep_end() {
    local ends=("$1"/checkpoints/$2)
    keep "$1"/{config.json,metrics.jsonl,deployment.json,latents.npz,generator.safetensors} \
        ${ends[@]:+"${ends[-1]}" "${ends[-1]%.safetensors}.json"}
}

has_bundle() { compgen -G "$1/*.dim" > /dev/null; }

# pack: write STATE.
pack() (
    if [ -z "${STATE:-}" ]; then return; fi
    mkdir -p "$STATE"
    state=$(cd "$STATE" && pwd)
    cd "$out"
    shopt -s nullglob
    declare -A met=()
    room=$((most_parts * part_bytes)) kept=() ours=() rivals=()
    for run in */; do
        run=${run%/}
        case $run in
            results | done | failed | eval-* | ablation-* | *-paper-timing) ;;
            *-paper | *-stage1 | *-paper-loss | *-unmatched) rivals+=("$run") ;;
            *) ours+=("$run") ;;
        esac
    done
    keep results done failed
    for folder in eval-*; do keep "$folder"; done
    for run in "${ours[@]}" "${rivals[@]}"; do keep "$run"/*.dim; done
    keep *.seconds *.options
    for run in "${ours[@]}" "${rivals[@]}"; do
        if has_bundle "$run"; then continue; fi
        keep_end "$run" "stage*.safetensors"
        for file in "$run"/{pool,teacher}.* "$run"/checkpoints/{teacher,latents,spread,pool}*; do keep "$file"; done
    done
    for run in "${ours[@]}"; do # what the rivals begin with
        if has_bundle "$run-stage1" && has_bundle "$run-paper-loss" && has_bundle "$run-unmatched"; then continue; fi
        keep_end "$run" "stage1-*.safetensors"
        keep "$run"/pool.*
    done
    rm -f "$state"/new.state.tar.*
    tar cf - -- "${kept[@]}" | split -b "$part_bytes" -d -a 2 - "$state/new.state.tar."
    rm -f "$state"/state.tar.*
    for file in "$state"/new.state.tar.*; do mv "$file" "$state/${file##*/new.}"; done
)
