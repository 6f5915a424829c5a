#!/usr/bin/env bash
# Installs a wheel into an empty environment in an empty folder, runs the demo there, removes it.
set -euo pipefail
wheel=$(realpath "$1")
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
cd "$place"
python3 -m venv venv
venv/bin/python -m pip install --quiet --upgrade "pip>=24"
venv/bin/python -m pip install --quiet "$wheel"
venv/bin/infer-os --version
venv/bin/infer-os demo
venv/bin/python - <<'PYTHON'
import pathlib
import sys

import infer_os
import infer_os.native

here = pathlib.Path(infer_os.__file__).resolve()
assert here.is_relative_to(pathlib.Path(sys.prefix).resolve()), f"imported from {here}"
for name in ("chat.html", "chat.css", "chat.js", "icon.svg"):
    assert (here.parent / "serve" / "page_files" / name).is_file(), f"the wheel lacks {name}"
PYTHON
venv/bin/python -m pip uninstall --quiet --yes infer-os
test ! -e venv/bin/infer-os
leftovers=$(find venv -path '*site-packages/infer_os*' -name '*.py' | head -n 3)
test -z "$leftovers" || { echo "left behind: $leftovers"; exit 1; }
echo "fresh install: ok"
