#!/usr/bin/env bash
# Builds what ours.sh runs, into target/gpu: needs nvcc here, and nothing but a driver where it runs.
set -euo pipefail
cd "$(dirname "$0")/../.."
mkdir -p target/gpu
built() { # the test or bench executable that cargo names for a target; the program `squire` shares the library's name
  python3 -c '
import json, sys
for line in sys.stdin:
    m = json.loads(line)
    if m.get("executable") and m["target"]["name"] == sys.argv[1] and m["target"]["kind"] != ["bin"]:
        print(m["executable"])' "$1" | tail -n 1
}
cargo test --release --features cuda --lib --test gpu_model --no-run --message-format=json >target/gpu/tests.json
cargo bench --features cuda --bench gpu --no-run --message-format=json >target/gpu/bench.json
for name in squire gpu_model; do
  cp "$(built "$name" <target/gpu/tests.json)" "target/gpu/$name"
done
cp "$(built gpu <target/gpu/bench.json)" target/gpu/bench
strip target/gpu/{squire,gpu_model,bench}
git rev-parse HEAD >target/gpu/commit
ls -l target/gpu
