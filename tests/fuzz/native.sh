#!/usr/bin/env bash
# Runs every libFuzzer target of a build folder for some seconds each: native.sh BUILD SECONDS
set -euo pipefail
build=$1 seconds=$2
for target in kv_reencode quantize products; do
    corpus=$build/corpus/$target
    mkdir -p "$corpus"
    log=$build/$target.log
    if "$build/fuzz_$target" -max_total_time="$seconds" -timeout=10 -max_len=8192 \
        -print_final_stats=1 -artifact_prefix="$build/$target-" "$corpus" >"$log" 2>&1; then
        outcome="nothing found"
    else
        outcome=FOUND
    fi
    count=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
    printf '%-16s %10s inputs in %s s: %s\n' "$target" "${count:-0}" "$seconds" "$outcome"
    if [ "$outcome" = FOUND ]; then
        tail -n 40 "$log"
        failed=1
    fi
done
exit "${failed:-0}"
