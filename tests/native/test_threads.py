"""Our C++ ends no process where memory or threads run out: it says so, or does with fewer."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import Converter

_CALLS = """
import ctypes, json, resource, sys
import numpy as np
from infer_os.native.abi import inferos_kv_part
from infer_os.native.cpu import multiply_rate, read_bandwidth
from infer_os.native.errors import EvaluateError, NativeError, QuantizeError, StateError
from infer_os.native.scoring import score_rows
from infer_os.native.ggml_types import ggml_type_named
from infer_os.native.library import load_library
from infer_os.native.quantize import quantize_rows

rows = np.random.default_rng(1).standard_normal((4096, 256)).astype(np.float32)
half = rows.astype(np.float16)
back = np.empty_like(rows)
targets = np.arange(4096, dtype=np.int32) % 256
part = inferos_kv_part(half.ctypes.data, back.ctypes.data, 4096, 256, 1, 0, 0, 64)

def score():
    return score_rows([rows], targets, 8)["reference_log_prob"].tobytes()

def reencode():
    back[:] = 0
    status = load_library().inferos_kv_reencode(ctypes.byref(part), 1, 8)
    if status:
        raise NativeError(str(status))
    return back.tobytes()

def quantize(kind):
    return quantize_rows(rows, ggml_type_named(kind), n_threads=8)[0].tobytes()

def rate(probe):
    assert probe() > 0
    return b""

CALLS = {
    "score": score, "reencode": reencode,
    "q8_0": lambda: quantize("q8_0"), "q4_k": lambda: quantize("q4_k"),
    "bandwidth": lambda: rate(lambda: read_bandwidth(4, n_bytes=1 << 20, seconds=0.001)),
    "multiply": lambda: rate(lambda: multiply_rate(4, seconds=0.001)),
}
expected = {name: call() for name, call in CALLS.items() if name != "multiply"}
def outcome(name):
    # the very result of a quiet machine, or an error
    try:
        got = CALLS[name]()
    except NativeError:
        return "error"
    return "right" if got == expected.get(name, b"") else "wrong"
"""

_NO_THREADS = """
limit = int(open("/proc/self/statm").read().split()[0]) * 4096 + (4 << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
print(json.dumps({name: [outcome(name)] for name in CALLS}))
"""

_NO_MEMORY = """
fail_after = ctypes.CDLL(None).fail_after
fail_after.argtypes = [ctypes.c_long]
found = {name: [] for name in CALLS}
for name in CALLS:
    for n in range(40):
        fail_after(n)
        found[name].append(outcome(name))
        fail_after(-1)
    found[name].append(outcome(name))
print(json.dumps(found))
"""


def run(code: str, **environment: str) -> dict[str, list[str]]:
    done = subprocess.run(
        [sys.executable, "-c", _CALLS + code], capture_output=True, text=True, timeout=120,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1", **environment}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, list[str]] = json.loads(done.stdout)
    return found


def test_without_threads_the_caller_does_it_all() -> None:
    # the stack of a thread has no room in the address space
    found = run(_NO_THREADS)
    for name in ("score", "reencode", "q8_0", "q4_k", "bandwidth"):
        assert found[name][0] in ("right", "error"), name
    assert found["score"] == found["reencode"] == ["right"]


@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")
def test_wherever_memory_runs_out_there_is_a_result_or_an_error(tmp_path: Path) -> None:
    library = tmp_path / "failing_new.so"
    source = Path(__file__).with_name("failing_new.cpp")
    command = ["c++", "-O1", "-shared", "-fPIC", "-std=c++17", str(source), "-o", str(library)]
    subprocess.run(command, check=True)
    found = run(_NO_MEMORY, LD_PRELOAD=str(library))
    for name, outcomes in found.items():
        assert "wrong" not in outcomes, (name, outcomes)
        assert outcomes[-1] == "right" or name == "multiply", name
    for name in ("reencode", "q8_0", "q4_k"):
        assert "error" in found[name], name  # it did fail


_CONTEXT = """
import resource, sys
from pathlib import Path
from infer_os.native.context import Context, ContextParams
from infer_os.native.errors import ModelLoadError
from infer_os.native.model import LlamaModel
with LlamaModel(Path(sys.argv[1])) as model:
    with Context(model, ContextParams(64, 2)) as context:
        context.decode([1, 2], 0)
    resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
    try:
        Context(model, ContextParams(64, 300))
    except ModelLoadError as error:
        print(error)
"""


def test_more_threads_than_the_system_gives(converted: Converter) -> None:
    """OpenMP would end the process."""
    done = subprocess.run(
        [sys.executable, "-c", _CONTEXT, str(converted())], capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("300 threads: the system allows this process ")
