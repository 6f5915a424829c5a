"""The kernels' team of threads: none is left behind, a child of fork() makes its own, and bits do
not depend on what other programs do."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from helpers import BUNDLED, Converter

from infer_os.native.backend import start_kernels

pytestmark = [
    pytest.mark.skipif(
        not start_kernels().in_use, reason=f"our kernels do not run: {start_kernels().reason}"
    ),
    pytest.mark.skipif(sys.platform != "linux", reason="/proc counts threads"),
]

_HEAD = """
import json, os, sys, threading, time
from pathlib import Path
import numpy as np
from infer_os.native.context import Context, ContextParams
from infer_os.native.model import LlamaModel

def n_threads():
    return len(os.listdir("/proc/self/task"))

def logits(model, n_threads=2, tokens=(5, 6, 7, 8, 9)):
    with Context(model, ContextParams(64, n_threads, n_outputs_max=8)) as context:
        rows = []
        for position, token in enumerate(tokens):
            context.decode([token], position, outputs=1)
            rows.append(context.logits_rows(1).copy())
        return np.concatenate(rows)

model = LlamaModel(Path(sys.argv[1]), native=True)
"""


def outcome(script: str, path: object) -> dict[str, object]:
    """What a process of its own prints."""
    done = subprocess.run(
        [sys.executable, "-c", _HEAD + script, str(path)],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout)
    return found


def test_workers_end_with_the_thread_that_called_them(converted: Converter) -> None:
    found = outcome(
        """
before = n_threads()
inside = []
def work():
    logits(model, 3)
    inside.append(n_threads())
thread = threading.Thread(target=work)
thread.start(); thread.join()
deadline = time.monotonic() + 10
while n_threads() > before and time.monotonic() < deadline:
    time.sleep(0.01)
print(json.dumps({"before": before, "inside": inside[0], "after": n_threads()}))
""",
        converted(BUNDLED[0], "q8_0"),
    )
    assert found["inside"] == found["before"] + 3  # type: ignore[operator]  # the thread, 2 workers
    assert found["after"] == found["before"]


def test_a_child_of_fork_has_a_team_of_its_own(converted: Converter) -> None:
    found = outcome(
        """
wanted = logits(model)
read, write = os.pipe()
child = os.fork()
if child == 0:
    same = np.array_equal(logits(model), wanted)
    os.write(write, json.dumps([bool(same), n_threads()]).encode())
    os._exit(0)
_, status = os.waitpid(child, 0)
same, threads = json.loads(os.read(read, 100))
again = np.array_equal(logits(model), wanted)
print(json.dumps({"status": status, "same": same, "threads": threads, "again": bool(again)}))
""",
        converted(BUNDLED[0], "q8_0"),
    )
    assert found["status"] == 0 and found["same"] and found["again"]
    assert found["threads"] == 2


def test_a_child_that_ends_does_not_wait_for_its_parents_threads(converted: Converter) -> None:
    found = outcome(
        """
logits(model)
child = os.fork()
if child == 0:
    sys.exit(0)  # runs destructors, unlike os._exit
deadline = time.monotonic() + 30
status = None
while status is None and time.monotonic() < deadline:
    pid, ended = os.waitpid(child, os.WNOHANG)
    status = ended if pid else None
    time.sleep(0.01)
print(json.dumps({"status": status}))
""",
        converted(BUNDLED[0], "q8_0"),
    )
    assert found["status"] == 0


def test_where_no_thread_can_be_had_the_caller_computes_alone(converted: Converter) -> None:
    found = outcome(
        """
import resource
from infer_os.native import new_context
wanted = logits(model, 1)
new_context.possible_threads = lambda n: n  # the check that would say so before
def work(found=[]):
    # stacks of threads are taken from the address space
    page = os.sysconf("SC_PAGE_SIZE")
    size = int(Path("/proc/self/statm").read_text().split()[0]) * page
    resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
    resource.setrlimit(resource.RLIMIT_AS, (size + (48 << 20), resource.RLIM_INFINITY))
    return logits(model, 64)
got = work()
print(json.dumps({"same": bool(np.array_equal(got, wanted)), "threads": n_threads()}))
""",
        converted(BUNDLED[0], "q8_0"),
    )
    assert found["same"]
    assert found["threads"] < 64  # type: ignore[operator]


@contextmanager
def busy_programs(n: int) -> Iterator[None]:
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(n)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def test_the_share_of_steps_without_a_thread_is_a_share(converted: Converter) -> None:
    script = """
from infer_os.native.backend import left_out
before = left_out()
logits(model, 2)
print(json.dumps({"before": before, "after": left_out()}))
"""
    found = outcome(script, converted(BUNDLED[0], "q8_0"))
    assert found["before"] == 0
    assert 0 <= found["after"] <= 1  # type: ignore[operator]


def test_bits_do_not_depend_on_threads_or_on_other_programs(converted: Converter) -> None:
    script = """
import hashlib
tokens = [(7 * i) % 200 + 3 for i in range(40)]
found = [hashlib.sha256(logits(model, n, tokens).tobytes()).hexdigest() for n in (1, 2, 3, 5) * 3]
print(json.dumps({"digests": sorted(set(found))}))
"""
    path = converted(BUNDLED[0], "q4_0")
    quiet = outcome(script, path)
    with busy_programs(3):
        busy = outcome(script, path)
    assert quiet == busy
    assert len(quiet["digests"]) == 1  # type: ignore[arg-type]
