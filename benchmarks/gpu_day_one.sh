#!/usr/bin/env bash
# The first ten minutes on a machine with a GPU: checks, tests, measurements, and a training.
#
#     make install
#     bash benchmarks/gpu_day_one.sh [--dry-run] [FOLDER_OF_ARCHIVES]
#
# Run it from the root of the repository; FOLDER_OF_ARCHIVES is Source unless said otherwise, and is prepared in its
# subfolder `prepared`. All else is written below benchmarks/results/gpu/CARD, over what an earlier call left there.
# Each part has a time limit, all limits together are below ten minutes, and a part that fails stops none of the
# others. The exit code is 0 if all parts went well, 1 if some failed (the last lines say which), 2 if nothing could
# be tried. PATIENCE=3 makes every limit three times as long. VENV names the virtual environment, .venv by default.
set -euo pipefail

dry=
if [[ ${1:-} == --dry-run ]]; then
    dry=yes
    shift
fi
source=${1:-Source}
data=$source/prepared
bin=${VENV:-.venv}/bin
patience=${PATIENCE:-1}
sizes=(64 256)
failed=()
running=

give_up() {
    printf '%s\n' "$1" >&2
    exit 2
}

# What the card is called, fit for the name of a folder.
card_name() {
    local name
    name=$(nvidia-smi --query-gpu=name --format=csv,noheader | sed -n 1p) || return
    [[ -n $name ]] && tr -cs 'A-Za-z0-9\n' '-' <<<"$name"
}

# part FILE LIMIT COMMAND...: run COMMAND for at most LIMIT seconds; its output goes to FILE, its errors beside it.
part() {
    local file=$1 limit=$(($2 * patience)) name=${1%.*} code=0 started=$SECONDS
    shift 2
    if [[ $dry ]]; then
        printf 'timeout %d' "$limit"
        printf ' %q' "$@"
        printf ' > %q\n' "$out/$file"
        return
    fi
    printf '%-12s' "$name"
    timeout --kill-after=5 "$limit" "$@" >"$out/$file" 2>"$out/$name.log" &
    running=$!
    wait "$running" || code=$?
    running=
    if ((code == 0)); then
        printf 'done, %d s\n' $((SECONDS - started))
        return
    fi
    printf 'FAILED, %d s\n' $((SECONDS - started))
    if ((code == 124 || code == 137)); then
        failed+=("$name: out of time after $limit s; PATIENCE=3 gives three times that")
    else
        failed+=("$name: exit code $code; see $out/$file and $out/$name.log")
    fi
}

# The measurement that counts, at a batch size.
bench() {
    # Most of it goes into compiling, once for each kind of step.
    part "bench-$1.txt" 170 "$bin/hemafast" bench --data "$data" --model efficientnet_b0 --image-size 224 \
        --batch-size "$1" --device cuda --amp bf16 --compile on --rounds 3 --seconds 0.3 --no-peers \
        --json "$out/bench-$1.json" --plot "$out/bench-$1.png"
}

measure() {
    local size
    part nvidia-smi.txt 5 nvidia-smi
    part doctor.json 25 "$bin/hemafast" doctor --json --offline --device cuda --source "$source" --output "$out/runs"
    part tests.txt 55 "$bin/python" -m pytest -q tests/gpu -m 'gpu and not slow'
    part prepare.txt 45 "$bin/hemafast" prepare --source "$source"
    part smoke.txt 40 "$bin/hemafast" bench --quick --data "$data" --device cuda --compile off \
        --json "$out/smoke.json"
    for size in "${sizes[@]}"; do bench "$size"; done
    part train.txt 70 "$bin/hemafast" train --preset quick --data "$data" --output "$out/runs" --device cuda
    summarise
}

# What was measured, as shares of what the card could do by its data sheet.
summarise() {
    local size results=()
    for size in "${sizes[@]}"; do
        if [[ $dry || -f $out/bench-$size.json ]]; then results+=("$out/bench-$size.json"); fi
    done
    part summary.txt 15 "$bin/python" benchmarks/gpu_plan.py compare "${results[@]}"
}

if [[ $dry ]]; then
    out=benchmarks/results/gpu/CARD
    measure
    exit 0
fi

[[ -f benchmarks/gpu_plan.py ]] || give_up "Run this from the root of the repository."
[[ -x $bin/hemafast ]] || give_up "There is no $bin/hemafast. Run \`make install\` first."
card=$(card_name) || give_up "nvidia-smi names no card. This script is for a machine with one."
out=benchmarks/results/gpu/$card
mkdir -p "$out/runs"
rm -f "$out"/*.{json,log,png,txt}    # of an earlier call: nothing here may be older than the rest
printf '*\n' >"$out/runs/.gitignore" # weights are no results
trap '[[ -z $running ]] || kill "$running" 2>/dev/null; exit 130' INT TERM
measure

cat "$out/summary.txt"
printf '\nEverything is in %s.\n' "$out"
if ((${#failed[@]})); then
    printf 'FAILED %s\n' "${failed[@]}"
    exit 1
fi
printf 'All parts went well.\n'
