#!/usr/bin/env bash
# Installs infer-os from a wheelhouse, with no network and no compiler, and runs it: on this processor,
# and on older ones that qemu-x86_64 imitates (Debian: qemu-user). All must write the same text.
set -euo pipefail
wheels=$(realpath "$1")
python=$(command -v python3)
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
cd "$place"
"$python" -m venv venv
# nothing is on the path that could compile, download or be found by accident
bare() { env -i PATH="$place/venv/bin" HOME="$place" CC=false CXX=false LC_ALL=C.UTF-8 "$@"; }
bare venv/bin/python -m pip install --quiet --no-index --find-links "$wheels" infer-os
bare venv/bin/infer-os --version
model=$(bare venv/bin/python -c "import infer_os.models.bundled as b; print(b.__path__[0])")/austen-6m
bare venv/bin/infer-os convert "$model" --type q8_0 -o q8.gguf
ask=(-m infer_os.entry generate q8.gguf -p "It is a truth" -n 24 --temperature 0 --threads 1)
bare venv/bin/python "${ask[@]}" >here.txt
kernels() { bare "$@" venv/bin/python - <<'PYTHON'
from pathlib import Path
import llama_cpp
from infer_os.native.backend import kernel_status
lines = Path("/proc/self/maps").read_text().split("\n")
files = {line.split()[-1] for line in lines if "libggml-cpu" in line}
(file,) = files
print("llama.cpp's kernels:", file.partition("/llama_cpp/lib/")[2], "| ours:", kernel_status(True).variant)
PYTHON
}
kernels
for cpu in ${CPUS-Nehalem Haswell}; do
    command -v qemu-x86_64 >/dev/null || { echo "no qemu-x86_64: older processors were not tried"; break; }
    qemu=("$(command -v qemu-x86_64)" -cpu "$cpu")
    bare "${qemu[@]}" venv/bin/python "${ask[@]}" >there.txt
    cmp here.txt there.txt
    echo "$cpu: $(kernels "${qemu[@]}")"
    bare "${qemu[@]}" venv/bin/python "${ask[@]}" --no-native >there.txt
    test -s there.txt
done
echo "wheelhouse: ok, $(ls "$wheels" | wc -l) wheels, $(du -shL "$wheels" | cut -f1)"
