#!/usr/bin/env bash
# On a machine with a GPU: the tests, the card's ceilings, decode and prefill. Runs what build.sh built; builds nothing.
# Restartable: a part whose result stands in the folder of results is not run again. Parts in order of worth, each with a
# limit of its own, all together below nine minutes. Usage: benches/gpu/ours.sh [folder of results]
set -u
cd "$(dirname "$0")/../.."
out=${1:-${OUT:-target/gpu/results}}
mkdir -p "$out"
bin=target/gpu
part() { # name, seconds, command...
  local name=$1 limit=$2
  shift 2
  [ -e "$out/$name.ok" ] && return
  if timeout "$limit" "$@" >"$out/$name.txt" 2>&1; then touch "$out/$name.ok"; else echo "$name: exit $?" >>"$out/$name.txt"; fi
}

nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader >"$out/card.txt" 2>&1
# A test that says "skipped" has shown nothing; the table counts those.
part tests_ops 90 "$bin/squire" backend:: --test-threads 4 --nocapture
part tests_model 60 "$bin/gpu_model" --test-threads 2 --nocapture
for model in 0.6B 1.7B 4B 8B 30B-A3B; do
  part "bench_$model" 55 "$bin/bench" --only "$model"
done
if command -v compute-sanitizer >/dev/null; then
  part memcheck 55 compute-sanitizer --tool memcheck --error-exitcode 9 "$bin/gpu_model" a_stop_token
  part racecheck 55 compute-sanitizer --tool racecheck --error-exitcode 9 "$bin/gpu_model" a_stop_token
fi

echo "== $(cat "$out/card.txt"), commit $(cat $bin/commit), $(date -u +%F)"
for name in tests_ops tests_model memcheck racecheck; do
  [ -e "$out/$name.txt" ] || continue
  printf '%-12s %s, %s skipped\n' "$name" "$(grep -E '^test result|ERROR SUMMARY|RACECHECK SUMMARY' "$out/$name.txt" | tail -n 1)" \
    "$(grep -c '^skipped' "$out/$name.txt")"
done
cat "$out"/bench_*.txt | grep -E '^(read|graph)' | sort -u | head -n 12
cat "$out"/bench_*.txt | grep -E '^(decode|prefill|sampler)'
