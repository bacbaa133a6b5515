#!/bin/sh
# Makes what the example needs in a folder: a Python environment with TextWorldExpress, and SmolLM2-135M-Instruct.
# setup.sh FOLDER. Needs Python 3.11 or newer with venv, and a network; about 600 MB. What is there already stays.
# TextWorldExpress runs on Java, which is installed by apt-get where it is missing and that can be done.
set -eu
[ $# -eq 1 ] || { echo "usage: setup.sh FOLDER" >&2; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
python=$1/venv/bin/python

if ! command -v java >/dev/null; then
  if command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
    apt-get update -q && apt-get install -q -y default-jre-headless
  else
    echo "setup.sh: install a Java runtime first (Debian's default-jre-headless, say)" >&2
    exit 1
  fi
fi

mkdir -p "$1"
[ -x "$python" ] || python3 -m venv "$1/venv"
"$python" -m pip install --quiet textworld-express==1.1.0 gguf==0.19.0 numpy==2.4.6
"$python" "$here/../../tests/real/smollm2.py" "$1/smollm2"
echo "ready: $python $here/main.py $1"
