#!/usr/bin/env bash
# On the same card, in the same call as ours.sh: transformers with a static cache and torch.compile (CUDA graphs), on the
# same shapes with random weights. Needs torch and transformers there. Restartable, below nine minutes.
set -u
cd "$(dirname "$0")/../.."
out=${1:-${OUT:-target/gpu/results}}
mkdir -p "$out"
for model in 0.6B 1.7B 4B 8B; do
  [ -e "$out/peer_$model.ok" ] && continue
  if timeout 130 python3 benches/gpu/peers.py "$model" >"$out/peer_$model.txt" 2>"$out/peer_$model.err"; then
    touch "$out/peer_$model.ok"
  else
    echo "peer $model: exit $?, $(tail -n 1 "$out/peer_$model.err")" >>"$out/peer_$model.txt"
  fi
done
cat "$out"/peer_*.txt
